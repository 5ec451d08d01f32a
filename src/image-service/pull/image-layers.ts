import { join } from '../../concurrency/join.ts'
import type { Operation } from '../../concurrency/operation.ts'
import { type Ctx, withSignal } from '../../observability/context.ts'
import type { ImageRef } from '../../registry-mirrors/image-ref.ts'
import type { BlobFetcher, PullSource } from './blobs.ts'
import { chainIds, type ConfigDocument } from './manifest.ts'
import { downloadQueue, type PullerSettings } from './settings.ts'
import { distributionSource, type Target } from './target.ts'
import type { UnpackLayer, Unpacker } from './unpack.ts'

const maxWaitingLayers = 1024

export interface ImageLayersOptions {
  readonly blobs: BlobFetcher
  readonly unpacker: Unpacker
  readonly settings: PullerSettings
}

/** Makes the layers of images snapshots. */
export class ImageLayers {
  readonly #options: ImageLayersOptions

  constructor(options: ImageLayersOptions) {
    this.#options = options
  }

  /** Downloads side by side, each layer unpacked as soon as it and its parent are there. Layers whose snapshots exist are not fetched. */
  async fetch(ctx: Ctx, operation: Operation, source: PullSource, target: Target & { readonly config: ConfigDocument }, snapshotter: string): Promise<void> {
    const { blobs, unpacker, settings } = this.#options
    const { layers } = target.manifest
    const { diffIds } = target.config
    const chain = chainIds(diffIds)
    const options = { snapshotter, lease: source.lease, syncFs: settings.imagePullWithSyncFs }
    const queue = downloadQueue(settings, maxWaitingLayers)
    const layerAt = (index: number): UnpackLayer => {
      const descriptor = layers[index]
      const [diffId, chainId] = [diffIds[index], chain[index]]
      if (descriptor === undefined || diffId === undefined || chainId === undefined) throw new TypeError('layers and diff ids were counted to be as many')
      return { descriptor, diffId, chainId, parent: chain[index - 1] ?? '', labels: settings.disableSnapshotAnnotations ? {} : snapshotLabels(source.ref, target, index) }
    }
    // A remote snapshotter is told what a layer is before anything is downloaded: it may have it already, or bring it by itself.
    const isThere = async (index: number): Promise<boolean> => await unpacker.exists(ctx, chain[index] ?? '', options)
      || (!settings.disableSnapshotAnnotations && await unpacker.isBrought(ctx, layerAt(index), options))
    let below = 0
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
            await queue.add(() => blobs.fetch(withSignal(ctx, signal), source, { descriptor: layer, labels, rank: index, stored: () => downloaded[index]?.resolve() }), { signal })
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
          await unpacker.unpack(withSignal(ctx, signal), layer, options)
          source.tracker.layer(layer.descriptor.digest, 'done')
        }
      }),
    ])
  }
}

/** What remote snapshotters (stargz, nydus, …) need to know of a layer. */
function snapshotLabels(ref: ImageRef, target: Target, index: number): Record<string, string> {
  const imageLayers = 'containerd.io/snapshot/cri.image-layers'
  return {
    'containerd.io/snapshot/cri.image-ref': ref.toString(), 'containerd.io/snapshot/cri.manifest-digest': target.descriptor.digest,
    'containerd.io/snapshot/cri.layer-digest': target.manifest.layers[index]?.digest ?? '', [imageLayers]: asManyAsFit(imageLayers, target.manifest.layers.slice(index).map((layer) => layer.digest)),
  }
}

/** containerd takes a label whose name and value have so many bytes together. */
const maxLabelBytes = 4096

/** The first of these values, with commas between, that make a label. */
function asManyAsFit(name: string, values: readonly string[]): string {
  let bytes = name.length - 1
  const end = values.findIndex((value) => (bytes += value.length + 1) > maxLabelBytes)
  return values.slice(0, end === -1 ? undefined : end).join(',')
}
