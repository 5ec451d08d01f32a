import type { FilesystemUsage, ImageFsInfoRequest, ImageFsInfoResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { SnapshotUsage } from '../stats/snapshot-usage.ts'
import type { ImageServiceDeps } from './deps.ts'

export interface ImageFsInfoDeps extends Pick<ImageServiceDeps, 'snapshotterRoot'> {
  readonly usage: Pick<SnapshotUsage, 'totals'>
  /** Every snapshotter that pods may use; the default one first. */
  readonly snapshotters: () => readonly string[]
}

/**
 * ImageFsInfo: what image layers and, apart from them, writable layers use, per snapshotter. The default snapshotter is the first, which is the
 * one that the kubelet looks at. From the last measurement; only the very first one is waited for.
 */
export async function imageFsInfo(deps: ImageFsInfoDeps, ctx: Ctx, _request: ImageFsInfoRequest): Promise<Init<ImageFsInfoResponse>> {
  const [images, containers]: [Init<FilesystemUsage>[], Init<FilesystemUsage>[]] = [[], []]
  for (const snapshotter of deps.snapshotters()) {
    const totals = await deps.usage.totals(ctx, snapshotter)
    if (totals === undefined) continue
    const message = ({ measuredMs, bytes, inodes }: typeof totals.images): Init<FilesystemUsage> => ({
      timestamp: `${measuredMs}000000`, fs_id: { mountpoint: deps.snapshotterRoot(snapshotter) }, used_bytes: { value: String(bytes) }, inodes_used: { value: String(inodes) },
    })
    images.push(message(totals.images))
    containers.push(message(totals.containers))
  }
  return { image_filesystems: images, container_filesystems: containers }
}
