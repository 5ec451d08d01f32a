import { abortable } from '../concurrency/keyed-mutex.ts'
import type { ImageFsInfoRequest, ImageFsInfoResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import type { ImageServiceDeps } from './deps.ts'

interface Usage {
  readonly timestampNs: bigint
  readonly bytes: bigint
  readonly inodes: bigint
}

/** How many snapshots are measured at once: active ones are walked on disk. */
const concurrency = 4
const measureMs = 10 * 60_000

/** What a snapshotter's snapshots use, measured at most once per `maxAgeMs` and once at a time, however many ask. */
export class SnapshotterUsage {
  readonly #containerd: ImageServiceDeps['containerd']
  readonly #maxAgeMs: number
  readonly #known = new Map<string, Usage>()
  readonly #measuring = new Map<string, Promise<Usage>>()

  constructor(containerd: ImageServiceDeps['containerd'], maxAgeMs: number) {
    this.#containerd = containerd
    this.#maxAgeMs = maxAgeMs
  }

  async of(ctx: Ctx, snapshotter: string): Promise<Usage> {
    const known = this.#known.get(snapshotter)
    if (known !== undefined && BigInt(Date.now()) * 1_000_000n - known.timestampNs < BigInt(this.#maxAgeMs) * 1_000_000n) return known
    let measuring = this.#measuring.get(snapshotter)
    if (measuring === undefined) {
      // Shared by whoever asks meanwhile, so it must not end with the first one's call.
      measuring = this.#measure(withSignal(ctx, AbortSignal.timeout(measureMs)), snapshotter).finally(() => this.#measuring.delete(snapshotter))
      this.#measuring.set(snapshotter, measuring)
    }
    return abortable(measuring, ctx.signal)
  }

  async #measure(ctx: Ctx, snapshotter: string): Promise<Usage> {
    const { snapshots } = this.#containerd
    const names = (await snapshots.list(ctx, snapshotter)).map((info) => info.name)
    let [bytes, inodes] = [0n, 0n]
    const worker = async (): Promise<void> => {
      for (let name = names.pop(); name !== undefined; name = names.pop()) {
        try {
          const usage = await snapshots.usage(ctx, snapshotter, name)
          bytes += usage.sizeBytes
          inodes += usage.inodes
        } catch (error) {
          ctx.signal.throwIfAborted()
          // Removed since it was listed, or being removed.
          ctx.log.debug({ err: error, snapshot: name }, 'cannot measure a snapshot')
        }
      }
    }
    await Promise.all(Array.from({ length: concurrency }, worker))
    const usage = { timestampNs: BigInt(Date.now()) * 1_000_000n, bytes, inodes }
    this.#known.set(snapshotter, usage)
    return usage
  }
}

/** ImageFsInfo: what images and containers use on the snapshotter's file system. */
export async function imageFsInfo(
  deps: Pick<ImageServiceDeps, 'snapshotterOf' | 'snapshotterRoot'> & { readonly usage: SnapshotterUsage }, ctx: Ctx, _request: ImageFsInfoRequest,
): Promise<Init<ImageFsInfoResponse>> {
  const snapshotter = deps.snapshotterOf('')
  const usage = await deps.usage.of(ctx, snapshotter)
  const filesystem = {
    timestamp: String(usage.timestampNs), fs_id: { mountpoint: deps.snapshotterRoot(snapshotter) }, used_bytes: { value: String(usage.bytes) }, inodes_used: { value: String(usage.inodes) },
  }
  return { image_filesystems: [filesystem], container_filesystems: [filesystem] }
}
