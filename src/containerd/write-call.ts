import { Code, CriError } from '../errors/cri-error.ts'
import { content_WriteAction, type content_WriteContentRequest } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { ContainerdClient, TypedUpload } from './client.ts'

const service = 'containerd.services.content.v1.Content'
/** How long containerd may take to answer one message of a write. */
export const answerMs = 120_000

export interface WriteCallOptions {
  /** Of the ingest. */
  readonly ref: string
  readonly digest: string
  readonly lease: string
  /** Told how far containerd is. */
  readonly answered: (offsetBytes: number) => void
}

interface Waiter {
  readonly ready: () => boolean
  readonly resolve: () => void
  readonly reject: (error: unknown) => void
}

/** One Content.Write: it has the lock of its ingest as long as it lasts. Cancelled with `ctx`, until it is to be seen through. */
export class WriteCall {
  readonly #client: ContainerdClient
  readonly #ctx: Ctx
  readonly #options: WriteCallOptions
  readonly #call: TypedUpload<content_WriteContentRequest>
  readonly #onAbort: () => void
  readonly #ended = Promise.withResolvers<void>()
  #answeredBytes = 0
  #isAnswered = false
  #failure: Error | undefined
  #isFinishing = false
  #isClosed = false
  #waiters: readonly Waiter[] = []

  constructor(client: ContainerdClient, ctx: Ctx, options: WriteCallOptions) {
    this.#client = client
    this.#ctx = ctx
    this.#options = options
    this.#call = client.upload(service, 'Write', { lease: options.lease }, {
      answer: ({ offset }) => {
        this.#isAnswered = true
        this.#answeredBytes = Number(offset)
        options.answered(this.#answeredBytes)
        this.#settle()
      },
      end: (error) => this.#end(error),
    })
    this.#onAbort = () => this.#call.cancel()
    ctx.signal.addEventListener('abort', this.#onAbort, { once: true })
  }

  /** How far containerd said that it is. */
  get answeredBytes(): number {
    return this.#answeredBytes
  }

  /** Throws what the call failed with. */
  throwIfFailed(): void {
    if (this.#failure !== undefined) throw this.#failure
  }

  send(message: Init<content_WriteContentRequest> | Buffer): void {
    this.throwIfFailed()
    this.#call.send(message)
  }

  /** Sends what containerd answers at once, and waits for that. */
  async ask(message: Init<content_WriteContentRequest>, timeoutMs = answerMs): Promise<void> {
    this.#isAnswered = false
    this.send(message)
    await this.until(() => this.#isAnswered, timeoutMs)
  }

  /** Begins the ingest anew. */
  async rewind(): Promise<void> {
    await this.ask({ action: content_WriteAction.WRITE, ref: this.#options.ref, offset: '0', data: Buffer.alloc(0) })
    this.#answeredBytes = 0
  }

  /** Waits until an answer makes this true. */
  async until(ready: () => boolean, timeoutMs = answerMs): Promise<void> {
    if (ready()) return
    this.throwIfFailed()
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.#waiters = [...this.#waiters, { ready, resolve, reject }]
    const timer = setTimeout(() => {
      this.#fail(new CriError(Code.DEADLINE_EXCEEDED, `containerd takes no more of ${this.#options.digest} for ${timeoutMs / 1000} s: look for a disk that does not answer`, { reason: 'ContainerdTimeout' }))
    }, timeoutMs)
    try {
      await promise
    } finally {
      clearTimeout(timer)
    }
  }

  /** From here on the call is not cancelled. Throws when it was. */
  seeThrough(): void {
    this.throwIfFailed()
    this.#ctx.signal.throwIfAborted()
    this.#ctx.signal.removeEventListener('abort', this.#onAbort)
  }

  /** The ingest is let go: containerd lets go of the lock before it ends the call. At once when it has ended already. */
  async finish(): Promise<void> {
    this.#isFinishing = true
    this.#call.finish()
    const timer = setTimeout(() => this.#call.cancel(), answerMs)
    try {
      await this.#ended.promise
    } finally {
      clearTimeout(timer)
    }
  }

  /** Ends the call; idempotent. Unless it was cancelled, containerd is done with the ingest then: another one may open it, or throw it away. */
  async close(): Promise<void> {
    this.#isClosed = true
    // One that gives no answer would not say either that it has let go.
    if (this.#failure !== undefined) this.#call.cancel()
    await this.finish()
    this.#ctx.signal.removeEventListener('abort', this.#onAbort)
  }

  #end(error: Error | undefined): void {
    this.#ended.resolve()
    if (error === undefined && this.#isFinishing) return
    if (error === undefined) this.#fail(new CriError(Code.UNAVAILABLE, `containerd ended the write of ${this.#options.digest} early`))
    else this.#fail(this.#client.translate(this.#ctx.signal.aborted ? this.#ctx.signal.reason : error, service, 'Write', this.#options.digest))
  }

  #settle(): void {
    this.#waiters = this.#waiters.filter((waiter) => {
      if (!waiter.ready()) return true
      waiter.resolve()
      return false
    })
  }

  #fail(error: Error): void {
    if (this.#isClosed) return
    this.#failure ??= error
    for (const waiter of this.#waiters) waiter.reject(this.#failure)
    this.#waiters = []
  }
}
