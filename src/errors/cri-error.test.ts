import assert from 'node:assert/strict'
import { once } from 'node:events'
import { it } from 'node:test'
import { Code, codeName, CriError, errnoOf, messageOf, notFound } from './cri-error.ts'

it('tells a deadline and an abort from a fault of ours', async () => {
  const timeout = AbortSignal.timeout(1)
  // An AbortSignal's timer does not keep the process alive.
  const alive = setInterval(() => undefined, 1000)
  await once(timeout, 'abort')
  clearInterval(alive)
  assert.equal(CriError.from(timeout.reason, 'reading users').code, Code.DEADLINE_EXCEEDED)
  assert.equal(CriError.from(AbortSignal.abort().reason).code, Code.CANCELLED)
  const fault = new TypeError('x is not a function')
  assert.deepEqual([CriError.from(fault).code, CriError.from(fault).cause], [Code.INTERNAL, fault])
})

it('keeps code and reason when it adds context', () => {
  const inner = notFound('no image', { reason: 'ImageNotFound' })
  const outer = CriError.from(inner, 'container a')
  assert.deepEqual([outer.code, outer.reason, outer.message, outer.cause], [Code.NOT_FOUND, 'ImageNotFound', 'container a: no image', inner])
  assert.equal(CriError.from(inner), inner)
})

it('finds words for anything that is thrown', () => {
  assert.equal(messageOf(new AggregateError([new Error('a'), 'b'], '')), 'a; b')
  assert.equal(messageOf('text'), 'text')
  assert.equal(codeName(5), 'NOT_FOUND')
  assert.equal(codeName(99), 'CODE(99)')
  assert.equal(errnoOf(Object.assign(new Error('x'), { code: 'ENOENT' })), 'ENOENT')
  assert.equal(errnoOf(Object.assign(new Error('x'), { code: 5 })), undefined)
})
