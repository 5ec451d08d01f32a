import { type FileHandle, open as openFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pause } from '../concurrency/deadline.ts'
import { Code, CriError, isAlreadyExists, isNotFound } from '../errors/cri-error.ts'
import type { content_Info, content_Status } from '../generated/containerd.ts'
import type { Ctx } from '../observability/context.ts'
import { blobName } from './blob-name.ts'
import type { ContainerdClient } from './client.ts'
import { ContentWriter, type LocalStore, type WriteOptions } from './content-writer.ts'
import { takeLinked } from './ingest-file.ts'

export type ContentInfo = content_Info
export type IngestStatus = content_Status

const service = 'containerd.services.content.v1.Content'
/** Between two tries for an ingest that somebody else writes: there is no event for its end. */
const longestLockWaitMs = 500

const pieceBytes = 1024 * 1024
/** Blobs of less than this go through Content.Write: a second call for the commit costs more than it saves. */
const directFromBytes = 1024 * 1024

/** containerd's content store: blobs by digest. */
export class ContentService {
  readonly #client: ContainerdClient
  #store: LocalStore | undefined

  constructor(client: ContainerdClient) {
    this.#client = client
  }

  /**
   * Where containerd's local content store is, on a disk that we see too: large blobs are then written there, into the ingest that containerd has
   * opened (see IngestFile), and read from there. Undefined: everything goes through Content.Write and Content.Read. `link`: what was hashed as it was
   * written is put among the blobs, and containerd told of it; otherwise containerd reads it. Default: false.
   */
  writeBelow(root: string | undefined, { link = false }: { readonly link?: boolean } = {}): void {
    this.#store = root === undefined ? undefined : { root, links: link }
  }

  /** Where the content store is, when it can be seen from here. */
  get root(): string | undefined {
    return this.#store?.root
  }

  /** Undefined when the blob is not there. */
  async info(ctx: Ctx, digest: string): Promise<ContentInfo | undefined> {
    try {
      return (await this.#client.call(ctx, service, 'Info', { digest }, `content ${digest}`)).info ?? undefined
    } catch (error) {
      if (isNotFound(error)) return undefined
      throw error
    }
  }

  /** Replaces the labels that are given and leaves the others. */
  async setLabels(ctx: Ctx, digest: string, labels: Readonly<Record<string, string>>): Promise<void> {
    const paths = Object.keys(labels).map((key) => `labels.${key}`)
    if (paths.length === 0) return
    await this.#client.call(ctx, service, 'Update', { info: { digest, labels }, update_mask: { paths } }, `content ${digest}`)
  }

  /** A whole small blob (manifest, config). INVALID_ARGUMENT when it is larger than `maxBytes`; NOT_FOUND when it is not there. */
  async read(ctx: Ctx, digest: string, maxBytes: number): Promise<Buffer> {
    const chunks: Buffer[] = []
    let length = 0
    for await (const message of this.#client.serverStream(ctx, service, 'Read', { digest, offset: '0', size: '0' }, `content ${digest}`, { timeoutMs: 60_000 })) {
      length += message.data.length
      if (length > maxBytes) throw new CriError(Code.INVALID_ARGUMENT, `content ${digest} is larger than ${maxBytes} bytes, which no manifest or config should be`)
      chunks.push(message.data)
    }
    return Buffer.concat(chunks)
  }

  /**
   * The bytes of a blob of any size, in pieces, each good until the next is asked for. From the store's own file when that can be seen: containerd has
   * hashed it, and a file that is open stays. NOT_FOUND when it is not there.
   */
  async *stream(ctx: Ctx, digest: string): AsyncGenerator<Buffer, void, undefined> {
    const file = this.#store === undefined ? undefined : await openBlob(this.#store.root, digest)
    if (file !== undefined) {
      await using open = file
      const buffer = Buffer.allocUnsafeSlow(pieceBytes)
      for (;;) {
        ctx.signal.throwIfAborted()
        const { bytesRead } = await open.read(buffer, 0, buffer.length)
        if (bytesRead === 0) return
        yield buffer.subarray(0, bytesRead)
      }
    }
    for await (const message of this.#client.serverStream(ctx, service, 'Read', { digest, offset: '0', size: '0' }, `content ${digest}`)) yield message.data
  }

  /** Idempotent. */
  async delete(ctx: Ctx, digest: string): Promise<void> {
    try {
      await this.#client.call(ctx, service, 'Delete', { digest }, `content ${digest}`)
    } catch (error) {
      if (!isNotFound(error)) throw error
    }
  }

  /** The unfinished ingests whose ref matches `filters`. */
  async statuses(ctx: Ctx, filters: readonly string[] = []): Promise<IngestStatus[]> {
    return (await this.#client.call(ctx, service, 'ListStatuses', { filters }, 'ingests')).statuses
  }

  /** Throws an unfinished ingest away. Idempotent. The lease that it is under, if given, forgets it too. */
  async abort(ctx: Ctx, ref: string, lease?: string): Promise<void> {
    try {
      await this.#client.call(ctx, service, 'Abort', { ref }, `ingest ${ref}`, lease === undefined ? {} : { lease })
    } catch (error) {
      if (!isNotFound(error)) throw error
    }
  }

  /**
   * Opens an ingest, at the offset where an interrupted one stopped. Undefined when the blob is there already. An ingest has one writer: while
   * another has it (`ctr`, or one of our own that was cancelled and that containerd has not let go of yet) this waits.
   */
  async openWriter(ctx: Ctx, options: WriteOptions): Promise<ContentWriter | undefined> {
    const store = options.sizeBytes >= directFromBytes && options.direct !== false ? this.#store : undefined
    // What a crash left: the bytes are in the store, and are found there.
    if (store !== undefined && await takeLinked(store.root, this.#client.namespace, options.ref)) await this.abort(ctx, options.ref, options.lease)
    for (let waitMs = 10; ; waitMs = Math.min(2 * waitMs, longestLockWaitMs)) {
      const writer = new ContentWriter(this.#client, this, ctx, options)
      try {
        await writer.open()
        if (store !== undefined) await writer.writeBelow(store)
        return writer
      } catch (error) {
        await writer.close()
        if (isAlreadyExists(error)) return undefined
        if (!(error instanceof CriError) || error.reason !== 'Locked') throw error
      }
      if (waitMs === longestLockWaitMs) ctx.log.info({ digest: options.digest }, 'another client of containerd is writing this blob: waiting for it')
      await pause(waitMs, ctx.signal)
    }
  }
}

/** Undefined when there is no such file: another content store, another layout, or not there. */
async function openBlob(root: string, digest: string): Promise<FileHandle | undefined> {
  const name = blobName(digest)
  if (name === undefined) return undefined
  try {
    return await openFile(join(root, 'blobs', name.algorithm, name.hex), 'r')
  } catch {
    return undefined
  }
}
