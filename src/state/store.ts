import { failedPrecondition, invalidArgument, notFound } from '../errors/cri-error.ts'

/** A change of one record: `before` is undefined when it was added, `after` when it was removed. */
export type StoreListener<T> = (before: T | undefined, after: T | undefined) => void

/**
 * Records by id. Records are immutable: a change replaces the record, so a reader never sees half of one and whatever is derived from
 * a record can be cached under the record itself.
 */
export class Store<T extends { readonly id: string }> {
  /** What the records are, for error messages: `container`, `pod sandbox`. */
  readonly kind: string
  readonly #records = new Map<string, T>()
  readonly #listeners = new Set<StoreListener<T>>()

  constructor(kind: string) {
    this.kind = kind
  }

  get size(): number {
    return this.#records.size
  }

  /** The record with exactly this id. */
  get(id: string): T | undefined {
    return this.#records.get(id)
  }

  /**
   * The record whose id begins with `prefix`, as people type it. NOT_FOUND when there is none, FAILED_PRECONDITION when there are
   * several.
   */
  find(prefix: string): T {
    const exact = this.#records.get(prefix)
    if (exact !== undefined) return exact
    if (prefix === '') throw invalidArgument(`no ${this.kind} id given`)
    const found: T[] = []
    for (const [id, record] of this.#records) if (id.startsWith(prefix)) found.push(record)
    const [first, second] = found
    if (first === undefined) throw notFound(`no ${this.kind} with id ${prefix}`)
    if (second !== undefined) throw failedPrecondition(`the id ${prefix} begins those of ${found.length} ${this.kind}s: give more of it`, { reason: 'AmbiguousId' })
    return first
  }

  /** Like `find`, but undefined when there is none: for the calls that treat a missing thing as done. INVALID_ARGUMENT without an id. */
  lookup(prefix: string): T | undefined {
    if (prefix === '') throw invalidArgument(`no ${this.kind} id given`)
    for (const id of this.#records.keys()) if (id.startsWith(prefix)) return this.find(prefix)
    return undefined
  }

  values(): IterableIterator<T> {
    return this.#records.values()
  }

  /** Adds or replaces. */
  put(record: T): T {
    const before = this.#records.get(record.id)
    this.#records.set(record.id, record)
    this.#tell(before, record)
    return record
  }

  /** Replaces a record that is there; undefined (and nothing happens) when it is gone. */
  update(id: string, change: (record: T) => T): T | undefined {
    const before = this.#records.get(id)
    if (before === undefined) return undefined
    const after = change(before)
    if (after !== before) {
      this.#records.set(id, after)
      this.#tell(before, after)
    }
    return after
  }

  delete(id: string): void {
    const before = this.#records.get(id)
    if (before === undefined) return
    this.#records.delete(id)
    this.#tell(before, undefined)
  }

  /** Calls back on every change until the returned function is called. */
  listen(listener: StoreListener<T>): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /** Resolves with the record as soon as `ready` holds for it, with undefined when it is removed. Rejects with the signal's reason. */
  async until(id: string, ready: (record: T) => boolean, signal: AbortSignal): Promise<T | undefined> {
    signal.throwIfAborted()
    const now = this.#records.get(id)
    if (now === undefined || ready(now)) return now
    const { promise, resolve, reject } = Promise.withResolvers<T | undefined>()
    const stop = this.listen((before, after) => {
      if ((after ?? before)?.id !== id) return
      if (after === undefined || ready(after)) resolve(after)
    })
    const onAbort = (): void => reject(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      return await promise
    } finally {
      stop()
      signal.removeEventListener('abort', onAbort)
    }
  }

  #tell(before: T | undefined, after: T | undefined): void {
    for (const listener of this.#listeners) listener(before, after)
  }
}
