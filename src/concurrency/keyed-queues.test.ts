import assert from 'node:assert/strict'
import { it } from 'node:test'
import { KeyedQueues } from './keyed-queues.ts'

const open = new AbortController().signal

it('runs as many as it may of each key at a time, other keys beside, and keeps nothing of a key that is done', async () => {
  const queues = new KeyedQueues('test', { concurrency: 2, maxWaiting: 10 })
  const go = Promise.withResolvers<void>()
  let [running, most] = [0, 0]
  const work = async (): Promise<void> => {
    running++
    most = Math.max(most, running)
    await go.promise
    running--
  }
  const first = Array.from({ length: 5 }, async () => queues.run('a', work, open))
  assert.equal(await queues.run('b', async () => 'beside', open), 'beside')
  assert.equal(queues.size, 1)
  go.resolve()
  await Promise.all(first)
  assert.equal(most, 2)
  assert.equal(queues.size, 0)
})

it('passes failures on, gives up waiting at an abort, refuses when too many wait, and is empty after each', async () => {
  const queues = new KeyedQueues('test', { concurrency: 1, maxWaiting: 1 })
  await assert.rejects(queues.run('a', async () => { throw new Error('broken') }, open), /broken/)
  assert.equal(queues.size, 0)
  const go = Promise.withResolvers<void>()
  const holder = queues.run('a', async () => go.promise, open)
  const abort = new AbortController()
  const waiting = queues.run('a', async () => assert.fail('it was aborted'), abort.signal)
  await assert.rejects(queues.run('a', async () => undefined, open), /1 run and 1 wait already/)
  abort.abort(new Error('gone'))
  await assert.rejects(waiting, /gone/)
  go.resolve()
  await holder
  assert.equal(queues.size, 0)
})
