import type { ContentService } from '../../containerd/content.ts'
import { isNotFound } from '../../errors/cri-error.ts'
import type { Ctx } from '../../observability/context.ts'
import { matchesDigest } from '../../registry-mirrors/digest.ts'
import type { ImageRef } from '../../registry-mirrors/image-ref.ts'
import type { Descriptor, PassOver, RegistryClient } from '../../registry-mirrors/registry-client.ts'
import { artifactSnapshot, emptyConfig } from './artifact.ts'
import type { PullSource } from './blobs.ts'
import { chainIds, choosePlatform, type ConfigDocument, isIndex, type Manifest, parseConfig, parseManifest, type Platform } from './manifest.ts'
import { maxDocumentBytes } from './stored-manifest.ts'

/** What a pull is to bring: the image of a reference for this platform. */
export interface Target {
  readonly descriptor: Descriptor
  readonly manifest: Manifest
  readonly id: string
  /** Undefined for an artifact. */
  readonly config: ConfigDocument | undefined
  /** What describes the image, each after those that it refers to. */
  readonly documents: readonly Document[]
}

export interface Document {
  readonly descriptor: Descriptor
  readonly bytes: Buffer
  /** They keep what it refers to. */
  readonly labels: Readonly<Record<string, string>>
}

export interface TargetFetcherOptions {
  readonly content: ContentService
  readonly registry: RegistryClient
  readonly platform: Platform
  /** Layers are not kept by the manifest: they go once they are unpacked. */
  readonly discardUnpackedLayers: boolean
}

/** Brings index, manifest and configuration. */
export class TargetFetcher {
  readonly #options: TargetFetcherOptions

  constructor(options: TargetFetcherOptions) {
    this.#options = options
  }

  /** Nothing is stored yet. */
  async fetch(ctx: Ctx, source: PullSource, descriptor: Descriptor, snapshotter: string): Promise<Target> {
    const { ref } = source
    const top = await this.#manifestBytes(ctx, source, descriptor)
    const inIndex = isIndex(descriptor.mediaType) ? choosePlatform(top, this.#options.platform, ref.toString()) : undefined
    const manifestDescriptor = inIndex ?? { ...descriptor, sizeBytes: top.length }
    const manifestBytes = inIndex === undefined ? top : await this.#manifestBytes(ctx, source, inIndex)
    const manifest = parseManifest(manifestBytes, ref.toString())
    const configBytes = await this.#configBytes(ctx, source, manifest)
    const { artifact } = manifest
    const config = artifact === undefined ? parseConfig(configBytes, manifest, ref.toString()) : undefined
    const keeps = (snapshot: string | undefined): Record<string, string> => (snapshot === undefined ? {} : { [`containerd.io/gc.ref.snapshot.${snapshotter}`]: snapshot })
    const documents: Document[] = [
      { descriptor: manifest.config, bytes: configBytes, labels: { ...distributionSource(ref), ...keeps(chainIds(config?.diffIds ?? []).at(-1)) } },
      {
        descriptor: manifestDescriptor, bytes: manifestBytes,
        labels: { ...distributionSource(ref), ...this.#manifestLabels(manifest), ...keeps(artifact !== undefined && artifact.problem === undefined ? artifactSnapshot(manifestDescriptor.digest) : undefined) },
      },
    ]
    if (inIndex !== undefined) documents.push({ descriptor: { ...descriptor, sizeBytes: top.length }, bytes: top, labels: { ...distributionSource(ref), 'containerd.io/gc.ref.content.m.0': inIndex.digest } })
    return { descriptor: manifestDescriptor, manifest, config, documents, id: artifact === undefined ? manifest.config.digest : manifestDescriptor.digest }
  }

  #manifestLabels(manifest: Manifest): Record<string, string> {
    const entries: [string, string][] = [['containerd.io/gc.ref.content.config', manifest.config.digest]]
    if (!this.#options.discardUnpackedLayers) for (const [index, layer] of manifest.layers.entries()) entries.push([`containerd.io/gc.ref.content.l.${index}`, layer.digest])
    return Object.fromEntries(entries)
  }

  /** From the content store when an earlier pull brought it: bytes by digest do not change. */
  async #manifestBytes(ctx: Ctx, source: PullSource, descriptor: Descriptor): Promise<Buffer> {
    const stored = await this.#stored(ctx, descriptor)
    if (stored !== undefined) return stored
    return served(source, await this.#options.registry.fetchManifest(source.ref, descriptor, source.auth, listening(ctx, source)))
  }

  async #configBytes(ctx: Ctx, source: PullSource, manifest: Manifest): Promise<Buffer> {
    const stored = await this.#stored(ctx, manifest.config)
    if (stored !== undefined) return stored
    // Not every registry has what everybody knows.
    if (manifest.config.digest === emptyConfig.digest) return emptyConfig.bytes
    return served(source, await this.#options.registry.fetchSmallBlob(source.ref, manifest.config, source.auth, listening(ctx, source)))
  }

  /** Nothing is asked before it is read: the image may be removed at any moment. */
  async #stored(ctx: Ctx, descriptor: Descriptor): Promise<Buffer | undefined> {
    const { content } = this.#options
    try {
      const bytes = await content.read(ctx, descriptor.digest, maxDocumentBytes)
      if (matchesDigest(bytes, descriptor.digest)) return bytes
      // A disk that lost it: containerd would go on giving it out.
      ctx.log.warn({ digest: descriptor.digest }, 'what containerd has under this digest is something else: thrown away')
      await content.delete(ctx, descriptor.digest)
      return undefined
    } catch (error) {
      if (isNotFound(error)) return undefined
      throw error
    }
  }
}

/** Names of the image records: by digest, as it was asked for, and its id, as containerd's CRI plugin keeps them. */
export function namesOf(ref: ImageRef, descriptor: Descriptor, target: Target): string[] {
  return [...new Set([`${ref.name}@${descriptor.digest}`, ref.toString(), target.id])]
}

/** Where the content came from, as containerd's own client notes it. */
export function distributionSource(ref: ImageRef): Record<string, string> {
  return { [`containerd.io/distribution.source.${ref.registry}`]: ref.repository }
}

function served(source: PullSource, fetched: { readonly host: string; readonly bytes: Buffer }): Buffer {
  source.served(fetched.host)
  source.tracker.document(fetched.host)
  return fetched.bytes
}

function listening(ctx: Ctx, { tracker }: PullSource): Ctx & PassOver {
  return { ...ctx, passedOver: (host, why) => tracker.passedOver(host, why) }
}
