import { randomUUID } from 'node:crypto'
import type { Containerd } from '../containerd/containerd.ts'
import { aborted, CriError, failedPrecondition, isNotFound } from '../errors/cri-error.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import { displayName } from '../state/image-names.ts'
import type { Image } from '../state/records.ts'
import { ArtifactUnpacker, type WithMounts } from './pull/artifact-unpack.ts'
import { chainIds, type Platform } from './pull/manifest.ts'
import { readStoredImage, type StoredImage } from './pull/stored-manifest.ts'
import { Unpacker } from './pull/unpack.ts'
import type { UnsettledPulls } from './pull/unsettled.ts'

/** What a crash in the middle leaves behind goes after this. */
const leaseMs = 3_600_000

/** Unpacks images that are there and not unpacked where they are needed: imported so, or pulled for a runtime handler with another snapshotter. */
export class ImageUnpacker {
  readonly #containerd: Containerd
  readonly #platform: Platform
  readonly #unpacker: Unpacker
  readonly #artifacts: ArtifactUnpacker
  readonly #syncFs: boolean
  readonly #unsettled: Pick<UnsettledPulls, 'begin'>

  /** With `syncFs` what is unpacked is on the disk before anybody uses it. */
  constructor(options: { readonly containerd: Containerd; readonly platform: Platform; readonly withMounts: WithMounts; readonly syncFs: boolean; readonly unsettled: Pick<UnsettledPulls, 'begin'> }) {
    this.#unsettled = options.unsettled
    this.#containerd = options.containerd
    this.#platform = options.platform
    this.#syncFs = options.syncFs
    this.#unpacker = new Unpacker(options.containerd)
    this.#artifacts = new ArtifactUnpacker({ ...options, unpacker: this.#unpacker })
  }

  /** FAILED_PRECONDITION when a layer that it takes is not kept on the node: the image has to be pulled for this snapshotter. */
  async ensure(ctx: Ctx, image: Image, snapshotter: string): Promise<void> {
    const { snapshots, leases, content } = this.#containerd
    if (image.chainId === '' || await snapshots.stat(ctx, snapshotter, image.chainId) !== undefined) return
    const lease = `cri-shim-unpack-${randomUUID()}`
    await leases.create(ctx, lease, leaseMs, { 'cri-shim/image': image.id })
    try {
      const stored = await this.#stored(ctx, image)
      const settle = await this.#unsettled.begin({ names: [], digests: [], snapshotter, snapshots: stored.manifest.artifact === undefined ? chainIds(stored.config.diffIds) : [image.chainId] })
      try {
        await this.#unpack(ctx, stored, { snapshotter, lease, syncFs: this.#syncFs })
      } finally {
        settle()
      }
      // By the manifest of an artifact, whose configuration is not its own; by the configuration of an image.
      await content.setLabels(ctx, image.id, { [`containerd.io/gc.ref.snapshot.${snapshotter}`]: image.chainId })
    } catch (error) {
      ctx.signal.throwIfAborted()
      if (!isNotFound(error)) throw error
      throw failedPrecondition(`image ${displayName(image)} is not unpacked for snapshotter ${snapshotter}, and its layers are not kept on this node: pull it again for this runtime handler`, { reason: 'NotUnpacked', cause: error })
    } finally {
      await leases.delete(withSignal(ctx, AbortSignal.timeout(30_000)), lease).catch((error: unknown) => ctx.log.warn({ err: error, lease }, 'cannot delete the lease of an unpacking: it ends after an hour'))
    }
  }

  async #stored(ctx: Ctx, image: Image): Promise<StoredImage> {
    let failure: unknown
    for (const name of image.references) {
      const record = await this.#containerd.images.get(ctx, name)
      if (record === undefined) continue
      try {
        return await readStoredImage(ctx, this.#containerd.content, record, this.#platform)
      } catch (error) {
        failure = error
      }
    }
    throw CriError.from(failure ?? aborted(`image ${displayName(image)} was removed at the same moment: pull it again`, { reason: 'ImageVanished' }))
  }

  async #unpack(ctx: Ctx, { manifest, manifestDigest, config }: StoredImage, options: { readonly snapshotter: string; readonly lease: string; readonly syncFs: boolean }): Promise<void> {
    if (manifest.artifact !== undefined) return this.#artifacts.unpack(ctx, manifestDigest, manifest.artifact, options)
    const chain = chainIds(config.diffIds)
    for (const [index, descriptor] of manifest.layers.entries()) {
      const [diffId = '', chainId = ''] = [config.diffIds[index], chain[index]]
      await this.#unpacker.unpack(ctx, { descriptor, diffId, chainId, parent: chain[index - 1] ?? '', labels: {} }, options)
    }
  }
}
