import type { ImageFilter, ListImagesRequest, ListImagesResponse, StreamImagesRequest, StreamImagesResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { Image } from '../state/records.ts'
import type { ImageServiceDeps } from './deps.ts'
import { imageMessage } from './image-message.ts'
import { findImage } from './resolve-image.ts'

type Deps = Pick<ImageServiceDeps, 'images'>
const pageSize = 500

/** ListImages, from memory; the filter names one image by id or name. */
export async function listImages(deps: Deps, _ctx: Ctx, request: ListImagesRequest): Promise<Init<ListImagesResponse>> {
  return { images: filtered(deps, request.filter).map(imageMessage) }
}

/** StreamImages: the same in pieces. */
export async function streamImages(deps: Deps, _ctx: Ctx, request: StreamImagesRequest, send: (message: Init<StreamImagesResponse>) => Promise<void>): Promise<void> {
  const images = filtered(deps, request.filter)
  for (let at = 0; at === 0 || at < images.length; at += pageSize) await send({ images: images.slice(at, at + pageSize).map(imageMessage) })
}

function filtered(deps: Deps, filter: ImageFilter | null): Image[] {
  const name = filter?.image?.image ?? ''
  if (name === '') return [...deps.images.values()]
  const found = findImage(deps.images, name)
  return found === undefined ? [] : [found]
}
