import type { ContentService } from '../../containerd/content.ts'
import type { ImageRecord } from '../../containerd/images.ts'
import { notFound } from '../../errors/cri-error.ts'
import { imageConfigOf } from '../../oci-spec/image-config.ts'
import type { Ctx } from '../../observability/context.ts'
import { choosePlatform, type ConfigDocument, isIndex, type Manifest, parseConfig, parseManifest, type Platform } from './manifest.ts'

/** containerd takes no larger ones, and no registry serves them. */
export const maxDocumentBytes = 8 * 1024 * 1024

export interface StoredImage {
  readonly manifest: Manifest
  readonly manifestDigest: string
  readonly manifestBytes: number
  readonly config: ConfigDocument
}

/** What an image record stands for on this platform, from the content store. Throws a CriError when it is no image of this platform or not all here. */
export async function readStoredImage(ctx: Ctx, content: ContentService, record: ImageRecord, platform: Platform): Promise<StoredImage> {
  const { target } = record
  if (target === null) throw notFound(`image ${record.name} has no target`)
  let manifestDigest = target.digest
  let bytes = await content.read(ctx, manifestDigest, maxDocumentBytes)
  if (isIndex(target.media_type)) {
    manifestDigest = choosePlatform(bytes, platform, record.name).digest
    bytes = await content.read(ctx, manifestDigest, maxDocumentBytes)
  }
  const manifest = parseManifest(bytes, record.name)
  const { artifact } = manifest
  const config = artifact === undefined ? parseConfig(await content.read(ctx, manifest.config.digest, maxDocumentBytes), manifest, record.name)
    : { config: imageConfigOf(undefined), diffIds: [], document: { artifactType: artifact.type, files: artifact.files } }
  return { manifest, manifestDigest, manifestBytes: bytes.length, config }
}
