import { randomBytes } from 'node:crypto'
import { KeyedMutex } from '../../concurrency/keyed-mutex.ts'
import type { Containerd } from '../../containerd/containerd.ts'
import { snapshotLabels } from '../../containerd/snapshots.ts'
import { Code, CriError, isAlreadyExists } from '../../errors/cri-error.ts'
import { type Ctx, withSignal } from '../../observability/context.ts'
import type { Descriptor } from '../../registry-mirrors/registry-client.ts'

export interface UnpackLayer {
  /** With what the manifest says of it beside: some of that is for snapshotters. */
  readonly descriptor: Descriptor & { readonly annotations?: Readonly<Record<string, string>> }
  readonly diffId: string
  /** Name of the committed snapshot. */
  readonly chainId: string
  /** Of the layer below; empty for the lowest. */
  readonly parent: string
  readonly labels: Readonly<Record<string, string>>
}

export interface UnpackOptions {
  readonly snapshotter: string
  readonly lease: string
  readonly syncFs: boolean
}

/** Unpacking a layer of some gigabytes onto a slow disk takes its time. */
const applyTimeoutMs = 30 * 60_000

/** Turns layers into snapshots: each once, however many images share it. */
export class Unpacker {
  readonly #containerd: Containerd
  readonly #mutex = new KeyedMutex()

  constructor(containerd: Containerd) {
    this.#containerd = containerd
  }

  /** Whether the snapshot is there; if so it is put under the lease, so that it stays. */
  async exists(ctx: Ctx, chainId: string, options: UnpackOptions): Promise<boolean> {
    const { snapshots, leases } = this.#containerd
    if (await snapshots.stat(ctx, options.snapshotter, chainId) === undefined) return false
    await leases.addResource(ctx, options.lease, `snapshots/${options.snapshotter}`, chainId)
    // It may have gone between the two.
    return await snapshots.stat(ctx, options.snapshotter, chainId) !== undefined
  }

  /** Whether the snapshotter has the layer, or brings it by itself when it is asked for it with the image's annotations: then nothing needs to be downloaded. */
  async isBrought(ctx: Ctx, layer: UnpackLayer, options: UnpackOptions): Promise<boolean> {
    const { snapshots } = this.#containerd
    const { snapshotter, lease } = options
    const key = keyFor(layer)
    try {
      await snapshots.prepare(ctx, snapshotter, key, layer.parent, labelsOf(layer), { lease })
    } catch (error) {
      if (isAlreadyExists(error)) return this.exists(ctx, layer.chainId, options)
      throw error
    }
    await snapshots.remove(withSignal(ctx, AbortSignal.timeout(60_000)), snapshotter, key)
    return false
  }

  /** Unpacks one layer whose parent is there. */
  async unpack(ctx: Ctx, layer: UnpackLayer, options: UnpackOptions): Promise<void> {
    await this.#mutex.run(`${options.snapshotter}/${layer.chainId}`, async () => {
      if (await this.exists(ctx, layer.chainId, options)) return
      await this.#apply(ctx, layer, options)
    }, ctx.signal)
  }

  async #apply(ctx: Ctx, layer: UnpackLayer, options: UnpackOptions): Promise<void> {
    const { snapshots, diff } = this.#containerd
    const { snapshotter, lease } = options
    const key = keyFor(layer)
    const { mediaType, digest, sizeBytes } = layer.descriptor
    const labels = labelsOf(layer)
    let mounts
    try {
      mounts = await snapshots.prepare(ctx, snapshotter, key, layer.parent, labels, { lease })
    } catch (error) {
      // A remote snapshotter has the layer already and says so in this way.
      if (isAlreadyExists(error) && await this.exists(ctx, layer.chainId, options)) return
      throw error
    }
    try {
      const diffId = await diff.apply(ctx, { media_type: mediaType, digest, size: String(sizeBytes) }, mounts, { lease, timeoutMs: applyTimeoutMs, syncFs: options.syncFs })
      if (diffId !== layer.diffId) throw new CriError(Code.DATA_LOSS, `layer ${digest} unpacks to ${diffId} and the image says ${layer.diffId}: the image is broken; build and push it again`, { reason: 'CONTENT' })
      await snapshots.commit(ctx, snapshotter, layer.chainId, key, labels, { lease })
    } catch (error) {
      await snapshots.remove(withSignal(ctx, AbortSignal.timeout(60_000)), snapshotter, key).catch((failure: unknown) => ctx.log.warn({ err: failure, key }, 'cannot remove a half unpacked layer; it goes with the lease'))
      if (!isAlreadyExists(error)) throw error
    }
  }
}

function keyFor(layer: UnpackLayer): string {
  return `extract-${Date.now()}-${randomBytes(4).toString('hex')} ${layer.chainId}`
}

/** What the image says of the layer to snapshotters, what the pull says, and what a remote snapshotter is to call the snapshot that it commits by itself. */
function labelsOf(layer: UnpackLayer): Record<string, string> {
  return { ...snapshotLabels(layer.descriptor.annotations ?? {}), ...layer.labels, 'containerd.io/snapshot.ref': layer.chainId }
}
