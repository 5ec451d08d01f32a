import { randomBytes } from 'node:crypto'
import { join as joinPath } from 'node:path'
import { pause } from '../concurrency/deadline.ts'
import { abortable } from '../concurrency/keyed-mutex.ts'
import type { TaskExit, TaskProcess } from '../containerd/tasks.ts'
import { Code, CriError, failedPrecondition, invalidArgument, isNotFound, messageOf } from '../errors/cri-error.ts'
import type { Any } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import type { Container } from '../state/records.ts'
import type { ContainerDeps } from './deps.ts'
import { type FifoPaths, fifoPaths, makeFifos } from './fifos.ts'

const sighup = 1
const sigkill = 9
/** A killed process that has not been reaped by then hangs in the kernel. */
const afterKillMs = 10_000
/** Between two tries while containerd is being restarted. */
const againMs = 500

export type ExecDeps = Pick<ContainerDeps, 'containerd' | 'containers' | 'host' | 'layout' | 'execStarts'>

/** FAILED_PRECONDITION unless a command can be run in it now. */
export function checkRunning(container: Container): void {
  if (container.status.state !== 'running') throw failedPrecondition(`container ${container.id} is ${container.status.state}: a command runs only in a running container`, { reason: 'NotRunning' })
}

/** One command in a running container, from its FIFOs to its removal from containerd. */
export class ExecRun {
  readonly id = randomBytes(16).toString('hex')
  readonly fifos: FifoPaths
  readonly #dir: string
  readonly #deps: ExecDeps
  readonly #ctx: Ctx
  readonly #container: Container
  readonly #terminal: boolean
  /** Ends the wait for a process that never started. */
  readonly #over = new AbortController()
  #added = false
  #exit: Promise<TaskExit> | undefined
  #exited = false
  #pid = 0

  constructor(deps: ExecDeps, ctx: Ctx, container: Container, streams: { readonly stdin: boolean; readonly tty: boolean }) {
    this.#deps = deps
    this.#ctx = ctx
    this.#container = container
    this.#terminal = streams.tty
    // Named so that a later start of this service finds the exec and ends it (recover.ts).
    this.#dir = joinPath(deps.layout.containerIoDir(container.id), `exec-${this.id}`)
    this.fifos = fifoPaths(this.#dir, 'exec', streams)
  }

  /** Whether the process has been started and is not known to have ended. */
  get running(): boolean {
    return this.#pid > 0 && !this.#exited
  }

  makeFifos(): void {
    makeFifos(this.#deps.host, this.#dir, this.fifos)
  }

  /** Not ended by the caller's signal, and `start` neither: containerd may go on with what it was asked, and then nobody would know of the process. */
  async add(spec: Init<Any>): Promise<void> {
    this.#ctx.signal.throwIfAborted()
    this.#added = true
    try {
      await this.#deps.containerd.tasks.exec(this.#detached(), { containerId: this.#container.id, execId: this.id, ...this.fifos, terminal: this.#terminal, spec })
    } catch (error) {
      throw await this.#explained(error)
    }
  }

  /** When it is the pod's turn; with `throughRestart` also when containerd is restarted in the middle of it. The process has its FIFOs open afterwards, or never will. INVALID_ARGUMENT when the command cannot be run, FAILED_PRECONDITION when the container has ended. */
  async start(options: { readonly throughRestart?: boolean } = {}): Promise<void> {
    await this.#deps.execStarts.run(this.#container.metadata.sandboxId, () => this.#start(options.throughRestart === true), this.#ctx.signal)
  }

  async #start(throughRestart: boolean): Promise<void> {
    this.#ctx.signal.throwIfAborted()
    for (;;) {
      try {
        this.#awaitExit()
        this.#pid = await this.#deps.containerd.tasks.start(this.#detached(), this.#container.id, this.id)
        return
      } catch (error) {
        if (!throughRestart || !this.#isAway(error)) throw await this.#explained(error)
        const process = await this.#whenBack(error)
        if (process === undefined) throw error
        // One that the shim was not told to start yet is started now.
        if (process.state === 'created') continue
        this.#awaitExit()
        this.#pid = process.pid
        return
      }
    }
  }

  /** containerd was taken away in the middle of a start: what its shim knows of the process. */
  async #whenBack(cause: CriError): Promise<TaskProcess | undefined> {
    this.#ctx.log.info({ err: cause, container: this.#container.id, exec: this.id }, 'containerd went away while a command was being started: asking again')
    for (;;) {
      await pause(againMs, this.#ctx.signal)
      try {
        return await this.#deps.containerd.tasks.get(this.#detached(), this.#container.id, this.id)
      } catch (error) {
        if (!this.#isAway(error)) throw await this.#explained(error)
      }
    }
  }

  /** containerd does not answer and the container runs on: its shim holds the process. */
  #isAway(error: unknown): error is CriError {
    return error instanceof CriError && error.code === Code.UNAVAILABLE && this.#deps.containers.get(this.#container.id)?.status.state === 'running'
  }

  #awaitExit(): void {
    this.#exit = this.#deps.containerd.tasks.wait(withSignal(this.#ctx, this.#over.signal), this.#container.id, this.id)
    this.#exit.then(() => { this.#exited = true }, () => undefined)
  }

  #detached(): Ctx {
    return withSignal(this.#ctx, new AbortController().signal)
  }

  async #explained(error: unknown): Promise<unknown> {
    if (!(error instanceof CriError) || (error.code !== Code.INTERNAL && error.code !== Code.NOT_FOUND && error.code !== Code.FAILED_PRECONDITION)) return error
    const { id } = this.#container
    // The store hears of the end of a container a moment later.
    const state = this.#deps.containers.get(id)?.status.state === 'running' ? (await this.#deps.containerd.tasks.get(this.#detached(), id))?.state : undefined
    if (state !== 'running') return failedPrecondition(`container ${id} ended while the command was being started`, { reason: 'NotRunning', cause: error })
    return invalidArgument(`the command cannot be run in container ${id}: ${messageOf(error)}`, { reason: 'ExecCannotRun', cause: error })
  }

  /** The end of the process, or a rejection with the signal's reason. */
  async exited(signal: AbortSignal): Promise<TaskExit> {
    if (this.#exit === undefined) throw new TypeError('the exec has not been started')
    try {
      return await abortable(this.#exit, signal)
    } catch (error) {
      throw signal.aborted ? error : await this.#explained(error)
    }
  }

  /** The same, through a restart of containerd as long as the container runs: its shim holds the process and tells of its end later too. */
  async exitedInTheEnd(signal: AbortSignal): Promise<TaskExit> {
    for (;;) {
      try {
        return await this.exited(signal)
      } catch (error) {
        if (signal.aborted || !this.#isAway(error)) throw error
        this.#ctx.log.info({ err: error, container: this.#container.id, exec: this.id }, 'waiting on for a command while containerd is away')
        await pause(againMs, signal)
        this.#awaitExit()
      }
    }
  }

  /** Sets the size of its terminal. Ignored when the process has ended, or has no terminal. */
  async resize(size: { readonly width: number; readonly height: number }): Promise<void> {
    if (!this.running || !this.#terminal) return
    await this.#whileRunning('resize the terminal of a command', () => this.#deps.containerd.tasks.resizePty(this.#ctx, this.#container.id, this.id, size))
  }

  /** Lets the end of its input come, when containerd is back if it is away; hangs a terminal up. */
  async closeStdin(): Promise<void> {
    while (this.running && this.fifos.stdin !== '') {
      try {
        await this.#deps.containerd.tasks.closeStdin(this.#detached(), this.#container.id, this.id)
        return
      } catch (error) {
        if (!(error instanceof CriError) || error.code !== Code.UNAVAILABLE) return this.#unlessOver('close the input of a command', error)
      }
      await pause(againMs, this.#over.signal).catch(() => undefined)
      if (this.#over.signal.aborted) return
    }
  }

  /** Tells it that its terminal is gone. */
  async hangUp(): Promise<void> {
    await this.closeStdin()
    if (this.running) await this.#whileRunning('hang up on a command', () => this.#deps.containerd.tasks.kill(this.#detached(), this.#container.id, sighup, { execId: this.id }))
  }

  /** A process may end at any moment, and the store and this thread hear of it a moment later: then there is nothing to be done to it. */
  async #whileRunning(what: string, work: () => Promise<void>): Promise<void> {
    try {
      await work()
    } catch (error) {
      this.#unlessOver(what, error)
    }
  }

  #unlessOver(what: string, error: unknown): void {
    if (isNotFound(error) || !this.running || this.#ctx.signal.aborted) return
    this.#ctx.log.info({ err: error, container: this.#container.id, exec: this.id }, `cannot ${what}`)
  }

  /** Kills everything that the command has started in its session, and waits for the end of the command itself. */
  async kill(): Promise<void> {
    const { id, status } = this.#container
    const ctx = withSignal(this.#ctx, AbortSignal.timeout(afterKillMs))
    try {
      await this.#deps.containerd.tasks.kill(ctx, id, sigkill, { execId: this.id })
    } catch (error) {
      if (!isNotFound(error)) ctx.log.warn({ err: error, container: id }, 'cannot kill a command')
    }
    if (this.#pid > 0) {
      await this.#deps.host.killSession({ pid: this.#pid, containerPid: status.pid }).catch((error: unknown) => {
        if (!isNotFound(error)) ctx.log.warn({ err: error, container: id }, 'cannot kill what a command has started')
      })
    }
    if (this.#exit !== undefined) await abortable(this.#exit, ctx.signal).catch((error: unknown) => ctx.log.warn({ err: error, container: id }, 'a killed command is still there'))
  }

  /** The command has ended: containerd forgets it. That this fails (the whole container may end at this moment) takes nothing from the answer; `cleanUp` tries again. */
  async remove(): Promise<void> {
    try {
      await this.#deps.containerd.tasks.deleteExec(this.#ctx, this.#container.id, this.id)
      this.#added = false
    } catch (error) {
      this.#ctx.log.debug({ err: error, container: this.#container.id, exec: this.id }, 'cannot remove an exec from containerd yet')
    }
  }

  /** However it went: the process ends, containerd forgets it, the FIFOs go. What containerd cannot be told now is done at the next start of this service. */
  async cleanUp(): Promise<void> {
    const { id } = this.#container
    const ctx = withSignal(this.#ctx, AbortSignal.timeout(30_000))
    try {
      if (this.#added && this.running && this.#deps.containers.get(id)?.status.state === 'running') await this.kill()
      if (this.#added) await this.#deps.containerd.tasks.deleteExec(ctx, id, this.id)
      await this.#deps.host.removeTree(this.#dir)
    } catch (error) {
      ctx.log.warn({ err: error, container: id, exec: this.id }, 'cannot remove an exec from containerd; it goes with the container')
    } finally {
      this.#over.abort()
    }
  }
}
