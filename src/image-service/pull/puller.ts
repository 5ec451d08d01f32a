import { createHash } from 'node:crypto'
import { BoundedQueue } from '../../concurrency/bounded-queue.ts'
import { join } from '../../concurrency/join.ts'
import { KeyedMutex } from '../../concurrency/keyed-mutex.ts'
import type { Operation } from '../../concurrency/operation.ts'
import type { Containerd } from '../../containerd/containerd.ts'
import { Code, CriError, isAlreadyExists, isNotFound, messageOf } from '../../errors/cri-error.ts'
import { type Ctx, withSignal } from '../../observability/context.ts'
import type { PullAuth } from '../../registry-mirrors/credentials.ts'
import { matchesDigest, shortDigest } from '../../registry-mirrors/digest.ts'
import type { ImageRef } from '../../registry-mirrors/image-ref.ts'
import type { Descriptor, PassOver, RegistryClient } from '../../registry-mirrors/registry-client.ts'
import { labels as criLabels } from '../../state/metadata.ts'
import type { Artifact } from '../../state/records.ts'
import { artifactSnapshot, emptyConfig } from './artifact.ts'
import { ArtifactUnpacker, type WithMounts } from './artifact-unpack.ts'
import { BlobFetcher, type PullSource } from './blobs.ts'
import { chainIds, choosePlatform, type ConfigDocument, isIndex, type Manifest, parseConfig, parseManifest, type Platform } from './manifest.ts'
import { maxDocumentBytes } from './stored-manifest.ts'
import { Precedence } from './precedence.ts'
import { PullProgress, type PullTracker, type PullView } from './progress.ts'
import { type UnpackLayer, Unpacker } from './unpack.ts'
import type { PullNote, UnsettledPulls } from './unsettled.ts'
import { Watchdog } from './watchdog.ts'

export interface PullerSettings {
  /** Layers of one image that download at once; 0: no limit. */
  readonly maxConcurrentDownloads: number
  /** 0: none. */
  readonly imagePullProgressTimeoutMs: number
  readonly imagePullWithSyncFs: boolean
  readonly discardUnpackedLayers: boolean
  readonly disableSnapshotAnnotations: boolean
  /** Of all images together, ranges counted one by one; 0: no limit. */
  readonly maxConcurrentTransfers: number
  /** Side by side, of one layer. */
  readonly parallelRanges: number
  readonly parallelRangesFromMib: number
}

export interface PullerOptions {
  readonly containerd: Containerd
  readonly registry: RegistryClient
  readonly settings: PullerSettings
  readonly platform: Platform
  readonly withMounts: WithMounts
  readonly operation: (name: string) => Operation
  /** Told how each pull goes on. Default: one that nobody reads. */
  readonly progress?: PullProgress
  /** Default: nothing is noted. */
  readonly unsettled?: Pick<UnsettledPulls, 'begin'>
}

export interface PullRequest {
  readonly ref: ImageRef
  readonly auth: PullAuth
  readonly snapshotter: string
  /** Marks the image as one that garbage collection leaves alone. */
  readonly pinned: boolean
}

export interface PulledImage {
  /** The digest of the configuration, of an artifact that of its manifest. */
  readonly id: string
  /** Names of the image records that were made. */
  readonly names: readonly string[]
}

/** A lease outlives a crash by this much, and with it what was downloaded already. */
const leaseMs = 24 * 3_600_000
/** A pull that begins within this time of an interrupted one uses the same lease. */
const leaseBucketMs = 12 * 3_600_000
const maxWaitingLayers = 1024
/** Of all pulls: each has as many waiting as it may have running. */
const maxWaitingTransfers = 65_536
const maxWaitingFiles = 8192
/** An artifact may have thousands. */
const maxLoggedLayers = 128
const leaseDeleteTimeoutMs = 30_000
/** After these the next try may succeed, and goes on with what is here; after any other the image is as it is. */
const worthGoingOn: ReadonlySet<Code> = new Set([Code.CANCELLED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED])

interface Target {
  readonly descriptor: Descriptor
  readonly manifest: Manifest
  readonly id: string
  /** Undefined for an artifact. */
  readonly config: ConfigDocument | undefined
  /** What describes the image, each after those that it refers to. */
  readonly documents: readonly Document[]
}

interface Document {
  readonly descriptor: Descriptor
  readonly bytes: Buffer
  /** They keep what it refers to. */
  readonly labels: Readonly<Record<string, string>>
}

/** The pull pipeline: resolve, fetch, unpack, record. */
export class Puller {
  readonly #options: PullerOptions
  readonly #blobs: BlobFetcher
  readonly #unpacker: Unpacker
  readonly #artifacts: ArtifactUnpacker
  readonly #progress: PullProgress
  /** How many pulls use a lease: two tags of one image share it, and it ends with the last of them. */
  readonly #leaseUsers = new Map<string, number>()
  readonly #leaseMutex = new KeyedMutex()

  constructor(options: PullerOptions) {
    this.#options = options
    this.#progress = options.progress ?? new PullProgress()
    const { maxConcurrentTransfers, parallelRanges, parallelRangesFromMib } = options.settings
    this.#blobs = new BlobFetcher({
      content: options.containerd.content, registry: options.registry, ranges: { parts: parallelRanges, fromBytes: parallelRangesFromMib * 1024 * 1024 },
      transfers: new BoundedQueue({ name: 'transfers', concurrency: maxConcurrentTransfers === 0 ? Infinity : maxConcurrentTransfers, maxWaiting: maxWaitingTransfers }),
    })
    this.#unpacker = new Unpacker(options.containerd)
    this.#artifacts = new ArtifactUnpacker({ ...options, unpacker: this.#unpacker })
  }

  /**
   * Pulls an image. What was downloaded stays under a lease when this is interrupted, so that the next try goes on from there; the lease
   * ends with the pull that succeeds or finds the image unusable, or after a day.
   */
  async pull(ctx: Ctx, request: PullRequest): Promise<PulledImage> {
    const tracker = this.#progress.begin(request.ref.toString())
    try {
      const pulled = await this.#pull(ctx, request, tracker)
      tracker.end()
      return pulled
    } catch (error) {
      tracker.end(messageOf(ctx.signal.aborted ? ctx.signal.reason : error))
      throw error
    }
  }

  async #pull(ctx: Ctx, request: PullRequest, tracker: PullTracker): Promise<PulledImage> {
    const { registry, settings, operation: begin } = this.#options
    const { ref, auth } = request
    const operation = begin('PullImage')
    const started = performance.now()
    const hosts = new Set<string>()
    let bytes = 0
    const watchdog = new Watchdog(ref.toString(), settings.imagePullProgressTimeoutMs)
    const watched = withSignal(ctx, AbortSignal.any([ctx.signal, watchdog.signal]))
    try {
      const resolved = await operation.step('resolve', () => registry.resolve(ref, auth, { ...watched, passedOver: (host, why) => tracker.passedOver(host, why) }))
      hosts.add(resolved.host)
      tracker.resolved(resolved.descriptor.digest, resolved.host)
      const lease = leaseId(request, resolved.descriptor)
      const source: PullSource = {
        ref, auth, lease, tracker, precedence: new Precedence(), served: (host) => hosts.add(host), watch: (transfer) => watchdog.watch(transfer),
        progress: (count) => {
          bytes += count
          watchdog.progress()
        },
      }
      tracker.step('fetch manifest')
      const fetchTarget = (fetching: Ctx): Promise<Target> => operation.step('fetch manifest', () => this.#fetchTarget(fetching, source, resolved.descriptor, request.snapshotter))
      const pulled = await this.#underLease(watched, operation, lease, ref, fetchTarget, async (target) => {
        const settle = await this.#options.unsettled?.begin(noteOf(request, resolved.descriptor, target))
        try {
          await join<[void, void]>(watched.signal, [
            (signal) => operation.step('store documents', () => this.#storeDocuments(withSignal(watched, signal), source, target)),
            (signal) => this.#fetchBlobs(withSignal(watched, signal), operation, source, target, request.snapshotter),
          ])
          tracker.step('record image')
          return { target, names: await operation.step('record image', () => this.#record(ctx, request, resolved.descriptor, target)) }
        } finally {
          settle?.()
        }
      })
      const { manifest, id } = pulled.target
      ctx.log.info({
        ref: ref.toString(), id, artifact: manifest.artifact?.type, digest: resolved.descriptor.digest, layers: manifest.layers.length, bytes, hosts: [...hosts],
        ms: Math.round(performance.now() - started), ...servedBy(tracker),
      }, 'pulled')
      return { id, names: pulled.names }
    } finally {
      watchdog.close()
    }
  }

  /** Runs the part of a pull that makes things in containerd: what `prepare` brings meanwhile. */
  async #underLease<P, T>(ctx: Ctx, operation: Operation, lease: string, ref: ImageRef, prepare: (ctx: Ctx) => Promise<P>, work: (prepared: P) => Promise<T>): Promise<T> {
    let isTaken = false
    let end: 'keep' | 'delete' | 'collect' = 'delete'
    const take = async (): Promise<void> => {
      await operation.step('create lease', () => this.#takeLease(ctx, lease, ref))
      isTaken = true
    }
    try {
      // Once begun the lease is made, whatever becomes of the manifest: then it can be given back.
      const [, prepared] = await join<[void, P]>(ctx.signal, [take, (signal) => prepare(withSignal(ctx, signal))])
      return await work(prepared)
    } catch (error) {
      end = error instanceof CriError && worthGoingOn.has(error.code) ? 'keep' : 'collect'
      throw error
    } finally {
      // The image is what counts; a lease that stays ends by itself.
      if (isTaken) {
        await operation.step('delete lease', () => this.#giveLease(withSignal(ctx, AbortSignal.timeout(leaseDeleteTimeoutMs)), lease, end))
          .catch((error: unknown) => ctx.log.warn({ err: error, lease }, 'cannot delete the lease of a pull: it ends after a day'))
      }
    }
  }

  async #takeLease(ctx: Ctx, lease: string, ref: ImageRef): Promise<void> {
    await this.#leaseMutex.run(lease, async () => {
      try {
        await this.#options.containerd.leases.create(ctx, lease, leaseMs, { 'cri-shim/image': ref.toString().slice(0, 3000) })
      } catch (error) {
        if (!isAlreadyExists(error)) throw error
      }
      this.#leaseUsers.set(lease, (this.#leaseUsers.get(lease) ?? 0) + 1)
    }, ctx.signal)
  }

  /** The lease is deleted, unless it is to be kept or another pull still uses it. containerd collects what was under it by itself only after a hundred changes. */
  async #giveLease(ctx: Ctx, lease: string, end: 'keep' | 'delete' | 'collect'): Promise<void> {
    await this.#leaseMutex.run(lease, async () => {
      const others = (this.#leaseUsers.get(lease) ?? 1) - 1
      if (others > 0) this.#leaseUsers.set(lease, others)
      else this.#leaseUsers.delete(lease)
      if (others === 0 && end !== 'keep') await this.#options.containerd.leases.delete(ctx, lease, end === 'collect')
    })
  }

  /** Index, manifest and configuration. */
  async #fetchTarget(ctx: Ctx, source: PullSource, descriptor: Descriptor, snapshotter: string): Promise<Target> {
    const { ref } = source
    const top = await this.#manifestBytes(ctx, source, descriptor)
    const inIndex = isIndex(descriptor.mediaType) ? choosePlatform(top, this.#options.platform, ref.toString()) : undefined
    const manifestDescriptor = inIndex ?? { ...descriptor, sizeBytes: top.length }
    const manifestBytes = inIndex === undefined ? top : await this.#manifestBytes(ctx, source, inIndex)
    const manifest = parseManifest(manifestBytes, ref.toString())
    const configBytes = await this.#configBytes(ctx, source, manifest)
    const { artifact } = manifest
    const config = artifact === undefined ? parseConfig(configBytes, manifest, ref.toString()) : undefined
    const keeps = (snapshot: string | undefined): Record<string, string> => (snapshot === undefined ? {} : { [`containerd.io/gc.ref.snapshot.${snapshotter}`]: snapshot })
    const documents: Document[] = [
      { descriptor: manifest.config, bytes: configBytes, labels: { ...distributionSource(ref), ...keeps(chainIds(config?.diffIds ?? []).at(-1)) } },
      {
        descriptor: manifestDescriptor, bytes: manifestBytes,
        labels: { ...distributionSource(ref), ...this.#manifestLabels(manifest), ...keeps(artifact !== undefined && artifact.problem === undefined ? artifactSnapshot(manifestDescriptor.digest) : undefined) },
      },
    ]
    if (inIndex !== undefined) documents.push({ descriptor: { ...descriptor, sizeBytes: top.length }, bytes: top, labels: { ...distributionSource(ref), 'containerd.io/gc.ref.content.m.0': inIndex.digest } })
    return { descriptor: manifestDescriptor, manifest, config, documents, id: artifact === undefined ? manifest.config.digest : manifestDescriptor.digest }
  }

  /** From the bottom up, so that no document refers to one that is not there. The blobs come meanwhile: all are under the lease. */
  async #storeDocuments(ctx: Ctx, source: PullSource, { documents }: Target): Promise<void> {
    for (const { descriptor, bytes, labels } of documents) await this.#blobs.store(ctx, source, descriptor, bytes, labels)
  }

  #manifestLabels(manifest: Manifest): Record<string, string> {
    const entries: [string, string][] = [['containerd.io/gc.ref.content.config', manifest.config.digest]]
    if (!this.#options.settings.discardUnpackedLayers) for (const [index, layer] of manifest.layers.entries()) entries.push([`containerd.io/gc.ref.content.l.${index}`, layer.digest])
    return Object.fromEntries(entries)
  }

  /** From the content store when an earlier pull brought it: bytes by digest do not change. */
  async #manifestBytes(ctx: Ctx, source: PullSource, descriptor: Descriptor): Promise<Buffer> {
    const stored = await this.#stored(ctx, descriptor)
    if (stored !== undefined) return stored
    const fetched = await this.#options.registry.fetchManifest(source.ref, descriptor, source.auth, listening(ctx, source))
    source.served(fetched.host)
    source.tracker.document(fetched.host)
    return fetched.bytes
  }

  async #configBytes(ctx: Ctx, source: PullSource, manifest: Manifest): Promise<Buffer> {
    const stored = await this.#stored(ctx, manifest.config)
    if (stored !== undefined) return stored
    // Not every registry has what everybody knows.
    if (manifest.config.digest === emptyConfig.digest) return emptyConfig.bytes
    const fetched = await this.#options.registry.fetchSmallBlob(source.ref, manifest.config, source.auth, listening(ctx, source))
    source.served(fetched.host)
    source.tracker.document(fetched.host)
    return fetched.bytes
  }

  /** Nothing is asked before it is read: the image may be removed at any moment. */
  async #stored(ctx: Ctx, descriptor: Descriptor): Promise<Buffer | undefined> {
    try {
      const { content } = this.#options.containerd
      const bytes = await content.read(ctx, descriptor.digest, maxDocumentBytes)
      if (matchesDigest(bytes, descriptor.digest)) return bytes
      // A disk that lost it: containerd would go on giving it out.
      ctx.log.warn({ digest: descriptor.digest }, 'what containerd has under this digest is something else: thrown away')
      await content.delete(ctx, descriptor.digest)
      return undefined
    } catch (error) {
      if (isNotFound(error)) return undefined
      throw error
    }
  }

  async #fetchBlobs(ctx: Ctx, operation: Operation, source: PullSource, target: Target, snapshotter: string): Promise<void> {
    const { config, manifest: { artifact } } = target
    if (config !== undefined) await this.#fetchLayers(ctx, operation, source, { ...target, config }, snapshotter)
    else if (artifact !== undefined) await this.#fetchFiles(ctx, operation, source, target, artifact, snapshotter)
  }

  /** The blobs of an artifact side by side, then its files from them. */
  async #fetchFiles(ctx: Ctx, operation: Operation, source: PullSource, target: Target, artifact: Artifact, snapshotter: string): Promise<void> {
    const options = { snapshotter, lease: source.lease, syncFs: this.#options.settings.imagePullWithSyncFs }
    const { digest } = target.descriptor
    if (artifact.problem === undefined && await this.#unpacker.exists(ctx, artifactSnapshot(digest), options)) return
    source.tracker.layers(target.manifest.layers)
    source.tracker.step('download files')
    await operation.step('download files', async () => {
      const queue = this.#downloads(maxWaitingFiles)
      const blobs = new Map(target.manifest.layers.map((layer) => [layer.digest, layer]))
      await join<void[]>(ctx.signal, [...blobs.values()].map((layer, rank) => (signal) => queue.add(() => this.#blobs.fetch(withSignal(ctx, signal), source, { descriptor: layer, labels: distributionSource(source.ref), rank }), { signal })))
    })
    if (artifact.problem === undefined) {
      source.tracker.step('unpack files')
      await operation.step('unpack files', () => this.#artifacts.unpack(ctx, digest, artifact, options))
    }
    for (const layer of target.manifest.layers) source.tracker.layer(layer.digest, 'done')
  }

  #downloads(maxWaiting: number): BoundedQueue {
    const { maxConcurrentDownloads } = this.#options.settings
    return new BoundedQueue({ name: 'layer downloads', concurrency: maxConcurrentDownloads === 0 ? Infinity : maxConcurrentDownloads, maxWaiting })
  }

  /** Downloads side by side, each layer unpacked as soon as it and its parent are there. Layers whose snapshots exist are not fetched. */
  async #fetchLayers(ctx: Ctx, operation: Operation, source: PullSource, target: Target & { readonly config: ConfigDocument }, snapshotter: string): Promise<void> {
    const { settings } = this.#options
    const { layers } = target.manifest
    const { diffIds } = target.config
    const chain = chainIds(diffIds)
    const options = { snapshotter, lease: source.lease, syncFs: settings.imagePullWithSyncFs }
    const queue = this.#downloads(maxWaitingLayers)
    let below = 0
    const layerAt = (index: number): UnpackLayer => {
      const descriptor = layers[index]
      const [diffId, chainId] = [diffIds[index], chain[index]]
      if (descriptor === undefined || diffId === undefined || chainId === undefined) throw new TypeError('layers and diff ids were counted to be as many')
      return { descriptor, diffId, chainId, parent: chain[index - 1] ?? '', labels: this.#snapshotLabels(source.ref, target, index) }
    }
    // A remote snapshotter is told what a layer is before anything is downloaded: it may have it already, or bring it by itself.
    const isThere = async (index: number): Promise<boolean> => await this.#unpacker.exists(ctx, chain[index] ?? '', options)
      || (!settings.disableSnapshotAnnotations && await this.#unpacker.isBrought(ctx, layerAt(index), options))
    while (below < chain.length && await isThere(below)) below += 1
    source.tracker.layers(layers, below)
    source.tracker.step('download and unpack layers')
    const downloaded = layers.map(() => Promise.withResolvers<void>())
    for (const each of downloaded) each.promise.catch(() => undefined)
    await join<[void, void]>(ctx.signal, [
      (signal) => operation.step('download layers', async () => {
        await Promise.all(layers.slice(below).map(async (layer, offset) => {
          const index = below + offset
          const labels = { ...distributionSource(source.ref), 'containerd.io/uncompressed': diffIds[index] ?? '' }
          try {
            await queue.add(() => this.#blobs.fetch(withSignal(ctx, signal), source, { descriptor: layer, labels, rank: index, stored: () => downloaded[index]?.resolve() }), { signal })
          } catch (error) {
            downloaded[index]?.reject(error)
            throw error
          }
        }))
      }),
      (signal) => operation.step('unpack layers', async () => {
        for (let index = below; index < layers.length; index++) {
          const layer = layerAt(index)
          await downloaded[index]?.promise
          source.tracker.layer(layer.descriptor.digest, 'unpacking')
          await this.#unpacker.unpack(withSignal(ctx, signal), layer, options)
          source.tracker.layer(layer.descriptor.digest, 'done')
        }
      }),
    ])
  }

  /** What remote snapshotters (stargz, nydus, …) need to know of a layer. */
  #snapshotLabels(ref: ImageRef, target: Target, index: number): Record<string, string> {
    if (this.#options.settings.disableSnapshotAnnotations) return {}
    const imageLayers = 'containerd.io/snapshot/cri.image-layers'
    return {
      'containerd.io/snapshot/cri.image-ref': ref.toString(), 'containerd.io/snapshot/cri.manifest-digest': target.descriptor.digest,
      'containerd.io/snapshot/cri.layer-digest': target.manifest.layers[index]?.digest ?? '', [imageLayers]: asManyAsFit(imageLayers, target.manifest.layers.slice(index).map((layer) => layer.digest)),
    }
  }

  /** The records that make the image one: its name, its digest, its id, as containerd's CRI plugin keeps them. */
  async #record(ctx: Ctx, request: PullRequest, descriptor: Descriptor, target: Target): Promise<string[]> {
    const { ref, pinned } = request
    const names = namesOf(ref, descriptor, target)
    const labels = { [criLabels.image]: criLabels.imageManaged, ...(pinned ? { [criLabels.pinned]: criLabels.pinnedValue } : {}) }
    const size = isIndex(descriptor.mediaType) ? descriptor.sizeBytes : target.descriptor.sizeBytes
    const image = { media_type: descriptor.mediaType, digest: descriptor.digest, size: String(size) }
    await join<void[]>(ctx.signal, names.map((name) => (signal) => this.#options.containerd.images.createOrUpdate(withSignal(ctx, signal), { name, target: image, labels })))
    return names
  }
}

const leasePrefix = 'cri-shim-pull-'

/** Whether a lease is one of the pulls'. */
export function isPullLease(id: string): boolean {
  return id.startsWith(leasePrefix)
}

/** The same for every try of a pull within half a day: what an interrupted one brought is under it. */
function leaseId(request: PullRequest, descriptor: Descriptor): string {
  const key = createHash('sha256').update([request.ref.name, descriptor.digest, request.snapshotter].join('\n')).digest('hex').slice(0, 32)
  return `${leasePrefix}${key}-${Math.floor(Date.now() / leaseBucketMs)}`
}

function namesOf(ref: ImageRef, descriptor: Descriptor, target: Target): string[] {
  return [...new Set([`${ref.name}@${descriptor.digest}`, ref.toString(), target.id])]
}

function noteOf(request: PullRequest, descriptor: Descriptor, target: Target): PullNote {
  const { manifest, config } = target
  return {
    names: namesOf(request.ref, descriptor, target), snapshotter: request.snapshotter,
    digests: [descriptor.digest, target.descriptor.digest, manifest.config.digest, ...manifest.layers.map(({ digest }) => digest)],
    snapshots: config === undefined ? [artifactSnapshot(target.descriptor.digest)] : chainIds(config.diffIds),
  }
}

/** Who served what, and why others did not, for the log. */
function servedBy(tracker: PullTracker): { readonly resolvedBy: string | undefined; readonly documentsFrom: readonly string[]; readonly layersFrom: Readonly<Record<string, Readonly<Record<string, number>>>>; readonly passedOver: PullView['passedOver'] } {
  const { resolvedBy, documentsFrom, layers, passedOver } = tracker.view()
  const fetched = layers.filter(({ from }) => Object.keys(from).length > 0).slice(0, maxLoggedLayers)
  return { resolvedBy, documentsFrom, layersFrom: Object.fromEntries(fetched.map(({ digest, from }) => [shortDigest(digest), from])), passedOver }
}

function listening(ctx: Ctx, { tracker }: PullSource): Ctx & PassOver {
  return { ...ctx, passedOver: (host, why) => tracker.passedOver(host, why) }
}

/** containerd takes a label whose name and value have so many bytes together. */
const maxLabelBytes = 4096

/** The first of these values, with commas between, that make a label. */
function asManyAsFit(name: string, values: readonly string[]): string {
  let bytes = name.length - 1
  const end = values.findIndex((value) => (bytes += value.length + 1) > maxLabelBytes)
  return values.slice(0, end === -1 ? undefined : end).join(',')
}

/** Where the content came from, as containerd's own client notes it. */
function distributionSource(ref: ImageRef): Record<string, string> {
  return { [`containerd.io/distribution.source.${ref.registry}`]: ref.repository }
}
