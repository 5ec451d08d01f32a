// node test/soak/pulls.ts [--seconds N] [--seed N] [--isolated] [--downloads N] [--transfers N] [--cancel-steps N]
// What takes too long for every test run: images that share layers are pulled, cancelled, removed and collected at random, by a registry that cuts, stalls and
// sends wrong bytes, while cri-shim and containerd are killed at random. Fails when an image is not whole afterwards, or when something is left: blobs, ingests,
// leases, snapshots, notes, descriptors. With --cancel-steps pulls are cancelled instead, each a little later than the one before. Needs root.
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { lstat, readdir, readFile, readlink } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { chainIds } from '../../src/image-service/pull/manifest.ts'
import { output } from '../fixtures/command.ts'
import type { Fault } from '../fixtures/registry/faults.ts'
import { addImage, addLayer, type Layer } from '../images/image.ts'
import type { ContentDir } from '../images/layout.ts'
import { file } from '../images/tar.ts'
import { hostArchitecture } from '../images/tiny-elf.ts'
import { pull, restart, startNode } from '../integration/private-node.ts'

const numberOf = (name: string, fallback: number): number => {
  const at = process.argv.indexOf(`--${name}`)
  return at === -1 ? fallback : Number(process.argv[at + 1])
}
const seconds = numberOf('seconds', 60)
const cancelSteps = numberOf('cancel-steps', 0)
const isolated = process.argv.includes('--isolated')
const host = 'registry.k8s.io/soak'
const pullers = 4
/** CANCELLED, DEADLINE_EXCEEDED, ABORTED, UNAVAILABLE, DATA_LOSS: what a client that leaves, a registry that stalls, a removal beside it, a kill and wrong bytes make of a pull. */
const expectedCodes = new Set([1, 4, 10, 14, 15])
/** A registry that breaks off too often. */
const expectedWords = /^RegistryUnavailable: /

let state = numberOf('seed', 1) >>> 0
/** From 0 to 1, the same for the same seed. */
function random(): number {
  state = (state + 0x6d2b79f5) >>> 0
  let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
  mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
}
const below = (limit: number): number => Math.floor(random() * limit)
function pick<T>(all: readonly T[]): T {
  return all[below(all.length)] ?? assert.fail('nothing to pick from')
}

interface FileLayer extends Layer {
  readonly name: string
  readonly hash: string
}

interface Wanted {
  readonly ref: string
  readonly chain: readonly string[]
  readonly layers: readonly FileLayer[]
}

const wanted: Wanted[] = []
const hashOf = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

/** Bytes that do not compress. */
function noise(sizeBytes: number): Buffer {
  const words = new Uint32Array(Math.ceil(sizeBytes / 4))
  const seed = below(2 ** 31)
  for (let at = 0; at < words.length; at++) words[at] = Math.imul(at + seed, 2654435761) ^ (at >>> 3)
  return Buffer.from(words.buffer, 0, sizeBytes)
}

async function buildImages(content: ContentDir): Promise<void> {
  const sizes = [1024, 5000, 60_000, 300_000, 1_048_000, 1_048_576, 1_500_000, 2_500_000, 4_000_000, 7_000_000, 20_000_000]
  const layer = async (name: string, sizeBytes: number): Promise<FileLayer> => {
    const data = noise(sizeBytes)
    return { ...await addLayer(content, [file(name, data)], 'oci', below(3) === 0 ? 'gzip' : 'none'), name, hash: hashOf(data) }
  }
  const add = async (names: readonly string[], layers: readonly FileLayer[], more: Record<string, string> = {}): Promise<void> => {
    const image = await addImage(content, layers, hostArchitecture(), { Labels: { names: names.join(), ...more } })
    for (const name of names) {
      content.name(`${host}/${name}`, image)
      wanted.push({ ref: `${host}/${name}`, chain: chainIds(layers.map(({ diffId }) => diffId)), layers })
    }
  }
  const shared = []
  for (let at = 0; at < 6; at++) shared.push(await layer(`shared-${at}`, sizes[2 * at % sizes.length] ?? 0))
  for (let image = 0; image < 4; image++) {
    const own = []
    for (let at = 0; at < 4 + image % 3; at++) own.push(await layer(`own-${image}-${at}`, Math.max(1024, Math.floor(pick(sizes) * (0.5 + random())))))
    const layers = image % 2 === 0 ? [...shared.slice(0, 4), ...own] : [...own.slice(0, 2), ...shared.slice(1, 6), ...own.slice(2)]
    await add(image === 0 ? ['a0:1', 'a0:latest'] : [`a${image}:1`], layers)
  }
  const twice = await layer('twice', 3_000_000)
  await add(['twice:1'], [await layer('bottom', 2000), twice, await layer('middle', 1_200_000), twice])
  // Its configuration is a large blob itself.
  await add(['fat:1'], [await layer('fat', 1_300_000), ...shared.slice(1, 2)], { fat: noise(1_100_000).toString('base64') })
}

await using stack = new AsyncDisposableStack()
const node = await startNode({
  images: buildImages,
  ...(isolated ? { config: '[plugins."io.containerd.metadata.v1.bolt"]\n  content_sharing_policy = "isolated"\n' } : {}),
  criSettings: `  max_concurrent_downloads = ${numberOf('downloads', 3)}\n  image_pull_progress_timeout = "5s"`,
  editConfig: async (toml) => `${toml}\n[plugins."io.cri-shim.v1"]\n  max_concurrent_transfers = ${numberOf('transfers', 0)}\n  parallel_ranges = 4\n  parallel_ranges_from_mib = 1\n`,
})
stack.defer(async () => assert.deepEqual(await node.stop(), []))
const store = join(node.containerd.root, 'io.containerd.content.v1.content')
const notes = async (): Promise<string[]> => readdir(join(node.dir, 'shim-root', 'pulls')).catch(() => [])
const counts = new Map<string, number>()
const problems: string[] = []
const count = (what: string): void => void counts.set(what, (counts.get(what) ?? 0) + 1)

/** While one of them is settled it runs. */
let [shim, containerd] = [Promise.resolve(), Promise.resolve()]
let over = new AbortController()

/** One of our calls, which a kill or a client that left may end. */
async function call(what: string, work: () => Promise<unknown>): Promise<void> {
  try {
    await work()
    count(what)
  } catch (error) {
    const { code = -1, details = String(error) } = error as { readonly code?: number; readonly details?: string }
    count(`${what} failed (${code})`)
    if (!expectedCodes.has(code) && !expectedWords.test(details)) problems.push(`${what}: ${code} ${details}`)
    if (code === 14) await wait(300)
  }
}

async function pullImages(): Promise<void> {
  while (!over.signal.aborted) {
    await shim
    const leaving = new AbortController()
    const timer = random() < 0.5 ? setTimeout(() => leaving.abort(), below(random() < 0.5 ? 100 : 1500)) : undefined
    await call('pull', () => pull(node, pick(wanted).ref, { signal: leaving.signal }))
    clearTimeout(timer)
  }
}

async function removeImages(): Promise<void> {
  while (!over.signal.aborted) {
    await shim
    await wait(below(600))
    await call('removal', () => node.cri.image.RemoveImage({ image: { image: pick(wanted).ref } }))
  }
}

async function collect(): Promise<void> {
  const lease = `collection-${random()}`
  await node.api.leases.create(node.ctx, lease, 60_000)
  await node.api.leases.delete(node.ctx, lease, true)
}

async function collectGarbage(): Promise<void> {
  while (!over.signal.aborted) {
    await wait(below(500))
    await containerd
    const how = below(6) === 0 ? () => node.ctr('content', 'prune', 'references') : collect
    // containerd may be killed under it.
    await how().then(() => count('collection'), () => count('collection failed'))
  }
}

async function spoil(): Promise<void> {
  const faults: (() => Fault['action'])[] = [
    () => ({ kind: 'cut', afterBytes: below(2_000_000) }), () => ({ kind: 'end', afterBytes: below(1_000_000) }), () => ({ kind: 'corrupt' }), () => ({ kind: 'reset' }), () => ({ kind: 'ignore-range' }),
    () => ({ kind: 'status', status: 500 }), () => ({ kind: 'slow', bytesPerSecond: 300_000 + below(5_000_000) }), () => ({ kind: 'slow', bytesPerSecond: 3_000_000 }),
    () => (below(3) === 0 ? { kind: 'stall', afterBytes: below(2_000_000) } : { kind: 'cut', afterBytes: 0 }),
  ]
  while (!over.signal.aborted) {
    await wait(below(400))
    let others = below(10)
    const action = pick(faults)()
    const undo = node.registry.fault({ match: ({ kind }) => kind === 'blob' && others-- <= 0, times: 1 + below(2), action })
    count(`fault: ${action.kind}`)
    void wait(5000, undefined, { ref: false }).then(undo)
  }
}

async function killShim(): Promise<void> {
  while (!over.signal.aborted) {
    await wait(1000 + below(6000))
    shim = (async () => {
      await node.shim.end('SIGKILL')
      count('cri-shim killed')
      for (let isUp = false; !isUp;) {
        await containerd
        // containerd may be killed while it starts.
        isUp = await restart(node).then(() => true, () => false)
        if (!isUp) await node.shim.end('SIGKILL')
      }
    })()
    await shim
  }
}

async function killContainerd(): Promise<void> {
  while (!over.signal.aborted) {
    await wait(3000 + below(8000))
    containerd = (async () => {
      await node.containerd.end('SIGKILL')
      count('containerd killed')
      await wait(below(300))
      await node.containerd.start()
    })()
    await containerd
  }
}

async function storm(durationMs: number, ...killers: readonly (() => Promise<void>)[]): Promise<void> {
  over = new AbortController()
  const end = wait(durationMs).then(() => over.abort())
  await Promise.all([end, ...Array.from({ length: pullers }, pullImages), removeImages(), collectGarbage(), spoil(), ...killers.map((kill) => kill())])
  // The last faults are undone then, and what nobody waits for any more has ended.
  await wait(6000)
}

async function filesIn(dir: string): Promise<string[]> {
  const found = await readdir(dir, { recursive: true, withFileTypes: true }).catch(() => [])
  return found.filter((entry) => !entry.isDirectory()).map((entry) => join(entry.parentPath, entry.name))
}

async function blobsKnown(): Promise<string[]> {
  return (await node.ctr('content', 'ls', '-q')).split('\n').filter((line) => line !== '')
}

/** Pulls all images; then each blob has the bytes that its name says and no other name, and each snapshot the file of its layer. */
async function checkImages(): Promise<void> {
  for (const { ref } of wanted) await pull(node, ref)
  for (const digest of await blobsKnown()) {
    const bytes = await readFile(join(store, 'blobs', digest.replace(':', '/'))).catch(() => undefined)
    if (bytes === undefined) problems.push(`${digest} has no file`)
    else if (`sha256:${hashOf(bytes)}` !== digest) problems.push(`${digest} has other bytes`)
  }
  for (const path of await filesIn(join(store, 'blobs'))) {
    const { nlink, mode } = await lstat(path)
    if (nlink !== 1 || (mode & 0o777) !== 0o444) problems.push(`${path} has ${nlink} names and mode ${mode.toString(8)}`)
  }
  for (const { ref, chain, layers } of wanted) {
    const key = `view of ${ref}`
    const [mount] = await node.api.snapshots.view(node.ctx, 'overlayfs', key, chain.at(-1) ?? '')
    const dirs = mount?.options.find((option) => option.startsWith('lowerdir='))?.slice('lowerdir='.length).split(':').reverse() ?? []
    if (dirs.length !== layers.length) problems.push(`${ref} has ${dirs.length} layers`)
    for (const [index, { name, hash }] of layers.entries()) {
      const path = join(dirs[index] ?? '', name)
      const bytes = await readFile(path).catch(() => undefined)
      if (bytes === undefined || hashOf(bytes) !== hash) problems.push(`${ref}, layer ${index}: ${path} is not what the layer has`)
    }
    await node.api.snapshots.remove(node.ctx, 'overlayfs', key)
  }
}

async function removeAll(): Promise<void> {
  const { images } = await node.cri.image.ListImages({})
  for (const { id } of images) await node.cri.image.RemoveImage({ image: { image: id } })
}

/** Removes all images and leases, and lets containerd collect: then there is nothing. */
async function checkNothingLeft(when: string): Promise<void> {
  await removeAll()
  for (const { id } of await node.api.leases.list(node.ctx)) await node.api.leases.delete(node.ctx, id)
  await collect()
  const left = [
    ...(await node.api.content.statuses(node.ctx)).map(({ ref }) => `ingest ${ref}`),
    ...(await filesIn(join(store, 'ingest'))).concat(await filesIn(join(store, 'blobs'))),
    ...(await blobsKnown()).map((digest) => `blob ${digest}`),
    ...(await node.api.images.list(node.ctx)).map(({ name }) => `image ${name}`),
    ...(await node.api.snapshots.list(node.ctx, 'overlayfs')).map(({ name }) => `snapshot ${name}`),
    ...(await readdir(join(node.containerd.root, 'io.containerd.snapshotter.v1.overlayfs', 'snapshots'))).map((name) => `directory of snapshot ${name}`),
    ...(await node.api.leases.list(node.ctx)).map(({ id }) => `lease ${id}`),
  ]
  problems.push(...left.map((each) => `${when}, left: ${each}`))
}

async function descriptors(): Promise<string[]> {
  const dir = `/proc/${node.shim.pid}/fd`
  return (await Promise.all((await readdir(dir)).map(async (name) => readlink(join(dir, name)).catch(() => '')))).filter((link) => link !== '').sort()
}

async function cancelAtEachStep(steps: number): Promise<void> {
  const { ref } = wanted[2] ?? assert.fail('no such image')
  let durationMs = 0
  for (let round = 0; round < 3; round++) {
    const began = performance.now()
    await pull(node, ref)
    durationMs = performance.now() - began
    await removeAll()
  }
  for (let step = 0; step < steps; step++) {
    const delayMs = 1.2 * durationMs * step / steps
    await call('pull', () => pull(node, ref, { signal: AbortSignal.timeout(Math.floor(delayMs)) }))
    // Every other time it is left as it is.
    if (step % 2 === 0) await pull(node, ref)
    else await wait(300)
    await checkNothingLeft(`cancelled after ${delayMs.toFixed(1)} ms`)
  }
}

await Promise.all(wanted.map(async ({ ref }) => pull(node, ref)))
await checkImages()
await checkNothingLeft('after the first pulls')
if (cancelSteps > 0) await cancelAtEachStep(cancelSteps)
else {
  await storm(seconds * 1000, killShim, killContainerd)
  await checkNothingLeft('after the storm')
}
await checkImages()
await checkNothingLeft('after pulls that followed')

// A stop waits some seconds for the disk, which has much to write after a storm.
await output('sync', [])
await node.shim.end('SIGTERM')
assert.deepEqual(await notes(), [], 'a stop in order settles all pulls')
await restart(node)
await Promise.all(wanted.map(async ({ ref }) => pull(node, ref)))
await removeAll()
// Idle connections to the registry end within moments, without an event.
await wait(12_000)
const before = await descriptors()
await storm(Math.min(seconds, 40) * 1000)
await checkImages()
await checkNothingLeft('after the second storm')
// Half a minute after a pull it is synced, which takes as long as the disk does; what ended meanwhile waits for the next time.
const settled = async (): Promise<boolean> => (await notes()).length === 0 && (await descriptors()).length <= before.length
for (const end = performance.now() + 120_000; !await settled() && performance.now() < end;) await wait(1000)
const after = await descriptors()
if (after.length > before.length) problems.push(`${before.length} descriptors before and ${after.length} after: ${after.join(' ')}`)
problems.push(...(await notes()).map((name) => `note ${name} two minutes after the last pull`))
console.log([...counts].map(([what, times]) => `${what}: ${times}`).sort().join(', '))
assert.deepEqual(problems, [])
