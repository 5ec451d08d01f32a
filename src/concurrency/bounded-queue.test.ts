import assert from 'node:assert/strict'
import { getEventListeners } from 'node:events'
import { it } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { CriError } from '../errors/cri-error.ts'
import { BoundedQueue } from './bounded-queue.ts'

it('refuses only what would have to wait beyond the limit', async () => {
  const queue = new BoundedQueue({ name: 'layers', concurrency: 1, maxWaiting: 0 })
  const end = Promise.withResolvers<string>()
  const first = queue.add(() => end.promise)
  await assert.rejects(queue.add(async () => 'second'), (error) => error instanceof CriError && error.code === 8 && error.message.startsWith('layers: 1 run and 0 wait'))
  end.resolve('first')
  assert.equal(await first, 'first')
})

it('keeps the turn of work that was told to stop until it has stopped', async () => {
  const queue = new BoundedQueue({ name: 'layers', concurrency: 1, maxWaiting: 10 })
  const stop = new AbortController()
  const cleaned = Promise.withResolvers<void>()
  const first = queue.add(async () => {
    await cleaned.promise
    stop.signal.throwIfAborted()
  }, { signal: stop.signal })
  const order: string[] = []
  const next = queue.add(async () => void order.push('next'))
  await turn()
  stop.abort(new Error('stop'))
  first.catch(() => order.push('first'))
  await turn()
  assert.deepEqual(order, [])
  cleaned.resolve()
  await assert.rejects(first, /stop/)
  await next
  assert.equal(getEventListeners(stop.signal, 'abort').length, 0)
})

it('takes out what waits when it is told to stop', async () => {
  const queue = new BoundedQueue({ name: 'layers', concurrency: 1, maxWaiting: 10 })
  const end = Promise.withResolvers<void>()
  const first = queue.add(() => end.promise)
  const stop = new AbortController()
  const second = queue.add(async () => assert.fail('ran'), { signal: stop.signal })
  stop.abort(new Error('stop'))
  await assert.rejects(second, /stop/)
  assert.equal(queue.waiting, 0)
  end.resolve()
  await first
})
