import type { Logger } from './logger.ts'
import type { Metrics } from './metrics.ts'

/**
 * The only way to not await a promise: its failure is logged and counted, and `drain()` waits for what is still under way
 * at shutdown.
 */
export class Background {
  readonly #log: Logger
  readonly #metrics: Metrics
  readonly #running = new Set<Promise<void>>()

  constructor(log: Logger, metrics: Metrics) {
    this.#log = log
    this.#metrics = metrics
  }

  run(task: string, work: Promise<unknown>): void {
    const guarded = work.then(
      () => undefined,
      (error: unknown) => {
        this.#metrics.backgroundFailures.inc({ task })
        this.#log.error({ err: error, task }, `${task} failed`)
      },
    ).finally(() => this.#running.delete(guarded))
    this.#running.add(guarded)
  }

  get size(): number {
    return this.#running.size
  }

  /** Resolves when nothing runs any more, new work included. */
  async drain(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running)
  }
}
