import assert from 'node:assert/strict'
import { it } from 'node:test'
import { operations, stages } from './operations.ts'
import { summarise } from './results.ts'
import { Samples, median, percentile } from './statistics.ts'

it('takes the middle value, and the mean of two', () => {
  assert.equal(median([5, 1, 3]), 3)
  assert.equal(median([4, 1, 3, 2]), 2.5)
  assert.equal(median([7]), 7)
  assert.ok(Number.isNaN(median([])))
})

it('takes percentiles by nearest rank', () => {
  const hundred = Array.from({ length: 100 }, (_, at) => 100 - at)
  assert.equal(percentile(hundred, 0.99), 99)
  assert.equal(percentile([...hundred, 1000], 0.99), 100)
  assert.equal(percentile([3, 9, 4], 0.99), 9)
  assert.ok(Number.isNaN(percentile([], 0.99)))
})

it('compares cri-shim with the plugin, and with its targets', () => {
  const samples = new Samples()
  const add = (operation: (typeof operations)[number], concurrency: 1 | 4, plugin: readonly number[], shim: readonly number[]): void => {
    for (const ms of plugin) samples.add('plugin', operation, concurrency, ms)
    for (const ms of shim) samples.add('shim', operation, concurrency, ms)
  }
  add('pod start', 1, [100, 200, 300], [160, 170, 150])
  add('pod start', 4, [100], [101])
  add('ListContainers', 1, [1, 1], [1.5, 2.5])
  add('StartContainer', 1, [10], [20])
  add('PullImage', 1, [], [5])
  add('ListContainers idle', 1, [1], [1, 2])
  add('ListContainers beside 20 streams', 1, [9], [3, 6])
  const results = summarise(samples, new Set(operations))
  assert.deepEqual(results.map(({ operation, concurrency, count, ratio, met }) => ({ operation, concurrency, count, ratio, met })), [
    { operation: 'StartContainer', concurrency: 1, count: 1, ratio: 2, met: undefined },
    { operation: 'pod start', concurrency: 1, count: 3, ratio: 0.8, met: true },
    { operation: 'pod start', concurrency: 4, count: 1, ratio: 1.01, met: false },
    { operation: 'ListContainers', concurrency: 1, count: 2, ratio: 2, met: true },
    { operation: 'ListContainers idle', concurrency: 1, count: 1, ratio: 1.5, met: undefined },
    { operation: 'ListContainers beside 20 streams', concurrency: 1, count: 1, ratio: 0.5, met: true },
  ])
  add('PullImage of a small image', 1, [50], [90])
  add('PullImage again behind a black hole', 1, [50], [140])
  add('PullImage again behind a silent mirror', 1, [50], [141])
  for (const ms of [900, 1000, 1100]) samples.add('shim', 'first byte behind a black hole', 1, ms)
  samples.addGivenUp('plugin', 'first byte behind a black hole', 1, 5000)
  assert.deepEqual(summarise(samples, new Set(stages.mirrors)).map(({ count, limitMs, ratio, met }) => ({ count, limitMs, ratio, met })), [
    { count: 1, limitMs: undefined, ratio: 1.8, met: undefined },
    { count: 1, limitMs: 5000, ratio: 0.2, met: true },
    { count: 1, limitMs: undefined, ratio: 2.8, met: true },
    { count: 1, limitMs: undefined, ratio: 2.82, met: false },
  ])
  assert.deepEqual(summarise(samples, new Set(['StartContainer'])).map(({ operation }) => operation), ['StartContainer'])
})
