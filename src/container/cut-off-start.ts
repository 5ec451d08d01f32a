import { existsSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { pause } from '../concurrency/deadline.ts'
import type { ContainerRecord } from '../containerd/containers.ts'
import { messageOf } from '../errors/cri-error.ts'
import type { Ctx } from '../observability/context.ts'
import { type Layout, writeJson } from '../state/status-file.ts'
import type { ContainerDeps } from './deps.ts'

/** containerd gives itself twice five seconds for undoing a start whose client is gone. */
const containerdCleanUpMs = 15_000

/**
 * Whether a start fails because an earlier one of the container is being undone: containerd's directory for the task is still there, or goes away
 * under the new shim; runc or crun still has the container.
 */
export function meetsLeftOver(message: string): boolean {
  return /mkdir \S+: file exists|getwd: no such file or directory|container (?:with given ID|`\S+`) already exists/.test(message)
}

/**
 * A start that an earlier process of this service was killed in is undone by containerd in its own time, and its directory is in the way until
 * then. There is no event for that. containerd 2 may give that up and leave what the OCI runtime has of it: it removes that when the next one fails.
 */
export async function whenCleanedUp(ctx: Ctx, create: () => Promise<number>): Promise<number> {
  for (const end = performance.now() + containerdCleanUpMs; ;) {
    try {
      return await create()
    } catch (error) {
      if (performance.now() > end || !meetsLeftOver(messageOf(error))) throw error
      await pause(100, ctx.signal)
    }
  }
}

/** Notes, at the start of the service, that the start of a container was cut off: something of it may be left that no API shows. */
export async function noteCutOff(layout: Layout, id: string): Promise<void> {
  await writeJson(notePath(layout, id), {})
}

/** Its task was made after all: nothing is left of the earlier one. */
export async function forgetCutOff(layout: Layout, id: string): Promise<void> {
  const path = notePath(layout, id)
  if (existsSync(path)) await rm(path, { force: true })
}

/**
 * Before a container goes whose start was cut off: removes what containerd 2 may have left of that start (a process that waits for its start, its cgroup, what
 * the OCI runtime knows of it, and with them the shim of the pod). Only another start makes it do that, so there is one, and its task is deleted.
 */
export async function removeCutOff(deps: Pick<ContainerDeps, 'containerd' | 'teardown' | 'layout'>, ctx: Ctx, record: ContainerRecord): Promise<void> {
  const { id, runtime, snapshotter } = record
  if (!existsSync(notePath(deps.layout, id))) return
  const { tasks, snapshots } = deps.containerd
  ctx.log.info({ container: id }, 'the start of this container was cut off: looking for what is left of it')
  await deps.teardown.exclusive(id, async () => {
    try {
      const rootfs = await snapshots.mounts(ctx, snapshotter, id)
      await whenCleanedUp(ctx, () => tasks.create(ctx, { containerId: id, rootfs, stdin: '', stdout: '', stderr: '', terminal: false, options: runtime?.options ?? undefined, runtimePath: '' }))
    } catch (error) {
      // For a reason of its own, so nothing was in its way.
      ctx.log.info({ err: error, container: id }, 'a start to clear away the one that was cut off failed')
    }
    await deps.teardown.destroyHeld(ctx, id)
  }, ctx.signal)
}

function notePath(layout: Layout, id: string): string {
  return join(layout.containerDir(id), 'cut-off.json')
}
