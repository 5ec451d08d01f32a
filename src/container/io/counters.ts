const names = ['bytesRead', 'bytesWritten', 'entries', 'splitEntries', 'diskErrors', 'droppedBytes', 'attachSkippedBytes'] as const
export type CounterName = (typeof names)[number]

/** Running totals in memory shared by both threads: readable without asking the worker, and not reset by its crash. */
export class Counters {
  readonly memory: SharedArrayBuffer
  readonly #values: BigInt64Array

  constructor(memory: SharedArrayBuffer = new SharedArrayBuffer(names.length * BigInt64Array.BYTES_PER_ELEMENT)) {
    this.memory = memory
    this.#values = new BigInt64Array(memory)
  }

  add(name: CounterName, amount: number): void {
    if (amount !== 0) Atomics.add(this.#values, names.indexOf(name), BigInt(amount))
  }

  /** The totals since the first worker started. */
  read(): Record<CounterName, number> {
    const value = (name: CounterName): number => Number(Atomics.load(this.#values, names.indexOf(name)))
    return {
      bytesRead: value('bytesRead'),
      bytesWritten: value('bytesWritten'),
      entries: value('entries'),
      splitEntries: value('splitEntries'),
      diskErrors: value('diskErrors'),
      droppedBytes: value('droppedBytes'),
      attachSkippedBytes: value('attachSkippedBytes'),
    }
  }
}
