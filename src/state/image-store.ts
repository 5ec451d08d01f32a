import type { Image } from './records.ts'

/** Images by id and by name. Names are containerd's: normalised references. */
export class ImageStore {
  readonly #images = new Map<string, Image>()
  readonly #names = new Map<string, string>()

  get size(): number {
    return this.#images.size
  }

  values(): IterableIterator<Image> {
    return this.#images.values()
  }

  /** Adds an image or replaces what is known of it; names that other images had move to it. */
  put(image: Image): void {
    const before = this.#images.get(image.id)
    for (const name of before?.references ?? []) if (!image.references.includes(name)) this.#names.delete(name)
    for (const name of image.references) {
      const owner = this.#names.get(name)
      if (owner !== undefined && owner !== image.id) this.#drop(owner, name)
      this.#names.set(name, image.id)
    }
    this.#images.set(image.id, image)
  }

  /** The image of exactly this normalised name. */
  byName(name: string): Image | undefined {
    const id = this.#names.get(name)
    return id === undefined ? undefined : this.#images.get(id)
  }

  /** The image with this id, `sha256:` and all; a unique beginning of at least 3 characters (with or without `sha256:`) will do. */
  byId(id: string): Image | undefined {
    const exact = this.#images.get(id)
    if (exact !== undefined) return exact
    const hex = id.startsWith('sha256:') ? id.slice(7) : id
    if (!/^[0-9a-f]{3,64}$/.test(hex)) return undefined
    const found = [...this.#images.values()].filter((image) => image.id.startsWith(`sha256:${hex}`))
    return found.length === 1 ? found[0] : undefined
  }

  /** A name is gone from containerd. The image goes with its last name. Returns the image that lost it. */
  removeName(name: string): Image | undefined {
    const owner = this.#names.get(name)
    if (owner === undefined) return undefined
    const image = this.#images.get(owner)
    this.#names.delete(name)
    this.#drop(owner, name)
    return image
  }

  #drop(id: string, name: string): void {
    const image = this.#images.get(id)
    if (image === undefined) return
    const references = image.references.filter((reference) => reference !== name)
    if (references.length === 0) this.#images.delete(id)
    else this.#images.set(id, { ...image, references })
  }

  clear(): void {
    this.#images.clear()
    this.#names.clear()
  }
}
