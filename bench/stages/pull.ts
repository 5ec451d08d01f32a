import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { RecordedRequest, Registry } from '../../test/fixtures/registry/registry.ts'
import { command } from '../../test/fixtures/command.ts'
import { buildLargeImage } from '../../test/images/large.ts'
import { collectGarbage } from '../garbage.ts'
import { type Concurrency, concurrencies, type OperationName } from '../operations.ts'
import { inParallel } from '../parallel.ts'
import { type RunContext, callSettings, inTurn, settle, timed } from '../run-context.ts'
import { mostOf, type Served, type ServedToMany, blobsOf, servedIn } from '../served.ts'
import type { Side } from '../side.ts'
import type { SideName } from '../statistics.ts'

const layers = 8
const pullTimeoutMs = 600_000
const callers = 10

export interface PullImages {
  readonly contentDir: string
  /** Uncompressed; half of it does not compress, so that about half of it is downloaded. */
  readonly sizeBytes: number
  /** As many as are pulled at a time; they share no layer. */
  readonly refs: readonly string[]
  /** One of a single layer, two and a half times that size. */
  readonly oneLayerRef: string
}

/** Builds the images into the registry's content directory. */
export async function buildPullImages(contentDir: string, sizeBytes: number, progress: RunContext['progress']): Promise<PullImages> {
  const refs = Array.from({ length: Math.max(...concurrencies) }, (_, index) => `registry.k8s.io/cri-shim/bench-large:${index}`)
  for (const [index, ref] of refs.entries()) {
    progress('building the images for PullImage', `${index + 1} of ${refs.length}`)
    await buildLargeImage(contentDir, { ref, layers, sizeBytes: sizeBytes + index * layers * 1024 }) // other sizes, other layers
  }
  const oneLayerRef = 'registry.k8s.io/cri-shim/bench-one-layer:1'
  progress('building the images for PullImage', 'one of a single layer')
  await buildLargeImage(contentDir, { ref: oneLayerRef, layers: 1, sizeBytes: sizeBytes * 2.5 })
  return { contentDir, sizeBytes, refs, oneLayerRef }
}

/** Where containerd keeps content and overlay snapshots. */
export async function stored(side: Side): Promise<{ blobs: number; snapshots: number }> {
  const { root } = side.containerd
  const [blobs, snapshots] = await Promise.all([
    readdir(join(root, 'io.containerd.content.v1.content/blobs/sha256')), readdir(join(root, 'io.containerd.snapshotter.v1.overlayfs/snapshots')),
  ])
  return { blobs: blobs.length, snapshots: snapshots.length }
}

/** Removes the images, their content and their snapshots, so that the next pull starts from nothing. Fails when something of them stays. */
export async function removeImages(context: RunContext, side: Side, refs: readonly string[], before: { blobs: number; snapshots: number }): Promise<void> {
  for (const image of refs) await side.cri.image.RemoveImage({ image: { image } }, callSettings(context))
  await collectGarbage(side.containerd.socket)
  const now = await stored(side)
  if (now.blobs !== before.blobs || now.snapshots !== before.snapshots) {
    throw new Error(`${side.title}: after RemoveImage and garbage collection there are ${now.blobs} blobs and ${now.snapshots} snapshots where there were ${before.blobs} and ${before.snapshots} before the pull: the next pull would not be a whole one`)
  }
}

function roundsFor(concurrency: Concurrency, { rounds, quick }: RunContext['options']): number {
  if (quick) return concurrency === 1 ? 2 : 1
  return Math.max(3, Math.ceil(rounds / (concurrency === 1 ? 6 : 12)))
}

interface PullRounds {
  readonly operation: OperationName
  readonly concurrency: Concurrency
  /** One call each, all at a time; an image may be there more than once. */
  readonly calls: readonly string[]
  readonly layers: number
  /** Told what the registry was asked for by a turn's calls. */
  readonly onServed?: (side: Side, requests: readonly RecordedRequest[]) => void
}

/** Whole pulls from the local registry; a warm-up pull comes first, and what was written is on the disk before the next one starts. */
async function pullRounds(context: RunContext, registry: Registry, { operation, concurrency, calls, layers, onServed }: PullRounds): Promise<void> {
  const refs = [...new Set(calls)]
  await context.phase(`${operation}, ${concurrency} at a time`, () => inTurn(context, operation, concurrency, roundsFor(concurrency, context.options), async (side, record, round) => {
    if (round === 0 && concurrency > 1) return
    await collectGarbage(side.containerd.socket)
    const before = await stored(side)
    await command('sync', ['--file-system', side.dir])
    await settle(context)
    const requestsBefore = registry.requests.length
    await inParallel(calls.length, async (index) => {
      const image = calls[index] ?? ''
      await timed(record, operation, () => side.cri.image.PullImage({ image: { image } }, callSettings(context, pullTimeoutMs)))
    })
    onServed?.(side, registry.requests.slice(requestsBefore))
    const now = await stored(side)
    // A layer is a blob and a snapshot; each image adds its manifest and its configuration.
    if (now.blobs - before.blobs !== refs.length * (layers + 2) || now.snapshots - before.snapshots !== refs.length * layers) {
      throw new Error(`${side.title}: pulling ${refs.length} images of ${layers} layers added ${now.blobs - before.blobs} blobs and ${now.snapshots - before.snapshots} snapshots: something was there before, or is missing`)
    }
    await removeImages(context, side, refs, before)
  }))
}

/** Images of several layers, one and several at a time; one of a single large layer; one that ten callers want at once: returns what the registry served to those. */
export async function pullStage(context: RunContext, registry: Registry, images: PullImages): Promise<ServedToMany | undefined> {
  const { only } = context.options
  const [first = ''] = images.refs
  if (only.has('PullImage')) for (const concurrency of concurrencies) await pullRounds(context, registry, { operation: 'PullImage', concurrency, calls: images.refs.slice(0, concurrency), layers })
  if (only.has('PullImage of one layer')) await pullRounds(context, registry, { operation: 'PullImage of one layer', concurrency: 1, calls: [images.oneLayerRef], layers: 1 })
  if (!only.has('PullImage by ten callers')) return undefined
  const most: Record<SideName, Served> = { plugin: { requests: 0, bytes: 0 }, shim: { requests: 0, bytes: 0 } }
  await pullRounds(context, registry, {
    operation: 'PullImage by ten callers', concurrency: 1, calls: Array.from({ length: callers }, () => first), layers,
    onServed: ({ name }, requests) => { most[name] = mostOf(most[name], servedIn(requests)) },
  })
  return { callers, image: await blobsOf(images.contentDir, first), most }
}
