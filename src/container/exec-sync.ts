import { join } from '../concurrency/join.ts'
import type { Operation } from '../concurrency/operation.ts'
import type { TaskExit } from '../containerd/tasks.ts'
import { deadlineExceeded } from '../errors/cri-error.ts'
import type { Any } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { Container } from '../state/records.ts'
import type { ContainerDeps } from './deps.ts'
import { checkRunning, ExecRun } from './exec-run.ts'
import type { Capture } from './io/client.ts'

/** As much of each stream as CRI's ExecSync may return (api.proto: 16 MB); the rest is read and dropped. */
const limitBytes = 16 * 1024 * 1024
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
  checkRunning(container)
  const run = new ExecRun(deps, ctx, container, { stdin: false, tty: false })
  let capture: Capture | undefined
  try {
    // containerd opens the FIFOs when the command starts, not before: they are made while it is told of the command.
    const [opened] = await join<[Capture, void]>(ctx.signal, [
      () => operation.step('open output', async () => {
        run.makeFifos()
        capture = await deps.io.capture({ id: run.id, stdoutFifo: run.fifos.stdout, stderrFifo: run.fifos.stderr, limitBytes })
        return capture
      }),
      () => operation.step('add command', async () => run.add(await makeProcess())),
    ])
    await operation.step('start command', () => run.start().finally(() => opened.started()))
    const exit = await operation.step('run command', () => ended(ctx, run, container, options))
    const [output] = await Promise.all([operation.step('read output', () => read(ctx, opened, container, deps.settings.drainExecSyncIoTimeoutMs)), operation.step('remove command', () => run.remove())])
    return { ...output, exitCode: exit.exitStatus }
  } finally {
    await run.cleanUp()
    await capture?.close()
  }
}

async function ended(ctx: Ctx, run: ExecRun, container: Container, options: { readonly timeoutMs: number; readonly command: readonly string[] }): Promise<TaskExit> {
  const { timeoutMs, command } = options
  const timeout = timeoutMs > 0 ? AbortSignal.timeout(Math.min(timeoutMs, longestTimerMs)) : undefined
  const signal = timeout === undefined ? ctx.signal : AbortSignal.any([timeout, ctx.signal])
  try {
    return await run.exited(signal)
  } catch (error) {
    if (!signal.aborted) throw error
    // Also for a client that is gone: nobody will ever read what the command still prints.
    await run.kill()
    if (timeout?.aborted !== true || ctx.signal.aborted) throw error
    throw deadlineExceeded(`the command ${JSON.stringify(command)} in container ${container.id} did not end within ${timeoutMs / 1000} s and was killed`, { reason: 'ExecTimeout' })
  }
}

async function read(ctx: Ctx, capture: Capture, container: Container, drainTimeoutMs: number): Promise<{ readonly stdout: Buffer; readonly stderr: Buffer }> {
  const result = await capture.result({ drainTimeoutMs })
  if (result.timedOut) ctx.log.info({ container: container.id, drainTimeoutMs }, 'the command has ended and something it left running holds its output open: answering with what came until now')
  return result
}
