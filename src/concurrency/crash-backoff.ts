/** What ran this long before it crashed does not crash again and again. */
const stableMs = 60_000
const longestDelayMs = 5_000

/** When to start again what crashed: at once, and later each time when it crashes quickly one time after the other. */
export class CrashBackoff {
  #quickCrashes = 0
  #startedAtMs = 0

  started(): void {
    this.#startedAtMs = performance.now()
  }

  /** The delay before the next start, in milliseconds; 0 for the first and the second crash. */
  crashed(): number {
    this.#quickCrashes = performance.now() - this.#startedAtMs > stableMs ? 0 : this.#quickCrashes + 1
    return this.#quickCrashes <= 1 ? 0 : Math.min(100 * 2 ** (this.#quickCrashes - 2), longestDelayMs)
  }
}
