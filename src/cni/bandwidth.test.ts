import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Code, CriError } from '../errors/cri-error.ts'
import { bandwidthFromAnnotations } from './bandwidth.ts'
import { parseQuantity } from './quantity.ts'

test('quantities have the values that Kubernetes gives them', () => {
  const values: readonly [string, bigint][] = [
    ['0', 0n], ['10', 10n], ['+10', 10n], ['-3', -3n], ['1k', 1000n], ['10M', 10_000_000n], ['1Gi', 1n << 30n], ['1.5Gi', 1610612736n], ['.5k', 500n], ['1.', 1n],
    ['2e6', 2_000_000n], ['2E6', 2_000_000n], ['1E', 10n ** 18n], ['1e-1', 1n], ['100m', 1n], ['1500m', 2n], ['1u', 1n], ['1n', 1n], ['0.1', 1n],
  ]
  for (const [text, value] of values) assert.equal(parseQuantity(text), value, text)
  for (const text of ['', ' ', '10 M', '10MB', '10mi', 'M', '1e', '1.5.2', '0x10', '10K', 'ten', '1e6M', '--1', '1,5']) assert.equal(parseQuantity(text), undefined, text)
})

test('a rate comes with the burst that containerd gives, and a missing direction is unlimited', () => {
  assert.equal(bandwidthFromAnnotations({}), undefined)
  assert.equal(bandwidthFromAnnotations({ 'example.org/ingress-bandwidth': '10M' }), undefined)
  assert.deepEqual(bandwidthFromAnnotations({ 'kubernetes.io/ingress-bandwidth': '10M', 'kubernetes.io/egress-bandwidth': '1Gi' }), {
    ingressRate: 10_000_000,
    ingressBurst: 4294967295,
    egressRate: 1073741824,
    egressBurst: 4294967295,
  })
  assert.deepEqual(bandwidthFromAnnotations({ 'kubernetes.io/egress-bandwidth': '1P' }), { ingressRate: 0, ingressBurst: 0, egressRate: 1e15, egressBurst: 4294967295 })
})

test('a rate that is none, too small or too large is the fault of the pod and named', () => {
  for (const [text, why] of [['fast', /not a quantity/], ['', /not a quantity/], ['999', /less than 1 kbit/], ['-5M', /less than/], ['1000001G', /more than 1 Pbit/]] as const) {
    assert.throws(() => bandwidthFromAnnotations({ 'kubernetes.io/ingress-bandwidth': text }), (error: unknown) => {
      assert.ok(error instanceof CriError)
      assert.equal(error.code, Code.INVALID_ARGUMENT)
      assert.match(error.message, why)
      assert.match(error.message, /kubernetes\.io\/ingress-bandwidth/)
      return true
    })
  }
})
