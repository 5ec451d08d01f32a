import { invalidArgument } from '../errors/cri-error.ts'
import type { RemoveImageRequest, RemoveImageResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { ImageServiceDeps } from './deps.ts'
import { findImage } from './resolve-image.ts'

/**
 * RemoveImage: by any name or the id; the image goes with all its names, as the kubelet expects. Idempotent; OK for one that does not
 * exist. Its disk space is free when the call returns.
 */
export async function removeImage(deps: Pick<ImageServiceDeps, 'images' | 'containerd'>, ctx: Ctx, request: RemoveImageRequest): Promise<Init<RemoveImageResponse>> {
  if (request.image === null || request.image.image === '') throw invalidArgument('image is missing')
  const image = findImage(deps.images, request.image.image)
  if (image === undefined) return {}
  const names = [...image.references]
  for (const [index, name] of names.entries()) {
    // Only the last one waits for garbage collection: until then the others still hold everything.
    await deps.containerd.images.delete(ctx, name, index === names.length - 1)
    deps.images.removeName(name)
  }
  return {}
}
