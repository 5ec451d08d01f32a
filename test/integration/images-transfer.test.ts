import assert from 'node:assert/strict'
import { readdir, readFile, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, afterEach, before, describe, it } from 'node:test'
import { type Fault } from '../fixtures/registry/faults.ts'
import { holdFirst } from '../fixtures/registry/hold-first.ts'
import type { RecordedRequest } from '../fixtures/registry/registry.ts'
import { addImage, addLayer } from '../images/image.ts'
import { blobPath, type ContentDir, type Descriptor, readIndex, refNameAnnotation } from '../images/layout.ts'
import { file } from '../images/tar.ts'
import { hostArchitecture } from '../images/tiny-elf.ts'
import { eventually, failureOf, type PrivateNode, pull, restart, skipUnlessRoot, startNode } from './private-node.ts'

const host = 'registry.k8s.io'
const MiB = 1024 * 1024
const transfers = 3
const settings = `
[plugins."io.cri-shim.v1"]
  max_concurrent_transfers = ${transfers}
  parallel_ranges = 3
  parallel_ranges_from_mib = 6
`

const containerdTable = '[plugins."io.containerd.grpc.v1.cri".containerd]'

let seeds = 0

/** Bytes that do not compress, different for each call. */
function noise(sizeBytes: number): Buffer {
  const bytes = Buffer.alloc(sizeBytes)
  let state = ++seeds * 2654435761 + 1
  for (let at = 0; at < sizeBytes; at++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    bytes[at] = state >>> 24
  }
  return bytes
}

async function images(content: ContentDir): Promise<void> {
  const all = [['ranges', 1, 9 * MiB], ['broken', 1, 9 * MiB], ['stopped', 1, 9 * MiB], ['killed', 1, 9 * MiB], ['plain', 1, 9 * MiB], ['one', 4, 4096], ['two', 4, 4096], ['slow', 3, 2 * MiB], ['queued', 1, 4096], ['silent', 1, 4096], ['log', 2, 4096], ['lost', 2, 4096], ['lowest', 3, 2 * MiB]] as const
  for (const [name, layers, size] of all) {
    const stored = []
    for (let at = 0; at < layers; at++) stored.push(await addLayer(content, [file(`${name}-${at}`, noise(size))], 'oci', 'none'))
    content.name(`${host}/t/${name}:1`, await addImage(content, stored, hostArchitecture(), { Labels: { name } }))
  }
}

describe('transfers of a pull', { skip: skipUnlessRoot }, () => {
  let node: PrivateNode
  const undo: (() => void)[] = []
  before(async () => {
    node = await startNode({ images, criSettings: '  image_pull_progress_timeout = "2s"', editConfig: async (toml) => `${toml.replace(containerdTable, `${containerdTable}\n    discard_unpacked_layers = true`)}\n${settings}` })
  })
  afterEach(() => {
    for (const each of undo.splice(0)) each()
  })
  after(async () => {
    assert.deepEqual(await node.stop(), [])
  })

  const fault = (given: Fault): void => void undo.push(node.registry.fault(given))
  async function parts(name: string): Promise<{ readonly config: string; readonly manifest: string; readonly layers: readonly Descriptor[] }> {
    const found = (await readIndex(node.contentDir)).find((image) => image.annotations?.[refNameAnnotation] === `${host}/t/${name}:1`)
    assert.ok(found)
    const { config, layers } = JSON.parse(await readFile(blobPath(node.contentDir, found.digest), 'utf8')) as { config: Descriptor; layers: Descriptor[] }
    return { config: config.digest, manifest: found.digest, layers }
  }
  async function layerOf(name: string): Promise<{ readonly digest: string; readonly size: number; readonly starts: readonly number[]; readonly config: string }> {
    const { config, layers: [layer] } = await parts(name)
    assert.ok(layer)
    return { digest: layer.digest, size: layer.size, starts: [0, Math.ceil(layer.size / 3), Math.ceil(layer.size * 2 / 3)], config }
  }
  const requests = (digest: string): RecordedRequest[] => node.registry.requests.filter((request) => request.kind === 'blob' && request.reference === digest)
  const offsetOf = async (digest: string): Promise<number | undefined> => {
    const status = (await node.api.content.statuses(node.ctx)).find(({ ref }) => ref.includes(digest))
    return status === undefined ? undefined : Number(status.offset)
  }
  /** A request for a part is recognised by what the server has recorded of it last. */
  const asksFor = (digest: string, range: (given: string | undefined) => boolean): NonNullable<Fault['match']> => (request) => request.reference === digest && range((request as RecordedRequest).range)

  it('brings a large layer in ranges side by side when it has to wait for the network', async () => {
    const { digest, starts, config } = await layerOf('ranges')
    undo.push(holdFirst(node.registry, digest, 3))
    assert.equal(await pull(node, `${host}/t/ranges:1`), config)
    assert.deepEqual(new Set(requests(digest).map(({ range }) => range)), new Set([undefined, `bytes=${starts[1]}-${(starts[2] ?? 0) - 1}`, `bytes=${starts[2]}-`]))
    assert.equal(requests(digest).length, 3)
  })

  it('brings it as a whole from a server that does not know ranges', async () => {
    const { digest, config } = await layerOf('plain')
    fault({ match: (request) => request.reference === digest, action: { kind: 'ignore-range' } })
    assert.equal(await pull(node, `${host}/t/plain:1`), config)
  })

  it('goes on with a range that broke off', async () => {
    const { digest, starts, config } = await layerOf('broken')
    fault({ match: asksFor(digest, (range) => range?.startsWith(`bytes=${starts[2]}-`) === true), times: 1, action: { kind: 'cut', afterBytes: MiB } })
    undo.push(holdFirst(node.registry, digest, 3))
    assert.equal(await pull(node, `${host}/t/broken:1`), config)
    assert.ok(requests(digest).some(({ range }) => range === `bytes=${(starts[2] ?? 0) + MiB}-`), JSON.stringify(requests(digest).map(({ range }) => range)))
  })

  it('keeps of a cancelled download what has no gap before it, and goes on from there', async () => {
    const { digest, starts, config } = await layerOf('stopped')
    fault({ match: asksFor(digest, (range) => range === undefined), times: 1, action: { kind: 'stall', afterBytes: MiB } })
    const leaving = new AbortController()
    const first = failureOf(pull(node, `${host}/t/stopped:1`, { signal: leaving.signal }))
    await eventually('the last range is here', async () => requests(digest).some(({ range, bytes }) => range?.startsWith(`bytes=${starts[2]}-`) === true && bytes > 2 * MiB))
    leaving.abort()
    assert.match(await first, /^CANCELLED/)
    const offset = await eventually('an ingest that ends at the gap', async () => {
      const bytes = await offsetOf(digest)
      return bytes !== undefined && bytes <= MiB ? { bytes } : undefined
    })
    assert.equal(await pull(node, `${host}/t/stopped:1`), config)
    assert.ok(requests(digest).some(({ range }) => range === `bytes=${offset.bytes}-` || (offset.bytes === 0 && range === undefined)))
  })

  it('throws away what a killed cri-shim left with a gap, and brings it anew', async () => {
    const { digest, starts, config } = await layerOf('killed')
    fault({ match: asksFor(digest, (range) => range === undefined), times: 1, action: { kind: 'stall', afterBytes: MiB } })
    const first = failureOf(pull(node, `${host}/t/killed:1`))
    await eventually('the last range is here', async () => requests(digest).some(({ range, bytes }) => range?.startsWith(`bytes=${starts[2]}-`) === true && bytes > 2 * MiB))
    await node.shim.end('SIGKILL')
    assert.match(await first, /^UNAVAILABLE/)
    await restart(node)
    assert.equal(await pull(node, `${host}/t/killed:1`), config)
  })

  it('has no more transfers under way than the node may, whatever the number of pulls', async () => {
    const names = ['one', 'two']
    const digests = new Set((await Promise.all(names.map(async (name) => parts(name)))).flatMap(({ layers }) => layers.map(({ digest }) => digest)))
    const reached = Promise.withResolvers<void>()
    let most = 0
    fault({
      match: (request) => {
        if (!digests.has(request.reference)) return false
        most = Math.max(most, node.registry.requests.filter((each) => digests.has(each.reference) && each.status === 0 && each.bytes < 4096).length)
        if (most === transfers) reached.resolve()
        return true
      },
      action: { kind: 'hold', afterBytes: 0, until: reached.promise },
    })
    await Promise.all(names.map(async (name) => pull(node, `${host}/t/${name}:1`)))
    assert.equal(most, transfers)
  })

  it('does not count the wait for a turn as a lack of progress', async () => {
    const { layers } = await parts('slow')
    // All turns are taken for longer than the progress timeout, by transfers of which bytes arrive all the time.
    fault({ match: (request) => layers.some(({ digest }) => digest === request.reference), action: { kind: 'slow', bytesPerSecond: 700_000 } })
    const slow = pull(node, `${host}/t/slow:1`)
    await eventually('three slow transfers', async () => layers.every(({ digest }) => requests(digest).length > 0))
    await Promise.all([slow, pull(node, `${host}/t/queued:1`)])
  })

  it('ends a pull to which no byte comes', async () => {
    const { layers } = await parts('silent')
    fault({ match: (request) => request.reference === layers[0]?.digest, action: { kind: 'stall', afterBytes: 100 } })
    assert.match(await failureOf(pull(node, `${host}/t/silent:1`)), /^DEADLINE_EXCEEDED: .*no byte arrived for 2 s \(image_pull_progress_timeout\)/)
  })

  it('brings the layers above one that does not come', async () => {
    const { layers: [lowest, ...others] } = await parts('lowest')
    fault({ match: (request) => request.reference === lowest?.digest, action: { kind: 'stall', afterBytes: MiB } })
    const leaving = new AbortController()
    const failure = failureOf(pull(node, `${host}/t/lowest:1`, { signal: leaving.signal }))
    await eventually('the other layers', async () => (await Promise.all(others.map(async ({ digest }) => node.api.content.info(node.ctx, digest)))).every((info) => info !== undefined))
    leaving.abort()
    assert.match(await failure, /^CANCELLED/)
  })

  it('lets containerd delete the layers that are unpacked, and a pod runs all the same (discard_unpacked_layers)', async () => {
    const { layers } = await parts('one')
    const id = await pull(node, `${host}/t/one:1`)
    await eventually('the layers are gone', async () => {
      for (const { digest } of layers) if (await node.api.content.info(node.ctx, digest) !== undefined) return false
      return true
    })
    const { image } = await node.cri.image.ImageStatus({ image: { image: `${host}/t/one:1` } })
    assert.equal(image?.id, id)
    const before = node.registry.requests.length
    assert.equal(await pull(node, `${host}/t/one:1`), id)
    assert.deepEqual(node.registry.requests.slice(before).filter((request) => request.kind === 'blob'), [])
    await node.cri.image.RemoveImage({ image: { image: id } })
  })

  it('does not trust what was pulled just before the machine went down, and pulls it again', async () => {
    const { config, layers, manifest } = await parts('lost')
    assert.equal(await pull(node, `${host}/t/lost:1`), config)
    const kept = await pull(node, `${host}/t/queued:1`)
    const pulls = join(node.dir, 'shim-root', 'pulls')
    await node.shim.end('SIGKILL')
    const notes = await Promise.all((await readdir(pulls)).map(async (name) => ({ name, text: await readFile(join(pulls, name), 'utf8') })))
    const note = notes.find(({ text }) => text.includes('t/lost:1'))
    assert.ok(note)
    const [boot] = /"boot":"[0-9a-f-]{36}"/.exec(note.text) ?? []
    assert.ok(boot)
    await writeFile(join(pulls, note.name), note.text.replace(boot, '"boot":"another"'))
    // What a power cut leaves: the database knows everything, the files are empty.
    const { root = '' } = (await node.api.introspection.plugins(node.ctx, ['type==io.containerd.content.v1,id==content']))[0]?.exports ?? {}
    for (const digest of [config, manifest]) await truncate(join(root, 'blobs', digest.replace(':', '/')))
    const asked = node.registry.requests.length
    await restart(node)
    assert.equal((await node.cri.image.ImageStatus({ image: { image: `${host}/t/lost:1` } })).image, null)
    assert.equal((await node.cri.image.ImageStatus({ image: { image: `${host}/t/queued:1` } })).image?.id, kept)
    assert.equal((await readdir(pulls)).includes(note.name), false)
    assert.equal(await pull(node, `${host}/t/lost:1`), config)
    for (const { digest } of layers) assert.ok(node.registry.requests.slice(asked).some((request) => request.reference === digest), digest)
  })

  it('logs in one line who served what, and why others did not', async () => {
    const { layers } = await parts('log')
    fault({ match: (request) => request.reference === layers[1]?.digest, times: 1, action: { kind: 'cut', afterBytes: 100 } })
    await pull(node, `${host}/t/log:1`)
    const line = await eventually('the line', async () => (await readFile(node.shim.logFile, 'utf8')).split('\n').find((each) => each.includes('"pulled"') && each.includes('t/log:1')))
    const { resolvedBy, documentsFrom, layersFrom, passedOver } = JSON.parse(line) as { resolvedBy: string; documentsFrom: string[]; layersFrom: Record<string, Record<string, number>>; passedOver: Record<string, string[]> }
    const served = `127.0.0.1:${node.registry.port}`
    assert.equal(resolvedBy, served)
    assert.deepEqual(documentsFrom, [served])
    assert.deepEqual(layersFrom, Object.fromEntries(layers.map(({ digest, size }) => [digest.slice(0, 19), { [served]: size }])))
    assert.deepEqual(Object.keys(passedOver), [served])
    assert.equal(passedOver[served]?.length, 1)
  })
})
