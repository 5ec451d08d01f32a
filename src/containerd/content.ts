import { type FileHandle, open as openFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pause } from '../concurrency/deadline.ts'
import { Code, CriError, isAlreadyExists, isNotFound } from '../errors/cri-error.ts'
import { content_WriteAction, type content_Info, type content_Status, type content_WriteContentRequest, type content_WriteContentResponse } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import { pathExists } from '../linux/path-exists.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import type { ContainerdClient, TypedUpload } from './client.ts'
import { IngestFile, takeLinked } from './ingest-file.ts'
import { messageBytes, WriteMessages } from './write-messages.ts'

export type ContentInfo = content_Info
export type IngestStatus = content_Status

const service = 'containerd.services.content.v1.Content'
/** Between two tries for an ingest that somebody else writes: there is no event for its end. */
const longestLockWaitMs = 500

export interface WriteOptions {
  /** Names the ingest: one writer at a time, and an interrupted one goes on where it was. */
  readonly ref: string
  readonly digest: string
  readonly sizeBytes: number
  readonly lease: string
  /** False: through Content.Write in any case. Default: true. */
  readonly direct?: boolean
}

const pieceBytes = 1024 * 1024
/** Blobs of less than this go through Content.Write: a second call for the commit costs more than it saves. */
const directFromBytes = 1024 * 1024

/** containerd's local content store as it can be seen from here. */
interface LocalStore {
  readonly root: string
  /** Whether containerd takes a blob that is in the store already: not when its namespaces share nothing (`content_sharing_policy`). */
  links: boolean
}

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
      const writer = new ContentWriter(this.#client, ctx, options)
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

/** Begins the refs of ingests that are notes of blobs which are in the store: nobody else's are called so. */
export const linkedPrefix = 'linked-'

/** How long containerd may take to answer one message of a write; to commit (it waits for the disk) longer. */
const answerMs = 120_000
/** At its opening an ingest's bytes are read and hashed; what the slowest node does of that in a millisecond. */
const hashedBytesPerMs = 10_000
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
  readonly #ctx: Ctx
  readonly #options: WriteOptions
  readonly #call: TypedUpload<content_WriteContentRequest>
  readonly #onAbort: () => void
  readonly #messages: WriteMessages
  #sent = 0
  #answered = 0
  #failure: Error | undefined
  #closed = false
  #waiters: { readonly ready: () => boolean; readonly resolve: () => void; readonly reject: (error: unknown) => void }[] = []
  #lastAnswer: content_WriteContentResponse | undefined
  #file: IngestFile | undefined
  #store: LocalStore | undefined
  /** The blob is there under its digest: the ingest is needed no more. */
  #isLinked = false
  readonly #ended = Promise.withResolvers<void>()
  #finishing = false

  constructor(client: ContainerdClient, ctx: Ctx, options: WriteOptions) {
    this.#client = client
    this.#ctx = ctx
    this.#options = options
    this.#messages = new WriteMessages(options.ref, options.sizeBytes)
    this.#call = client.upload(service, 'Write', { lease: options.lease }, {
      answer: (answer) => {
        this.#lastAnswer = answer
        this.#answered = Number(answer.offset)
        this.#messages.answered(this.#answered)
        this.#settle()
      },
      end: (error) => {
        this.#ended.resolve()
        if (this.#finishing && error === undefined) return
        if (error === undefined) this.#fail(new CriError(Code.UNAVAILABLE, `containerd ended the write of ${options.digest} early`))
        else this.#fail(client.translate(this.#ctx.signal.aborted ? this.#ctx.signal.reason : error, service, 'Write', options.digest))
      },
    })
    this.#onAbort = () => this.#call.cancel()
    ctx.signal.addEventListener('abort', this.#onAbort, { once: true })
  }

  /** Bytes in the ingest so far, those gathered but not sent included. */
  get offsetBytes(): number {
    return this.#file?.offsetBytes ?? this.#sent + this.#messages.filledBytes
  }

  async open(): Promise<void> {
    this.#ctx.signal.throwIfAborted()
    this.#call.send({ action: content_WriteAction.STAT, ref: this.#options.ref, total: String(this.#options.sizeBytes), expected: this.#options.digest })
    await this.#until(() => this.#lastAnswer !== undefined, answerMs + this.#options.sizeBytes / hashedBytesPerMs)
    this.#sent = this.#answered
  }

  /** From here on bytes go into the file of the ingest; this call keeps its lock. Nothing changes when the file cannot be found. */
  async writeBelow(store: LocalStore): Promise<void> {
    this.#store = store
    this.#file = await IngestFile.open(store.root, this.#client.namespace, this.#options.ref, this.#sent, store.links ? blobName(this.#options.digest)?.algorithm : undefined)
  }

  /** Takes the next bytes, whose memory may be used again when this resolves. */
  async write(chunk: Uint8Array): Promise<void> {
    if (this.#file !== undefined) {
      if (this.#failure !== undefined) throw this.#failure
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
    if (this.#failure !== undefined) throw this.#failure
    if (this.#file === undefined) throw new TypeError('this ingest is written in order')
    await this.#file.writeAt(chunk, positionBytes)
  }

  /** Everything up to here is written. */
  filledTo(positionBytes: number): void {
    this.#file?.filledTo(positionBytes)
  }

  async #flush(): Promise<void> {
    if (this.#messages.filledBytes === 0) return
    const { message, endBytes } = this.#messages.finish(this.#sent)
    this.#send(message)
    this.#sent = endBytes
    await this.#until(() => this.#sent - this.#answered <= maxUnansweredBytes)
  }

  /** Drops what was written and begins anew: for an ingest whose earlier bytes turned out to be wrong. */
  async truncate(): Promise<void> {
    if (this.#file !== undefined) {
      await this.#file.truncate()
      return
    }
    this.#messages.clear()
    await this.#until(() => this.#answered === this.#sent)
    this.#lastAnswer = undefined
    this.#send({ action: content_WriteAction.WRITE, ref: this.#options.ref, offset: '0', data: Buffer.alloc(0) })
    await this.#until(() => this.#lastAnswer !== undefined)
    this.#sent = 0
    this.#answered = 0
  }

  /**
   * Finishes the blob: containerd compares size and digest. FAILED_PRECONDITION when they differ. When somebody else committed it meanwhile its
   * labels are completed: they are what keeps that to which it refers.
   */
  async commit(labels: Readonly<Record<string, string>>): Promise<void> {
    if (this.#file !== undefined) {
      await this.#commitFile(this.#file, labels)
      return
    }
    const data = this.#messages.rest(dataInCommitBytes)
    if (data === undefined) await this.#flush()
    await this.#until(() => this.#answered === this.#sent)
    // From here on it is seen through: containerd would go on with a cancelled commit, and the blob would come after its lease has gone.
    this.#ctx.signal.throwIfAborted()
    this.#ctx.signal.removeEventListener('abort', this.#onAbort)
    this.#lastAnswer = undefined
    this.#send({
      action: content_WriteAction.COMMIT, ref: this.#options.ref, total: String(this.#options.sizeBytes), expected: this.#options.digest, offset: String(this.#sent), data: data ?? Buffer.alloc(0), labels,
    })
    try {
      await this.#until(() => this.#lastAnswer !== undefined, commitMs)
    } catch (error) {
      if (!isAlreadyExists(error)) throw error
      await new ContentService(this.#client).setLabels(this.#ctx, this.#options.digest, labels)
    }
  }

  async #commitFile(file: IngestFile, labels: Readonly<Record<string, string>>): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure
    const store = this.#store
    if (store?.links === true && await this.#link(file, store, labels)) return
    await this.#commitReread(file, labels)
  }

  /** What was written becomes a blob as it is. False when it does not: nothing has changed then. */
  async #link(file: IngestFile, store: LocalStore, labels: Readonly<Record<string, string>>): Promise<boolean> {
    const { digest, sizeBytes } = this.#options
    const name = blobName(digest)
    if (name === undefined || !await file.isWhole(sizeBytes, name.hex)) return false
    const path = join(store.root, 'blobs', name.algorithm, name.hex)
    if (this.#failure !== undefined) throw this.#failure
    // From here on it is seen through: nobody would know of the blob, and containerd could not throw away what it has not let go of.
    this.#ctx.signal.throwIfAborted()
    this.#ctx.signal.removeEventListener('abort', this.#onAbort)
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
    const { digest, sizeBytes } = this.#options
    const content = new ContentService(this.#client)
    const ref = `${linkedPrefix}${digest}`
    const second = await content.openWriter(ctx, { ...this.#options, ref, direct: false })
    if (second === undefined) {
      await content.setLabels(ctx, digest, labels)
      return true
    }
    try {
      if (second.offsetBytes === sizeBytes) {
        await second.commit(labels)
        return true
      }
      await second.#finish()
      await content.abort(ctx, ref, this.#options.lease)
      return false
    } finally {
      await second.close()
    }
  }

  /** The ingest is let go: containerd lets go of the lock before it ends the call. At once when it has ended already. */
  async #finish(): Promise<void> {
    this.#finishing = true
    this.#call.finish()
    const timer = setTimeout(() => this.#call.cancel(), answerMs)
    try {
      await this.#ended.promise
    } finally {
      clearTimeout(timer)
    }
  }

  /** The ingest is let go and opened once more, which makes containerd read it. */
  async #commitReread(file: IngestFile, labels: Readonly<Record<string, string>>): Promise<void> {
    const { digest, sizeBytes } = this.#options
    this.#file = undefined
    await file.close()
    await this.#finish()
    const content = new ContentService(this.#client)
    const second = await content.openWriter(this.#ctx, { ...this.#options, direct: false })
    if (second === undefined) {
      await content.abort(this.#ctx, this.#options.ref, this.#options.lease)
      await content.setLabels(this.#ctx, digest, labels)
      return
    }
    try {
      if (second.offsetBytes !== sizeBytes) throw new CriError(Code.FAILED_PRECONDITION, `containerd finds ${second.offsetBytes} bytes of ${digest} where ${sizeBytes} were written`, { reason: 'CONTENT' })
      await second.commit(labels)
    } finally {
      await second.close()
    }
  }

  /** Ends the stream; idempotent. Unless the request was cancelled, containerd is done with the ingest then: another one may open it, or throw it away. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    const file = this.#file
    this.#file = undefined
    try {
      // The lock of the ingest goes with the call: nothing may be written after that.
      await file?.close()
    } finally {
      // One that gives no answer would not say either that it has let go.
      if (this.#failure !== undefined) this.#call.cancel()
      await this.#finish()
      this.#ctx.signal.removeEventListener('abort', this.#onAbort)
    }
    if (this.#isLinked) await this.#dropIngest()
  }

  async #dropIngest(): Promise<void> {
    const { ref, digest, lease } = this.#options
    const ctx = withSignal(this.#ctx, AbortSignal.timeout(answerMs))
    try {
      await new ContentService(this.#client).abort(ctx, ref, lease)
    } catch (error) {
      ctx.log.warn({ err: error, digest }, 'cannot remove what a blob was written into: it goes with the lease of its pull')
    }
  }

  #send(message: Init<content_WriteContentRequest> | Buffer): void {
    if (this.#failure !== undefined) throw this.#failure
    this.#call.send(message)
  }

  async #until(ready: () => boolean, timeoutMs = answerMs): Promise<void> {
    if (ready()) return
    if (this.#failure !== undefined) throw this.#failure
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.#waiters.push({ ready, resolve, reject })
    const timer = setTimeout(() => {
      this.#fail(new CriError(Code.DEADLINE_EXCEEDED, `containerd takes no more of ${this.#options.digest} for ${timeoutMs / 1000} s: look for a disk that does not answer`, { reason: 'ContainerdTimeout' }))
    }, timeoutMs)
    try {
      await promise
    } finally {
      clearTimeout(timer)
    }
  }

  #settle(): void {
    this.#waiters = this.#waiters.filter((waiter) => {
      if (!waiter.ready()) return true
      waiter.resolve()
      return false
    })
  }

  #fail(error: Error): void {
    if (this.#closed) return
    this.#failure ??= error
    for (const waiter of this.#waiters.splice(0)) waiter.reject(this.#failure)
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

/** What a blob's file is called. Undefined for a digest that no store has. */
function blobName(digest: string): { readonly algorithm: string; readonly hex: string } | undefined {
  const [, algorithm, hex] = /^(sha256|sha384|sha512):([0-9a-f]+)$/.exec(digest) ?? []
  return algorithm === undefined || hex === undefined ? undefined : { algorithm, hex }
}
