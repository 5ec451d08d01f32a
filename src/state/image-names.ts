import type { Image } from './records.ts'

/** An image's names as CRI gives them: `repo:tag` and `repo@digest`. The record that is named after the id is neither. */
export function repoNames(image: Pick<Image, 'references'>): { readonly tags: string[]; readonly digests: string[] } {
  const tags: string[] = []
  const digests: string[] = []
  for (const reference of image.references) {
    if (reference.startsWith('sha256:')) continue
    if (reference.includes('@')) digests.push(reference)
    else tags.push(reference)
  }
  return { tags, digests }
}

/** The name that people know an image by: a tag, else a digest, else the id. */
export function displayName(image: Pick<Image, 'references' | 'id'>): string {
  const { tags, digests } = repoNames(image)
  return tags[0] ?? digests[0] ?? image.id
}
