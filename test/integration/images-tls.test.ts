import assert from 'node:assert/strict'
import { mkdir, readdir, readFile, readlink } from 'node:fs/promises'
import { join } from 'node:path'
import { after, afterEach, before, describe, it } from 'node:test'
import { FakeProxy, makeCertificates } from '../../src/registry-mirrors/fake-registry.test-helper.ts'
import { temporaryDirectory } from '../../src/server/fixtures.ts'
import type { Fault } from '../fixtures/registry/faults.ts'
import { holdFirst } from '../fixtures/registry/hold-first.ts'
import { type RecordedRequest, type Registry, startRegistry } from '../fixtures/registry/registry.ts'
import { addImage, addLayer, type Layer } from '../images/image.ts'
import { blobPath, ContentDir, type Descriptor, readIndex, refNameAnnotation } from '../images/layout.ts'
import { file } from '../images/tar.ts'
import { hostArchitecture } from '../images/tiny-elf.ts'
import { eventually, failureOf, type PrivateNode, pull, skipUnlessRoot, startNode, writeNodeFile } from './private-node.ts'

// Large layers over TLS, which are read past Node's HTTP parser: containerd compares the digest of each with what its manifest says.

const MiB = 1024 * 1024
/** By two registries directly, and by one through a proxy. */
const [direct, proxied] = ['tls.example', 'registry.test']
const large = ['whole', 'cut', 'ended', 'stalled', 'slow', 'wrong', 'many', 'others'] as const
const rangedBytes = 20 * MiB

let seeds = 0

/** Bytes of which no two stretches are alike, different for each call. */
function noise(sizeBytes: number): Buffer {
  const words = new Uint32Array(sizeBytes / 4)
  const seed = ++seeds * 7919
  for (let at = 0; at < words.length; at++) words[at] = Math.imul(at + seed, 2654435761) ^ (at >>> 3)
  return Buffer.from(words.buffer)
}

async function buildImages(dir: string): Promise<void> {
  await mkdir(dir)
  const content = new ContentDir(dir)
  const add = async (name: string, layers: readonly Layer[]): Promise<void> => content.name(name, await addImage(content, layers, hostArchitecture(), { Labels: { name } }))
  const layer = async (sizeBytes: number): Promise<Layer> => addLayer(content, [file('noise', noise(sizeBytes))], 'oci', 'none')
  for (const name of large) await add(`${direct}/t/${name}:1`, [await layer(9 * MiB)])
  for (const name of ['ranges', 'broken-ranges']) await add(`${direct}/t/${name}:1`, [await layer(rangedBytes)])
  for (const name of ['small', 'again']) await add(`${direct}/t/${name}:1`, [await layer(4096)])
  await add(`${proxied}/t/tunnelled:1`, [await layer(9 * MiB)])
  await content.finish()
}

describe('large layers over TLS', { skip: skipUnlessRoot }, () => {
  let node: PrivateNode
  /** The second is asked for what the first breaks off. */
  let [first, second]: Registry[] = []
  let proxy: FakeProxy
  let idle: readonly string[] = []
  const directory = temporaryDirectory()
  const contentDir = join(directory.path, 'content')
  const stack = new AsyncDisposableStack()
  const undo: (() => void)[] = []

  before(async () => {
    await buildImages(contentDir)
    const { certFile, keyFile, caFile } = makeCertificates(directory.path)
    const tls = { cert: await readFile(certFile, 'utf8'), key: await readFile(keyFile, 'utf8') }
    first = stack.use(await startRegistry({ contentDir, tls }))
    second = stack.use(await startRegistry({ contentDir, tls }))
    proxy = stack.adopt(await FakeProxy.start(first.port), (started) => started.close())
    node = await startNode({
      criSettings: '  image_pull_progress_timeout = "2s"',
      editConfig: async (toml) => `${toml}\n[plugins."io.cri-shim.v1"]\n  parallel_ranges = 3\n  parallel_ranges_from_mib = 16\n`,
      shimEnv: { HTTPS_PROXY: proxy.url, NO_PROXY: '' },
    })
    const host = (url: string): string => `[host."${url}"]\n  capabilities = ["pull", "resolve"]\n  ca = "${caFile}"\n`
    await writeNodeFile(join(node.certsDir, direct, 'hosts.toml'), `server = "${first.url}"\nca = "${caFile}"\n${host(first.url)}${host(second.url)}`)
    await writeNodeFile(join(node.certsDir, proxied, 'hosts.toml'), `server = "https://${proxied}"\nca = "${caFile}"\n`)
    // What is opened once and kept is open from here on.
    await pull(node, nameOf('small'))
    idle = await descriptors()
  })
  afterEach(() => {
    for (const each of undo.splice(0)) each()
  })
  after(async () => {
    assert.deepEqual(await node.stop(), [])
    await stack.disposeAsync()
    directory[Symbol.dispose]()
  })

  const nameOf = (name: string): string => `${direct}/t/${name}:1`
  const fault = (registry: Registry | undefined, given: Fault): void => void undo.push(registry?.fault(given) ?? (() => undefined))
  async function layerOf(name: string): Promise<Descriptor & { readonly config: string }> {
    const found = (await readIndex(contentDir)).find((image) => image.annotations?.[refNameAnnotation] === name)
    assert.ok(found)
    const { config, layers: [layer] } = JSON.parse(await readFile(blobPath(contentDir, found.digest), 'utf8')) as { config: Descriptor; layers: Descriptor[] }
    assert.ok(layer)
    return { ...layer, config: config.digest }
  }
  const requests = (registry: Registry | undefined, digest: string): RecordedRequest[] => (registry?.requests ?? []).filter((request) => request.method === 'GET' && request.reference === digest)
  const rangeOf = (request: RecordedRequest | undefined): number => Number(/^bytes=(\d+)-/.exec(request?.range ?? '')?.[1] ?? Number.NaN)

  /** What cri-shim has open, once it has no connection to anybody over TCP any more: sockets that are no others are on their way to their end. */
  async function descriptors(): Promise<readonly string[]> {
    for (const registry of [first, second]) registry?.disconnect()
    const dir = `/proc/${node.shim.pid}/fd`
    return eventually('the end of all connections', async () => {
      const open = (await Promise.all((await readdir(dir)).map(async (fd) => readlink(join(dir, fd)).catch(() => '')))).filter((target) => target !== '')
      const local = await readFile('/proc/net/unix', 'utf8') + await readFile('/proc/net/netlink', 'utf8')
      const inodes = new Set(local.split(/\s+/))
      return open.every((target) => !target.startsWith('socket:') || inodes.has(target.slice('socket:['.length, -1))) && open.map((target) => target.replace(/\[\d+\]/, '')).sort()
    })
  }

  it('arrive whole; connections go on after small bodies and end with large ones', async () => {
    const { digest, config, size } = await layerOf(nameOf('whole'))
    assert.equal(await pull(node, nameOf('whole')), config)
    assert.deepEqual(requests(first, digest).map(({ range, bytes }) => [range, bytes]), [[undefined, size]])
    assert.equal((await node.api.content.info(node.ctx, digest))?.size, String(size))
    const { connection: ended = 0 } = requests(first, digest)[0] ?? {}
    const seen = first?.requests.length ?? 0
    const again = await layerOf(nameOf('again'))
    assert.equal(await pull(node, nameOf('again')), again.config)
    const later = (first?.requests ?? []).slice(seen)
    assert.ok(later.length >= 4)
    assert.ok(later.every(({ connection }) => connection !== ended), 'a connection that ended is used no more')
    assert.equal(new Set(later.map(({ connection }) => connection)).size, 1, 'one connection serves all that is small')
  })

  for (const [name, kind] of [['cut', 'cut'], ['ended', 'end']] as const) {
    it(`go on elsewhere, from the byte where they stopped, when the connection ${kind === 'cut' ? 'breaks' : 'is ended in order'}`, async () => {
      const { digest, config } = await layerOf(nameOf(name))
      fault(first, { match: (request) => request.reference === digest, times: 1, action: { kind, afterBytes: 6 * MiB } })
      assert.equal(await pull(node, nameOf(name)), config)
      assert.equal(requests(first, digest).length, 1)
      const [continued, ...more] = requests(second, digest)
      assert.deepEqual(more, [])
      // All that had arrived is used; what is flushed and not read when a connection breaks may be lost.
      assert.ok(kind === 'end' ? rangeOf(continued) === 6 * MiB : rangeOf(continued) > 4 * MiB, `${continued?.range}`)
    })
  }

  it('that stop in the middle end the pull, and the next one goes on there', async () => {
    const { digest, config } = await layerOf(nameOf('stalled'))
    for (const registry of [first, second]) fault(registry, { match: (request) => request.reference === digest, action: { kind: 'stall', afterBytes: 6 * MiB } })
    assert.match(await failureOf(pull(node, nameOf('stalled'))), /^DEADLINE_EXCEEDED: .*no byte arrived for 2 s \(image_pull_progress_timeout\)/)
    for (const each of undo.splice(0)) each()
    assert.equal(await pull(node, nameOf('stalled')), config)
    assert.equal(rangeOf([...requests(first, digest), ...requests(second, digest)].findLast(({ status }) => status === 206)), 6 * MiB)
  })

  it('may be slow', async () => {
    const { digest, config } = await layerOf(nameOf('slow'))
    fault(first, { match: (request) => request.reference === digest, action: { kind: 'slow', bytesPerSecond: 8 * MiB } })
    assert.equal(await pull(node, nameOf('slow')), config)
    assert.equal(requests(second, digest).length, 0)
  })

  it('with other bytes are thrown away and fetched elsewhere', async () => {
    const { digest, config } = await layerOf(nameOf('wrong'))
    fault(first, { match: (request) => request.reference === digest, action: { kind: 'corrupt' } })
    assert.equal(await pull(node, nameOf('wrong')), config)
    assert.deepEqual([requests(first, digest).length, requests(second, digest).map(({ range }) => range)], [1, [undefined]])
  })

  it('come side by side', async () => {
    const names = ['many', 'others'] as const
    assert.deepEqual(await Promise.all(names.map(async (name) => pull(node, nameOf(name)))), await Promise.all(names.map(async (name) => (await layerOf(nameOf(name))).config)))
  })

  it('come in ranges, each of which goes on elsewhere when it breaks', async () => {
    assert.ok(first)
    const [whole, broken] = [await layerOf(nameOf('ranges')), await layerOf(nameOf('broken-ranges'))]
    const starts = [0, 1, 2].map((part) => Math.ceil(whole.size * part / 3))
    undo.push(holdFirst(first, whole.digest, 3))
    assert.equal(await pull(node, nameOf('ranges')), whole.config)
    const all = requests(first, whole.digest)
    assert.deepEqual(new Set(all.map(({ range }) => range)), new Set([undefined, `bytes=${starts[1]}-${(starts[2] ?? 0) - 1}`, `bytes=${starts[2]}-`]))
    assert.equal(all.length, 3)
    // The first asks for the whole, since nobody knows then that there are ranges.
    for (const { range, bytes } of all) if (range !== undefined) assert.ok(bytes >= Math.floor(whole.size / 3), `${range}: ${bytes}`)
    assert.equal(new Set(all.map(({ connection }) => connection)).size, 3)

    fault(first, { match: (request) => request.reference === broken.digest && (request as RecordedRequest).range?.startsWith(`bytes=${starts[1]}-`) === true, times: 1, action: { kind: 'end', afterBytes: 5 * MiB } })
    undo.push(holdFirst(first, broken.digest, 3))
    assert.equal(await pull(node, nameOf('broken-ranges')), broken.config)
    assert.deepEqual(requests(second, broken.digest).map(({ range }) => range), [`bytes=${(starts[1] ?? 0) + 5 * MiB}-${(starts[2] ?? 0) - 1}`])
  })

  it('come through a proxy’s tunnel', async () => {
    const { digest, config, size } = await layerOf(`${proxied}/t/tunnelled:1`)
    fault(first, { match: (request) => request.reference === digest, times: 1, action: { kind: 'cut', afterBytes: 6 * MiB } })
    assert.equal(await pull(node, `${proxied}/t/tunnelled:1`), config)
    assert.ok(proxy.seen.length > 0)
    for (const seen of proxy.seen) assert.equal(seen, `CONNECT ${proxied}:443`)
    const [, continued, ...more] = requests(first, digest)
    assert.deepEqual(more, [])
    assert.ok(rangeOf(continued) > 4 * MiB, `${continued?.range}`)
    assert.equal((await node.api.content.info(node.ctx, digest))?.size, String(size))
  })

  it('leave nothing open', async () => {
    assert.deepEqual(await descriptors(), idle)
  })
})
