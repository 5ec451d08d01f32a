import type { Concurrency, OperationName } from './operations.ts'

/** The two services of a run. In a control run both are the plugin. */
export const sideNames = ['plugin', 'shim'] as const
export type SideName = (typeof sideNames)[number]

/** The middle one of the values, or the mean of the two in the middle. NaN when there are none. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const upper = sorted[sorted.length >> 1] ?? Number.NaN
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[(sorted.length >> 1) - 1] ?? Number.NaN)) / 2
}

/** The smallest value that at least this share (0 to 1) of the values do not exceed (nearest rank). NaN when there are none. */
export function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN
}

/** Durations in milliseconds, by side, operation and concurrency. */
export class Samples {
  readonly #values = new Map<string, number[]>()
  readonly #limits = new Map<OperationName, number>()

  add(side: SideName, operation: OperationName, concurrency: Concurrency, ms: number): void {
    const key = `${side}/${operation}/${concurrency}`
    const values = this.#values.get(key)
    if (values === undefined) this.#values.set(key, [ms])
    else values.push(ms)
  }

  /** A call that was given up: all that is known is that it takes longer. An operation has one such limit. */
  addGivenUp(side: SideName, operation: OperationName, concurrency: Concurrency, afterMs: number): void {
    this.#limits.set(operation, afterMs)
    this.add(side, operation, concurrency, afterMs)
  }

  /** After which calls were given up, and stand with that time among the samples; undefined when none was. */
  limitOf(operation: OperationName): number | undefined {
    return this.#limits.get(operation)
  }

  of(side: SideName, operation: OperationName, concurrency: Concurrency): readonly number[] {
    return this.#values.get(`${side}/${operation}/${concurrency}`) ?? []
  }
}
