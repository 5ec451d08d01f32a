import { resourceExhausted } from '../errors/cri-error.ts'

/** What one subscriber may have waiting. */
export interface QueueLimits {
  readonly events: number
  readonly bytes: number
}

/** What waits for one subscriber to container events. One reader. */
export class EventSubscription {
  /** Called once, when the reader has closed it. */
  onClose: (() => void) | undefined
  readonly #limits: QueueLimits
  #queue: Buffer[] = []
  #bytes = 0
  #failure: { readonly error: unknown } | undefined
  #waiting: { resolve(): void; reject(error: unknown): void } | undefined

  constructor(limits: QueueLimits) {
    this.#limits = limits
  }

  /** How many events wait. */
  get waiting(): number {
    return this.#queue.length
  }

  /** False when the reader is now too far behind: then everything that waits is gone, and it is told RESOURCE_EXHAUSTED. */
  push(event: Buffer): boolean {
    if (this.#failure !== undefined) return true
    this.#queue.push(event)
    this.#bytes += event.length
    if (this.#queue.length > this.#limits.events || this.#bytes > this.#limits.bytes) {
      const { length } = this.#queue
      this.#queue = []
      this.#fail(resourceExhausted(`this client reads container events too slowly: ${length} events (${this.#bytes} bytes) wait for it, and the limit is ${this.#limits.events} events or ${this.#limits.bytes} bytes; list the pods and containers and subscribe again`, { reason: 'SlowSubscriber' }))
      return false
    }
    this.#waiting?.resolve()
    return true
  }

  /** For the time in which there is no reader: what is too much goes, oldest first. Returns how many. */
  keep(event: Buffer): number {
    this.#queue.push(event)
    this.#bytes += event.length
    let dropped = 0
    for (; this.#queue.length > this.#limits.events || this.#bytes > this.#limits.bytes; dropped++) this.#bytes -= this.#queue.shift()?.length ?? 0
    return dropped
  }

  /**
   * Hands each event to `send`, waiting until it has been taken. Never resolves: rejects with RESOURCE_EXHAUSTED, also while a `send` is under way, with its
   * rejection, or with the signal's reason.
   */
  async forward(send: (event: Buffer) => Promise<void>, signal: AbortSignal): Promise<never> {
    const aborted = (): void => this.#fail(signal.reason)
    signal.addEventListener('abort', aborted, { once: true })
    if (signal.aborted) aborted()
    try {
      for (;;) {
        if (this.#failure !== undefined) throw this.#failure.error
        const event = this.#queue.shift()
        if (event === undefined) {
          await this.#wait()
          continue
        }
        this.#bytes -= event.length
        await this.#wait(send(event))
      }
    } finally {
      signal.removeEventListener('abort', aborted)
    }
  }

  close(): void {
    this.#queue = []
    this.onClose?.()
    this.onClose = undefined
  }

  #fail(error: unknown): void {
    this.#failure ??= { error }
    this.#waiting?.reject(this.#failure.error)
  }

  /** Until `work` is done, without it until an event comes; a failure ends it early. (A race with a promise that lives as long as the stream would leak.) */
  async #wait(work?: Promise<void>): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.#waiting = { resolve: work === undefined ? resolve : () => undefined, reject }
    work?.then(resolve, reject)
    try {
      await promise
    } finally {
      this.#waiting = undefined
    }
  }
}
