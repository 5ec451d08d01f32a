import { type Undo, type UndoFailure, UndoStack } from './undo-stack.ts'

export interface OperationHooks {
  /** Called when a step has ended, with its duration. */
  readonly onStep?: (operation: string, step: string, seconds: number, failed: boolean) => void
  /** Runs each step within something: a tracer's span. */
  readonly around?: (<T>(operation: string, step: string, work: () => Promise<T>) => Promise<T>) | undefined
  /** Bounds each undo step, in milliseconds. Default: 60,000. */
  readonly undoTimeoutMs?: number
}

/**
 * A long operation made of named steps, each with its way back. The steps that run now are visible to whoever asks meanwhile
 * (a second call for the same name, metrics, logs).
 */
export class Operation {
  readonly name: string
  readonly startedAtMs = performance.now()
  readonly #running = new Map<symbol, string>()
  readonly #undo = new UndoStack()
  readonly #hooks: OperationHooks
  #last = 'starting'
  #failed: string | undefined

  constructor(name: string, hooks: OperationHooks = {}) {
    this.name = name
    this.#hooks = hooks
  }

  /**
   * Runs one step. `undo` is kept if the step succeeds; a step that can fail half-way cleans up its own half, or pushes an
   * undo of its own with `onUndo` before it begins.
   */
  async step<T>(name: string, action: () => Promise<T>, undo?: (value: T, signal: AbortSignal) => Promise<unknown>): Promise<T> {
    const key = Symbol(name)
    const started = performance.now()
    this.#running.set(key, name)
    this.#last = name
    let failed = true
    try {
      const value = await (this.#hooks.around === undefined ? action() : this.#hooks.around(this.name, name, action))
      failed = false
      if (undo !== undefined) this.#undo.push(name, (signal) => undo(value, signal))
      return value
    } finally {
      this.#running.delete(key)
      if (failed) this.#failed ??= name
      this.#hooks.onStep?.(this.name, name, (performance.now() - started) / 1000, failed)
    }
  }

  /** Registers a way back that is not tied to a step's success. */
  onUndo(name: string, undo: Undo): void {
    this.#undo.push(name, undo)
  }

  /** The steps that run now, `a + b` when side by side; the last one between two steps. */
  get currentStep(): string {
    return this.#running.size === 0 ? this.#last : [...this.#running.values()].join(' + ')
  }

  /** The step that failed first, which is the one whose error counts when others were cut off by it; before one failed, the current one. */
  get failedStep(): string {
    return this.#failed ?? this.currentStep
  }

  /** `RunPodSandbox in flight for 143 s, step: cni add` */
  describe(): string {
    const seconds = (performance.now() - this.startedAtMs) / 1000
    return `${this.name} in flight for ${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s, step: ${this.currentStep}`
  }

  /** Takes everything back, newest first. Returns what could not be taken back. */
  async undo(): Promise<UndoFailure[]> {
    return this.#undo.run(this.#hooks.undoTimeoutMs ?? 60_000)
  }

  /** The operation succeeded: nothing is to be taken back any more. */
  commit(): void {
    this.#undo.clear()
  }
}
