import assert from 'node:assert/strict'
import { status } from '@grpc/grpc-js'
import { readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, afterEach, before, describe, it } from 'node:test'
import { syncsLayers } from '../../src/containerd/diff.ts'
import { type diff_ApplyRequest, type snapshots_Info, snapshots_Kind } from '../../src/generated/containerd.ts'
import { temporaryDirectory } from '../../src/server/fixtures.ts'
import { output } from '../fixtures/command.ts'
import { RecordingProxy } from '../fixtures/recording-proxy.ts'
import { RemoteSnapshotter, type SnapshotRequest } from '../fixtures/remote-snapshotter.ts'
import type { RecordedRequest } from '../fixtures/registry/registry.ts'
import { busyboxRootfs } from '../images/busybox.ts'
import { addImage, addLayer, type Layer } from '../images/image.ts'
import { blobPath, type ContentDir, type Descriptor, readIndex, refNameAnnotation } from '../images/layout.ts'
import { file } from '../images/tar.ts'
import { hostArchitecture } from '../images/tiny-elf.ts'
import { eventually, exec, failureOf, podConfig, type PrivateNode, pull, removePods, restart, runPod, skipUnlessRoot, startContainer, startNode, writeNodeFile } from './private-node.ts'

// Images that a snapshotter outside of containerd brings by itself (stargz, nydus, overlaybd), and what of an image is on the disk when its pull ends.

const host = 'registry.k8s.io'
const cri = 'plugins."io.containerd.grpc.v1.cri"'
const snapshotter = 'remote'
/** The runtime handler whose pods use it. */
const handler = 'lazy'
const label = (name: string): string => `containerd.io/snapshot/cri.${name}`
const manyLayers = 70
const tocDigest = 'containerd.io/snapshot/stargz/toc.digest'
const nameOf = (name: string): string => `${host}/t/${name}:1`

/** The layers that the snapshotter knows without anybody who brings them. */
const known = new Set<string>()

async function images(content: ContentDir): Promise<void> {
  const rootfs = await addLayer(content, await busyboxRootfs())
  const marked = async (mark: string, isKnown: boolean): Promise<Layer> => {
    const layer = await addLayer(content, [file(mark, mark)])
    if (isKnown) known.add(layer.descriptor.digest)
    return layer
  }
  known.add(rootfs.descriptor.digest)
  const all: Readonly<Record<string, readonly Layer[]>> = {
    remote: [rootfs, await marked('remote-one', true), await marked('remote-two', true)],
    mixed: [rootfs, await marked('mixed-known', true), await marked('mixed-unknown', false)],
    upper: [await marked('upper-unknown', false), await marked('upper-known', true)],
    unknown: [await marked('unknown-one', false), await marked('unknown-two', false)],
    broken: [rootfs, await marked('broken-one', true), await marked('broken-two', false)],
    killed: [rootfs, await marked('killed-one', true), await marked('killed-two', false)],
    many: await Promise.all(Array.from({ length: manyLayers }, async (_, at) => marked(`many-${at}`, true))),
  }
  // What its author says of a layer to stargz and nydus, which refuse it without; and a layer that only nydus can read.
  const annotated = await addLayer(content, [file('annotated', 'annotated')])
  const nydus = { ...annotated, descriptor: { ...annotated.descriptor, mediaType: 'application/vnd.oci.image.layer.nydus.blob.v1', annotations: { [tocDigest]: annotated.diffId, 'org.example/other': 'no' } } }
  known.add(annotated.descriptor.digest)
  content.name(nameOf('annotated'), await addImage(content, [nydus], hostArchitecture(), { Labels: { name: 'annotated' } }))
  for (const [name, layers] of Object.entries(all)) content.name(nameOf(name), await addImage(content, layers, hostArchitecture(), { Labels: { name } }))
}

describe('snapshotters outside of containerd', { skip: skipUnlessRoot }, () => {
  let node: PrivateNode
  let remote: RemoteSnapshotter
  let proxy: RecordingProxy
  const directory = temporaryDirectory()
  /** What cri-shim asked the kernel to write to the disk. */
  const syncs = join(directory.path, 'syncs')
  const undo: (() => void)[] = []

  before(async () => {
    remote = await RemoteSnapshotter.start({
      dir: directory.path,
      provide: async (digest, dir) => {
        if (!known.has(digest)) return false
        await output('tar', ['--extract', '--file', blobPath(node.contentDir, digest), '--directory', dir])
        return true
      },
    })
    const bin = join(directory.path, 'bin')
    await writeNodeFile(join(bin, 'sync'), `#!/bin/sh\necho "$@" >> '${syncs}'\nPATH='${process.env['PATH']}' exec sync "$@"\n`, 0o755)
    node = await startNode({
      images,
      criSettings: '  image_pull_with_sync_fs = true',
      config: `[proxy_plugins.${snapshotter}]\n  type = "snapshot"\n  address = "${remote.socket}"\n`,
      editConfig: async (toml) => `${toml.replace('snapshotter = "overlayfs"', 'snapshotter = "overlayfs"\n    disable_snapshot_annotations = false')}
[${cri}.containerd.runtimes.${handler}]
  runtime_type = "io.containerd.runc.v2"
  snapshotter = "${snapshotter}"
[${cri}.containerd.runtimes.missing]
  runtime_type = "io.containerd.runc.v2"
  snapshotter = "nosuch"
`,
      shimEnv: { PATH: `${bin}:${process.env['PATH']}` },
      between: async (target, dir) => (proxy = await RecordingProxy.start({ dir, target, keep: (path) => path.endsWith('/Apply') })),
    })
  })
  afterEach(async () => {
    for (const each of undo.splice(0)) each()
    remote.fault = () => undefined
  })
  after(async () => {
    try {
      assert.deepEqual(await node.stop(), [])
    } finally {
      // Also when there is no node: a server that stays would keep the test from ending.
      await remote[Symbol.asyncDispose]()
      directory[Symbol.dispose]()
    }
  })

  const pullLazily = async (name: string): Promise<string> => (await node.cri.image.PullImage({ image: { image: nameOf(name), runtime_handler: handler } })).image_ref
  const remove = async (name: string): Promise<unknown> => node.cri.image.RemoveImage({ image: { image: nameOf(name) } })
  async function parts(name: string): Promise<{ readonly manifest: string; readonly config: string; readonly layers: readonly string[]; readonly sizeBytes: number }> {
    const found = (await readIndex(node.contentDir)).find((image) => image.annotations?.[refNameAnnotation] === nameOf(name))
    assert.ok(found)
    const { config, layers } = JSON.parse(await readFile(blobPath(node.contentDir, found.digest), 'utf8')) as { config: Descriptor; layers: Descriptor[] }
    return { manifest: found.digest, config: config.digest, layers: layers.map(({ digest }) => digest), sizeBytes: [found, config, ...layers].reduce((sum, { size }) => sum + size, 0) }
  }
  const blobRequests = (digest: string | undefined): RecordedRequest[] => node.registry.requests.filter((request) => request.kind === 'blob' && request.reference === digest)
  const asked = (method: string): SnapshotRequest[] => remote.requests.filter((request) => request.method === method)
  const inContainerd = async (): Promise<snapshots_Info[]> => node.api.snapshots.list(node.ctx, snapshotter)
  const committed = async (): Promise<string[]> => (await inContainerd()).filter(({ kind }) => kind === snapshots_Kind.COMMITTED).map(({ name }) => name)
  /** Nothing of the snapshotter's is left, in containerd or on its disk. */
  async function nothingLeft(): Promise<void> {
    await eventually('everything is collected', async () => (await inContainerd()).length + remote.snapshots.length + (await remote.directories()).length === 0).catch(async () => {
      assert.deepEqual([await inContainerd(), remote.snapshots, await remote.directories()], [[], [], []])
    })
    assert.deepEqual(await node.api.leases.list(node.ctx), [])
  }

  it('bring an image by themselves: no layer is downloaded, they are told of image and layers, and it runs', async () => {
    const { manifest, config, layers, sizeBytes } = await parts('remote')
    remote.requests.length = 0
    const before = node.registry.requests.length
    assert.equal(await pullLazily('remote'), config)
    assert.deepEqual(node.registry.requests.slice(before).filter(({ kind }) => kind === 'blob').map(({ reference }) => reference), [config])
    for (const digest of layers) assert.equal(await node.api.content.info(node.ctx, digest), undefined)
    const prepared = asked('Prepare')
    assert.deepEqual(prepared.map(({ labels }) => Object.fromEntries(['image-ref', 'manifest-digest', 'layer-digest', 'image-layers'].map((name) => [name, labels[label(name)]]))), layers.map((digest, index) => (
      { 'image-ref': nameOf('remote'), 'manifest-digest': manifest, 'layer-digest': digest, 'image-layers': layers.slice(index).join(',') })))
    assert.deepEqual(prepared.map(({ labels }) => labels['containerd.io/snapshot.ref']), remote.snapshots.map(({ name }) => name))
    for (const { labels } of prepared) assert.deepEqual(Object.keys(labels).filter((name) => !name.startsWith('containerd.io/snapshot/') && name !== 'containerd.io/snapshot.ref'), [])
    assert.equal((await committed()).length, layers.length)
    assert.deepEqual(asked('Commit'), [])

    const { image } = await node.cri.image.ImageStatus({ image: { image: nameOf('remote') } })
    assert.equal(image?.size, String(sizeBytes))
    assert.equal((await node.cri.image.ListImages({ filter: { image: { image: config } } })).images[0]?.size, String(sizeBytes))

    // A second pull finds all of it.
    remote.requests.length = 0
    assert.equal(await pullLazily('remote'), config)
    assert.deepEqual(asked('Prepare'), [])

    remote.requests.length = 0
    const pod = podConfig(node, { annotations: { 'containerd.io/snapshot/of-the-pod': 'yes', other: 'no' } })
    const podId = await runPod(node, pod, handler)
    const container = await startContainer(node, podId, pod, { image: { image: nameOf('remote') }, annotations: { 'containerd.io/snapshot/of-the-container': 'yes', other: 'no' } })
    const labelsFor = (id: string): SnapshotRequest['labels'] | undefined => asked('Prepare').find(({ key }) => key.endsWith(`/${id}`))?.labels
    assert.deepEqual(labelsFor(podId), { 'containerd.io/snapshot/of-the-pod': 'yes' })
    assert.deepEqual(labelsFor(container), { 'containerd.io/snapshot/of-the-container': 'yes' })
    assert.equal((await node.api.containers.get(node.ctx, container))?.snapshotter, snapshotter)
    assert.equal(await exec(node, container, 'cat', '/remote-one', '/remote-two'), 'remote-oneremote-two')
    assert.equal(await exec(node, container, 'sh', '-c', 'echo more > /written; cat /written'), 'more\n')
    await removePods(node, podId)
    await remove('remote')
    await node.cri.image.RemoveImage({ image: { image: `${host}/pause:3.10` } })
    await nothingLeft()
  })

  it('have what they do not know downloaded and unpacked', async () => {
    const { config, layers } = await parts('mixed')
    remote.requests.length = 0
    // As kubelets have it that do not name the runtime handler.
    const pulled = await node.cri.image.PullImage({ image: { image: nameOf('mixed') }, sandbox_config: podConfig(node, { annotations: { 'io.containerd.cri.runtime-handler': handler } }) })
    assert.equal(pulled.image_ref, config)
    assert.deepEqual(layers.map((digest) => blobRequests(digest).length), [0, 0, 1])
    assert.equal(asked('Commit').length, 1)
    const pod = podConfig(node)
    const podId = await runPod(node, pod, handler)
    const container = await startContainer(node, podId, pod, { image: { image: nameOf('mixed') } })
    assert.equal(await exec(node, container, 'cat', '/mixed-known', '/mixed-unknown'), 'mixed-knownmixed-unknown')
    await removePods(node, podId)
    await remove('mixed')
    await node.cri.image.RemoveImage({ image: { image: `${host}/pause:3.10` } })
    await nothingLeft()
  })

  it('may know an upper layer and not the one below it', async () => {
    const { config } = await parts('upper')
    remote.requests.length = 0
    assert.equal(await pullLazily('upper'), config)
    assert.equal(asked('Commit').length, 1)
    assert.equal((await committed()).length, 2)
    await remove('upper')
    await nothingLeft()
  })

  it('are told of as many layers as a label takes', async () => {
    const { layers } = await parts('many')
    remote.requests.length = 0
    await pullLazily('many')
    const prepared = asked('Prepare')
    assert.equal(prepared.length, manyLayers)
    for (const [index, { labels }] of prepared.entries()) {
      const name = label('image-layers')
      const told = labels[name] ?? ''
      assert.ok(name.length + told.length <= 4096)
      // 71 characters each and commas between.
      assert.equal(told, layers.slice(index, index + Math.floor((4096 - name.length + 1) / 72)).join(','))
    }
    await remove('many')
    await nothingLeft()
  })

  it('are told what the image says of its layers, whatever these are', async () => {
    remote.requests.length = 0
    await pullLazily('annotated')
    const [told, ...more] = asked('Prepare').map(({ labels }) => labels)
    assert.deepEqual(more, [])
    assert.match(told?.[tocDigest] ?? '', /^sha256:/)
    assert.equal(told?.['org.example/other'], undefined)
    await remove('annotated')
    await nothingLeft()
  })

  it('are passed over by pods of another runtime: the image is pulled for that one too', async () => {
    const { config, layers } = await parts('remote')
    await pullLazily('remote')
    const pod = podConfig(node)
    const podId = await runPod(node, pod)
    assert.match(await failureOf(startContainer(node, podId, pod, { image: { image: nameOf('remote') } })), /^FAILED_PRECONDITION: .*not unpacked for snapshotter overlayfs.*pull it again for this runtime handler/)
    assert.equal(await pull(node, nameOf('remote')), config)
    assert.deepEqual(layers.slice(1).map((digest) => blobRequests(digest).length), [1, 1])
    const container = await startContainer(node, podId, pod, { image: { image: nameOf('remote') } })
    assert.equal(await exec(node, container, 'cat', '/remote-one'), 'remote-one')
    await removePods(node, podId)
    await remove('remote')
    await nothingLeft()
  })

  it('that refuse are named, with what to do', async () => {
    const failing = async (code: status, details: string): Promise<string> => {
      remote.fault = ({ method, parent }) => (method === 'Prepare' && parent !== '' ? { code, details } : undefined)
      return failureOf(pullLazily('broken'))
    }
    // As stargz has it for a layer whose registry does not answer.
    assert.match(await failing(status.UNAVAILABLE, 'layer "2" unavailable: unavailable'), /^UNAVAILABLE: snapshotter remote is not available \(.*layer "2" unavailable.*\); its own log says why/)
    assert.match(await failing(status.INTERNAL, 'no space left'), /^INTERNAL: containerd Snapshots\.Prepare \(snapshot .* of remote\): no space left/)
    assert.match(await failureOf(node.cri.image.PullImage({ image: { image: nameOf('broken'), runtime_handler: 'missing' } })), /^FAILED_PRECONDITION: containerd has no snapshotter nosuch, .*\[proxy_plugins\.nosuch\]/)
    remote.fault = () => undefined
    await pullLazily('broken')
    await remove('broken')
    await nothingLeft()
  })

  it('that are killed in the middle of a pull are named, with what to do; the pull after their restart succeeds', async () => {
    const { layers, config } = await parts('killed')
    const goOn = Promise.withResolvers<void>()
    const reached = Promise.withResolvers<void>()
    undo.push(node.registry.fault({ match: (request) => (request.reference === layers[2] ? (reached.resolve(), true) : false), action: { kind: 'hold', afterBytes: 0, until: goOn.promise } }))
    await pullLazily('remote')
    const pulling = pullLazily('killed')
    await reached.promise
    await remote.kill()
    goOn.resolve()
    const named = /^UNAVAILABLE: snapshotter remote is not available \(.*connection refused.*\); it runs outside of containerd: start it, and look whether it listens where \[proxy_plugins\.remote\]/
    assert.match(await failureOf(pulling), named)
    assert.match(await failureOf(pullLazily('killed')), named)
    // Others are none the worse for it.
    const [{ config: other }, pod] = [await parts('unknown'), podConfig(node)]
    assert.equal(await pull(node, nameOf('unknown')), other)
    await removePods(node, await runPod(node, pod))
    await remove('unknown')
    // An image can be removed meanwhile: what it had is collected later.
    await remove('remote')
    assert.equal((await node.cri.image.ImageStatus({ image: { image: nameOf('remote') } })).image, null)
    assert.equal((await node.cri.image.ImageStatus({ image: { image: nameOf('killed') } })).image, null)
    await remote.serve()
    assert.equal(await eventually('containerd finds it again', async () => pullLazily('killed').catch(() => undefined)), config)
    assert.equal(blobRequests(layers[2]).length, 1, 'what was downloaded is used')
    await remove('killed')
    await nothingLeft()
  })

  it('and those of containerd have a layer on the disk before it counts (image_pull_with_sync_fs)', async () => {
    const { layers } = await parts('unknown')
    const synced = async (): Promise<string[]> => (await readFile(syncs, 'utf8').catch(() => '')).split('\n').filter((line) => line !== '')
    const applied = (): diff_ApplyRequest[] => proxy.requests<diff_ApplyRequest>('/containerd.services.diff.v1.Diff/Apply', 'containerd.services.diff.v1.ApplyRequest')
    // An older containerd is not told in vain: cri-shim does it.
    const own = !syncsLayers((await node.api.introspection.version(node.ctx)).version)
    for (const [bring, root] of [[async () => pull(node, nameOf('unknown')), join(node.dir, 'root')], [async () => pullLazily('unknown'), remote.root]] as const) {
      await rm(syncs, { force: true })
      proxy.calls.length = 0
      await bring()
      assert.deepEqual(applied().map(({ diff, sync_fs: syncFs }) => [diff?.digest, syncFs]), layers.map((digest) => [digest, true]))
      const written = applied().map(({ mounts: [mount] }) => mount?.options.find((option) => option.startsWith('upperdir='))?.slice('upperdir='.length) ?? mount?.source ?? '')
      for (const path of written) assert.ok(path.startsWith(`${root}/`), path)
      assert.deepEqual(await synced(), own ? written.map((path) => `--file-system ${path}`) : [])
    }
    await remove('unknown')
  })

  it('are told nothing by default, and everything is downloaded', async () => {
    await node.shim.end('SIGTERM')
    // What they have was written to the disk, wherever they have it.
    assert.doesNotMatch(await readFile(node.shim.logFile, 'utf8'), /cannot be synced/)
    assert.deepEqual(await readdir(join(node.dir, 'shim-root', 'pulls')), [])
    const toml = await readFile(node.configFile, 'utf8')
    await writeFile(node.configFile, toml.replace('snapshotter = "overlayfs"', `snapshotter = "${snapshotter}"`).replace(/.*disable_snapshot_annotations.*\n/, '').replace(/.*image_pull_with_sync_fs.*\n/, ''))
    remote.requests.length = 0
    proxy.calls.length = 0
    await restart(node)
    const { config, layers } = await parts('mixed')
    const before = layers.map((digest) => blobRequests(digest).length)
    assert.equal(await pull(node, nameOf('mixed')), config)
    // The lowest is that of other images and in containerd already.
    assert.deepEqual(layers.slice(1).map((digest, index) => blobRequests(digest).length - (before[index + 1] ?? 0)), [1, 1])
    assert.equal(asked('Commit').length, layers.length)
    for (const { labels } of asked('Prepare')) assert.deepEqual(Object.keys(labels), ['containerd.io/snapshot.ref'])
    assert.deepEqual(proxy.requests<diff_ApplyRequest>('/containerd.services.diff.v1.Diff/Apply', 'containerd.services.diff.v1.ApplyRequest').map(({ sync_fs: syncFs }) => syncFs), layers.map(() => false))
    await remove('mixed')
    await nothingLeft()
  })
})
