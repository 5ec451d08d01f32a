import assert from 'node:assert/strict'
import { it } from 'node:test'
import type { ListPodSandboxMetricsResponse, Metric } from '../generated/cri.ts'
import { criProtos, messageCodec } from '../generated/protos.ts'
import { MessageWriter } from './wire.ts'

const read = (message: string, out: MessageWriter): unknown => messageCodec(criProtos(), message).deserialize(out.finish())

it('writes whole numbers of every size as the general encoder does', () => {
  for (const value of [1, 127, 128, 300, 16_383, 16_384, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 35 + 5, 2 ** 53 - 1, 1_732_276_800_123_000_000, 2 ** 63]) {
    const out = new MessageWriter(1)
    out.wrapped(5, value)
    const codec = messageCodec(criProtos(), 'runtime.v1.Metric')
    assert.deepEqual(out.finish(), codec.serialize({ value: { value: String(BigInt(value)) } }), String(value))
    const plain = new MessageWriter(1)
    plain.integer(2, value)
    if (value < 2 ** 63) assert.deepEqual(plain.finish(), codec.serialize({ timestamp: String(BigInt(value)) }), String(value))
  }
})

it('keeps the largest number, drops what is not known, and knows no negative ones', () => {
  const value = (given: number): string | undefined => {
    const out = new MessageWriter()
    out.wrapped(5, given)
    return (read('runtime.v1.Metric', out) as Metric).value?.value
  }
  assert.equal(value(Number.POSITIVE_INFINITY), '18446744073709551615')
  assert.equal(value(Number.NaN), undefined)
  assert.equal(value(0), '0')
  assert.equal(value(-5), '0')
  assert.equal(value(2.9), '2')
})

it('nests messages of every length, and grows', () => {
  for (const length of [0, 1, 120, 127, 128, 129, 5000, 16_383, 16_384, 40_000]) {
    const out = new MessageWriter(8)
    out.message(1, () => {
      out.string(1, 'pod')
      out.message(2, () => {
        out.string(1, 'é'.repeat(length / 2) + 'x'.repeat(length % 2))
        out.element(4, '')
        out.element(4, 'last')
      })
    })
    out.message(1, () => out.string(1, 'next'))
    const { pod_metrics: [first, second] } = read('runtime.v1.ListPodSandboxMetricsResponse', out) as ListPodSandboxMetricsResponse
    assert.equal(Buffer.byteLength(first?.metrics[0]?.name ?? '-'), length)
    assert.deepEqual([...first?.metrics[0]?.label_values ?? []], ['', 'last'])
    assert.equal(second?.pod_sandbox_id, 'next')
  }
})
