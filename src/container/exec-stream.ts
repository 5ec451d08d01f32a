import { withDeadline } from '../concurrency/deadline.ts'
import { join } from '../concurrency/join.ts'
import { abortable } from '../concurrency/keyed-mutex.ts'
import type { Operation } from '../concurrency/operation.ts'
import { Code, CriError, invalidArgument } from '../errors/cri-error.ts'
import type { Any } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import type { Background } from '../observability/background.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import type { Container } from '../state/records.ts'
import type { ExecSession, StreamIo, StreamResult, TerminalSize } from '../streaming/types.ts'
import type { ContainerDeps } from './deps.ts'
import { checkRunning, type ExecDeps, ExecRun } from './exec-run.ts'

/**
 * How long a command waits for the size of its terminal, in milliseconds. Clients send it first of all; a program that starts without it draws for
 * a screen of no size.
 */
const firstSizeMs = 100
/** How long a command has to end by itself after its client is gone, in milliseconds. */
const abandonedMs = 10_000
/** The same when the service stops: the next one would end it at its start anyway. */
const stoppingMs = 1_000

export interface ExecStreamDeps extends ExecDeps {
  readonly settings: Pick<ContainerDeps['settings'], 'drainExecSyncIoTimeoutMs'>
  /** Has what the client need not wait for: containerd forgetting the exec, the removal of its FIFOs. */
  readonly background: Pick<Background, 'run'>
}

/**
 * Runs a command whose streams are a client's, and gives its exit code. `ctx.signal` is the service's: when it aborts the command is killed.
 * A client that is gone closes the command's input and hangs up its terminal; what still runs ten seconds later is killed. Nothing of the
 * exec stays, however it ends; what is removed when the client has its answer is seen to in the background. Errors: FAILED_PRECONDITION when the container does not run, INVALID_ARGUMENT when the command cannot be run.
 */
export async function execStream(
  deps: ExecStreamDeps, ctx: Ctx, operation: Operation, container: Container, session: ExecSession, io: StreamIo, makeProcess: (size: TerminalSize | undefined) => Promise<Init<Any>>,
): Promise<StreamResult> {
  checkRunning(container)
  const { stdin, tty } = session
  const setUp = withSignal(ctx, AbortSignal.any([ctx.signal, io.signal]))
  const run = new ExecRun(deps, setUp, container, { stdin, tty })
  const terminal = new Terminal(ctx, run)
  if (tty) io.onResize((size) => terminal.resize(size))
  try {
    // containerd opens the FIFOs when the command starts, not before: they are made while it is told of the command.
    await join<[void, void]>(setUp.signal, [
      () => operation.step('open streams', async () => {
        run.makeFifos()
        const { fifos } = run
        await io.openFifos({ ...(stdin ? { stdin: fifos.stdin } : {}), stdout: fifos.stdout, ...(tty ? {} : { stderr: fifos.stderr }) })
      }),
      () => operation.step('add command', async () => run.add(await makeProcess(tty ? await terminal.firstSize() : undefined))),
    ])
    try {
      await operation.step('start command', () => run.start({ throughRestart: true }))
    } finally {
      io.started()
    }
    terminal.started()
    // A terminal has no end of input: only what is typed into it ends what reads from it.
    if (stdin && !tty) void io.stdinClosed.then(() => run.closeStdin())
    const exit = await operation.step('run command', () => ended(ctx, run, io, tty))
    await operation.step('read output', () => drain(deps, ctx, container, io))
    return { exitCode: exit.exitStatus }
  } finally {
    terminal.over()
    deps.background.run('remove a command that has ended', run.cleanUp())
  }
}

async function ended(ctx: Ctx, run: ExecRun, io: StreamIo, tty: boolean): Promise<{ readonly exitStatus: number }> {
  try {
    return await run.exitedInTheEnd(AbortSignal.any([ctx.signal, io.signal]))
  } catch (error) {
    if (!io.signal.aborted && !ctx.signal.aborted) throw error
  }
  if (!ctx.signal.aborted) {
    const reason: unknown = io.signal.reason
    const patienceMs = reason instanceof CriError && reason.code === Code.UNAVAILABLE ? stoppingMs : abandonedMs
    ctx.log.debug({ exec: run.id, reason }, 'the client of a command is gone')
    await (tty ? run.hangUp() : run.closeStdin())
    try {
      return await withDeadline('the end of a command whose client is gone', patienceMs, (signal) => run.exitedInTheEnd(signal), ctx.signal)
    } catch (error) {
      if (!ctx.signal.aborted && !(error instanceof CriError && error.code === Code.DEADLINE_EXCEEDED)) throw error
    }
  }
  await run.kill()
  throw io.signal.aborted ? io.signal.reason : ctx.signal.reason
}

/** The process has ended, and what it printed is on its way to the client. */
async function drain(deps: ExecStreamDeps, ctx: Ctx, container: Container, io: StreamIo): Promise<void> {
  if (io.signal.aborted) return
  const timeoutMs = deps.settings.drainExecSyncIoTimeoutMs
  try {
    const outcome = await abortable(io.drained(timeoutMs), AbortSignal.any([ctx.signal, io.signal]))
    if (outcome === 'timeout') ctx.log.info({ container: container.id, timeoutMs }, 'the command has ended and something it left running holds its output open: the client gets what came until now')
  } catch (error) {
    // The exit code is known; there is nobody left to print for.
    if (!io.signal.aborted && !ctx.signal.aborted) throw error
  }
}

/** The size of a command's terminal: the last one counts, one change at a time, and none once the command has ended. */
class Terminal {
  readonly #ctx: Ctx
  readonly #run: ExecRun
  readonly #first = Promise.withResolvers<void>()
  #size: TerminalSize | undefined
  #applied: TerminalSize | undefined
  #busy = false
  #started = false

  constructor(ctx: Ctx, run: ExecRun) {
    this.#ctx = ctx
    this.#run = run
  }

  /** The size that the process is to start with; undefined when none comes in time. */
  async firstSize(): Promise<TerminalSize | undefined> {
    const timer = setTimeout(this.#first.resolve, firstSizeMs)
    await this.#first.promise
    clearTimeout(timer)
    this.#applied = this.#size
    return this.#size
  }

  resize(size: TerminalSize): void {
    this.#size = size
    this.#first.resolve()
    this.#apply()
  }

  /** The process runs: what came before is its first size. */
  started(): void {
    this.#started = true
    this.#apply()
  }

  over(): void {
    this.#started = false
  }

  #apply(): void {
    if (!this.#started || this.#busy || this.#size === this.#applied || this.#size === undefined) return
    this.#busy = true
    const size = this.#size
    this.#applied = size
    void this.#run.resize(size).catch((error: unknown) => {
      this.#ctx.log.info({ err: error, exec: this.#run.id, ...size }, 'cannot resize the terminal of a command')
    }).finally(() => {
      this.#busy = false
      this.#apply()
    })
  }
}

/** INVALID_ARGUMENT for streams that cannot be, as containerd's CRI plugin refuses them. */
export function checkStreams(request: { readonly tty: boolean; readonly stdin: boolean; readonly stdout: boolean; readonly stderr: boolean }): void {
  if (!request.stdin && !request.stdout && !request.stderr) throw invalidArgument('one of stdin, stdout and stderr must be asked for')
  if (request.tty && request.stderr) throw invalidArgument('tty and stderr exclude each other: everything that a terminal shows comes on stdout')
}
