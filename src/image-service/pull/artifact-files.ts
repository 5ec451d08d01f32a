import { join } from '../../concurrency/join.ts'
import type { Operation } from '../../concurrency/operation.ts'
import { type Ctx, withSignal } from '../../observability/context.ts'
import type { Artifact } from '../../state/records.ts'
import { artifactSnapshot } from './artifact.ts'
import type { ArtifactUnpacker } from './artifact-unpack.ts'
import type { BlobFetcher, PullSource } from './blobs.ts'
import { downloadQueue, type PullerSettings } from './settings.ts'
import { distributionSource, type Target } from './target.ts'
import type { Unpacker } from './unpack.ts'

const maxWaitingFiles = 8192

export interface ArtifactFilesOptions {
  readonly blobs: BlobFetcher
  readonly unpacker: Pick<Unpacker, 'exists'>
  readonly artifacts: ArtifactUnpacker
  readonly settings: PullerSettings
}

/** Makes the files of artifacts a snapshot. */
export class ArtifactFiles {
  readonly #options: ArtifactFilesOptions

  constructor(options: ArtifactFilesOptions) {
    this.#options = options
  }

  /** The blobs of an artifact side by side, then its files from them. */
  async fetch(ctx: Ctx, operation: Operation, source: PullSource, target: Target, artifact: Artifact, snapshotter: string): Promise<void> {
    const { blobs, unpacker, artifacts, settings } = this.#options
    const options = { snapshotter, lease: source.lease, syncFs: settings.imagePullWithSyncFs }
    const { descriptor: { digest }, manifest: { layers } } = target
    if (artifact.problem === undefined && await unpacker.exists(ctx, artifactSnapshot(digest), options)) return
    source.tracker.layers(layers)
    source.tracker.step('download files')
    await operation.step('download files', async () => {
      const queue = downloadQueue(settings, maxWaitingFiles)
      const distinct = new Map(layers.map((layer) => [layer.digest, layer]))
      await join<void[]>(ctx.signal, [...distinct.values()].map((layer, rank) => (signal) => queue.add(() => blobs.fetch(withSignal(ctx, signal), source, { descriptor: layer, labels: distributionSource(source.ref), rank }), { signal })))
    })
    if (artifact.problem === undefined) {
      source.tracker.step('unpack files')
      await operation.step('unpack files', () => artifacts.unpack(ctx, digest, artifact, options))
    }
    for (const layer of layers) source.tracker.layer(layer.digest, 'done')
  }
}
