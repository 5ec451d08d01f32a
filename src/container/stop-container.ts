import { constants } from 'node:os'
import { deadlineExceeded, invalidArgument } from '../errors/cri-error.ts'
import type { Ctx } from '../observability/context.ts'
import type { Container } from '../state/records.ts'
import type { ContainerDeps } from './deps.ts'
import { handleExit } from './exit.ts'

const sigkill = 9
/** A process that is still there this long after SIGKILL hangs in the kernel. */
const afterKillMs = 60_000

/** The number of a signal as images and requests name it: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`. INVALID_ARGUMENT for anything else. */
export function signalNumber(name: string): number {
  if (/^\d{1,2}$/.test(name)) {
    const number = Number(name)
    if (number >= 1 && number <= 64) return number
  }
  const upper = name.toUpperCase()
  const prefixed = upper.startsWith('SIG') ? upper : `SIG${upper}`
  const full = prefixed === 'SIGCLD' ? 'SIGCHLD' : prefixed
  const known = (constants.signals as Readonly<Record<string, number>>)[full]
  if (known !== undefined) return known
  const realTime = /^SIGRT(MIN|MAX)(?:([+-])(\d{1,2}))?$/.exec(full)
  if (realTime !== null) {
    const number = (realTime[1] === 'MIN' ? 34 : 64) + (realTime[2] === '-' ? -1 : 1) * Number(realTime[3] ?? 0)
    if (number >= 34 && number <= 64) return number
  }
  throw invalidArgument(`${JSON.stringify(name)} is no signal; give a name such as SIGTERM or a number from 1 to 64`)
}

/**
 * StopContainer: the container's stop signal, SIGKILL when it is still there after `timeoutMs`. Idempotent. The end is recorded by the exit
 * handling; this waits for that.
 */
export async function stopContainer(deps: ContainerDeps, ctx: Ctx, container: Container, timeoutMs: number): Promise<void> {
  const { id } = container
  const ended = (record: Container): boolean => record.status.state !== 'running' && !record.starting
  const now = await deps.containers.until(id, (record) => !record.starting, ctx.signal)
  if (now === undefined || ended(now)) return
  if (timeoutMs > 0) {
    const signal = container.metadata.stopSignal === '' ? constants.signals.SIGTERM : signalNumber(container.metadata.stopSignal)
    await kill(deps, ctx, id, signal)
    if (await endsWithin(deps, ctx, id, ended, timeoutMs)) return
    ctx.log.info({ container: id, timeoutMs }, 'the grace period is over: SIGKILL')
  }
  await kill(deps, ctx, id, sigkill)
  if (!await endsWithin(deps, ctx, id, ended, afterKillMs)) {
    throw deadlineExceeded(`container ${id} is still there ${afterKillMs / 1000} s after SIGKILL: a process in it (pid ${now.status.pid}) hangs in the kernel, often on a dead network file system; see "cat /proc/${now.status.pid}/stack"`)
  }
}

async function kill(deps: ContainerDeps, ctx: Ctx, id: string, signal: number): Promise<void> {
  if (await deps.teardown.signal(ctx, id, signal)) return
  // It has ended and the exit is on its way. Should its event be lost, the end is noticed here.
  const task = await deps.containerd.tasks.get(ctx, id)
  if (task === undefined || task.state === 'stopped') await handleExit(deps, ctx, id, task)
}

async function endsWithin(deps: ContainerDeps, ctx: Ctx, id: string, ended: (record: Container) => boolean, timeoutMs: number): Promise<boolean> {
  const timeout = AbortSignal.timeout(Math.min(timeoutMs, 0x7fffffff))
  try {
    await deps.containers.until(id, ended, AbortSignal.any([ctx.signal, timeout]))
    return true
  } catch (error) {
    if (timeout.aborted && !ctx.signal.aborted) return false
    throw error
  }
}
