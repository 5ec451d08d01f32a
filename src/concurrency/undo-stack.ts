/** One step of the way back that failed. */
export interface UndoFailure {
  readonly name: string
  readonly error: unknown
}

/**
 * What has to be taken back if a long operation fails. Runs last in, first out, under its own deadline (the caller's may be what failed),
 * and goes on past a step that fails.
 */
export class UndoStack {
  #steps: { readonly name: string; readonly undo: (signal: AbortSignal) => Promise<unknown> }[] = []

  push(name: string, undo: (signal: AbortSignal) => Promise<unknown>): void {
    this.#steps.push({ name, undo })
  }

  get length(): number {
    return this.#steps.length
  }

  /** Forgets every step: the operation succeeded. */
  clear(): void {
    this.#steps = []
  }

  /** Runs every step once and returns those that failed. `timeoutMs` bounds each step, so that one that hangs does not starve the rest. */
  async run(timeoutMs: number): Promise<UndoFailure[]> {
    const failures: UndoFailure[] = []
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      const signal = AbortSignal.timeout(timeoutMs)
      try {
        await step.undo(signal)
      } catch (error) {
        failures.push({ name: step.name, error })
      }
    }
    return failures
  }
}
