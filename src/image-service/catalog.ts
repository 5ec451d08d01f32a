import { KeyedMutex } from '../concurrency/keyed-mutex.ts'
import type { Containerd } from '../containerd/containerd.ts'
import type { ImageRecord } from '../containerd/images.ts'
import { CriError } from '../errors/cri-error.ts'
import type { Ctx } from '../observability/context.ts'
import type { ImageStore } from '../state/image-store.ts'
import { labels } from '../state/metadata.ts'
import type { Image } from '../state/records.ts'
import { chainIds, imageSize, type Platform } from './pull/manifest.ts'
import { readStoredImage } from './pull/stored-manifest.ts'

/** What a manifest or index stands for; it never changes, so it is read once. */
type Facts = Pick<Image, 'id' | 'chainId' | 'sizeBytes' | 'config' | 'document'>

/** Keeps the image store like containerd's image records, whoever makes them: pulls of ours, `ctr images import`, another client. */
export class ImageCatalog {
  readonly #containerd: Containerd
  readonly #images: ImageStore
  readonly #platform: Platform
  readonly #facts = new Map<string, Facts>()
  readonly #mutex = new KeyedMutex()

  constructor(options: { readonly containerd: Containerd; readonly images: ImageStore; readonly platform: Platform }) {
    this.#containerd = options.containerd
    this.#images = options.images
    this.#platform = options.platform
  }

  /** Everything anew, at start and after containerd was away. */
  async reload(ctx: Ctx): Promise<void> {
    const records = await this.#containerd.images.list(ctx)
    const seen = new Set<string>()
    const images = new Map<string, Image>()
    for (const record of records) {
      const facts = await this.#tryFacts(ctx, record)
      if (facts === undefined) continue
      seen.add(record.target?.digest ?? '')
      const known = images.get(facts.id)
      images.set(facts.id, { ...facts, references: [...known?.references ?? [], record.name], pinned: (known?.pinned ?? false) || isPinned(record) })
    }
    this.#images.clear()
    for (const image of images.values()) this.#images.put(image)
    for (const digest of this.#facts.keys()) if (!seen.has(digest)) this.#facts.delete(digest)
  }

  /** One record was made, changed or removed. */
  async refresh(ctx: Ctx, name: string): Promise<Image | undefined> {
    return this.#mutex.run(name, async () => {
      const record = await this.#containerd.images.get(ctx, name)
      const facts = record === undefined ? undefined : await this.#tryFacts(ctx, record)
      if (record === undefined || facts === undefined) {
        this.#images.removeName(name)
        return undefined
      }
      const known = this.#images.byId(facts.id)
      const references = known?.references.includes(name) === true ? known.references : [...known?.references ?? [], name]
      const image: Image = { ...facts, references, pinned: isPinned(record) || (known?.pinned ?? false) }
      this.#images.put(image)
      return image
    }, ctx.signal)
  }

  /** Undefined for a record that is no image of this platform, or whose content is not all here: nothing can be run from it. */
  async #tryFacts(ctx: Ctx, record: ImageRecord): Promise<Facts | undefined> {
    try {
      return await this.#read(ctx, record)
    } catch (error) {
      if (!(error instanceof CriError) || ctx.signal.aborted) throw error
      ctx.log.debug({ err: error, image: record.name }, 'passing over an image record that cannot be run here')
      return undefined
    }
  }

  async #read(ctx: Ctx, record: ImageRecord): Promise<Facts> {
    const digest = record.target?.digest ?? ''
    const known = this.#facts.get(digest)
    if (known !== undefined) return known
    const { manifest, manifestBytes, config: { config, diffIds, document } } = await readStoredImage(ctx, this.#containerd.content, record, this.#platform)
    const facts = { id: manifest.config.digest, chainId: chainIds(diffIds).at(-1) ?? '', sizeBytes: imageSize(manifestBytes, manifest), config, document }
    this.#facts.set(digest, facts)
    return facts
  }
}

function isPinned(record: ImageRecord): boolean {
  return record.labels[labels.pinned] === labels.pinnedValue
}
