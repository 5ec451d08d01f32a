import { failedPrecondition, invalidArgument } from '../errors/cri-error.ts'
import type { RemoveImageRequest, RemoveImageResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import { displayName } from '../state/image-names.ts'
import type { ImageServiceDeps } from './deps.ts'
import { findImage } from './resolve-image.ts'

/**
 * RemoveImage: by any name or the id; the image goes with all its names, as the kubelet expects. Idempotent; OK for one that does not
 * exist. Its disk space is free when the call returns. FAILED_PRECONDITION while a container mounts it as a volume.
 */
export async function removeImage(deps: Pick<ImageServiceDeps, 'images' | 'containerd' | 'mountedBy'>, ctx: Ctx, request: RemoveImageRequest): Promise<Init<RemoveImageResponse>> {
  if (request.image === null || request.image.image === '') throw invalidArgument('image is missing')
  const image = findImage(deps.images, request.image.image)
  if (image === undefined) return {}
  const user = deps.mountedBy(image)
  if (user !== undefined) throw failedPrecondition(`image ${displayName(image)} is not removed: container ${user} mounts it as a volume; remove that container first`, { reason: 'ImageInUse' })
  const names = [...image.references]
  for (const [index, name] of names.entries()) {
    // Only the last one waits for garbage collection: until then the others still hold everything.
    await deps.containerd.images.delete(ctx, name, index === names.length - 1)
    deps.images.removeName(name)
  }
  return {}
}
