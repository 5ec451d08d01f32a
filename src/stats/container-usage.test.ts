import assert from 'node:assert/strict'
import { it } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { notFound } from '../errors/cri-error.ts'
import type { CgroupStats } from '../linux/cgroups.ts'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import type { Container } from '../state/records.ts'
import { ContainerUsage } from './container-usage.ts'

const container = (id: string, state = 'running'): Container => ({ id, metadata: { id }, status: { state }, cgroups: { v1: {}, v2: '/x' } }) as unknown as Container
const stats = (seconds: number, usageNs: bigint): CgroupStats => ({
  timestampNs: BigInt(seconds) * 1_000_000_000n, cpu: { usageNs }, memory: { workingSetBytes: 5n, usageBytes: 7n },
}) as unknown as CgroupStats

function fixture(overrides: { cgroupStats?: () => Promise<CgroupStats | undefined>; snapshotterOf?: () => string; maxAgeMs?: number } = {}) {
  let walks = 0
  let atOnce = 0
  let most = 0
  const usage = new ContainerUsage({
    ctx: backgroundCtx(createLogger('fatal'), 'test'),
    cgroupStats: overrides.cgroupStats ?? (async () => stats(1, 1n)),
    snapshotterOf: overrides.snapshotterOf ?? (() => 'overlayfs'),
    snapshotterRoot: (snapshotter) => `/var/lib/${snapshotter}`,
    diskUsageMaxAgeMs: overrides.maxAgeMs ?? 60_000,
    snapshots: {
      usage: async (_: unknown, __: string, key: string) => {
        walks += 1
        most = Math.max(most, ++atOnce)
        await turn()
        atOnce -= 1
        if (key === 'gone') throw notFound('gone')
        return { sizeBytes: 11n, inodes: 3n }
      },
    } as never,
  })
  return { usage, get walks() { return walks }, get most() { return most } }
}

it('answers for the others when one container is gone, cannot be read or is of a runtime handler that is no more', async () => {
  assert.deepEqual(Object.keys(await fixture({ cgroupStats: async () => undefined }).usage.measure(container('a'))), ['writable_layer'])
  assert.deepEqual(Object.keys(await fixture({ cgroupStats: () => Promise.reject(new Error('EIO')) }).usage.measure(container('a'))), ['writable_layer'])
  assert.deepEqual(Object.keys(await fixture().usage.measure(container('gone'))), ['cpu', 'memory', 'swap'])
  const unconfigured = fixture({ snapshotterOf: () => { throw new Error('runtime handler "kata" is not configured') } })
  assert.deepEqual(Object.keys(await unconfigured.usage.measure(container('a'))), ['cpu', 'memory', 'swap'])
  assert.deepEqual(Object.keys(await fixture().usage.measure(container('a', 'exited'))), ['writable_layer'])
})

it('walks a writable layer once, however many ask, and a few at a time', async () => {
  const f = fixture()
  const one = container('a')
  const [first] = await Promise.all([f.usage.measure(one), f.usage.measure(one), f.usage.measure({ ...one })])
  assert.equal(f.walks, 1)
  assert.deepEqual([first.writable_layer?.used_bytes?.value, first.writable_layer?.fs_id?.mountpoint], ['11', '/var/lib/overlayfs'])
  await f.usage.measure(one)
  assert.equal(f.walks, 1)
  await Promise.all(Array.from({ length: 30 }, (_, at) => f.usage.measure(container(String(at)))))
  assert.equal(f.walks, 31)
  assert.ok(f.most > 1 && f.most <= 4, String(f.most))
})

it('knows cores from the second question on, and starts over when the counter does', async () => {
  let now = stats(10, 1_000_000_000n)
  const { usage } = fixture({ cgroupStats: async () => now })
  const one = container('a')
  const cores = async (): Promise<string | undefined> => (await usage.measure(one)).cpu?.usage_nano_cores?.value
  assert.equal(await cores(), undefined)
  now = stats(12, 2_000_000_000n)
  assert.equal(await cores(), '500000000')
  now = stats(14, 5n)
  assert.equal(await cores(), undefined)
})
