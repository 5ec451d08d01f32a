import assert from 'node:assert/strict'
import { it } from 'node:test'
import { Histogram, Registry } from 'prom-client'
import { histogramDelta, readHistogram } from './prometheus.ts'

it('reads what was observed between two scrapes of a histogram', async () => {
  const registry = new Registry()
  const histogram = new Histogram({ name: 'steps_seconds', help: 'Steps.', labelNames: ['step', 'result'], registers: [registry] })
  const other = new Histogram({ name: 'steps_seconds_more', help: 'Not these.', registers: [registry] })
  histogram.observe({ step: 'cni "add", {bridge}\nnow\\then', result: 'ok' }, 1)
  histogram.observe({ step: 'idle', result: 'ok' }, 3)
  other.observe(100)
  const before = readHistogram(await registry.metrics(), 'steps_seconds')
  histogram.observe({ step: 'cni "add", {bridge}\nnow\\then', result: 'ok' }, 0.5)
  histogram.observe({ step: 'new', result: 'failed' }, 0.25)
  const after = readHistogram(await registry.metrics(), 'steps_seconds')
  assert.equal(before.length, 2)
  assert.deepEqual(histogramDelta(before, after), [
    { labels: { step: 'cni "add", {bridge}\nnow\\then', result: 'ok' }, sum: 0.5, count: 1 },
    { labels: { step: 'new', result: 'failed' }, sum: 0.25, count: 1 },
  ])
})
