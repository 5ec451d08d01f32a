import assert from 'node:assert/strict'
import { mkdtempDisposable, readdir } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import type { Containerd } from '../../containerd/containerd.ts'
import { backgroundCtx } from '../../observability/context.ts'
import { createLogger } from '../../observability/logger.ts'
import { UnsettledPulls, withDescendants } from './unsettled.ts'

test('a stop in order settles the pulls that have ended, and no others; what the disk does not take stays noted', async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-unsettled-'))
  const stopping = new AbortController()
  const synced: (readonly string[])[] = []
  const taking = [async () => undefined, () => new Promise<void>(() => undefined)]
  const pulls = new UnsettledPulls({
    containerd: {} as Containerd, dir: dir.path, ctx: backgroundCtx(createLogger('fatal'), 'test', stopping.signal),
    sync: async (snapshotters) => {
      synced.push(snapshotters)
      await taking[synced.length - 1]?.()
    },
  })
  const begin = async (name: string): Promise<() => void> => pulls.begin({ names: [name], snapshotter: 'overlayfs', digests: [], snapshots: [] })
  const [first] = [await begin('a'), await begin('b')]
  first()
  stopping.abort()
  await pulls.close(60_000)
  assert.deepEqual(synced, [['overlayfs']])
  assert.equal((await readdir(dir.path)).length, 1, 'the one that has not ended')
  const third = await begin('c')
  third()
  await pulls.close(10)
  assert.equal((await readdir(dir.path)).length, 2)
})

test('what stands on a snapshot goes before it, once, and nothing else goes', () => {
  const all = [{ name: 'a', parent: '' }, { name: 'b', parent: 'a' }, { name: 'c', parent: 'b' }, { name: 'rw', parent: 'c' }, { name: 'b2', parent: 'a' }, { name: 'z', parent: '' }]
  assert.deepEqual(withDescendants(all, ['b', 'c', 'gone']), ['rw', 'c', 'b'])
  assert.deepEqual(new Set(withDescendants(all, ['a'])), new Set(['rw', 'c', 'b', 'b2', 'a']))
  assert.deepEqual(withDescendants(all, []), [])
})
