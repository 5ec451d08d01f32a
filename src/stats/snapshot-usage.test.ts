import assert from 'node:assert/strict'
import { it } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { notFound } from '../errors/cri-error.ts'
import { snapshots_Kind as Kind } from '../generated/containerd.ts'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import { SnapshotUsage } from './snapshot-usage.ts'

const ctx = backgroundCtx(createLogger('fatal'), 'test')

interface Fake { kind: number; parent: string; bytes: number; walks: number }

function fixture(options: { readonly periodMs?: number; readonly snapshotters?: readonly string[] } = {}) {
  const fakes = new Map<string, Fake>()
  let [now, most, passes] = [0, 0, 0]
  const waiting: (() => void)[] = []
  const usage = new SnapshotUsage({
    ctx, periodMs: options.periodMs ?? 1, snapshotters: () => options.snapshotters ?? ['overlayfs'],
    fileSystem: async () => ({ device: '/dev/sda1', totalBytes: 100, totalInodes: 10, freeInodes: 5 }),
    snapshots: {
      list: async (_: unknown, snapshotter: string) => {
        if (snapshotter === 'broken') throw new Error('no such snapshotter')
        passes += 1
        for (const resolve of waiting.splice(0)) resolve()
        return [...fakes].map(([name, { kind, parent }]) => ({ name, kind, parent, created_at: null, updated_at: null, labels: {} }))
      },
      usage: async (_: unknown, __: string, key: string) => {
        const fake = fakes.get(key)
        if (fake === undefined) throw notFound(`${key} is gone`)
        most = Math.max(most, ++now)
        await turn()
        now -= 1
        fake.walks += 1
        return { sizeBytes: BigInt(fake.bytes), inodes: 2n }
      },
    },
  })
  const add = (name: string, kind: number, bytes: number, parent = ''): Fake => {
    const fake = { kind, parent, bytes, walks: 0 }
    fakes.set(name, fake)
    return fake
  }
  const started = async (): Promise<AsyncDisposable> => {
    const end = new AbortController()
    const running = usage.run(end.signal)
    await usage.totals(ctx, 'overlayfs')
    return { [Symbol.asyncDispose]: async () => { end.abort(new Error('over')); await running } }
  }
  /** Waits for the beginning of `count` passes more. */
  const pass = async (count: number): Promise<void> => {
    for (let left = count; left > 0; left -= 1) await new Promise<void>((resolve) => { waiting.push(resolve) })
  }
  return { usage, fakes, add, started, pass, get most() { return most } }
}

it('tells image layers and writable layers apart, and what an image uses', async () => {
  const f = fixture()
  f.add('base', Kind.COMMITTED, 1000)
  f.add('top', Kind.COMMITTED, 50, 'base')
  f.add('container', Kind.ACTIVE, 7, 'top')
  f.add('view', Kind.VIEW, 0, 'top')
  await using running = await f.started()
  void running
  const totals = await f.usage.totals(ctx, 'overlayfs')
  assert.deepEqual([totals?.images.bytes, totals?.images.inodes, totals?.containers.bytes, totals?.containers.inodes], [1050, 6, 7, 2])
  assert.deepEqual(f.usage.ofImage('overlayfs', 'top'), { bytes: 1050, inodes: 4 })
  assert.equal(f.usage.ofImage('overlayfs', 'unknown'), undefined)
  assert.equal(f.usage.ofImage('overlayfs', ''), undefined)
  assert.equal(f.usage.of('overlayfs', 'container')?.bytes, 7)
  assert.deepEqual(f.usage.fileSystem('overlayfs'), { device: '/dev/sda1', totalBytes: 100, totalInodes: 10, freeInodes: 5 })
  assert.equal(await f.usage.totals(ctx, 'native'), undefined)
})

it('walks an image layer once and a writable layer again and again, one at a time, and forgets what is removed', async () => {
  const f = fixture()
  const [layer, container] = [f.add('layer', Kind.COMMITTED, 1000), f.add('container', Kind.ACTIVE, 7)]
  await using running = await f.started()
  void running
  container.bytes = 70
  while (f.usage.of('overlayfs', 'container')?.bytes !== 70) await f.pass(1)
  f.fakes.delete('container')
  await f.pass(2)
  assert.equal(f.usage.of('overlayfs', 'container'), undefined)
  assert.equal(layer.walks, 1)
  assert.equal(f.most, 1)
})

it('measures one that somebody waits for at once, a few at a time and once however many wait', async () => {
  const f = fixture({ periodMs: 60_000 })
  await using running = await f.started()
  void running
  const fakes = Array.from({ length: 30 }, (_, index) => f.add(`c${index}`, Kind.ACTIVE, index))
  const wanted = fakes.map((_, index) => ({ snapshotter: 'overlayfs', key: `c${index}` }))
  const [first, second] = await Promise.all([f.usage.ofAll(ctx, wanted), f.usage.ofAll(ctx, wanted)])
  assert.deepEqual(first.map((usage) => usage?.bytes), fakes.map(({ bytes }) => bytes))
  assert.deepEqual(second, first)
  assert.ok(fakes.every(({ walks }) => walks === 1))
  assert.ok(f.most > 1 && f.most <= 4, String(f.most))
  assert.deepEqual(await f.usage.ofAll(ctx, [{ snapshotter: 'overlayfs', key: 'gone' }, { snapshotter: 'overlayfs', key: 'c3' }]), [undefined, f.usage.of('overlayfs', 'c3')])
})

it('goes on with the other snapshotters when one is not there', async () => {
  const f = fixture({ snapshotters: ['overlayfs', 'broken', 'native'] })
  f.add('layer', Kind.COMMITTED, 5)
  await using running = await f.started()
  void running
  while (await f.usage.totals(ctx, 'native') === undefined) await f.pass(1)
  assert.equal(await f.usage.totals(ctx, 'broken'), undefined)
})

it('does not keep somebody waiting who has given up', async () => {
  const f = fixture()
  const gone = new AbortController()
  gone.abort(new Error('client gone'))
  await assert.rejects(f.usage.totals({ ...ctx, signal: gone.signal }, 'overlayfs'), /client gone/)
})
