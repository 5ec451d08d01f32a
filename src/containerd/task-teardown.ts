import { pause, withDeadline } from '../concurrency/deadline.ts'
import type { KeyedMutex } from '../concurrency/keyed-mutex.ts'
import { Code, CriError, isNotFound } from '../errors/cri-error.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import type { TaskExit, TasksService } from './tasks.ts'

const sigkill = 9
/** A process that is still there this long after SIGKILL hangs in the kernel. */
const afterKillMs = 60_000
/** containerd asks a dead shim's binary to clean up; between two looks whether it has. */
const afterShimMs = 10_000
const pollMs = 20

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

  /**
   * Sends a signal to a task's init. False when there is nobody to take it: the init has ended, or its shim with it (a Tasks.Delete that
   * somebody else has under way takes both). Then whatever is being done to the task is over when this returns.
   */
  async signal(ctx: Ctx, id: string, signal: number): Promise<boolean> {
    try {
      await this.#tasks.kill(ctx, id, signal)
      return true
    } catch (error) {
      if (isNotFound(error)) return false
      if (!saysShimGone(error)) throw error
      await this.exclusive(id, () => this.#forgotten(ctx, id, error), ctx.signal)
      return false
    }
  }

  /** Kills the task if it still runs, waits for its end and deletes it. Undefined when there was none. Idempotent. */
  async destroy(ctx: Ctx, id: string): Promise<TaskExit | undefined> {
    return this.exclusive(id, () => this.destroyHeld(ctx, id), ctx.signal)
  }

  /** The same for a caller that is inside `exclusive` already. */
  async destroyHeld(ctx: Ctx, id: string): Promise<TaskExit | undefined> {
    const task = await this.#tasks.get(ctx, id)
    if (task === undefined) return undefined
    try {
      if (task.state !== 'stopped') {
        try {
          await this.#kill(ctx, id, task.pid)
        } catch (error) {
          if (task.state !== 'created' || saysShimGone(error)) throw error
          return await this.#deleteUnstarted(ctx, id, error)
        }
      }
      return await this.#tasks.delete(ctx, id)
    } catch (error) {
      if (!saysShimGone(error)) throw error
      return this.#forgotten(ctx, id, error)
    }
  }

  /** Some runtimes (gVisor's) send no signal to what was never started, but delete it. Throws why it could not be killed when it is no use. */
  async #deleteUnstarted(ctx: Ctx, id: string, notKilled: unknown): Promise<TaskExit | undefined> {
    try {
      return await this.#tasks.delete(ctx, id)
    } catch (error) {
      if (saysShimGone(error)) throw error
      throw notKilled
    }
  }

  /** The shim has ended by itself, as it does when a task cannot be created: containerd clears up after it, which takes a moment. */
  async #forgotten(ctx: Ctx, id: string, error: unknown): Promise<undefined> {
    const deadlineMs = performance.now() + afterShimMs
    while (await this.#tasks.get(ctx, id) !== undefined) {
      if (performance.now() > deadlineMs) throw error
      await pause(pollMs, ctx.signal)
    }
  }

  async #kill(ctx: Ctx, id: string, pid: number): Promise<void> {
    let killed = false
    try {
      await withDeadline(`the end of the task of container ${id}`, afterKillMs, async (signal) => {
        const bounded = withSignal(ctx, signal)
        const over = new AbortController()
        try {
          const ended = this.#tasks.wait(withSignal(ctx, AbortSignal.any([signal, over.signal])), id)
          ended.catch(() => undefined)
          await this.#tasks.kill(bounded, id, sigkill)
          killed = true
          await ended
        } finally {
          over.abort()
        }
      }, ctx.signal)
    } catch (error) {
      // It ended in between.
      if (isNotFound(error)) return
      if (!killed || ctx.signal.aborted || !(error instanceof CriError) || error.code !== Code.DEADLINE_EXCEEDED) throw error
      throw new CriError(Code.DEADLINE_EXCEEDED, `container ${id} is still there ${afterKillMs / 1000} s after SIGKILL: a process in it (pid ${pid}) hangs in the kernel, often on a dead network file system; see "cat /proc/${pid}/stack"`, { reason: 'Unkillable', cause: error })
    }
  }
}

function saysShimGone(error: unknown): boolean {
  return error instanceof CriError && error.reason === 'ShimGone'
}
