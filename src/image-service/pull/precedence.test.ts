import assert from 'node:assert/strict'
import { it, type TestContext } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { Precedence, type Turn } from './precedence.ts'

const signal = new AbortController().signal

/** Whether it may go on. */
function coming(transfer: Turn, stop = signal): { readonly came: () => Promise<boolean>; readonly end: Promise<void> } {
  let came = false
  const end = transfer.come(stop).then(() => { came = true })
  return { end, came: async () => (await turn(), came) }
}

function fixture(t: TestContext): Precedence {
  t.mock.timers.enable({ apis: ['setTimeout'] })
  return new Precedence()
}

it('lets the lowest layer go first while it has something to do, and the next as soon as it waits for the network or ends', async (t) => {
  const precedence = fixture(t)
  const [lowest, next, last] = [precedence.enter(0), precedence.enter(1), precedence.enter(2)]
  lowest.works()
  await lowest.come(signal)
  const [second, third] = [coming(next), coming(last)]
  assert.deepEqual([await second.came(), await third.came()], [false, false])

  lowest.waits()
  t.mock.timers.tick(4)
  assert.equal(await second.came(), false, 'bytes that come at once are no wait')
  t.mock.timers.tick(1)
  assert.deepEqual([await second.came(), await third.came()], [true, true], 'both wait: whoever has bytes first')

  next.works()
  const again = coming(last)
  assert.equal(await again.came(), false)
  lowest.works()
  next[Symbol.dispose]()
  assert.equal(await again.came(), false, 'the lowest works')
  lowest[Symbol.dispose]()
  assert.equal(await again.came(), true)
})

it('counts a transfer that has just begun as one at work, and one that finds no beginning as waiting', async (t) => {
  const precedence = fixture(t)
  precedence.enter(3)
  const later = coming(precedence.enter(7))
  assert.equal(await later.came(), false)
  t.mock.timers.tick(5)
  assert.equal(await later.came(), true)
})

it('holds nobody back for longer than a second, nor one of the same layer', async (t) => {
  const precedence = fixture(t)
  const lowest = precedence.enter(0)
  lowest.works()
  assert.equal(await coming(precedence.enter(0)).came(), true)
  const held = coming(precedence.enter(1))
  t.mock.timers.tick(999)
  assert.equal(await held.came(), false)
  t.mock.timers.tick(1)
  assert.equal(await held.came(), true)
})

it('ends a wait with its signal', async (t) => {
  const precedence = fixture(t)
  precedence.enter(0).works()
  const stop = new AbortController()
  const held = coming(precedence.enter(1), stop.signal)
  stop.abort(new Error('client gone'))
  await assert.rejects(held.end, /client gone/)
})
