import type { KeyedMutex } from '../concurrency/keyed-mutex.ts'
import { isNotFound } from '../errors/cri-error.ts'
import type { Ctx } from '../observability/context.ts'
import type { TaskExit, TasksService } from './tasks.ts'

const sigkill = 9

/**
 * Ends tasks so that nothing of them stays. Every Tasks.Delete of this service goes through one mutex per task, because two at once
 * leak the shim.
 */
export class TaskTeardown {
  readonly #tasks: TasksService
  readonly #mutex: KeyedMutex

  constructor(tasks: TasksService, mutex: KeyedMutex) {
    this.#tasks = tasks
    this.#mutex = mutex
  }

  /** Runs `work` while nobody else creates, starts or deletes this task. */
  async exclusive<T>(id: string, work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    return this.#mutex.run(id, work, signal)
  }

  /** Kills the task if it still runs, waits for its end and deletes it. Undefined when there was none. Idempotent. */
  async destroy(ctx: Ctx, id: string): Promise<TaskExit | undefined> {
    return this.exclusive(id, () => this.destroyHeld(ctx, id), ctx.signal)
  }

  /** The same for a caller that is inside `exclusive` already. */
  async destroyHeld(ctx: Ctx, id: string): Promise<TaskExit | undefined> {
    const task = await this.#tasks.get(ctx, id)
    if (task === undefined) return undefined
    if (task.state !== 'stopped') {
      const ended = this.#tasks.wait(ctx, id)
      ended.catch(() => undefined)
      try {
        await this.#tasks.kill(ctx, id, sigkill)
      } catch (error) {
        // It ended in between.
        if (!isNotFound(error)) throw error
      }
      try {
        await ended
      } catch (error) {
        if (!isNotFound(error)) throw error
      }
    }
    return this.#tasks.delete(ctx, id)
  }
}
