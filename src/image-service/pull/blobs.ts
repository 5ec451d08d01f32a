import { KeyedMutex } from '../../concurrency/keyed-mutex.ts'
import type { ContentService } from '../../containerd/content.ts'
import { Code, CriError } from '../../errors/cri-error.ts'
import type { Ctx } from '../../observability/context.ts'
import type { PullAuth } from '../../registry-mirrors/credentials.ts'
import type { ImageRef } from '../../registry-mirrors/image-ref.ts'
import type { Descriptor, RegistryClient } from '../../registry-mirrors/registry-client.ts'
import type { PullTracker } from './progress.ts'

/** One pull as its parts see it. */
export interface PullSource {
  readonly ref: ImageRef
  readonly auth: PullAuth
  readonly lease: string
  readonly tracker: PullTracker
  /** Bytes have arrived: the pull is alive. */
  readonly progress: (bytes: number) => void
  /** A host has served something, for the line in the log. */
  readonly served: (host: string) => void
}

/** A download that turned out wrong is tried again from other hosts; three wrong ones in a row are no accident. */
const maxAttempts = 3

/** Brings blobs into containerd's content store: each once, however many pulls want it, and from where an interrupted one stopped. */
export class BlobFetcher {
  readonly #content: ContentService
  readonly #registry: RegistryClient
  readonly #mutex = new KeyedMutex()

  constructor(content: ContentService, registry: RegistryClient) {
    this.#content = content
    this.#registry = registry
  }

  /** Stores small bytes that are at hand (a manifest, verified by the caller) with their labels. */
  async store(ctx: Ctx, source: PullSource, descriptor: Descriptor, bytes: Buffer, labels: Readonly<Record<string, string>>): Promise<void> {
    await this.#mutex.run(descriptor.digest, async () => {
      const writer = await this.#content.openWriter(ctx, { ref: ingestRef(descriptor), digest: descriptor.digest, sizeBytes: bytes.length, lease: source.lease })
      if (writer !== undefined) {
        try {
          if (writer.offsetBytes > 0) await writer.truncate()
          await writer.write(bytes)
          await writer.commit(labels)
          return
        } finally {
          await writer.close()
        }
      }
      await this.#content.setLabels(ctx, descriptor.digest, labels)
    }, ctx.signal)
  }

  /** A large blob, streamed; when it is there already only its labels are completed. */
  async fetch(ctx: Ctx, source: PullSource, descriptor: Descriptor, labels: Readonly<Record<string, string>>): Promise<void> {
    await this.#mutex.run(descriptor.digest, async () => {
      const avoid: string[] = []
      for (let attempt = 1; ; attempt++) {
        try {
          await this.#download(ctx, source, descriptor, labels, avoid)
          return
        } catch (error) {
          if (!(error instanceof WrongBytes)) throw error
          ctx.log.warn({ digest: descriptor.digest, hosts: error.hosts, attempt }, 'a layer arrived with wrong bytes: thrown away')
          avoid.push(...error.hosts)
          await this.#content.abort(ctx, ingestRef(descriptor))
          if (attempt >= maxAttempts) throw new CriError(Code.DATA_LOSS, `${descriptor.digest} of ${source.ref.name} arrived with wrong bytes ${attempt} times (from ${error.hosts.join(', ')})`, { reason: 'CONTENT', cause: error })
        }
      }
    }, ctx.signal)
  }

  async #download(ctx: Ctx, source: PullSource, descriptor: Descriptor, labels: Readonly<Record<string, string>>, avoid: readonly string[]): Promise<void> {
    const writer = await this.#content.openWriter(ctx, { ref: ingestRef(descriptor), digest: descriptor.digest, sizeBytes: descriptor.sizeBytes, lease: source.lease })
    if (writer === undefined) {
      await this.#content.setLabels(ctx, descriptor.digest, labels)
      source.tracker.layer(descriptor.digest, 'downloaded')
      return
    }
    source.tracker.layer(descriptor.digest, 'downloading')
    try {
      if (writer.offsetBytes > descriptor.sizeBytes) await writer.truncate()
      let hosts: readonly string[] = ['an earlier download']
      if (writer.offsetBytes < descriptor.sizeBytes) {
        if (writer.offsetBytes > 0) ctx.log.info({ digest: descriptor.digest, offsetBytes: writer.offsetBytes, sizeBytes: descriptor.sizeBytes }, 'going on with an interrupted download')
        let storedBytes = writer.offsetBytes
        source.tracker.stored(descriptor.digest, storedBytes)
        const blob = await this.#registry.openBlob(source.ref, descriptor, {
          offsetBytes: writer.offsetBytes, auth: source.auth, signal: ctx.signal, log: ctx.log, avoid,
          onReceived: (bytes, host) => source.tracker.received(descriptor.digest, bytes, host),
        })
        source.served(blob.host)
        for await (const chunk of blob.stream) {
          await writer.write(chunk)
          source.progress(chunk.length)
          storedBytes += chunk.length
          source.tracker.stored(descriptor.digest, storedBytes)
        }
        hosts = blob.hosts
      }
      try {
        await writer.commit(labels)
        source.tracker.layer(descriptor.digest, 'downloaded')
      } catch (error) {
        if (error instanceof CriError && error.code === Code.FAILED_PRECONDITION) throw new WrongBytes(hosts, error)
        throw error
      }
    } finally {
      await writer.close()
    }
  }
}

class WrongBytes extends Error {
  readonly hosts: readonly string[]

  constructor(hosts: readonly string[], cause: unknown) {
    super('wrong bytes', { cause })
    this.hosts = hosts
  }
}

/** The names that containerd's own client gives its ingests, so that either goes on with what the other began. */
function ingestRef(descriptor: Descriptor): string {
  const type = descriptor.mediaType
  const kind = /image\.index|manifest\.list/.test(type) ? 'index' : /manifest/.test(type) ? 'manifest' : /config|container\.image/.test(type) ? 'config' : 'layer'
  return `${kind}-${descriptor.digest}`
}
