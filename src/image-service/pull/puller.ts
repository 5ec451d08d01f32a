import { join } from '../../concurrency/join.ts'
import type { Operation } from '../../concurrency/operation.ts'
import type { Containerd } from '../../containerd/containerd.ts'
import { messageOf } from '../../errors/cri-error.ts'
import { type Ctx, withSignal } from '../../observability/context.ts'
import type { PullAuth } from '../../registry-mirrors/credentials.ts'
import { shortDigest } from '../../registry-mirrors/digest.ts'
import type { ImageRef } from '../../registry-mirrors/image-ref.ts'
import type { Descriptor, RegistryClient } from '../../registry-mirrors/registry-client.ts'
import { labels as criLabels } from '../../state/metadata.ts'
import { artifactSnapshot } from './artifact.ts'
import { ArtifactFiles } from './artifact-files.ts'
import { ArtifactUnpacker, type WithMounts } from './artifact-unpack.ts'
import { BlobFetcher, type PullSource } from './blobs.ts'
import { ImageLayers } from './image-layers.ts'
import { chainIds, isIndex, type Platform } from './manifest.ts'
import { Precedence } from './precedence.ts'
import { PullProgress, type PullTracker, type PullView } from './progress.ts'
import { leaseId, PullLeases } from './pull-leases.ts'
import { type PullerSettings, transferQueue } from './settings.ts'
import { namesOf, type Target, TargetFetcher } from './target.ts'
import { Unpacker } from './unpack.ts'
import type { PullNote, UnsettledPulls } from './unsettled.ts'
import { Watchdog } from './watchdog.ts'

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

/** An artifact may have thousands. */
const maxLoggedLayers = 128

/** The pull pipeline: resolve, fetch, unpack, record. */
export class Puller {
  readonly #options: PullerOptions
  readonly #leases: PullLeases
  readonly #targets: TargetFetcher
  readonly #blobs: BlobFetcher
  readonly #layers: ImageLayers
  readonly #files: ArtifactFiles
  readonly #progress: PullProgress

  constructor(options: PullerOptions) {
    const { containerd, registry, settings, platform } = options
    const { content } = containerd
    this.#options = options
    this.#progress = options.progress ?? new PullProgress()
    this.#leases = new PullLeases(containerd.leases)
    this.#targets = new TargetFetcher({ content, registry, platform, discardUnpackedLayers: settings.discardUnpackedLayers })
    const blobs = new BlobFetcher({ content, registry, transfers: transferQueue(settings), ranges: { parts: settings.parallelRanges, fromBytes: settings.parallelRangesFromMib * 1024 * 1024 } })
    const unpacker = new Unpacker(containerd)
    this.#blobs = blobs
    this.#layers = new ImageLayers({ blobs, unpacker, settings })
    this.#files = new ArtifactFiles({ blobs, unpacker, settings, artifacts: new ArtifactUnpacker({ ...options, unpacker }) })
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
    const { registry, settings } = this.#options
    const { ref, auth, snapshotter } = request
    const operation = this.#options.operation('PullImage')
    const started = performance.now()
    const hosts = new Set<string>()
    let bytes = 0
    const watchdog = new Watchdog(ref.toString(), settings.imagePullProgressTimeoutMs)
    const watched = withSignal(ctx, AbortSignal.any([ctx.signal, watchdog.signal]))
    try {
      const resolved = await operation.step('resolve', () => registry.resolve(ref, auth, { ...watched, passedOver: (host, why) => tracker.passedOver(host, why) }))
      const { descriptor } = resolved
      hosts.add(resolved.host)
      tracker.resolved(descriptor.digest, resolved.host)
      const lease = leaseId(ref, descriptor.digest, snapshotter)
      const source: PullSource = {
        ref, auth, lease, tracker, precedence: new Precedence(), served: (host) => hosts.add(host), watch: (transfer) => watchdog.watch(transfer),
        progress: (count) => {
          bytes += count
          watchdog.progress()
        },
      }
      tracker.step('fetch manifest')
      const fetchTarget = (fetching: Ctx): Promise<Target> => operation.step('fetch manifest', () => this.#targets.fetch(fetching, source, descriptor, snapshotter))
      const { target, names } = await this.#leases.under(watched, { operation, id: lease, ref }, fetchTarget, async (found) => {
        const settle = await this.#options.unsettled?.begin(noteOf(request, descriptor, found))
        try {
          await join<[void, void]>(watched.signal, [
            (signal) => operation.step('store documents', () => this.#storeDocuments(withSignal(watched, signal), source, found)),
            (signal) => this.#fetchBlobs(withSignal(watched, signal), operation, source, found, snapshotter),
          ])
          tracker.step('record image')
          return { target: found, names: await operation.step('record image', () => this.#record(ctx, request, descriptor, found)) }
        } finally {
          settle?.()
        }
      })
      ctx.log.info({
        ref: ref.toString(), id: target.id, artifact: target.manifest.artifact?.type, digest: descriptor.digest, layers: target.manifest.layers.length, bytes, hosts: [...hosts],
        ms: Math.round(performance.now() - started), ...servedBy(tracker),
      }, 'pulled')
      return { id: target.id, names }
    } finally {
      watchdog.close()
    }
  }

  /** From the bottom up, so that no document refers to one that is not there. The blobs come meanwhile: all are under the lease. */
  async #storeDocuments(ctx: Ctx, source: PullSource, { documents }: Target): Promise<void> {
    for (const { descriptor, bytes, labels } of documents) await this.#blobs.store(ctx, source, descriptor, bytes, labels)
  }

  async #fetchBlobs(ctx: Ctx, operation: Operation, source: PullSource, target: Target, snapshotter: string): Promise<void> {
    const { config, manifest: { artifact } } = target
    if (config !== undefined) await this.#layers.fetch(ctx, operation, source, { ...target, config }, snapshotter)
    else if (artifact !== undefined) await this.#files.fetch(ctx, operation, source, target, artifact, snapshotter)
  }

  /** The records that make the image one. */
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
