import { invalidArgument } from '../errors/cri-error.ts'
import type { ImageStatusRequest, ImageStatusResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { SnapshotUsage } from '../stats/snapshot-usage.ts'
import type { ImageServiceDeps } from './deps.ts'
import { imageMessage } from './image-message.ts'
import { findImage } from './resolve-image.ts'

/**
 * ImageStatus: no image in the answer when there is none. Verbose adds the configuration, as `crictl inspecti` shows it, and what its layers take up
 * on the disk (`usage`, once that was measured; layers that images share count for each).
 */
export async function imageStatus(deps: Pick<ImageServiceDeps, 'images' | 'snapshotterOf'> & { readonly usage: Pick<SnapshotUsage, 'ofImage'> }, _ctx: Ctx, request: ImageStatusRequest): Promise<Init<ImageStatusResponse>> {
  if (request.image === null || request.image.image === '') throw invalidArgument('image is missing')
  const image = findImage(deps.images, request.image.image)
  if (image === undefined) return {}
  return { image: imageMessage(image), info: request.verbose ? { info: JSON.stringify({ chainID: image.chainId, usage: deps.usage.ofImage(deps.snapshotterOf(''), image.chainId), imageSpec: image.document }) } : {} }
}
