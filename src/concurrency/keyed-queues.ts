import { BoundedQueue } from './bounded-queue.ts'

/** A bounded queue for each key that is in use. A key costs nothing while nothing of it runs or waits. */
export class KeyedQueues {
  readonly #name: string
  readonly #limits: { readonly concurrency: number; readonly maxWaiting: number }
  readonly #queues = new Map<string, BoundedQueue>()

  constructor(name: string, limits: { readonly concurrency: number; readonly maxWaiting: number }) {
    this.#name = name
    this.#limits = limits
  }

  /** Runs `work` when it is its turn among those of `key`; errors as of BoundedQueue.add. */
  async run<T>(key: string, work: () => Promise<T>, signal: AbortSignal): Promise<T> {
    const queue = this.#queues.get(key) ?? new BoundedQueue({ name: this.#name, ...this.#limits })
    this.#queues.set(key, queue)
    try {
      return await queue.add(work, { signal })
    } finally {
      if (queue.running === 0 && queue.waiting === 0 && this.#queues.get(key) === queue) this.#queues.delete(key)
    }
  }

  /** How many keys are in use. */
  get size(): number {
    return this.#queues.size
  }
}
