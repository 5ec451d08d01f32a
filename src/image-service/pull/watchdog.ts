import { deadlineExceeded } from '../../errors/cri-error.ts'

/**
 * Ends a pull that makes no progress: `image_pull_progress_timeout` counts from the last byte that arrived, and only while a download is
 * under way.
 */
export class Watchdog {
  readonly #controller = new AbortController()
  readonly #timer: NodeJS.Timeout | undefined
  #downloads = 0
  #lastMs = performance.now()

  constructor(what: string, timeoutMs: number) {
    if (timeoutMs <= 0) return
    this.#timer = setInterval(() => {
      if (this.#downloads === 0 || performance.now() - this.#lastMs < timeoutMs) return
      this.#controller.abort(deadlineExceeded(`pulling ${what}: no byte arrived for ${timeoutMs / 1000} s (image_pull_progress_timeout)`, { reason: 'NoProgress' }))
    }, Math.max(10, Math.min(1000, timeoutMs / 4)))
    this.#timer.unref()
  }

  get signal(): AbortSignal {
    return this.#controller.signal
  }

  progress(): void {
    this.#lastMs = performance.now()
  }

  /** Runs a download under the watch. */
  async watch<T>(download: () => Promise<T>): Promise<T> {
    if (this.#downloads === 0) this.progress()
    this.#downloads += 1
    try {
      return await download()
    } finally {
      this.#downloads -= 1
    }
  }

  close(): void {
    clearInterval(this.#timer)
  }
}
