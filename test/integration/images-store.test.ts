import assert from 'node:assert/strict'
import { readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import type { Image } from '../../src/generated/cri.ts'
import { busyboxImage, sandboxImage } from '../images/catalog.ts'
import { addImage, addLayer } from '../images/image.ts'
import { blobPath, type ContentDir, type Descriptor, readIndex, refNameAnnotation } from '../images/layout.ts'
import { file } from '../images/tar.ts'
import { hostArchitecture } from '../images/tiny-elf.ts'
import { eventually, exec, failureOf, podConfig, type PrivateNode, pull, removePods, restart, runPod, skipUnlessRoot, startContainer, startNode } from './private-node.ts'

const one = 'registry.k8s.io/t/one:1'
const two = 'registry.k8s.io/t/one:2'
const runnable = 'registry.k8s.io/cri-shim/formats:oci-gzip-manifest'
const cri = 'plugins."io.containerd.grpc.v1.cri"'

async function images(content: ContentDir): Promise<void> {
  const image = await addImage(content, [await addLayer(content, [file('one', Buffer.alloc(300_000, 'one'))], 'oci', 'none'), await addLayer(content, [file('two', 'two')])], hostArchitecture(), { Cmd: ['/one'], Labels: { made: 'here' } })
  for (const ref of [one, two, 'docker.io/mirrored/one:latest']) content.name(ref, image)
  const layer = await addLayer(content, [file('users', 'users')])
  for (const [name, User] of Object.entries({ none: '', root: '0', uid: '1234:5', name: 'www-data:users', odd: '00012', large: '4294967296' })) {
    content.name(`registry.k8s.io/t/user-${name}:1`, await addImage(content, [layer], hostArchitecture(), { User }))
  }
  for (const name of ['private-basic', 'pinned', 'by-ctr', 'imported']) content.name(`registry.k8s.io/t/${name}:1`, await addImage(content, [layer], hostArchitecture(), { Labels: { name } }))
}

describe('images on the node', { skip: skipUnlessRoot }, () => {
  let node: PrivateNode
  let manifest = ''
  let id = ''
  let layers: readonly string[] = []
  before(async () => {
    node = await startNode({ images, criSettings: '  stats_collect_period = 1', config: `[${cri}.containerd.runtimes.native]\n  runtime_type = "io.containerd.runc.v2"\n  snapshotter = "native"\n` })
    const found = (await readIndex(node.contentDir)).find((image) => image.annotations?.[refNameAnnotation] === one)
    assert.ok(found)
    const document = JSON.parse(await readFile(blobPath(node.contentDir, found.digest), 'utf8')) as { config: Descriptor; layers: Descriptor[] }
    manifest = found.digest
    id = document.config.digest
    layers = document.layers.map((layer) => layer.digest)
  })
  after(async () => {
    assert.deepEqual(await node.stop(), [])
  })

  const status = async (image: string): Promise<Image | null> => (await node.cri.image.ImageStatus({ image: { image } })).image
  const list = async (image = ''): Promise<Image[]> => (await node.cri.image.ListImages(image === '' ? {} : { filter: { image: { image } } })).images
  const remove = async (image: string): Promise<unknown> => node.cri.image.RemoveImage({ image: { image } })
  const snapshots = async (): Promise<string[]> => (await node.api.snapshots.list(node.ctx, 'overlayfs')).map((snapshot) => snapshot.name).sort()
  const names = async (): Promise<string[]> => (await node.api.images.list(node.ctx)).map((record) => record.name).sort()
  /** Every way to say which image is meant. */
  const ways = (): Record<string, string> => ({
    'its tag': one, 'its tag and digest': `${one}@${manifest}`, 'its digest': `registry.k8s.io/t/one@${manifest}`, 'its id': id, 'its id without sha256': id.slice(7), 'the beginning of its id': id.slice(7, 20),
    'the beginning of its id with sha256': id.slice(0, 20),
  })

  it('answers for an image that is not there', async () => {
    for (const way of Object.values(ways())) {
      assert.equal(await status(way), null, way)
      assert.deepEqual(await list(way), [])
      await remove(way)
    }
  })

  it('is found by every name and removed by every name, with everything on disk', async () => {
    const [before, namesBefore] = [await snapshots(), await names()]
    for (const [what, way] of Object.entries(ways())) {
      assert.equal(await pull(node, one), id)
      for (const other of Object.values(ways())) {
        assert.equal((await status(other))?.id, id, other)
        assert.deepEqual((await list(other)).map((image) => image.id), [id], other)
      }
      await remove(way)
      // All of it is gone when the call returns.
      for (const digest of [manifest, id, ...layers]) assert.equal(await node.api.content.info(node.ctx, digest), undefined, `${digest} after removal by ${what}`)
      assert.deepEqual(await snapshots(), before, what)
      assert.deepEqual(await names(), namesBefore, what)
      assert.equal(await status(one), null)
      await remove(way)
    }
  })

  it('is one image with all its names, listed, streamed and shown in full', async () => {
    for (const ref of [one, two, 'mirrored/one']) assert.equal(await pull(node, ref), id)
    const found = await status('mirrored/one')
    assert.deepEqual(found?.repo_tags.toSorted(), ['docker.io/mirrored/one:latest', one, two])
    assert.deepEqual(found?.repo_digests.toSorted(), [`docker.io/mirrored/one@${manifest}`, `registry.k8s.io/t/one@${manifest}`])
    assert.ok(Number(found?.size) > 300_000)
    assert.equal(found?.pinned, false)
    assert.deepEqual((await list()).find((image) => image.id === id), found)
    const streamed = []
    for await (const page of node.cri.image.StreamImages({})) streamed.push(...page.images)
    assert.deepEqual(streamed.map((image) => image.id).sort(), (await list()).map((image) => image.id).sort())
    const filtered = []
    for await (const page of node.cri.image.StreamImages({ filter: { image: { image: two } } })) filtered.push(...page.images)
    assert.deepEqual(filtered, [found])
    assert.deepEqual(await list('registry.k8s.io/t/one:3'), [])
    const { info } = await node.cri.image.ImageStatus({ image: { image: two }, verbose: true })
    const shown = JSON.parse(info['info'] ?? '') as { imageSpec: { config: { Cmd: string[]; Labels: Record<string, string> } }; chainID: string }
    assert.deepEqual(shown.imageSpec.config.Cmd, ['/one'])
    assert.deepEqual(shown.imageSpec.config.Labels, { made: 'here' })
    assert.ok((await snapshots()).includes(shown.chainID))
    await remove(two)
    assert.equal(await status(one), null)
    assert.equal(await status('mirrored/one'), null)
  })

  it('says whom an image runs as', async () => {
    const users: Record<string, [string | undefined, string]> = { none: ['0', ''], root: ['0', ''], uid: ['1234', ''], name: [undefined, 'www-data'] }
    for (const [name, [uid, username]] of Object.entries(users)) {
      await pull(node, `registry.k8s.io/t/user-${name}:1`)
      const found = await status(`registry.k8s.io/t/user-${name}:1`)
      assert.deepEqual([found?.uid?.value, found?.username], [uid, username], name)
    }
    for (const name of ['odd', 'large']) {
      await pull(node, `registry.k8s.io/t/user-${name}:1`)
      const found = await status(`registry.k8s.io/t/user-${name}:1`)
      assert.notEqual(found?.uid?.value, '0', name)
    }
    for (const name of ['none', 'root', 'uid', 'name', 'odd', 'large']) await remove(`registry.k8s.io/t/user-${name}:1`)
  })

  it('pulls the pause image through the mirror when it is missing, and pins it for good', async () => {
    assert.equal(await status(sandboxImage), null)
    const seen = node.registry.requests.length
    const pod = await runPod(node, podConfig(node))
    await removePods(node, pod)
    assert.ok(node.registry.requests.slice(seen).some((request) => request.ns === 'registry.k8s.io' && request.repository === 'pause'))
    const pinned = async (): Promise<boolean | undefined> => (await status(sandboxImage))?.pinned
    assert.equal(await pinned(), true)
    await pull(node, sandboxImage)
    assert.equal(await pinned(), true)
    await node.shim.end('SIGTERM')
    await restart(node)
    assert.equal(await pinned(), true, 'after it was pulled again and the service was started again')
    await remove(sandboxImage)
    await pull(node, sandboxImage)
    assert.equal(await pinned(), true, 'when it is pulled by name before the first pod')
    await node.ctr('images', 'label', sandboxImage, 'io.cri-containerd.pinned=')
    const again = await runPod(node, podConfig(node))
    assert.equal(await pinned(), true)
    await removePods(node, again)
  })

  it('takes an image away under a container, which goes on, and brings it back', async () => {
    const image = runnable
    const imageId = await pull(node, image)
    const config = podConfig(node)
    const pod = await runPod(node, config)
    const container = await startContainer(node, pod, config, { image: { image } })
    await remove(image)
    assert.equal(await status(image), null)
    assert.equal(await exec(node, container, 'ls', '/oci-gzip'), '/oci-gzip\n')
    const { status: shown } = await node.cri.runtime.ContainerStatus({ container_id: container })
    assert.deepEqual([shown?.state, shown?.image_id], [1, imageId])
    assert.match(await failureOf(startContainer(node, pod, config, { image: { image } })), /^NOT_FOUND: .*pull it first/)
    assert.equal(await pull(node, image), imageId)
    const second = await startContainer(node, pod, config, { image: { image: imageId } })
    assert.equal(await exec(node, second, 'ls', '/oci-gzip'), '/oci-gzip\n')
    await removePods(node, pod)
    await remove(image)
  })

  it('follows what ctr does', async () => {
    const name = 'registry.k8s.io/t/by-ctr:1'
    const shows = async (what: string, expected: readonly string[]): Promise<void> => void await eventually(what, async () => {
      const tags = (await list()).flatMap((image) => image.repo_tags).filter((tag) => /by-ctr|imported/.test(tag)).sort()
      return JSON.stringify(tags) === JSON.stringify(expected)
    })
    await node.ctr('images', 'pull', '--hosts-dir', node.certsDir, name)
    await shows('pulled', [name])
    await node.ctr('images', 'tag', name, 'example.com/by-ctr:other')
    await shows('tagged', ['example.com/by-ctr:other', name])
    assert.equal((await status('example.com/by-ctr:other'))?.id, (await status(name))?.id)
    await node.ctr('images', 'rm', name)
    await shows('one removed', ['example.com/by-ctr:other'])
    const archive = join(node.dir, 'archive.tar')
    await node.ctr('images', 'export', archive, 'example.com/by-ctr:other')
    await node.ctr('images', 'rm', 'example.com/by-ctr:other')
    await shows('all removed', [])
    await node.ctr('images', 'import', archive)
    await shows('imported', ['example.com/by-ctr:other'])
    await remove('example.com/by-ctr:other')
    await shows('removed by RemoveImage', [])
    assert.ok(!(await names()).includes('example.com/by-ctr:other'))
  })

  it('follows a tag that is moved to another image', async () => {
    const [a, b] = [await pull(node, 'registry.k8s.io/t/user-uid:1'), await pull(node, 'registry.k8s.io/t/user-name:1')]
    await node.ctr('images', 'tag', 'registry.k8s.io/t/user-uid:1', 'example.com/moving:1')
    await eventually('tagged', async () => (await status('example.com/moving:1'))?.id === a)
    await node.ctr('images', 'tag', '--force', 'registry.k8s.io/t/user-name:1', 'example.com/moving:1')
    await eventually('moved', async () => (await status('example.com/moving:1'))?.id === b)
    assert.deepEqual((await status(a))?.repo_tags, ['registry.k8s.io/t/user-uid:1'])
    for (const image of [a, b]) await remove(image)
  })

  it('runs an image that is there and not unpacked: imported so, or pulled for another snapshotter', async () => {
    await pull(node, runnable)
    const config = podConfig(node)
    const native = await runPod(node, config, 'native')
    const other = await startContainer(node, native, config, { image: { image: runnable } })
    assert.equal(await exec(node, other, 'ls', '/oci-gzip'), '/oci-gzip\n')
    await removePods(node, native)
    const archive = join(node.dir, 'archive.tar')
    await node.ctr('images', 'export', archive, runnable)
    await remove(runnable)
    await node.ctr('images', 'import', '--no-unpack', archive)
    await eventually('imported', async () => status(runnable).then((image) => image !== null))
    const plain = podConfig(node)
    const pod = await runPod(node, plain)
    const container = await startContainer(node, pod, plain, { image: { image: runnable } })
    assert.equal(await exec(node, container, 'ls', '/oci-gzip'), '/oci-gzip\n')
    await removePods(node, pod)
    await remove(runnable)
  })

  it('tells how much room images take', async () => {
    const info = async (): Promise<{ bytes: number; inodes: number; mountpoint: string; timestamp: bigint }> => {
      const { image_filesystems: [found] } = await node.cri.image.ImageFsInfo({})
      return { bytes: Number(found?.used_bytes?.value), inodes: Number(found?.inodes_used?.value), mountpoint: found?.fs_id?.mountpoint ?? '', timestamp: BigInt(found?.timestamp ?? 0) }
    }
    // What is told is the last measurement: one that was begun after the other tests' images were gone is the second from now.
    let before = await info()
    for (let measurement = 0; measurement < 2; measurement++) before = await eventually('a newer measurement', async () => info().then((found) => found.timestamp > before.timestamp && found))
    assert.equal(before.mountpoint, join(node.containerd.root, 'io.containerd.snapshotter.v1.overlayfs'))
    assert.ok((await stat(before.mountpoint)).isDirectory())
    await pull(node, one)
    const after = await eventually('a newer measurement', async () => info().then((found) => found.timestamp > before.timestamp && found.bytes > before.bytes && found))
    assert.ok(after.bytes - before.bytes >= 300_000 && after.bytes - before.bytes < 2_000_000, `${after.bytes} - ${before.bytes}`)
    assert.ok(after.inodes > before.inodes)
    await remove(one)
  })

  it('survives removal and pull of one image at the same time', async () => {
    for (let round = 0; round < 6; round++) {
      const results = await Promise.allSettled([pull(node, one), remove(one), pull(node, two), remove(id)])
      for (const result of results) if (result.status === 'rejected') assert.match(String(result.reason), /^Error: 10 ABORTED: .*removed at the same moment/)
    }
    assert.equal(await pull(node, one), id)
    assert.equal((await status(one))?.id, id)
    await remove(id)
    await eventually('everything gone', async () => (await node.api.content.info(node.ctx, id)) === undefined)
    assert.deepEqual(await node.api.leases.list(node.ctx), [])
  })

  it('knows the same images after a start', async () => {
    await pull(node, one)
    await pull(node, busyboxImage)
    const before = (await list()).toSorted((a, b) => a.id.localeCompare(b.id))
    await node.shim.end('SIGKILL')
    await restart(node)
    const sorted = (found: readonly Image[]): unknown => found.map((image) => ({ ...image, repo_tags: image.repo_tags.toSorted(), repo_digests: image.repo_digests.toSorted() })).toSorted((a, b) => a.id.localeCompare(b.id))
    assert.deepEqual(sorted(await list()), sorted(before))
    await remove(one)
  })

  const digest = `sha256:${'0'.repeat(64)}`
  const bad: readonly [string, string, RegExp][] = [
    ['nothing', '', /^INVALID_ARGUMENT: image is missing/],
    ['white space', 'a b', /^INVALID_ARGUMENT: .*white space/],
    ['upper case', 'registry.k8s.io/Pause:3', /^INVALID_ARGUMENT: .*lower case/],
    ['an empty tag', 'pause:', /^INVALID_ARGUMENT: .*nothing follows/],
    ['a broken digest', 'pause@sha256:abc', /^INVALID_ARGUMENT: .*sha256/],
    ['an unknown algorithm', 'pause@md5:d41d8cd98f00b204e9800998ecf8427e', /^INVALID_ARGUMENT: .*md5/],
    ['a URL', 'https://registry.k8s.io/pause', /^INVALID_ARGUMENT: /],
    ['a path', '../../etc/passwd', /^INVALID_ARGUMENT: /],
    ['a NUL byte', 'pause\0', /^INVALID_ARGUMENT: /],
  ]
  for (const [what, name, expected] of bad) {
    it(`refuses ${what} as a name`, async () => {
      for (const call of [pull(node, name), status(name), remove(name)]) assert.match(await failureOf(call), expected)
    })
  }

  it('refuses the rest of what cannot be', async () => {
    assert.match(await failureOf(node.cri.image.PullImage({})), /^INVALID_ARGUMENT: image is missing/)
    assert.match(await failureOf(node.cri.image.ImageStatus({})), /^INVALID_ARGUMENT: image is missing/)
    assert.match(await failureOf(node.cri.image.RemoveImage({})), /^INVALID_ARGUMENT: image is missing/)
    assert.match(await failureOf(pull(node, id)), /^INVALID_ARGUMENT: .*id/)
    assert.match(await failureOf(pull(node, 'registry.k8s.io/t/missing:1')), new RegExp(`^NOT_FOUND: .*registry.k8s.io/t/missing:1: 127.0.0.1:${node.registry.port}: 404`))
    assert.match(await failureOf(pull(node, `registry.k8s.io/t/one@${digest}`)), /^NOT_FOUND: /)
    assert.match(await failureOf(node.cri.image.PullImage({ image: { image: one, runtime_handler: 'nobody' } })), /^INVALID_ARGUMENT: .*"nobody".*native.*/)
  })
})
