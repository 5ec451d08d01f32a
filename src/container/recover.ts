import { closeSync, constants, existsSync, openSync } from 'node:fs'
import { join as joinPath } from 'node:path'
import type { ContainerRecord } from '../containerd/containers.ts'
import type { TaskProcess } from '../containerd/tasks.ts'
import { nowNanoseconds, toNanoseconds } from '../containerd/timestamp.ts'
import { isNotFound } from '../errors/cri-error.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import { parseOciSpec } from '../oci-spec/json.ts'
import { resourcesOfSpec } from '../oci-spec/update-resources.ts'
import { type ContainerMetadata, decodeContainerMetadata } from '../state/metadata.ts'
import { pluginDirs, readPluginStatus } from '../state/plugin-files.ts'
import type { Container, ContainerStatus } from '../state/records.ts'
import { decodeStatus, namesIn, readJson } from '../state/status-file.ts'
import { intentPath } from './create-container.ts'
import { noteCutOff } from './cut-off-start.ts'
import type { ContainerDeps } from './deps.ts'
import { finish, handleExit, unknownEnd } from './exit.ts'
import { fifoPaths } from './fifos.ts'
import { removeContainerState } from './image-volumes.ts'
import { removeContainer } from './remove-container.ts'
import { saveStatus, statusPath } from './status.ts'

/** A killed process that has not been reaped by then hangs in the kernel. */
const execEndMs = 10_000

/**
 * Puts one container of containerd's record into the store, in the state that it is in now: what ended while this service was away gets
 * its real exit code from the task, output goes on being read, a start that was cut off is undone. A container that was never made to
 * the end is removed instead. One that ran and has no task any more is given to `lost`, which sees to its end.
 */
export async function recoverContainer(
  deps: ContainerDeps, ctx: Ctx, record: ContainerRecord, task: TaskProcess | undefined, lost: (container: Container) => Promise<void>,
): Promise<void> {
  const { id } = record
  const { layout } = deps
  if (existsSync(intentPath(layout.containerDir(id)))) {
    ctx.log.info({ container: id }, 'removing a container that was cut off half-way')
    await removeContainer(deps, ctx, { id })
    return
  }
  const metadata = readMetadata(record)
  const spec = record.spec === null ? undefined : parseOciSpec(record.spec.value)
  const stored = decodeStatus(await readJson(statusPath(layout, id))) ?? await readPluginStatus(pluginDirs(spec?.mounts ?? [], metadata.sandboxId), id)
  const running = task !== undefined && (task.state === 'running' || task.state === 'paused')
  const status: ContainerStatus = stored?.status ?? {
    state: task === undefined ? 'exited' : 'running', pid: 0, createdAt: toNanoseconds(record.created_at), startedAt: 0n, finishedAt: 0n, exitCode: 0, reason: '', message: '',
  }
  const container: Container = {
    id, metadata, status, starting: false, removing: false, oomKilled: stored?.oomKilled ?? false, cgroups: stored?.cgroups, user: specUser(spec),
    resources: spec === undefined ? undefined : resourcesOfSpec(spec),
  }
  deps.containers.put(container)
  if (running) {
    await goOn(deps, ctx, container, task)
    return
  }
  if (task?.state === 'unknown') {
    // The shim does not say: it is what it was until the shim does.
    if (status.state === 'running') await reopen(deps, ctx, container, task)
    return
  }
  // StartContainer notes the cgroup just before it starts the process: without it the process never ran, whatever became of it.
  const neverRan = status.state === 'created' && container.cgroups === undefined
  if (task?.state === 'stopped' && !neverRan) {
    await reopen(deps, ctx, container, task)
    await handleExit(deps, ctx, id, { exitStatus: task.exitStatus, exitedAt: task.exitedAt })
    return
  }
  if (task !== undefined) await deps.teardown.destroy(ctx, id)
  if (status.state === 'created') {
    if (task === undefined && existsSync(layout.containerIoDir(id))) await noteCutOff(layout, id)
    await deps.host.removeTree(layout.containerIoDir(id))
  }
  else if (stored?.ended !== undefined && status.state === 'running') await finish(deps, ctx, container, stored.ended)
  else if (status.state === 'running') await lost(container)
  else if (status.state !== 'exited' || stored === undefined) await finish(deps, ctx, container, { ...unknownEnd, finishedAt: nowNanoseconds(), oomKilled: container.oomKilled })
}

/**
 * Lets go of shims that wait for a reader of their container's output: a start that was cut off may wait in open(2) with the shim's lock held,
 * and until somebody comes the shim answers nothing about the whole pod. Nothing is read. The function returned closes them again.
 */
export async function releaseBlockedShims(deps: Pick<ContainerDeps, 'layout'>, ctx: Ctx): Promise<() => void> {
  const open: number[] = []
  for (const id of await namesIn(deps.layout.containersStateDir())) {
    for (const name of await namesIn(deps.layout.containerIoDir(id))) {
      if (!name.endsWith('-stdout') && !name.endsWith('-stderr')) continue
      const path = joinPath(deps.layout.containerIoDir(id), name)
      try {
        open.push(openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW))
      } catch (error) {
        ctx.log.warn({ err: error, container: id, path }, 'cannot open the output of a container')
      }
    }
  }
  return () => {
    for (const fd of open.splice(0)) closeSync(fd)
  }
}

/** Removes what is kept of containers that containerd does not know: one was cut off before its record was made, or after it was removed. */
export async function removeOrphans(deps: Pick<ContainerDeps, 'layout' | 'host'>, ctx: Ctx, present: ReadonlySet<string>): Promise<void> {
  const { layout, host } = deps
  for (const id of new Set([...await namesIn(layout.containersDir()), ...await namesIn(layout.containersStateDir())])) {
    if (present.has(id)) continue
    ctx.log.info({ container: id }, 'removing what is left of a container that containerd does not know')
    await removeContainerState(deps, id)
    await host.removeTree(layout.containerDir(id))
  }
}

/** It runs: as before, or since a start whose last step was cut off. */
async function goOn(deps: ContainerDeps, ctx: Ctx, container: Container, task: TaskProcess): Promise<void> {
  const cgroups = container.cgroups ?? await cgroupsOf(deps, task.pid)
  const startedAt = container.status.startedAt === 0n ? nowNanoseconds() : container.status.startedAt
  await saveStatus(deps.layout, deps.containers, { ...container, cgroups, status: { ...container.status, state: 'running', pid: task.pid, startedAt } })
  await reopen(deps, ctx, container, task)
  await endExecs(deps, ctx, container.id, task.pid)
}

/** Ends the commands whose callers went with an earlier process of this service: nobody reads what they print any more. */
async function endExecs(deps: ContainerDeps, ctx: Ctx, id: string, containerPid: number): Promise<void> {
  const { containerd, host, layout } = deps
  for (const name of await namesIn(layout.containerIoDir(id))) {
    const [, execId] = /^exec-([0-9a-f]+)$/.exec(name) ?? []
    if (execId === undefined) continue
    try {
      const exec = await containerd.tasks.get(ctx, id, execId)
      if (exec?.state === 'running') {
        const ended = containerd.tasks.wait(withSignal(ctx, AbortSignal.any([ctx.signal, AbortSignal.timeout(execEndMs)])), id, execId)
        ended.catch(() => undefined)
        await host.killSession({ pid: exec.pid, containerPid })
        await ended
      }
      if (exec !== undefined) await containerd.tasks.deleteExec(ctx, id, execId)
    } catch (error) {
      ctx.log.warn({ err: error, container: id, exec: execId }, 'cannot end a command whose caller is gone; it goes with the container')
    }
    await host.removeTree(joinPath(layout.containerIoDir(id), name))
  }
}

/** Undefined for a process that has ended since it was asked about: its exit is on its way. */
async function cgroupsOf(deps: ContainerDeps, pid: number): Promise<Container['cgroups']> {
  try {
    return await deps.host.cgroupPathsOf(pid)
  } catch (error) {
    if (isNotFound(error)) return undefined
    throw error
  }
}

/** Reads on where the service (or containerd's own CRI plugin) stopped: what the container printed meanwhile waits in the FIFO. */
async function reopen(deps: ContainerDeps, ctx: Ctx, container: Container, task: TaskProcess): Promise<void> {
  const { id, metadata } = container
  const own = fifoPaths(deps.layout.containerIoDir(id), id, { stdin: metadata.config.stdin, tty: metadata.config.tty })
  const fifos = task.io !== undefined && !existsSync(own.stdout) && existsSync(task.io.stdout) ? task.io : own
  if (!existsSync(fifos.stdout)) {
    ctx.log.warn({ container: id, fifo: fifos.stdout }, 'the container was started by another service: its output does not come here and its log stays as it is')
    return
  }
  try {
    if (metadata.config.stdin && existsSync(fifos.stdin)) deps.stdin.resume(id, fifos.stdin)
    await deps.io.openLog({
      id, stdoutFifo: fifos.stdout, stderrFifo: fifos.stderr === '' ? undefined : fifos.stderr, logPath: metadata.logPath === '' ? undefined : metadata.logPath,
      maxLineBytes: deps.settings.maxContainerLogLineSize, recover: true,
    })
  } catch (error) {
    ctx.log.error({ err: error, container: id }, 'the output of a container cannot be read on: it stands still when its pipe is full; restart it')
  }
  deps.io.started(id)
}

function readMetadata(record: ContainerRecord): ContainerMetadata {
  try {
    const metadata = decodeContainerMetadata(record.extensions)
    if (metadata !== undefined) return metadata
  } catch (error) {
    throw new TypeError(`the metadata of container ${record.id} in containerd cannot be read`, { cause: error })
  }
  throw new TypeError(`container ${record.id} in containerd is labelled a container of a pod and has no metadata`)
}

/** Whom the OCI spec runs its process as. */
function specUser(spec: ReturnType<typeof parseOciSpec> | undefined): Container['user'] {
  const user = spec?.process?.user
  return user === undefined ? undefined : { uid: user.uid, gid: user.gid, additionalGids: user.additionalGids ?? [] }
}
