import type { StreamKind } from './types.ts'

const kinds: readonly StreamKind[] = ['exec', 'attach', 'portforward']
const directions = ['in', 'out'] as const
/** `in`: from the client. */
export type Direction = (typeof directions)[number]

const slots = kinds.flatMap((kind) => directions.map((direction) => ({ kind, direction })))

/** Bytes moved, in memory shared by both threads: readable without asking the worker, and not reset by its crash. */
export class ByteCounters {
  readonly memory: SharedArrayBuffer
  readonly #values: BigInt64Array

  constructor(memory: SharedArrayBuffer = new SharedArrayBuffer(slots.length * BigInt64Array.BYTES_PER_ELEMENT)) {
    this.memory = memory
    this.#values = new BigInt64Array(memory)
  }

  /** A function that adds to one counter. */
  adder(kind: StreamKind, direction: Direction): (bytes: number) => void {
    const slot = slots.findIndex((each) => each.kind === kind && each.direction === direction)
    return (bytes) => void Atomics.add(this.#values, slot, BigInt(bytes))
  }

  /** The totals since the first worker started. */
  read(): readonly { readonly kind: StreamKind; readonly direction: Direction; readonly bytes: number }[] {
    return slots.map((slot, index) => ({ ...slot, bytes: Number(Atomics.load(this.#values, index)) }))
  }
}
