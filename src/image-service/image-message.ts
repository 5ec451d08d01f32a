import type { Image as CriImage } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import { repoNames } from '../state/image-names.ts'
import type { Image } from '../state/records.ts'

/** An image as CRI gives it. */
export function imageMessage(image: Image): Init<CriImage> {
  const { tags, digests } = repoNames(image)
  return { id: image.id, repo_tags: tags, repo_digests: digests, size: String(image.sizeBytes), pinned: image.pinned, ...(image.artifact === undefined ? user(image.config.User) : {}) }
}

/** The user of the image's configuration: the kubelet checks runAsNonRoot by it. A group does not matter here. */
function user(configured: string): Pick<Init<CriImage>, 'uid' | 'username'> {
  const name = configured.split(':')[0] ?? ''
  if (name === '') return { uid: { value: '0' } }
  if (/^(0|[1-9]\d{0,9})$/.test(name) && Number(name) <= 2 ** 31 - 1) return { uid: { value: name } }
  return { username: name }
}
