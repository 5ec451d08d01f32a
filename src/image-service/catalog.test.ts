import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { it } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import type { Containerd } from '../containerd/containerd.ts'
import { notFound, unavailable } from '../errors/cri-error.ts'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import { ImageStore } from '../state/image-store.ts'
import { labels } from '../state/metadata.ts'
import { ImageCatalog } from './catalog.ts'
import { imageMessage } from './image-message.ts'
import { requireContainerImage, requireVolumeImage } from './resolve-image.ts'

const ctx = backgroundCtx(createLogger('fatal'), 'test')
const sha256 = (text: string): string => `sha256:${createHash('sha256').update(text).digest('hex')}`
const pinned = { [labels.pinned]: labels.pinnedValue }

/** containerd's records and contents in memory: what they are is up to each test. */
function fixture() {
  const blobs = new Map<string, string>()
  const records = new Map<string, { name: string; target: { digest: string; media_type: string }; labels: Record<string, string> }>()
  let readFails: Error | undefined
  let reads = 0
  const add = (text: string): string => {
    blobs.set(sha256(text), text)
    return sha256(text)
  }
  const containerd = {
    images: { list: async () => [...records.values()], get: async (_: unknown, name: string) => records.get(name) },
    content: {
      read: async (_: unknown, digest: string) => {
        reads += 1
        await turn()
        if (readFails !== undefined) throw readFails
        const text = blobs.get(digest)
        if (text === undefined) throw notFound(digest)
        return Buffer.from(text)
      },
    },
  }
  const images = new ImageStore()
  return {
    images, records, add,
    catalog: new ImageCatalog({ containerd: containerd as unknown as Containerd, images, platform: { os: 'linux', architecture: 'amd64' } }),
    get reads() { return reads },
    failReads: (error: Error | undefined) => { readFails = error },
    /** The target of an image that differs from others by `mark`; `variant` makes another manifest of the same configuration. */
    image(mark: string, variant = ''): { digest: string; media_type: string } {
      const config = JSON.stringify({ os: 'linux', mark, rootfs: { type: 'layers', diff_ids: [] } })
      const manifest = JSON.stringify({ config: { digest: add(config), size: config.length, mediaType: 'application/vnd.oci.image.config.v1+json' }, layers: [], variant })
      return { digest: add(manifest), media_type: 'application/vnd.oci.image.manifest.v1+json' }
    },
    put(name: string, target: { digest: string; media_type: string }, own: Record<string, string> = {}) {
      records.set(name, { name, target, labels: own })
    },
  }
}

it('knows every name of an image, also of two that change at once', async () => {
  const f = fixture()
  const target = f.image('a')
  const names = Array.from({ length: 20 }, (_, at) => `a:${at}`)
  for (const name of names) f.put(name, target)
  await Promise.all(names.map((name) => f.catalog.refresh(ctx, name)))
  assert.deepEqual([...f.images.values()].map(({ references }) => references.toSorted()), [names.toSorted()])
  for (const name of names.slice(1)) f.records.delete(name)
  await Promise.all(names.map((name) => f.catalog.refresh(ctx, name)))
  assert.deepEqual([...f.images.values()].map(({ references }) => references), [['a:0']])
})

it('an image is pinned while one of its names is, and no longer', async () => {
  const f = fixture()
  const target = f.image('pause')
  f.put('pause:1', target, pinned)
  f.put('pause:2', target)
  for (const name of f.records.keys()) await f.catalog.refresh(ctx, name)
  assert.equal(f.images.byName('pause:2')?.pinned, true)
  f.put('pause:1', target)
  await f.catalog.refresh(ctx, 'pause:1')
  assert.equal(f.images.byName('pause:2')?.pinned, false, 'the label was taken off')
  f.put('pause:1', target, pinned)
  await f.catalog.refresh(ctx, 'pause:1')
  f.put('pause:1', f.image('another'), pinned)
  await f.catalog.refresh(ctx, 'pause:1')
  assert.deepEqual([f.images.byName('pause:1')?.pinned, f.images.byName('pause:2')?.pinned], [true, false], 'the pinned name moved to another image')
  f.put('pause:2', target, pinned)
  await f.catalog.reload(ctx)
  f.records.delete('pause:2')
  f.put('pause:3', target)
  await f.catalog.refresh(ctx, 'pause:3')
  await f.catalog.refresh(ctx, 'pause:2')
  assert.equal(f.images.byName('pause:3')?.pinned, false, 'the pinned name is gone')
})

it('is one image for two manifests of one configuration', async () => {
  const f = fixture()
  f.put('one.io/a', f.image('a', 'first'))
  f.put('two.io/a', f.image('a', 'second'))
  await f.catalog.reload(ctx)
  assert.deepEqual([...f.images.values()].map(({ references }) => references), [['one.io/a', 'two.io/a']])
})

it('keeps an image when containerd does not answer, drops what cannot be run and is not stopped by what cannot be read', async () => {
  const f = fixture()
  f.put('a:1', f.image('a'))
  await f.catalog.reload(ctx)
  f.put('a:1', f.image('a', 'again'))
  f.failReads(unavailable('containerd is away'))
  await assert.rejects(f.catalog.refresh(ctx, 'a:1'), /away/)
  assert.notEqual(f.images.byName('a:1'), undefined)
  await assert.rejects(f.catalog.reload(ctx), /away/)
  f.failReads(undefined)
  f.put('broken', { digest: sha256('nothing'), media_type: 'x' })
  await f.catalog.reload(ctx)
  assert.deepEqual([...f.images.values()].map(({ references }) => references), [['a:1']])
  f.put('odd:1', f.image('odd'))
  f.failReads(new TypeError('unexpected'))
  await f.catalog.reload(ctx)
  assert.equal(f.images.byName('odd:1'), undefined)
})

it('forgets what it read of images that are gone', async () => {
  const f = fixture()
  const first = f.image('0')
  for (let round = 0; round < 60; round++) {
    f.put('latest', round === 0 ? first : f.image(String(round)))
    await f.catalog.refresh(ctx, 'latest')
  }
  assert.equal(f.images.size, 1)
  const { reads } = f
  f.put('latest', first)
  await f.catalog.refresh(ctx, 'latest')
  assert.ok(f.reads > reads, 'it was read anew')
})

it('lists artifacts by the digest of their manifest: they have one configuration, the empty one', async () => {
  const f = fixture()
  const artifact = (name: string): string => JSON.stringify({
    artifactType: 'application/vnd.example', config: { digest: f.add('{}'), size: 2, mediaType: 'application/vnd.oci.empty.v1+json' },
    layers: [{ digest: f.add(name), size: name.length, mediaType: 'text/plain', annotations: { 'org.opencontainers.image.title': name } }],
  })
  for (const [tag, name] of ['one', 'two', '../three'].entries()) f.put(`a:${tag + 1}`, { digest: f.add(artifact(name)), media_type: 'application/vnd.oci.image.manifest.v1+json' })
  await f.catalog.reload(ctx)
  assert.deepEqual([...f.images.values()].map(({ id, chainId, artifact: found }) => [id, chainId, found?.files.map(({ path }) => path), found?.problem]), [
    [sha256(artifact('one')), `cri-shim-artifact-${sha256(artifact('one'))}`, ['one'], undefined], [sha256(artifact('two')), `cri-shim-artifact-${sha256(artifact('two'))}`, ['two'], undefined],
    [sha256(artifact('../three')), '', [], 'its file "../three" would be outside of it'],
  ])
  const [first] = f.images.values()
  assert.ok(first)
  const { uid, username, repo_tags: tags } = imageMessage(first)
  assert.deepEqual([uid, username, tags], [undefined, undefined, ['a:1']])
  assert.throws(() => requireContainerImage(f.images, 'a:1'), /is an artifact \(application\/vnd\.example\), not a container image/)
  assert.throws(() => requireVolumeImage(f.images, 'a:3'), /cannot be mounted: its file "\.\.\/three" would be outside of it/)
})
