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

function fixture(t: TestContext): { readonly precedence: Precedence; readonly pass: (ms: number) => void } {
  t.mock.timers.enable({ apis: ['setTimeout'] })
  let now = 0
  return {
    precedence: new Precedence(() => now),
    pass: (ms) => {
      now += ms
      t.mock.timers.tick(ms)
    },
  }
}

it('lets the lowest layer go first while it has something to do, and the next as soon as it waits for the network or ends', async (t) => {
  const { precedence, pass } = fixture(t)
  const [lowest, next, last] = [precedence.enter(0), precedence.enter(1), precedence.enter(2)]
  lowest.works()
  await lowest.come(signal)
  const [second, third] = [coming(next), coming(last)]
  pass(20)
  lowest.waits()
  pass(19)
  assert.deepEqual([await second.came(), await third.came()], [false, false], 'it waits for less than half of its time')
  pass(1)
  assert.deepEqual([await second.came(), await third.came()], [true, true], 'all wait: whoever has bytes first')

  next.works()
  lowest.works()
  pass(40)
  lowest.waits()
  const again = coming(last)
  assert.equal(await again.came(), false)
  next[Symbol.dispose]()
  assert.equal(await again.came(), false, 'the lowest has something to do')
  lowest[Symbol.dispose]()
  assert.equal(await again.came(), true)
})

it('shares a network that gives only so much to one connection', async (t) => {
  const { precedence, pass } = fixture(t)
  const [lowest, next] = [precedence.enter(0), precedence.enter(1)]
  pass(10)
  for (let piece = 0; piece < 100; piece++) {
    lowest.works()
    pass(1)
    assert.equal(await coming(next).came(), true, `piece ${piece}`)
    lowest.waits()
    pass(2)
  }
  // Now it is this machine that is slow.
  for (let piece = 0; piece < 20; piece++) {
    lowest.works()
    pass(2)
    lowest.waits()
    pass(1)
  }
  assert.equal(await coming(next).came(), false)
})

it('counts a transfer that has just begun as one at work, and one that finds no beginning as waiting', async (t) => {
  const { precedence, pass } = fixture(t)
  precedence.enter(3)
  const later = coming(precedence.enter(7))
  assert.equal(await later.came(), false)
  pass(5)
  assert.equal(await later.came(), true)
})

it('holds nobody back for longer than a second, nor one of the same layer', async (t) => {
  const { precedence, pass } = fixture(t)
  const lowest = precedence.enter(0)
  lowest.works()
  assert.equal(await coming(precedence.enter(0)).came(), true)
  const held = coming(precedence.enter(1))
  pass(999)
  assert.equal(await held.came(), false)
  pass(1)
  assert.equal(await held.came(), true)
})

it('holds one that has not begun for ten seconds', async (t) => {
  const { precedence, pass } = fixture(t)
  precedence.enter(0).works()
  let begun = false
  void precedence.enter(0.25).begin(signal).then(() => { begun = true })
  pass(9_999)
  await turn()
  assert.equal(begun, false)
  pass(1)
  await turn()
  assert.equal(begun, true)
})

it('ends a wait with its signal', async (t) => {
  const { precedence } = fixture(t)
  precedence.enter(0).works()
  const stop = new AbortController()
  const held = coming(precedence.enter(1), stop.signal)
  stop.abort(new Error('client gone'))
  await assert.rejects(held.end, /client gone/)
})
