import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { abortable, KeyedMutex } from './keyed-mutex.ts'

describe('KeyedMutex', () => {
  it('lets nobody in beside the holder when the last one who waited gave up', async () => {
    const mutex = new KeyedMutex()
    const held = Promise.withResolvers<void>()
    const order: string[] = []
    const first = mutex.run('a', async () => {
      await held.promise
      order.push('first')
    })
    const impatient = new AbortController()
    const second = mutex.run('a', async () => void order.push('second'), impatient.signal)
    impatient.abort(new Error('gone'))
    await assert.rejects(second, /gone/)
    assert.ok(mutex.isHeld('a'))
    const third = mutex.run('a', async () => void order.push('third'))
    await turn()
    held.resolve()
    await Promise.all([first, third])
    assert.deepEqual(order, ['first', 'third'])
    await turn()
    assert.equal(mutex.size, 0)
  })

  it('runs work on one key one at a time and in order, whoever fails or gives up; a key nobody wants costs nothing', async () => {
    let seed = 7
    const random = (below: number): number => {
      seed = (seed * 1_103_515_245 + 12_345) % 2 ** 31
      return seed % below
    }
    const mutex = new KeyedMutex()
    const running = new Map<string, number>()
    const finished = new Map<string, number[]>()
    const calls: Promise<unknown>[] = []
    for (let call = 0; call < 500; call++) {
      const key = `key-${random(5)}`
      const stop = new AbortController()
      calls.push(mutex.run(key, async () => {
        running.set(key, (running.get(key) ?? 0) + 1)
        assert.equal(running.get(key), 1)
        for (let rest = random(4); rest > 0; rest--) await turn()
        running.set(key, 0)
        finished.set(key, [...finished.get(key) ?? [], call])
        if (random(4) === 0) throw new Error('work fails')
      }, stop.signal).catch((error: unknown) => assert.match(String(error), /work fails|gave up/)))
      if (random(3) === 0) stop.abort(new Error('gave up'))
      if (random(6) === 0) await turn()
    }
    await Promise.all(calls)
    await turn()
    assert.equal(mutex.size, 0)
    assert.ok(finished.size === 5)
    for (const order of finished.values()) assert.deepEqual(order, order.toSorted((a, b) => a - b))
  })

  it('does not begin for a caller that is gone already', async () => {
    const mutex = new KeyedMutex()
    await assert.rejects(mutex.run('a', async () => assert.fail('ran'), AbortSignal.abort(new Error('gone'))), /gone/)
    assert.equal(mutex.size, 0)
  })
})

describe('abortable', () => {
  it('takes its listener off the signal again', async () => {
    const { getEventListeners } = await import('node:events')
    const stop = new AbortController()
    for (let call = 0; call < 10; call++) await abortable(Promise.resolve(call), stop.signal)
    assert.equal(getEventListeners(stop.signal, 'abort').length, 0)
  })

  it('takes care of a promise that fails after the abort', async () => {
    const late = Promise.withResolvers<void>()
    await assert.rejects(abortable(late.promise, AbortSignal.abort(new Error('gone'))), /gone/)
    late.reject(new Error('late'))
    await turn()
  })
})
