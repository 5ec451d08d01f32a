import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { after, afterEach, before, describe, it } from 'node:test'
import { type content_Status, snapshots_Kind } from '../../src/generated/containerd.ts'
import { type Fault, type FaultRequest } from '../fixtures/registry/faults.ts'
import type { RecordedRequest } from '../fixtures/registry/registry.ts'
import { addImage, addIndex, addLayer, type Compression } from '../images/image.ts'
import { blobPath, type ContentDir, type Descriptor, readIndex, refNameAnnotation } from '../images/layout.ts'
import { file } from '../images/tar.ts'
import { hostArchitecture } from '../images/tiny-elf.ts'
import { eventually, exec, failureOf, podConfig, type PrivateNode, pull, removePods, restart, runPod, skipUnlessRoot, startContainer, startNode } from './private-node.ts'

const host = 'registry.k8s.io'
const MiB = 1024 * 1024
const limit = 3

/** Bytes that do not compress, different for each seed. */
function noise(seed: number, sizeBytes: number): Buffer {
  const bytes = Buffer.alloc(sizeBytes)
  let state = seed * 2654435761 + 1
  for (let at = 0; at < sizeBytes; at++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    bytes[at] = state >>> 24
  }
  return bytes
}

let seeds = 0

/** An image of layers of some size, with nothing that another image has. */
async function addNoise(content: ContentDir, name: string, layers: number, layerBytes: number, compression: Compression = 'none'): Promise<Descriptor> {
  const stored = []
  for (let at = 0; at < layers; at++) stored.push(await addLayer(content, [file(`${name}-${at}`, noise(++seeds, layerBytes))], 'oci', compression))
  const image = await addImage(content, stored, hostArchitecture(), { Labels: { name } })
  content.name(`${host}/t/${name}:1`, image)
  return image
}

async function images(content: ContentDir): Promise<void> {
  for (const [name, layers, size] of [['parallel', 9, 4096], ['steps', 2, 4096], ['shared', 4, 4096], ['cancelled', 2, 4 * MiB], ['gone', 1, 6 * MiB], ['killed', 1, 6 * MiB], ['leased', 1, 4096], ['cut', 1, 4 * MiB]] as const) {
    await addNoise(content, name, layers, size)
  }
  for (const name of ['wronglayer', 'wrongconfig', 'wrongmanifest', 'wrongthenright']) await addNoise(content, name, 2, 4096)
  const twins = await addNoise(content, 'twins', 2, 4096)
  content.name(`${host}/t/twins:2`, twins)
  content.name('docker.io/other/twins:3', twins)
  // A configuration that promises another layer than the manifest names.
  const [one, two] = [await addLayer(content, [file('one', 'one')]), await addLayer(content, [file('two', 'two')])]
  content.name(`${host}/t/liar:1`, await addImage(content, [{ descriptor: one.descriptor, diffId: two.diffId }], hostArchitecture(), {}))
  const foreign = await addImage(content, [one], hostArchitecture() === 'amd64' ? 'arm64' : 'amd64', {})
  const windows = { ...await addImage(content, [two], 'amd64', {}), platform: { os: 'windows', architecture: 'amd64' } }
  const attestation = { ...await addImage(content, [one], 'arm64', { Labels: { attestation: 'yes' } }), platform: { os: 'unknown', architecture: 'unknown' } }
  content.name(`${host}/t/foreign:1`, await addIndex(content, [attestation, foreign, windows]))
  content.name(`${host}/t/artifact:1`, await content.json('application/vnd.oci.image.manifest.v1+json', {
    schemaVersion: 2, mediaType: 'application/vnd.oci.image.manifest.v1+json', config: await content.json('application/vnd.oci.image.config.v1+json', {}),
    layers: [await content.blob('application/vnd.example.thing', Buffer.from('thing'))],
  }))
}

describe('PullImage', { skip: skipUnlessRoot }, () => {
  let node: PrivateNode
  const undo: (() => void)[] = []
  before(async () => {
    node = await startNode({ images, criSettings: `  max_concurrent_downloads = ${limit}` })
  })
  afterEach(() => {
    for (const each of undo.splice(0)) each()
  })
  after(async () => {
    const left = await node.stop()
    assert.deepEqual(left, [])
  })

  const fault = (given: Fault): void => void undo.push(node.registry.fault(given))
  const isBlobOf = (name: string) => (request: FaultRequest): boolean => request.kind === 'blob' && request.repository === `t/${name}`
  async function parts(name: string): Promise<{ readonly manifest: string; readonly config: string; readonly layers: readonly string[]; readonly diffIds: readonly string[] }> {
    const found = (await readIndex(node.contentDir)).find((image) => image.annotations?.[refNameAnnotation] === `${host}/t/${name}:1`)
    assert.ok(found)
    const { config, layers } = JSON.parse(await readFile(blobPath(node.contentDir, found.digest), 'utf8')) as { config: Descriptor; layers: Descriptor[] }
    const { rootfs } = JSON.parse(await readFile(blobPath(node.contentDir, config.digest), 'utf8')) as { rootfs: { diff_ids: string[] } }
    return { manifest: found.digest, config: config.digest, layers: layers.map((layer) => layer.digest), diffIds: rootfs.diff_ids }
  }
  const startOf = (request: RecordedRequest | undefined): number => Number(/^bytes=(\d+)-$/.exec(request?.range ?? '')?.[1] ?? Number.NaN)
  const leases = async (): Promise<string[]> => (await node.api.leases.list(node.ctx)).map((lease) => lease.id)
  const statuses = async (): Promise<content_Status[]> => (await node.api.client.call(node.ctx, 'containerd.services.content.v1.Content', 'ListStatuses', { filters: [] }, 'ingests')).statuses
  const ingests = async (): Promise<string[]> => (await statuses()).map((status) => status.ref)
  const blobRequests = (digest: string): RecordedRequest[] => node.registry.requests.filter((request) => request.kind === 'blob' && request.reference === digest)
  /** Everything in containerd that a pull of an image makes. */
  async function traces(name: string): Promise<string[]> {
    const { manifest, config, layers } = await parts(name)
    const found = []
    for (const digest of [manifest, config, ...layers]) if (await node.api.content.info(node.ctx, digest) !== undefined) found.push(`content ${digest}`)
    for (const record of await node.api.images.list(node.ctx)) if (record.name.includes(`/t/${name}`) || record.name === config) found.push(`image ${record.name}`)
    return [...found, ...(await ingests()).map((ref) => `ingest ${ref}`), ...(await leases()).map((id) => `lease ${id}`)]
  }

  /** containerd's collector works in the background. */
  async function gone(name: string): Promise<void> {
    let left: string[] = []
    await eventually(`nothing of ${name} is left`, async () => {
      left = await traces(name)
      return left.length === 0
    }).catch(() => undefined)
    assert.deepEqual(left, [])
  }

  for (const format of ['oci-gzip', 'oci-zstd', 'oci-none', 'docker-gzip']) {
    for (const kind of ['index', 'manifest']) {
      it(`brings ${format} by ${kind}, for this machine's platform, and it runs`, async () => {
        const image = `${host}/cri-shim/formats:${format}-${kind}`
        const id = await pull(node, image)
        assert.match(id, /^sha256:[0-9a-f]{64}$/)
        const config = podConfig(node)
        const pod = await runPod(node, config)
        try {
          const container = await startContainer(node, pod, config, { image: { image } })
          assert.equal(await exec(node, container, 'ls', `/${format}`), `/${format}\n`)
          const { status } = await node.cri.runtime.ContainerStatus({ container_id: container })
          assert.equal(status?.image_id, id)
          assert.equal(status.image?.image, image)
        } finally {
          await removePods(node, pod)
          await node.cri.image.RemoveImage({ image: { image } })
        }
      })
    }
  }

  it('says which platforms there are when none is for this machine, and leaves nothing', async () => {
    const other = hostArchitecture() === 'amd64' ? 'arm64' : 'amd64'
    const failure = await failureOf(pull(node, `${host}/t/foreign:1`))
    assert.match(failure, new RegExp(`^NOT_FOUND: .*/t/foreign:1 has no image for linux/${hostArchitecture()}; it has linux/${other}.*, windows/amd64$`))
    assert.doesNotMatch(failure, /unknown/)
    assert.deepEqual(await leases(), [])
  })

  it('refuses what is no image, and leaves nothing', async () => {
    assert.match(await failureOf(pull(node, `${host}/t/artifact:1`)), /^FAILED_PRECONDITION: .*application\/vnd\.example\.thing/)
    assert.deepEqual(await leases(), [])
  })

  for (const what of ['layer', 'config', 'manifest'] as const) {
    it(`refuses a ${what} whose bytes are not those of its digest, and leaves nothing`, async () => {
      const name = `wrong${what}`
      const { manifest, config, layers } = await parts(name)
      const digest = { layer: layers[1], config, manifest }[what]
      fault({ match: (request) => request.method === 'GET' && request.reference === digest, action: { kind: 'corrupt' } })
      const reference = what === 'manifest' ? `${host}/t/${name}@${manifest}` : `${host}/t/${name}:1`
      const failure = await failureOf(pull(node, reference))
      assert.match(failure, /^DATA_LOSS: /)
      assert.match(failure, new RegExp(`127.0.0.1:${node.registry.port}`))
      await gone(name)
      const { image } = await node.cri.image.ImageStatus({ image: { image: reference } })
      assert.equal(image, null)
      for (const each of undo.splice(0)) each()
      assert.equal(await pull(node, reference), config)
    })
  }

  it('refuses a layer that unpacks to something else than the configuration says, and leaves nothing', async () => {
    assert.match(await failureOf(pull(node, `${host}/t/liar:1`)), /^DATA_LOSS: layer sha256:[0-9a-f]+ unpacks to sha256:/)
    await gone('liar')
    assert.deepEqual((await node.api.snapshots.list(node.ctx, 'overlayfs')).filter((snapshot) => snapshot.name.startsWith('extract-')), [])
  })

  it('downloads as many layers at once as it may, no more', async () => {
    const reached = Promise.withResolvers<void>()
    let most = 0
    const { config } = await parts('parallel')
    const under = (): number => node.registry.requests.filter((request) => isBlobOf('parallel')(request) && request.reference !== config && request.status === 0 && request.bytes < 4096).length
    fault({
      match: (request) => {
        if (!isBlobOf('parallel')(request) || request.reference === config) return false
        most = Math.max(most, under())
        if (under() === limit) reached.resolve()
        return true
      },
      action: { kind: 'hold', afterBytes: 0, until: reached.promise },
    })
    await pull(node, `${host}/t/parallel:1`)
    assert.equal(most, limit)
  })

  it('unpacks a layer while the next one is still on its way', async () => {
    const { layers, diffIds } = await parts('steps')
    const unpacked = Promise.withResolvers<void>()
    fault({ match: (request) => request.reference === layers[1], action: { kind: 'hold', afterBytes: 1024, until: unpacked.promise } })
    const pulling = pull(node, `${host}/t/steps:1`)
    // The second layer comes to its end only when the first one's snapshot is there.
    await eventually('the snapshot of the first layer', async () => (await node.api.snapshots.stat(node.ctx, 'overlayfs', diffIds[0] ?? ''))?.kind === snapshots_Kind.COMMITTED)
    assert.equal(blobRequests(layers[1] ?? '')[0]?.status, 0)
    unpacked.resolve()
    await pulling
  })

  it('holds what arrives under a lease, which is gone afterwards', async () => {
    const { layers, config, manifest } = await parts('leased')
    const asked = Promise.withResolvers<void>()
    const goOn = Promise.withResolvers<void>()
    fault({ match: (request) => (request.reference === layers[0] ? (asked.resolve(), true) : false), action: { kind: 'hold', afterBytes: 0, until: goOn.promise } })
    assert.deepEqual(await leases(), [])
    const pulling = pull(node, `${host}/t/leased:1`)
    await asked.promise
    const during = await leases()
    assert.equal(during.length, 1)
    const held = await node.ctr('leases', 'ls')
    assert.match(held, new RegExp(during[0] ?? ''))
    // They are stored beside the downloads.
    for (const digest of [config, manifest]) await eventually(`${digest} in the content store`, async () => node.api.content.info(node.ctx, digest))
    // A garbage collection in the middle takes nothing of it.
    await node.api.leases.create(node.ctx, 'collector', 60_000)
    await node.api.leases.delete(node.ctx, 'collector', true)
    for (const digest of [config, manifest]) assert.ok(await node.api.content.info(node.ctx, digest), 'kept by the lease')
    goOn.resolve()
    await pulling
    assert.deepEqual(await leases(), [])
  })

  it('is one download per blob, however many ask for an image at once', async () => {
    const { config, layers, manifest } = await parts('shared')
    const ids = await Promise.all(Array.from({ length: 8 }, async () => pull(node, `${host}/t/shared:1`)))
    assert.deepEqual(new Set(ids), new Set([config]))
    for (const digest of [config, ...layers]) assert.equal(blobRequests(digest).length, 1, digest)
    assert.equal(node.registry.requests.filter((request) => request.kind === 'manifest' && request.method === 'GET' && request.repository === 't/shared' && [manifest, '1'].includes(request.reference)).length, 1)
  })

  it('brings one image by two tags and from two registries at once', async () => {
    const { config, layers, manifest } = await parts('twins')
    const names = [`${host}/t/twins:1`, `${host}/t/twins:2`, 'docker.io/other/twins:3']
    // One of them is done while the others have barely begun.
    const one = Promise.withResolvers<void>()
    let asked = 0
    fault({ match: (request) => request.method === 'GET' && request.reference === manifest && ++asked > 1, action: { kind: 'hold', afterBytes: 0, until: one.promise } })
    const ids = await Promise.all(names.map(async (name) => {
      const id = await pull(node, name)
      one.resolve()
      return id
    }))
    assert.equal(asked, 3)
    assert.deepEqual(new Set(ids), new Set([config]))
    for (const layer of layers) assert.equal(blobRequests(layer).length, 1, layer)
    const { image } = await node.cri.image.ImageStatus({ image: { image: names[2] ?? '' } })
    assert.deepEqual(image?.repo_tags.toSorted(), names.toSorted())
    assert.deepEqual(image?.repo_digests.toSorted(), [`docker.io/other/twins@${manifest}`, `${host}/t/twins@${manifest}`])
    assert.deepEqual(await leases(), [])
  })

  it('goes on for the second caller when the first one gives up', async () => {
    const { config, layers } = await parts('cancelled')
    const asked = Promise.withResolvers<void>()
    const goOn = Promise.withResolvers<void>()
    fault({ match: (request) => (request.reference === layers[0] ? (asked.resolve(), true) : false), action: { kind: 'hold', afterBytes: 2 * MiB, until: goOn.promise } })
    const leaving = new AbortController()
    const first = pull(node, `${host}/t/cancelled:1`, { signal: leaving.signal })
    await asked.promise
    const second = pull(node, `${host}/t/cancelled:1`)
    // Calls on one connection are answered in order of arrival: when this one is, the second pull is known to the service.
    await node.cri.runtime.Version({})
    leaving.abort()
    assert.match(await failureOf(first), /^CANCELLED: /)
    goOn.resolve()
    assert.equal(await second, config)
    for (const layer of layers) assert.equal(blobRequests(layer).length, 1)
  })

  it('stops when its client is gone, leaks nothing, and the next pull goes on from there', async () => {
    const { config, layers: [layer = ''] } = await parts('gone')
    fault({ match: (request) => request.reference === layer, times: 1, action: { kind: 'stall', afterBytes: 4 * MiB + 1000 } })
    const leaving = new AbortController()
    const first = pull(node, `${host}/t/gone:1`, { signal: leaving.signal })
    const reached = await eventually('3 MiB in the content store', async () => (await statuses()).find((status) => status.ref.includes(layer) && Number(status.offset) >= 3 * MiB))
    leaving.abort()
    assert.match(await failureOf(first), /^CANCELLED: /)
    // Its connection to the registry ends: the stalled answer is over.
    await eventually('the end of the download', async () => blobRequests(layer)[0]?.status === 200)
    assert.equal(await pull(node, `${host}/t/gone:1`), config)
    const [, again, ...more] = blobRequests(layer)
    assert.ok(startOf(again) >= Number(reached.offset), `${again?.range}`)
    assert.equal(again?.status, 206)
    assert.deepEqual(more, [])
    assert.deepEqual(await leases(), [])
    assert.deepEqual(await ingests(), [])
  })

  it('can be asked again at once after it was cancelled', async () => {
    const { config, layers: [layer = ''] } = await parts('gone')
    await node.cri.image.RemoveImage({ image: { image: config } })
    for (let round = 0; round < 5; round++) {
      const asked = Promise.withResolvers<void>()
      fault({ match: (request) => (request.reference === layer ? (asked.resolve(), true) : false), times: 1, action: { kind: 'stall', afterBytes: 1000 } })
      const leaving = new AbortController()
      const first = pull(node, `${host}/t/gone:1`, { signal: leaving.signal })
      await asked.promise
      leaving.abort()
      // Without waiting for the end of the first one.
      const second = pull(node, `${host}/t/gone:1`)
      assert.match(await failureOf(first), /^CANCELLED: /)
      assert.equal(await second, config)
      await node.cri.image.RemoveImage({ image: { image: config } })
    }
    assert.deepEqual(await leases(), [])
  })

  it('goes on from where a killed cri-shim stopped', async () => {
    const { config, layers: [layer = ''] } = await parts('killed')
    fault({ match: (request) => request.reference === layer, times: 1, action: { kind: 'stall', afterBytes: 4 * MiB + 1000 } })
    const first = failureOf(pull(node, `${host}/t/killed:1`))
    const reached = await eventually('3 MiB in the content store', async () => (await statuses()).find((status) => status.ref.includes(layer) && Number(status.offset) >= 3 * MiB))
    await node.shim.end('SIGKILL')
    assert.match(await first, /^UNAVAILABLE: /)
    await restart(node)
    assert.equal(await pull(node, `${host}/t/killed:1`), config)
    const [, again, ...more] = blobRequests(layer)
    assert.ok(startOf(again) >= Number(reached.offset), `${again?.range}`)
    assert.deepEqual(more, [])
    assert.deepEqual(await leases(), [])
  })

  it('goes on by itself when the connection breaks', async () => {
    const { config, layers: [layer = ''] } = await parts('cut')
    fault({ match: (request) => request.reference === layer, times: 2, action: { kind: 'cut', afterBytes: 2 * MiB } })
    fault({ match: (request) => request.reference === layer, times: 1, action: { kind: 'cut', afterBytes: MiB } })
    assert.equal(await pull(node, `${host}/t/cut:1`), config)
    assert.deepEqual(blobRequests(layer).map((request) => request.range), [undefined, `bytes=${MiB}-`, `bytes=${3 * MiB}-`])
  })

  it('waits for another client of containerd that brings the same layer', async () => {
    const { config, layers: [layer = ''] } = await parts('killed')
    await node.cri.image.RemoveImage({ image: { image: config } })
    const lease = 'another-client'
    await node.api.leases.create(node.ctx, lease, 60_000)
    const writer = await node.api.content.openWriter(node.ctx, { ref: `layer-${layer}`, digest: layer, sizeBytes: (await readFile(blobPath(node.contentDir, layer))).length, lease })
    assert.ok(writer)
    const pulling = pull(node, `${host}/t/killed:1`)
    const locked = eventually('the line about the other writer', async () => (await readFile(node.shim.logFile, 'utf8')).includes('another client of containerd is writing'))
    await Promise.race([locked, pulling])
    await writer.write(await readFile(blobPath(node.contentDir, layer)))
    await writer.commit({})
    writer.close()
    assert.equal(await pulling, config)
    await node.api.leases.delete(node.ctx, lease)
  })
})
