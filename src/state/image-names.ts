import type { Image } from './records.ts'

/** An image's names as CRI gives them: `repo:tag` and `repo@digest`. */
export function repoNames(image: Pick<Image, 'references'>): { readonly tags: string[]; readonly digests: string[] } {
  const tags: string[] = []
  const digests: string[] = []
  for (const reference of image.references) (reference.includes('@') ? digests : tags).push(reference)
  return { tags, digests }
}
