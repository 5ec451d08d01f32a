import { AsyncLocalStorage } from 'node:async_hooks'
import PQueue from 'p-queue'
import { resourceExhausted } from '../errors/cri-error.ts'

export interface BoundedQueueOptions {
  /** What waits here, for the error and the metrics. */
  readonly name: string
  /** How many run at once. */
  readonly concurrency: number
  /** How many may wait beside those that run; one more is refused with RESOURCE_EXHAUSTED. */
  readonly maxWaiting: number
}

/** A p-queue that refuses instead of growing without end. */
export class BoundedQueue {
  readonly name: string
  readonly #queue: PQueue
  readonly #maxWaiting: number

  constructor(options: BoundedQueueOptions) {
    this.name = options.name
    this.#queue = new PQueue({ concurrency: options.concurrency })
    this.#maxWaiting = options.maxWaiting
  }

  /**
   * Runs `work` when it is its turn. An abort while it waits rejects with the signal's reason and takes it out of the queue. Once it runs,
   * stopping is its own business: its turn lasts until it has ended.
   */
  async add<T>(work: () => Promise<T>, options: { readonly signal?: AbortSignal | undefined; readonly priority?: number } = {}): Promise<T> {
    if (this.#queue.pending >= this.#queue.concurrency && this.#queue.size >= this.#maxWaiting) {
      throw resourceExhausted(`${this.name}: ${this.#queue.pending} run and ${this.#queue.size} wait already, which is the limit; try again later`)
    }
    options.signal?.throwIfAborted()
    // Told to the queue, an abort would end the turn at once and let the next one run beside work that is still there.
    const waiting = new AbortController()
    const giveUp = (): void => waiting.abort(options.signal?.reason)
    options.signal?.addEventListener('abort', giveUp, { once: true })
    // Whoever ends its turn starts the next one: what that does belongs to who asked for it.
    const turn = this.#queue.add(AsyncLocalStorage.bind(async () => {
      options.signal?.removeEventListener('abort', giveUp)
      return work()
    }), { signal: waiting.signal, ...(options.priority === undefined ? {} : { priority: options.priority }) })
    try {
      return await turn
    } finally {
      options.signal?.removeEventListener('abort', giveUp)
    }
  }

  get running(): number {
    return this.#queue.pending
  }

  get waiting(): number {
    return this.#queue.size
  }

  /** Resolves when nothing runs or waits any more. */
  async idle(): Promise<void> {
    await this.#queue.onIdle()
  }
}
