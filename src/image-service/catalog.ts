import { KeyedMutex } from '../concurrency/keyed-mutex.ts'
import type { Containerd } from '../containerd/containerd.ts'
import type { ImageRecord } from '../containerd/images.ts'
import { Code, CriError } from '../errors/cri-error.ts'
import type { Ctx } from '../observability/context.ts'
import type { ImageStore } from '../state/image-store.ts'
import { labels } from '../state/metadata.ts'
import type { Image } from '../state/records.ts'
import { artifactSnapshot } from './pull/artifact.ts'
import { chainIds, imageSize, type Platform } from './pull/manifest.ts'
import { readStoredImage } from './pull/stored-manifest.ts'

/** What a manifest or index stands for; it never changes, so it is read once. */
type Facts = Pick<Image, 'id' | 'chainId' | 'sizeBytes' | 'config' | 'document' | 'artifact'>

const noAnswer: ReadonlySet<number> = new Set([Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED])

/** Keeps the image store like containerd's image records, whoever makes them: pulls of ours, `ctr images import`, another client. */
export class ImageCatalog {
  readonly #containerd: Containerd
  readonly #images: ImageStore
  readonly #platform: Platform
  readonly #facts = new Map<string, Facts>()
  /** The names that garbage collection leaves alone: an image is pinned while one of its names is. */
  readonly #pinned = new Set<string>()
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
    this.#pinned.clear()
    for (const record of records) if (isPinned(record)) this.#pinned.add(record.name)
    for (const digest of this.#facts.keys()) if (!seen.has(digest)) this.#facts.delete(digest)
  }

  /** One record was made, changed or removed. */
  async refresh(ctx: Ctx, name: string): Promise<Image | undefined> {
    return this.#mutex.run(name, async () => {
      const record = await this.#containerd.images.get(ctx, name)
      const facts = record === undefined ? undefined : await this.#tryFacts(ctx, record)
      // Nothing is awaited from here on: whoever refreshes another name of the image sees all of this or nothing.
      const before = this.#images.byName(name)
      if (record !== undefined && isPinned(record)) this.#pinned.add(name)
      else this.#pinned.delete(name)
      if (facts === undefined) this.#images.removeName(name)
      else {
        const references = this.#images.byId(facts.id)?.references ?? []
        this.#put({ ...facts, references: references.includes(name) ? references : [...references, name] })
      }
      const left = before === undefined || before.id === facts?.id ? undefined : this.#images.byId(before.id)
      if (left !== undefined) this.#put(left)
      this.#forget()
      return facts === undefined ? undefined : this.#images.byId(facts.id)
    }, ctx.signal)
  }

  #put(image: Omit<Image, 'pinned'>): void {
    this.#images.put({ ...image, pinned: image.references.some((name) => this.#pinned.has(name)) })
  }

  /** What is known of images that are gone, once it is more than of those that are there: a node sees many images in its life. */
  #forget(): void {
    if (this.#facts.size <= 2 * this.#images.size + 16) return
    for (const [digest, { id }] of this.#facts) if (this.#images.byId(id) === undefined) this.#facts.delete(digest)
  }

  /** Undefined for a record that is no image of this platform, or whose content is not all here: nothing can be run from it. */
  async #tryFacts(ctx: Ctx, record: ImageRecord): Promise<Facts | undefined> {
    try {
      return await this.#read(ctx, record)
    } catch (error) {
      ctx.signal.throwIfAborted()
      if (error instanceof CriError) {
        // It says nothing about the image that containerd did not answer.
        if (noAnswer.has(error.code)) throw error
        ctx.log.debug({ err: error, image: record.name }, 'passing over an image record that cannot be run here')
      } else ctx.log.error({ err: error, image: record.name }, 'passing over an image record that cannot be read')
      return undefined
    }
  }

  async #read(ctx: Ctx, record: ImageRecord): Promise<Facts> {
    const digest = record.target?.digest ?? ''
    const known = this.#facts.get(digest)
    if (known !== undefined) return known
    const { manifest, manifestDigest, manifestBytes, config: { config, diffIds, document } } = await readStoredImage(ctx, this.#containerd.content, record, this.#platform)
    const { artifact } = manifest
    // Artifacts share the empty configuration: it is the manifest that tells one from another.
    const names = artifact === undefined ? { id: manifest.config.digest, chainId: chainIds(diffIds).at(-1) ?? '' }
      : { id: manifestDigest, chainId: artifact.problem === undefined ? artifactSnapshot(manifestDigest) : '', artifact }
    const facts = { ...names, sizeBytes: imageSize(manifestBytes, manifest), config, document }
    this.#facts.set(digest, facts)
    return facts
  }
}

function isPinned(record: ImageRecord): boolean {
  return record.labels[labels.pinned] === labels.pinnedValue
}
