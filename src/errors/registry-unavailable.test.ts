import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Code, CriError, unavailable } from './cri-error.ts'
import { inKubeletsWords, inOwnWords, REGISTRY_UNAVAILABLE } from './registry-unavailable.ts'

test('a pull for which no registry could be reached is told to the kubelet in its words, and back', () => {
  const own = unavailable('cannot resolve x: host: connection refused', { reason: REGISTRY_UNAVAILABLE })
  const told = inKubeletsWords(own)
  assert.ok(told instanceof CriError)
  // What k8s.io/cri-client and the kubelet's image manager look for.
  assert.deepEqual([told.code, told.message, told.reason, told.cause], [Code.UNKNOWN, `RegistryUnavailable: ${own.message}`, REGISTRY_UNAVAILABLE, own])
  const back = inOwnWords(new CriError(told.code, told.message))
  assert.deepEqual([back.code, back.message], [Code.UNAVAILABLE, own.message])
  for (const other of [unavailable('containerd is away'), new CriError(Code.UNKNOWN, 'x'), new Error('x'), undefined]) assert.equal(inKubeletsWords(other), other)
  const unknown = new CriError(Code.UNKNOWN, 'something else')
  assert.equal(inOwnWords(unknown), unknown)
})
