/** Orders work on the same key, first come first served; work on different keys runs side by side. A key costs nothing while nobody holds it. */
export class KeyedMutex {
  readonly #tails = new Map<string, Promise<void>>()

  /**
   * Runs `work` once everybody who asked for `key` earlier is done. When `signal` aborts during the wait, the call rejects with its
   * reason and `work` never runs; once `work` runs, stopping is its own business.
   */
  async run<T>(key: string, work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    signal?.throwIfAborted()
    const before = this.#tails.get(key) ?? Promise.resolve()
    const mine = Promise.withResolvers<void>()
    const tail = before.then(() => mine.promise)
    this.#tails.set(key, tail)
    // Not sooner: one who gave up waiting is done before those who came earlier are, and the key is still theirs.
    void tail.then(() => {
      if (this.#tails.get(key) === tail) this.#tails.delete(key)
    })
    try {
      await abortable(before, signal)
      return await work()
    } finally {
      mine.resolve()
    }
  }

  /** How many keys are held or waited for. */
  get size(): number {
    return this.#tails.size
  }

  /** Whether somebody holds `key` or waits for it. */
  isHeld(key: string): boolean {
    return this.#tails.has(key)
  }
}

/** `promise`, or a rejection with the signal's reason if that comes first. The promise itself goes on; its later rejection is taken care of. */
export async function abortable<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise
  if (signal.aborted) {
    promise.catch(() => undefined)
    throw signal.reason
  }
  const aborted = Promise.withResolvers<never>()
  const onAbort = (): void => aborted.reject(signal.reason)
  signal.addEventListener('abort', onAbort, { once: true })
  try {
    return await Promise.race([promise, aborted.promise])
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}
