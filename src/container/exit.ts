import type { TaskExit } from '../containerd/tasks.ts'
import { nowNanoseconds } from '../containerd/timestamp.ts'
import type { Ctx } from '../observability/context.ts'
import type { Container, ContainerStatus } from '../state/records.ts'
import { encodeStatus, type StoredEnd, writeJsonPage } from '../state/status-file.ts'
import type { ContainerDeps } from './deps.ts'
import { saveEnd, saveStatus, statusPath } from './status.ts'

/** How long the last output of a container may take to arrive after its task is deleted; its writers are all gone by then. */
const drainMs = 10_000

/** Why a container ended, in the words that Kubernetes knows. */
export function exitReason(exitCode: number, oomKilled: boolean): string {
  if (oomKilled) return 'OOMKilled'
  return exitCode === 0 ? 'Completed' : 'Error'
}

/**
 * A container's init has ended: the task is deleted, its last output written, the status recorded. The out-of-memory count is read from
 * the cgroup before the task is deleted and the cgroup with it, so it does not matter whether containerd's OOM event comes before or
 * after the exit. Idempotent; `known` is what is known of the end in case containerd has forgotten it, undefined when nothing is. With the `pid`
 * that ended, the end of an earlier task of the container (whose start was cut off) is told from that of the one it has now.
 */
export async function handleExit(deps: ContainerDeps, ctx: Ctx, id: string, known: TaskExit & { readonly pid?: number } | undefined): Promise<void> {
  await deps.teardown.exclusive(id, async () => {
    const container = deps.containers.get(id)
    // One whose start was cut off before its process ran (see recoverContainer) is still to be started.
    const neverRan = container?.status.state === 'created' && container.cgroups === undefined
    if (container === undefined || container.status.state === 'exited' || neverRan) {
      await deps.containerd.tasks.delete(ctx, id)
      return
    }
    if (known?.pid !== undefined && known.pid !== container.status.pid && (await deps.containerd.tasks.get(ctx, id))?.state === 'running') return
    const oomKilled = container.oomKilled || (container.cgroups !== undefined && ((await deps.host.oomKillCount(container.cgroups)) ?? 0) > 0)
    if (known !== undefined) await note(deps, ctx, container, { ...endOf(known), oomKilled })
    const exit = await deps.containerd.tasks.delete(ctx, id) ?? known
    await finish(deps, ctx, container, exit === undefined ? { ...unknownEnd, finishedAt: nowNanoseconds(), oomKilled } : { ...endOf(exit), oomKilled })
  })
}

/** How a container ended of which nobody knows: as containerd's CRI plugin gives it. */
export const unknownEnd = {
  exitCode: 255, reason: 'Unknown',
  message: 'the container ended while nobody watched (the node or containerd was restarted, its shim died, or its task was deleted by another client of containerd): its exit code is not known',
}

function endOf(exit: TaskExit): { readonly exitCode: number; readonly finishedAt: bigint } {
  return { exitCode: exit.exitStatus, finishedAt: exit.exitedAt === 0n ? nowNanoseconds() : exit.exitedAt }
}

/** With the task containerd forgets how it ended: a crash of this service between here and the final status must not lose that. */
async function note(deps: ContainerDeps, ctx: Ctx, container: Container, ended: StoredEnd): Promise<void> {
  try {
    await writeJsonPage(statusPath(deps.layout, container.id), encodeStatus({ ...container, ended }))
  } catch (error) {
    ctx.log.warn({ err: error, container: container.id }, 'cannot note how a container ended before its task is deleted')
  }
}

/** Records the end of a container whose task is gone. What cannot be cleaned up does not keep the end from being known. */
export async function finish(
  deps: ContainerDeps, ctx: Ctx, container: Container, end: { readonly exitCode: number; readonly finishedAt: bigint; readonly oomKilled: boolean; readonly reason?: string; readonly message?: string },
): Promise<void> {
  const { id } = container
  deps.io.started(id)
  if (await deps.io.drained(id, drainMs) === 'timeout') ctx.log.warn({ container: id }, `the output of a container that has ended is still open after ${drainMs / 1000} s: a process outside it holds the pipe; what it writes from now on is lost`)
  const attempt = async (what: string, work: () => Promise<unknown>): Promise<void> => {
    try {
      await work()
    } catch (error) {
      ctx.log.warn({ err: error, container: id }, `cannot ${what} of a container that has ended; its removal tries again`)
    }
  }
  await attempt('close the output', () => deps.io.closeLog(id))
  deps.stdin.release(id)
  await attempt('remove the FIFOs', () => deps.host.removeTree(deps.layout.containerIoDir(id)))
  const oomKilled = end.oomKilled || (deps.containers.get(id)?.oomKilled ?? false)
  const status: ContainerStatus = {
    ...container.status, state: 'exited', pid: 0, finishedAt: end.finishedAt, exitCode: end.exitCode,
    startedAt: container.status.startedAt === 0n ? end.finishedAt : container.status.startedAt,
    reason: end.reason ?? exitReason(end.exitCode, oomKilled), message: end.message ?? '',
  }
  await saveEnd(ctx, deps.layout, deps.containers, { ...container, starting: false, oomKilled, status })
}

/**
 * containerd says that the out-of-memory killer struck. Before the exit it is remembered, after it the reason is put right; an exit that is
 * being recorded at this moment is waited for.
 */
export async function handleOom(deps: ContainerDeps, id: string): Promise<void> {
  if (deps.containers.update(id, (now) => (now.oomKilled ? now : { ...now, oomKilled: true })) === undefined) return
  await deps.teardown.exclusive(id, async () => {
    const container = deps.containers.get(id)
    // A removal takes the directory away: nothing is written there any more.
    if (container === undefined || container.removing) return
    const status = container.status.state === 'exited' && container.status.reason === 'Error' ? { ...container.status, reason: 'OOMKilled' } : container.status
    await saveStatus(deps.layout, deps.containers, { ...container, status })
  })
}
