import { randomBytes } from 'node:crypto'
import { join as joinPath } from 'node:path'
import { join } from '../concurrency/join.ts'
import { abortable } from '../concurrency/keyed-mutex.ts'
import type { Operation } from '../concurrency/operation.ts'
import type { TaskExit } from '../containerd/tasks.ts'
import { Code, CriError, deadlineExceeded, failedPrecondition, invalidArgument, isNotFound, messageOf } from '../errors/cri-error.ts'
import type { Any } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import type { Container } from '../state/records.ts'
import type { ContainerDeps } from './deps.ts'
import { fifoPaths, makeFifos } from './fifos.ts'

const sigkill = 9
/** As much of each stream as CRI's ExecSync may return (api.proto: 16 MB); the rest is read and dropped. */
const limitBytes = 16 * 1024 * 1024
/** A killed process that has not been reaped by then hangs in the kernel. */
const afterKillMs = 10_000
/** As long as a timer can be, almost 25 days: one that is set to more goes off at once. */
const longestTimerMs = 2 ** 31 - 1

export interface ExecSyncResult {
  readonly stdout: Buffer
  readonly stderr: Buffer
  readonly exitCode: number
}

/**
 * Runs a command in a running container and waits for it. After `timeoutMs` (0: none) everything that the command started in its session
 * is killed and DEADLINE_EXCEEDED says so. Nothing of the exec stays, however it ends.
 */
export async function execSync(deps: ContainerDeps, ctx: Ctx, operation: Operation, container: Container, makeProcess: () => Promise<Init<Any>>, options: { readonly timeoutMs: number; readonly command: readonly string[] }): Promise<ExecSyncResult> {
  const { id } = container
  if (container.status.state !== 'running') throw failedPrecondition(`container ${id} is ${container.status.state}: a command runs only in a running container`, { reason: 'NotRunning' })
  const execId = randomBytes(16).toString('hex')
  const dir = joinPath(deps.layout.containerIoDir(id), `exec-${execId}`)
  const fifos = fifoPaths(dir, 'exec', { stdin: false, tty: false })
  const run = new ExecRun(deps, ctx, id, execId)
  try {
    // containerd opens the FIFOs when the command starts, not before: they are made while it is told of the command.
    await join<[void, void]>(ctx.signal, [
      () => operation.step('open output', async () => {
        makeFifos(deps.host, dir, fifos)
        run.capture = await deps.io.capture({ id: execId, stdoutFifo: fifos.stdout, stderrFifo: fifos.stderr, limitBytes })
      }),
      () => operation.step('add command', async () => run.add(await makeProcess(), fifos)),
    ])
    await operation.step('start command', () => deps.execStarts.run(container.metadata.sandboxId, () => run.start(), ctx.signal))
    const exit = await operation.step('run command', () => run.wait(options.timeoutMs, container.status.pid, options.command))
    const [output] = await Promise.all([operation.step('read output', () => run.output(deps.settings.drainExecSyncIoTimeoutMs)), operation.step('remove command', () => run.remove())])
    return { ...output, exitCode: exit.exitStatus }
  } finally {
    await run.cleanUp()
    await deps.host.removeTree(dir)
  }
}

class ExecRun {
  readonly #deps: ContainerDeps
  readonly #ctx: Ctx
  readonly #id: string
  readonly #execId: string
  #added = false
  #exit: Promise<TaskExit> | undefined
  #exited = false
  capture: Awaited<ReturnType<ContainerDeps['io']['capture']>> | undefined
  #pid = 0

  constructor(deps: ContainerDeps, ctx: Ctx, id: string, execId: string) {
    this.#deps = deps
    this.#ctx = ctx
    this.#id = id
    this.#execId = execId
  }

  /** Not ended by the caller's signal, and `start` neither: containerd may go on with what it was asked, and then nobody would know of the process. */
  async add(spec: Init<Any>, fifos: { readonly stdin: string; readonly stdout: string; readonly stderr: string }): Promise<void> {
    this.#ctx.signal.throwIfAborted()
    this.#added = true
    try {
      await this.#deps.containerd.tasks.exec(this.#detached(), { containerId: this.#id, execId: this.#execId, ...fifos, terminal: false, spec })
    } catch (error) {
      throw await this.#explained(error)
    }
  }

  async start(): Promise<void> {
    const { tasks } = this.#deps.containerd
    this.#ctx.signal.throwIfAborted()
    try {
      this.#exit = tasks.wait(this.#detached(), this.#id, this.#execId)
      this.#exit.then(() => { this.#exited = true }, () => undefined)
      this.#pid = await tasks.start(this.#detached(), this.#id, this.#execId)
    } catch (error) {
      throw await this.#explained(error)
    } finally {
      this.capture?.started()
    }
  }

  #detached(): Ctx {
    return withSignal(this.#ctx, new AbortController().signal)
  }

  async #explained(error: unknown): Promise<unknown> {
    if (!(error instanceof CriError) || (error.code !== Code.INTERNAL && error.code !== Code.NOT_FOUND && error.code !== Code.FAILED_PRECONDITION)) return error
    // The store hears of the end of a container a moment later.
    const state = this.#deps.containers.get(this.#id)?.status.state === 'running' ? (await this.#deps.containerd.tasks.get(this.#detached(), this.#id))?.state : undefined
    if (state !== 'running') return failedPrecondition(`container ${this.#id} ended while the command was being started`, { reason: 'NotRunning', cause: error })
    return invalidArgument(`the command cannot be run in container ${this.#id}: ${messageOf(error)}`, { reason: 'ExecCannotRun', cause: error })
  }

  /** The command has ended: containerd forgets it. That this fails (the whole container may end at this moment) takes nothing from the answer; `cleanUp` tries again. */
  async remove(): Promise<void> {
    try {
      await this.#deps.containerd.tasks.deleteExec(this.#ctx, this.#id, this.#execId)
      this.#added = false
    } catch (error) {
      this.#ctx.log.debug({ err: error, container: this.#id, exec: this.#execId }, 'cannot remove an exec from containerd yet')
    }
  }

  async wait(timeoutMs: number, containerPid: number, command: readonly string[]): Promise<TaskExit> {
    if (this.#exit === undefined) throw new TypeError('the exec has not been started')
    const timeout = timeoutMs > 0 ? AbortSignal.timeout(Math.min(timeoutMs, longestTimerMs)) : undefined
    const signal = timeout === undefined ? this.#ctx.signal : AbortSignal.any([timeout, this.#ctx.signal])
    try {
      return await abortable(this.#exit, signal)
    } catch (error) {
      if (!signal.aborted) throw await this.#explained(error)
      // Also for a client that is gone: nobody will ever read what the command still prints.
      await this.#kill(containerPid)
      if (timeout?.aborted !== true || this.#ctx.signal.aborted) throw error
      throw deadlineExceeded(`the command ${JSON.stringify(command)} in container ${this.#id} did not end within ${timeoutMs / 1000} s and was killed`, { reason: 'ExecTimeout' })
    }
  }

  async output(drainTimeoutMs: number): Promise<{ readonly stdout: Buffer; readonly stderr: Buffer }> {
    if (this.capture === undefined) throw new TypeError('the exec has no output')
    const result = await this.capture.result({ drainTimeoutMs })
    if (result.timedOut) this.#ctx.log.info({ container: this.#id, drainTimeoutMs }, 'the command has ended and something it left running holds its output open: answering with what came until now')
    return result
  }

  async #kill(containerPid: number): Promise<void> {
    const ctx = withSignal(this.#ctx, AbortSignal.timeout(afterKillMs))
    try {
      await this.#deps.containerd.tasks.kill(ctx, this.#id, sigkill, { execId: this.#execId })
    } catch (error) {
      if (!isNotFound(error)) this.#ctx.log.warn({ err: error, container: this.#id }, 'cannot kill a command that took too long')
    }
    if (this.#pid > 0) {
      await this.#deps.host.killSession({ pid: this.#pid, containerPid }).catch((error: unknown) => {
        if (!isNotFound(error)) this.#ctx.log.warn({ err: error, container: this.#id }, 'cannot kill what a command that took too long has started')
      })
    }
    if (this.#exit !== undefined) await abortable(this.#exit, ctx.signal).catch((error: unknown) => this.#ctx.log.warn({ err: error, container: this.#id }, 'a killed command is still there'))
  }

  async cleanUp(): Promise<void> {
    const ctx = withSignal(this.#ctx, AbortSignal.timeout(30_000))
    try {
      if (this.#added && this.#pid > 0 && !this.#exited) {
        const container = this.#deps.containers.get(this.#id)
        if (container?.status.state === 'running') await this.#kill(container.status.pid)
      }
      if (this.#added) await this.#deps.containerd.tasks.deleteExec(ctx, this.#id, this.#execId)
    } catch (error) {
      this.#ctx.log.warn({ err: error, container: this.#id, exec: this.#execId }, 'cannot remove an exec from containerd; it goes with the container')
    }
    await this.capture?.close()
  }
}
