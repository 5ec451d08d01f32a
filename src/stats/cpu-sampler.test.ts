import assert from 'node:assert/strict'
import { it } from 'node:test'
import { Figure, rowLength } from '../linux/usage.ts'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import { CgroupReader } from './cgroup-figures.ts'
import { CpuSampler } from './cpu-sampler.ts'

const ctx = backgroundCtx(createLogger('fatal'), 'test')
const row = (monotonicMs: number, cpuNs: number): Float64Array => {
  const made = new Float64Array(rowLength.usage).fill(Number.NaN)
  made[Figure.monotonicMs] = monotonicMs
  made[Figure.cpuNs] = cpuNs
  return made
}

function fixture(periodMs = 1000) {
  const now = new Map<string, readonly [number, number] | undefined>()
  const keys = new Map<string, object>()
  const reader = new CgroupReader(async (_, targets) => {
    const rows = new Float64Array(rowLength.cpu * targets.length).fill(Number.NaN)
    for (const [index, { v2 }] of targets.entries()) {
      const found = now.get(v2 ?? '')
      if (found !== undefined) rows.set(row(...found).subarray(0, rowLength.cpu), index * rowLength.cpu)
    }
    return { rows, devices: [], hugetlb: [], failures: [] }
  })
  const sampler = new CpuSampler({ reader, ctx, periodMs, list: () => [...keys].map(([v2, key]) => ({ key, cgroups: { v1: {}, v2 } })) })
  const key = (name: string): object => {
    const made = keys.get(name) ?? {}
    keys.set(name, made)
    return made
  }
  return { now, key, sampler }
}

it('tells the rate between the last two samples, whoever asks how often', async () => {
  const { now, key, sampler } = fixture()
  const [a, b] = [key('a'), key('b')]
  now.set('a', [1000, 0]).set('b', [1000, 5e9])
  await sampler.sample(ctx)
  assert.ok(Number.isNaN(sampler.nanoCores(a, row(1001, 1e6))), 'a millisecond says nothing')
  now.set('a', [2000, 5e8]).set('b', [2000, 7e9])
  await sampler.sample(ctx)
  for (let ask = 0; ask < 3; ask++) assert.equal(sampler.nanoCores(a, row(2000 + ask * 100, 9e8)), 5e8)
  assert.equal(sampler.nanoCores(b, row(2001, 7e9)), 2e9)
})

it('makes do with the question\'s own figures while there is one sample, and when the sampler fell behind', async () => {
  const { now, key, sampler } = fixture()
  const a = key('a')
  assert.ok(Number.isNaN(sampler.nanoCores(a, row(1000, 0))), 'the first figure there is')
  assert.equal(sampler.nanoCores(a, row(1500, 1e8)), 2e8)
  now.set('a', [3000, 2e8])
  await sampler.sample(ctx)
  now.set('a', [4000, 3e8])
  await sampler.sample(ctx)
  assert.equal(sampler.nanoCores(a, row(8999, 0)), 1e8)
  assert.equal(sampler.nanoCores(a, row(14_000, 1.3e9)), 1e8, 'over the ten seconds without a sample')
  assert.equal(sampler.nanoCores(a, row(14_000, 10.3e9)), 1e9)
})

it('starts over when a counter does, and forgets nothing when a cgroup is not to be read for a moment', async () => {
  const { now, key, sampler } = fixture()
  const a = key('a')
  now.set('a', [1000, 5e9])
  await sampler.sample(ctx)
  now.set('a', [2000, 1e9])
  await sampler.sample(ctx)
  assert.ok(Number.isNaN(sampler.nanoCores(a, row(2050, 1e9))))
  now.set('a', undefined)
  await sampler.sample(ctx)
  now.set('a', [4000, 2e9])
  await sampler.sample(ctx)
  assert.equal(sampler.nanoCores(a, row(4000, 2e9)), 5e8)
})

it('samples on its own until it is told to stop, also past failures', async () => {
  const ended = new AbortController()
  const calls: number[] = []
  const reader = new CgroupReader(async () => {
    calls.push(calls.length)
    if (calls.length === 1) throw new Error('no thread')
    if (calls.length === 3) ended.abort()
    return { rows: new Float64Array(3), devices: [], hugetlb: [], failures: [] }
  })
  const sampler = new CpuSampler({ reader, ctx, periodMs: 1, list: () => [{ key: {}, cgroups: { v1: {}, v2: '/a' } }] })
  await sampler.run(ended.signal)
  assert.equal(calls.length, 3)
})
