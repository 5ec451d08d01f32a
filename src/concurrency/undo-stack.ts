import { withDeadline } from './deadline.ts'

/** One step of the way back that failed. */
export interface UndoFailure {
  readonly name: string
  readonly error: unknown
}

/** One step of the way back. */
export type Undo = (signal: AbortSignal) => Promise<unknown>

/**
 * What has to be taken back if a long operation fails. Runs last in, first out, under its own deadline (the caller's may be what failed),
 * and goes on past a step that fails.
 */
export class UndoStack {
  #steps: { readonly name: string; readonly undo: Undo }[] = []

  push(name: string, undo: Undo): void {
    this.#steps.push({ name, undo })
  }

  /** Forgets every step: the operation succeeded. */
  clear(): void {
    this.#steps = []
  }

  /**
   * Runs every step once and returns those that failed. `timeoutMs` bounds each step, so that one that hangs does not starve the rest: one
   * that does not heed its signal is left behind.
   */
  async run(timeoutMs: number): Promise<UndoFailure[]> {
    const failures: UndoFailure[] = []
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      const { name, undo } = step
      try {
        await withDeadline(`undoing "${name}"`, timeoutMs, undo)
      } catch (error) {
        failures.push({ name, error })
      }
    }
    return failures
  }
}
