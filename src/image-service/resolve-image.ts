import { CriError, failedPrecondition, invalidArgument, notFound } from '../errors/cri-error.ts'
import { normalizeRef } from '../registry-mirrors/image-ref.ts'
import type { ImageStore } from '../state/image-store.ts'
import type { Image } from '../state/records.ts'

/**
 * The image that a request names: an id (`sha256:…`, or its hexadecimal digits, or a unique beginning of them) or any of its names.
 * Undefined when there is none. INVALID_ARGUMENT for a name that can be none.
 */
export function findImage(images: ImageStore, name: string): Image | undefined {
  if (name === '') throw invalidArgument('the image has no name')
  const exact = images.byName(name) ?? (name.startsWith('sha256:') ? images.byId(name) : undefined)
  if (exact !== undefined) return exact
  try {
    const named = images.byName(normalizeRef(name))
    if (named !== undefined) return named
  } catch (error) {
    const byId = images.byId(name)
    if (byId !== undefined) return byId
    if (/^(sha256:)?[0-9a-f]+$/.test(name)) return undefined
    throw CriError.from(error)
  }
  return images.byId(name)
}

/** The same for the image that a container runs: it must be there, and be one that can run. */
export function requireContainerImage(images: ImageStore, name: string): Image {
  const image = requireImage(images, name)
  if (image.artifact !== undefined) throw failedPrecondition(`${name} is an artifact (${image.artifact.type}), not a container image: nothing can run from it; mount it as an image volume`, { reason: 'NotAnImage' })
  return image
}

/** The same for an image or an artifact that a container mounts. */
export function requireVolumeImage(images: ImageStore, name: string): Image {
  const image = requireImage(images, name)
  if (image.artifact?.problem !== undefined) throw failedPrecondition(`the artifact (${image.artifact.type}) cannot be mounted: ${image.artifact.problem}`, { reason: 'NotMountable' })
  return image
}

function requireImage(images: ImageStore, name: string): Image {
  const image = findImage(images, name)
  if (image === undefined) throw notFound(`image ${name} is not on this node: pull it first (imagePullPolicy, crictl pull)`, { reason: 'ImageNotFound' })
  return image
}
