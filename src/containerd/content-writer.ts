import { join } from 'node:path'
import { Code, CriError, isAlreadyExists } from '../errors/cri-error.ts'
import { content_WriteAction } from '../generated/containerd.ts'
import { pathExists } from '../linux/path-exists.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import { blobName } from './blob-name.ts'
import type { ContainerdClient } from './client.ts'
import { IngestFile } from './ingest-file.ts'
import { answerMs, WriteCall } from './write-call.ts'
import { messageBytes, WriteMessages } from './write-messages.ts'

export interface WriteOptions {
  /** Names the ingest: one writer at a time, and an interrupted one goes on where it was. */
  readonly ref: string
  readonly digest: string
  readonly sizeBytes: number
  readonly lease: string
  /** False: through Content.Write in any case. Default: true. */
  readonly direct?: boolean
}

/** containerd's local content store as it can be seen from here. */
export interface LocalStore {
  readonly root: string
  /** Whether containerd takes a blob that is in the store already: not when its namespaces share nothing (`content_sharing_policy`). */
  links: boolean
}

/** What a writer asks of the content store beside its own ingest. */
export interface WriterStore {
  openWriter(ctx: Ctx, options: WriteOptions): Promise<ContentWriter | undefined>
  setLabels(ctx: Ctx, digest: string, labels: Readonly<Record<string, string>>): Promise<void>
  abort(ctx: Ctx, ref: string, lease?: string): Promise<void>
}

/** Begins the refs of ingests that are notes of blobs which are in the store: nobody else's are called so. */
export const linkedPrefix = 'linked-'

/** At its opening an ingest's bytes are read and hashed; what the slowest node does of that in a millisecond. */
const hashedBytesPerMs = 10_000
/** containerd waits for the disk. */
const commitMs = 15 * 60_000

/** So much of a blob's end goes with its commit instead of a message of its own. */
const dataInCommitBytes = 256 * 1024

/** How often a blob is put into the store: garbage collection may take it before containerd has noted it. */
const maxLinks = 3

/** How many bytes may be on their way to containerd unanswered: enough to keep it busy, little enough to bound our memory. */
const maxUnansweredBytes = 4 * messageBytes

/** One ingest. Write in order, then commit; `close` in any case. What was written stays for a later writer of the same ref. */
export class ContentWriter {
  readonly #client: ContainerdClient
  readonly #content: WriterStore
  readonly #ctx: Ctx
  readonly #options: WriteOptions
  readonly #call: WriteCall
  readonly #messages: WriteMessages
  #sentBytes = 0
  #file: IngestFile | undefined
  #store: LocalStore | undefined
  /** The blob is there under its digest: the ingest is needed no more. */
  #isLinked = false
  #isClosed = false

  constructor(client: ContainerdClient, content: WriterStore, ctx: Ctx, options: WriteOptions) {
    this.#client = client
    this.#content = content
    this.#ctx = ctx
    this.#options = options
    this.#messages = new WriteMessages(options.ref, options.sizeBytes)
    this.#call = new WriteCall(client, ctx, { ...options, answered: (offsetBytes) => this.#messages.answered(offsetBytes) })
  }

  /** Bytes in the ingest so far, those gathered but not sent included. */
  get offsetBytes(): number {
    return this.#file?.offsetBytes ?? this.#sentBytes + this.#messages.filledBytes
  }

  async open(): Promise<void> {
    const { ref, digest, sizeBytes } = this.#options
    this.#ctx.signal.throwIfAborted()
    await this.#call.ask({ action: content_WriteAction.STAT, ref, total: String(sizeBytes), expected: digest }, answerMs + sizeBytes / hashedBytesPerMs)
    this.#sentBytes = this.#call.answeredBytes
  }

  /** From here on bytes go into the file of the ingest; this call keeps its lock. Nothing changes when the file cannot be found. */
  async writeBelow(store: LocalStore): Promise<void> {
    this.#store = store
    this.#file = await IngestFile.open(store.root, this.#client.namespace, this.#options.ref, this.#sentBytes, store.links ? blobName(this.#options.digest)?.algorithm : undefined)
  }

  /** Takes the next bytes, whose memory may be used again when this resolves. */
  async write(chunk: Uint8Array): Promise<void> {
    if (this.#file !== undefined) {
      this.#call.throwIfFailed()
      await this.#file.write(chunk)
      return
    }
    for (let at = 0; at < chunk.length;) {
      at += this.#messages.take(at === 0 ? chunk : chunk.subarray(at))
      if (this.#messages.isFull) await this.#flush()
    }
  }

  /** Whether bytes may be written out of order: they go into the ingest's own file. */
  get isDirect(): boolean {
    return this.#file !== undefined
  }

  /** Writes bytes further on, beside `write`; only when `isDirect`. Until `filledTo` they do not count, and are dropped at the end. */
  async writeAt(chunk: Uint8Array, positionBytes: number): Promise<void> {
    this.#call.throwIfFailed()
    if (this.#file === undefined) throw new TypeError('this ingest is written in order')
    await this.#file.writeAt(chunk, positionBytes)
  }

  /** Everything up to here is written. */
  filledTo(positionBytes: number): void {
    this.#file?.filledTo(positionBytes)
  }

  async #flush(): Promise<void> {
    if (this.#messages.filledBytes === 0) return
    const { message, endBytes } = this.#messages.finish(this.#sentBytes)
    this.#call.send(message)
    this.#sentBytes = endBytes
    await this.#call.until(() => this.#sentBytes - this.#call.answeredBytes <= maxUnansweredBytes)
  }

  /** Drops what was written and begins anew: for an ingest whose earlier bytes turned out to be wrong. */
  async truncate(): Promise<void> {
    if (this.#file !== undefined) {
      await this.#file.truncate()
      return
    }
    this.#messages.clear()
    await this.#call.until(() => this.#call.answeredBytes === this.#sentBytes)
    await this.#call.rewind()
    this.#sentBytes = 0
  }

  /**
   * Finishes the blob: containerd compares size and digest. FAILED_PRECONDITION when they differ. When somebody else committed it meanwhile its
   * labels are completed: they are what keeps that to which it refers.
   */
  async commit(labels: Readonly<Record<string, string>>): Promise<void> {
    if (this.#file === undefined) {
      await this.#commitSent(labels)
      return
    }
    this.#call.throwIfFailed()
    const store = this.#store
    if (store?.links === true && await this.#link(this.#file, store, labels)) return
    await this.#commitReread(this.#file, labels)
  }

  async #commitSent(labels: Readonly<Record<string, string>>): Promise<void> {
    const { ref, digest, sizeBytes } = this.#options
    const data = this.#messages.rest(dataInCommitBytes)
    if (data === undefined) await this.#flush()
    await this.#call.until(() => this.#call.answeredBytes === this.#sentBytes)
    // Cancelled, containerd would go on with a commit all the same, and the blob would come after its lease has gone.
    this.#call.seeThrough()
    try {
      await this.#call.ask({ action: content_WriteAction.COMMIT, ref, total: String(sizeBytes), expected: digest, offset: String(this.#sentBytes), data: data ?? Buffer.alloc(0), labels }, commitMs)
    } catch (error) {
      if (!isAlreadyExists(error)) throw error
      await this.#content.setLabels(this.#ctx, digest, labels)
    }
  }

  /** What was written becomes a blob as it is. False when it does not: nothing has changed then. */
  async #link(file: IngestFile, store: LocalStore, labels: Readonly<Record<string, string>>): Promise<boolean> {
    const { digest, sizeBytes } = this.#options
    const name = blobName(digest)
    if (name === undefined || !await file.isWhole(sizeBytes, name.hex)) return false
    const path = join(store.root, 'blobs', name.algorithm, name.hex)
    // Cancelled, nobody would know of the blob, and containerd could not throw away what it has not let go of.
    this.#call.seeThrough()
    const ctx = withSignal(this.#ctx, AbortSignal.timeout(commitMs))
    for (let attempt = 1; attempt <= maxLinks && await file.linkAs(path); attempt++) {
      this.#isLinked = await this.#note(ctx, labels)
      if (this.#isLinked) return true
      // It is gone when containerd collected garbage just then.
      if (await pathExists(path)) {
        store.links = false
        ctx.log.info({ digest }, 'containerd does not take a blob that is in its store already (content_sharing_policy): from now on it reads what was written')
        return false
      }
    }
    return false
  }

  /** Tells containerd of a blob that is in its store. False when it does not find it there. */
  async #note(ctx: Ctx, labels: Readonly<Record<string, string>>): Promise<boolean> {
    const { digest, sizeBytes, lease } = this.#options
    const ref = `${linkedPrefix}${digest}`
    const second = await this.#content.openWriter(ctx, { ...this.#options, ref, direct: false })
    if (second === undefined) {
      await this.#content.setLabels(ctx, digest, labels)
      return true
    }
    try {
      if (second.offsetBytes === sizeBytes) {
        await second.commit(labels)
        return true
      }
      await second.#call.finish()
      await this.#content.abort(ctx, ref, lease)
      return false
    } finally {
      await second.close()
    }
  }

  /** The ingest is let go and opened once more, which makes containerd read it. */
  async #commitReread(file: IngestFile, labels: Readonly<Record<string, string>>): Promise<void> {
    const { ref, digest, sizeBytes, lease } = this.#options
    this.#file = undefined
    await file.close()
    await this.#call.finish()
    const second = await this.#content.openWriter(this.#ctx, { ...this.#options, direct: false })
    if (second === undefined) {
      await this.#content.abort(this.#ctx, ref, lease)
      await this.#content.setLabels(this.#ctx, digest, labels)
      return
    }
    try {
      if (second.offsetBytes !== sizeBytes) throw new CriError(Code.FAILED_PRECONDITION, `containerd finds ${second.offsetBytes} bytes of ${digest} where ${sizeBytes} were written`, { reason: 'CONTENT' })
      await second.commit(labels)
    } finally {
      await second.close()
    }
  }

  /** Lets the ingest go; idempotent. Unless the request was cancelled, another one may open it then, or throw it away. */
  async close(): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    const file = this.#file
    this.#file = undefined
    try {
      // The lock of the ingest goes with the call: nothing may be written after that.
      await file?.close()
    } finally {
      await this.#call.close()
    }
    if (this.#isLinked) await this.#dropIngest()
  }

  async #dropIngest(): Promise<void> {
    const { ref, digest, lease } = this.#options
    const ctx = withSignal(this.#ctx, AbortSignal.timeout(answerMs))
    try {
      await this.#content.abort(ctx, ref, lease)
    } catch (error) {
      ctx.log.warn({ err: error, digest }, 'cannot remove what a blob was written into: it goes with the lease of its pull')
    }
  }
}
