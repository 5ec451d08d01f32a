import assert from 'node:assert/strict'
import { it } from 'node:test'
import { rowLength, type UsageRows } from '../linux/usage.ts'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import { CgroupReader, figure } from './cgroup-figures.ts'

const ctx = backgroundCtx(createLogger('fatal'), 'test')
const cgroups = (count: number) => Array.from({ length: count }, (_, index) => ({ cgroups: { v1: {}, v2: `/c${index}` } }))

function fixture() {
  const calls: { readonly size: number; readonly answer: PromiseWithResolvers<void> }[] = []
  const reader = new CgroupReader(async (level, targets): Promise<UsageRows> => {
    const answer = Promise.withResolvers<void>()
    calls.push({ size: targets.length, answer })
    await answer.promise
    const rows = new Float64Array(rowLength[level] * targets.length)
    for (const [index] of targets.entries()) rows[index * rowLength[level] + 2] = calls.length
    return { rows, devices: [], hugetlb: [], failures: [] }
  })
  return { calls, reader }
}

it('shares what is still to be read among all who ask for it, and never what was read before the question', async () => {
  const { calls, reader } = fixture()
  const all = cgroups(40)
  const first = reader.read(ctx, 'usage', all)
  // The first 32 are being read: they are read anew for the second, who shares the rest.
  const second = reader.read(ctx, 'usage', all)
  for (let call = 0; call < 3; call++) {
    calls[call]?.answer.resolve()
    await new Promise((resolve) => { setImmediate(resolve) })
  }
  const [a, b] = await Promise.all([first, second])
  assert.deepEqual(calls.map(({ size }) => size), [32, 32, 8])
  assert.equal(figure(a[0]?.row ?? new Float64Array(0), 'cpuNs'), 1)
  assert.equal(figure(b[0]?.row ?? new Float64Array(0), 'cpuNs'), 2)
  assert.equal(a[35], b[35])
})

it('reads in one call after the other, each level on its own', async () => {
  const { calls, reader } = fixture()
  const reads = [reader.read(ctx, 'usage', cgroups(64)), reader.read(ctx, 'cpu', cgroups(3))]
  assert.deepEqual(calls.map(({ size }) => size), [32, 3])
  calls[1]?.answer.resolve()
  calls[0]?.answer.resolve()
  await reads[1]
  await new Promise((resolve) => { setImmediate(resolve) })
  assert.deepEqual(calls.map(({ size }) => size), [32, 3, 32])
  calls[2]?.answer.resolve()
  await reads[0]
})

it('tells all who wait when it cannot read, and goes on', async () => {
  const { calls, reader } = fixture()
  const all = cgroups(33)
  const failing = reader.read(ctx, 'usage', all)
  calls[0]?.answer.reject(new Error('no thread'))
  await assert.rejects(failing, /no thread/)
  await new Promise((resolve) => { setImmediate(resolve) })
  assert.equal(calls[1]?.size, 1)
  calls[1].answer.resolve()
  const next = reader.read(ctx, 'usage', all.slice(0, 2))
  await new Promise((resolve) => { setImmediate(resolve) })
  calls[2]?.answer.resolve()
  assert.equal((await next).length, 2)
})

it('does not keep somebody waiting who has given up', async () => {
  const { calls, reader } = fixture()
  const gone = new AbortController()
  const read = reader.read({ ...ctx, signal: gone.signal }, 'usage', cgroups(1))
  gone.abort(new Error('client gone'))
  await assert.rejects(read, /client gone/)
  calls[0]?.answer.resolve()
})
