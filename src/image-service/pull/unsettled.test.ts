import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { mkdtempDisposable, open, readdir, readFile, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import type { Containerd } from '../../containerd/containerd.ts'
import { Code, CriError } from '../../errors/cri-error.ts'
import { backgroundCtx } from '../../observability/context.ts'
import { createLogger } from '../../observability/logger.ts'
import { UnsettledPulls, withDescendants } from './unsettled.ts'

/** The time of day, later than it is. */
function clockAhead(ms: number): AsyncDisposable {
  const { now } = Date
  Date.now = () => now() + ms
  return { [Symbol.asyncDispose]: async () => { Date.now = now } }
}

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

test('a stop waits for the notes that are being settled at that moment', async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-unsettled-'))
  const syncing = Promise.withResolvers<void>()
  const disk = Promise.withResolvers<void>()
  const pulls = new UnsettledPulls({
    containerd: {} as Containerd, dir: dir.path, ctx: backgroundCtx(createLogger('fatal'), 'test'), settleMs: 0,
    sync: async () => {
      syncing.resolve()
      await disk.promise
    },
  })
  const end = await pulls.begin({ names: ['a'], snapshotter: 'overlayfs', digests: [], snapshots: [] })
  end()
  await syncing.promise
  const closed = pulls.close(60_000)
  disk.resolve()
  await closed
  assert.deepEqual(readdirSync(dir.path), [])
})

test('what is pulled again while it is not settled is in question from its first pull on, and stays so until a sync that began after the last one', async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-unsettled-'))
  const stopping = new AbortController()
  let during: (() => Promise<void>) | undefined
  const started = (): UnsettledPulls => new UnsettledPulls({
    containerd: {} as Containerd, dir: dir.path, ctx: backgroundCtx(createLogger('fatal'), 'test', stopping.signal),
    sync: async () => {
      await during?.()
      during = undefined
    },
  })
  const note = { names: ['a'], snapshotter: 'overlayfs', digests: [], snapshots: [] }
  const stored = async (): Promise<{ since: number }> => JSON.parse(await readFile(join(dir.path, (await readdir(dir.path))[0] ?? ''), 'utf8')) as { since: number }
  const pulls = started()
  const first = await pulls.begin(note)
  const { since } = await stored()
  await using _ = clockAhead(60_000)
  const second = await pulls.begin(note)
  assert.equal((await stored()).since, since, 'the first one runs')
  first()
  second()
  const third = await pulls.begin(note)
  assert.equal((await stored()).since, since, 'nothing was synced')
  third()
  const again = started()
  await again.recover()
  const fourth = await again.begin(note)
  assert.equal((await stored()).since, since, 'nor by the process before')
  fourth()
  // A pull that begins and ends while the disk is written.
  during = async () => { (await again.begin(note))() }
  await again.close(60_000)
  assert.equal((await readdir(dir.path)).length, 1)
  await again.close(60_000)
  assert.deepEqual(await readdir(dir.path), [])
  const fifth = await again.begin(note)
  assert.ok((await stored()).since > since)
  fifth()
  stopping.abort()
})

test('a note is on the disk before its pull makes anything', async (t) => {
  await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-unsettled-'))
  await using handle = await open(dir.path, 'r')
  const sync = t.mock.method(Object.getPrototypeOf(handle) as typeof handle, 'sync')
  const stopping = new AbortController()
  const end = await new UnsettledPulls({ containerd: {} as Containerd, dir: dir.path, ctx: backgroundCtx(createLogger('fatal'), 'test', stopping.signal), sync: async () => undefined })
    .begin({ names: ['a'], snapshotter: 'overlayfs', digests: [], snapshots: [] })
  assert.equal(sync.mock.callCount(), 2, 'the file, and the directory that names it')
  end()
  stopping.abort()
})

test('what a crash left of a note that was being written goes with the next start', async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-unsettled-'))
  await writeFile(join(dir.path, 'one.json.1234567.tmp'), '{')
  await new UnsettledPulls({ containerd: {} as Containerd, dir: dir.path, ctx: backgroundCtx(createLogger('fatal'), 'test'), sync: async () => undefined }).recover()
  assert.deepEqual(await readdir(dir.path), [])
})

test('a snapshotter that is away after a power cut holds nobody up but the next pull for it, which finds no layer that cannot be trusted', async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-unsettled-'))
  const note = { names: ['a:1'], snapshotter: 'remote', digests: ['sha256:1'], snapshots: ['chain'], boot: 'another', since: 1_000_000 }
  await writeFile(join(dir.path, 'one.json'), JSON.stringify(note))
  const at = (seconds: number): { seconds: string; nanos: number } => ({ seconds: String(seconds), nanos: 0 })
  const did: string[] = []
  let isAway = true
  const containerd = {
    images: { delete: async (_: unknown, name: string) => void did.push(`image ${name}`) },
    content: { info: async () => ({ created_at: at(1001) }), delete: async (_: unknown, digest: string) => void did.push(`content ${digest}`) },
    snapshots: {
      list: async () => {
        if (isAway) throw new CriError(Code.UNAVAILABLE, 'away', { reason: 'SnapshotterUnavailable' })
        return [{ name: 'chain', parent: '', created_at: at(1001) }, { name: 'container', parent: 'chain', created_at: at(1002) }, { name: 'older', parent: '', created_at: at(999) }]
      },
      remove: async (_: unknown, snapshotter: string, name: string) => void did.push(`${snapshotter} ${name}`),
    },
  }
  const stopping = new AbortController()
  const started = (): UnsettledPulls => new UnsettledPulls({ containerd: containerd as unknown as Containerd, dir: dir.path, ctx: backgroundCtx(createLogger('fatal'), 'test', stopping.signal), sync: async () => undefined })
  await started().recover()
  assert.deepEqual(did.splice(0), ['image a:1', 'content sha256:1'])
  const again = started()
  await again.recover()
  assert.deepEqual(did, [], 'what was pulled since is nobody’s to remove')
  const pull = { ...note, boot: undefined, since: undefined }
  await assert.rejects(again.begin(pull), /away/)
  isAway = false
  const [one, two] = await Promise.all([again.begin(pull), again.begin({ ...pull, names: ['b:1'] })])
  assert.deepEqual(did, ['remote container', 'remote chain'])
  assert.equal((await readdir(dir.path)).includes('one.json'), false)
  one()
  two()
  stopping.abort()
  await again.close(60_000)
  assert.deepEqual(await readdir(dir.path), [])
})

test('what stands on a snapshot goes before it, once, and nothing else goes', () => {
  const all = [{ name: 'a', parent: '' }, { name: 'b', parent: 'a' }, { name: 'c', parent: 'b' }, { name: 'rw', parent: 'c' }, { name: 'b2', parent: 'a' }, { name: 'z', parent: '' }]
  assert.deepEqual(withDescendants(all, ['b', 'c', 'gone']), ['rw', 'c', 'b'])
  assert.deepEqual(new Set(withDescendants(all, ['a'])), new Set(['rw', 'c', 'b', 'b2', 'a']))
  assert.deepEqual(withDescendants(all, []), [])
})
