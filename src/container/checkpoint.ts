import { randomBytes } from 'node:crypto'
import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { pause } from '../concurrency/deadline.ts'
import type { Operation } from '../concurrency/operation.ts'
import type { ContainerRecord } from '../containerd/containers.ts'
import { isRuncType, runcCheckpointOptions } from '../containerd/runtime-options.ts'
import { CriError, errnoOf, failedPrecondition, notFound, unavailable } from '../errors/cri-error.ts'
import type { Descriptor } from '../generated/containerd.ts'
import type { ContainerStatus } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import { fromNodeError } from '../linux/errno.ts'
import { pathExists } from '../linux/path-exists.ts'
import type { Background } from '../observability/background.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import type { Container } from '../state/records.ts'
import { namesIn, readJson, writeJson } from '../state/status-file.ts'
import { CheckpointArchive } from './checkpoint-archive.ts'
import { criuComplaint } from './criu-log.ts'
import type { ContainerDeps } from './deps.ts'

export interface CheckpointDeps extends Pick<ContainerDeps, 'containerd' | 'host' | 'layout' | 'runtime'> {
  readonly background: Background
  /** Of the service: what outlives the call runs with it. */
  readonly serviceCtx: Ctx
}

export interface CheckpointRequest {
  /** Absolute path of the archive. */
  readonly location: string
  /** The pod's runtime handler. */
  readonly handler: string
  /** For the processes: the shim ends the dump then. A caller that only leaves does not end it, containerd does not tell the shim of that. */
  readonly dumpTimeoutMs: number
  /** As CRI gives it. */
  readonly status: Init<ContainerStatus>
}

/** Of what the container changed, on a slow disk. */
const compareTimeoutMs = 3_600_000
/** For the view and the layer that are made on the way, should this process not come to remove them. */
const leaseMs = 6 * 3_600_000
const takeBackMs = 60_000
const longestRetryMs = 5000

/**
 * CheckpointContainer: processes, memory and changed files of a running container in one archive, in the layout that containerd's CRI plugin, CRI-O
 * and checkpointctl read. It is frozen while processes and files are written down, and goes on then, whatever comes of it, also when this process is killed
 * (`recoverCheckpoints`). The caller holds the container's mutex.
 */
export async function checkpointContainer(deps: CheckpointDeps, ctx: Ctx, operation: Operation, container: Container, request: CheckpointRequest): Promise<void> {
  const { id } = container
  const runtime = deps.runtime(request.handler)
  if (!isRuncType(runtime.type)) throw failedPrecondition(`container ${id} runs with ${runtime.type}: only runc and crun (io.containerd.runc.v2) write checkpoints`, { reason: 'RuntimeCannot' })
  const record = await deps.containerd.containers.get(ctx, id)
  if (record === undefined) throw notFound(`container ${id} is gone from containerd`)
  const dir = deps.layout.containerCheckpointDir(id)
  try {
    await mkdir(dir, { mode: 0o700 })
  } catch (error) {
    if (errnoOf(error) === 'EEXIST') throw failedPrecondition(`an earlier checkpoint of container ${id} is still being cleared away: try again in a moment`, { reason: 'InProgress' })
    throw fromNodeError(`cannot make ${dir}`, error)
  }
  try {
    const partial = `${request.location}.${randomBytes(4).toString('hex')}.partial`
    // Whoever finds this after a crash knows what to take away.
    await writeJson(join(dir, 'note.json'), { partial })
    await using archive = await CheckpointArchive.open(request.location, { partial, contents: join(dir, 'contents') })
    const layer = await frozenIn(deps, ctx, { operation, container, record, archive, timeoutMs: request.dumpTimeoutMs })
    await operation.step('write archive', () => archive.finish(ctx, { container, record, status: request.status, rootfsDiff: deps.containerd.content.stream(ctx, layer.digest) }))
  } finally {
    // Also when the service stops: its container must not stay frozen until the next start.
    await operation.step('clear away', () => takeBack(deps, withSignal(deps.serviceCtx, new AbortController().signal), id)).catch((error: unknown) => {
      ctx.log.error({ err: error, container: id }, 'a checkpoint cannot be cleared away yet, and its container may be frozen: it is tried again')
      deps.background.run('clear away a checkpoint', takeBackInTime(deps, id))
    })
  }
}

interface Dump {
  readonly operation: Operation
  readonly container: Container
  readonly record: ContainerRecord
  readonly archive: CheckpointArchive
  readonly timeoutMs: number
}

/** Freezes the container, and writes down its processes and what it changed in its image's files, as they were at one moment. */
async function frozenIn(deps: CheckpointDeps, ctx: Ctx, dump: Dump): Promise<Descriptor> {
  const { operation, container, record, archive, timeoutMs } = dump
  const { id } = container
  const { tasks } = deps.containerd
  await operation.step('freeze', () => tasks.pause(ctx, id))
  try {
    await operation.step('dump processes', async () => {
      try {
        await tasks.checkpoint(ctx, id, runcCheckpointOptions({ ...archive.dirs, terminal: container.metadata.config.tty }), { timeoutMs })
      } catch (error) {
        throw await refusal(error, id, archive.dirs.work)
      }
    })
    return await operation.step('compare files', () => changedFiles(deps, ctx, id, record))
  } finally {
    // At once: what follows takes its time. Should it fail it is tried again at the end.
    await operation.step('go on', () => tasks.resume(withSignal(ctx, AbortSignal.timeout(takeBackMs)), id)).catch((error: unknown) => ctx.log.warn({ err: error, container: id }, 'cannot let a container go on that was frozen for a checkpoint'))
  }
}

async function changedFiles(deps: CheckpointDeps, ctx: Ctx, id: string, { snapshotter, snapshot_key: key }: ContainerRecord): Promise<Descriptor> {
  const { snapshots, diff, leases } = deps.containerd
  const name = nameOf(id)
  const info = await snapshots.stat(ctx, snapshotter, key)
  if (info === undefined) throw notFound(`container ${id} has no root file system in snapshotter ${snapshotter}`)
  await leases.create(ctx, name, leaseMs)
  const options = { lease: name, timeoutMs: compareTimeoutMs }
  const [left, right] = [await snapshots.view(ctx, snapshotter, name, info.parent, {}, options), await snapshots.mounts(ctx, snapshotter, key)]
  return diff.compare(ctx, left, right, { mediaType: 'application/vnd.oci.image.layer.v1.tar', ref: name }, options)
}

/** CRIU says why in its log only, and runc where that is: it goes with the rest of the attempt. */
async function refusal(error: unknown, id: string, workDir: string): Promise<CriError> {
  const cause = CriError.from(error, `container ${id} cannot be checkpointed`)
  if (/"?criu"?: executable file not found|criu: no such file/i.test(cause.message)) {
    return failedPrecondition(`container ${id} cannot be checkpointed: the runtime finds no criu; install CRIU 3.16 or later where the PATH of containerd leads to`, { reason: 'NoCriu', cause: error })
  }
  const complaint = await criuComplaint(workDir)
  if (complaint === undefined) return /criu/i.test(cause.message) ? failedPrecondition(`${cause.message}; look whether "criu check" is content with this kernel`, { reason: 'Criu', cause: error }) : cause
  return failedPrecondition(`container ${id} cannot be checkpointed: CRIU says: ${complaint} ("criu check" on the node tells what this kernel lacks)`, { reason: 'Criu', cause: error })
}

/** Takes back whatever a checkpoint made, except its archive: the container goes on, and nothing is left. Idempotent. */
async function takeBack(deps: Pick<CheckpointDeps, 'containerd' | 'host' | 'layout'>, unbounded: Ctx, id: string): Promise<void> {
  const ctx = withSignal(unbounded, AbortSignal.any([unbounded.signal, AbortSignal.timeout(takeBackMs)]))
  const { containers, tasks, snapshots, leases } = deps.containerd
  const dir = deps.layout.containerCheckpointDir(id)
  const task = await tasks.get(ctx, id)
  if (task?.state === 'unknown') throw unavailable(`the shim of container ${id} does not answer`, { reason: 'ShimSilent' })
  if (task?.state === 'paused') await tasks.resume(ctx, id)
  const snapshotter = (await containers.get(ctx, id))?.snapshotter ?? ''
  if (snapshotter !== '') await snapshots.remove(ctx, snapshotter, nameOf(id))
  await leases.delete(ctx, nameOf(id), true)
  const note = await readJson(join(dir, 'note.json'))
  const partial = typeof note === 'object' && note !== null && 'partial' in note && typeof note.partial === 'string' ? note.partial : undefined
  if (partial !== undefined) await rm(partial, { force: true })
  await deps.host.removeTree(dir)
}

/** Until containerd is back, or the service stops: its next start goes on then. */
async function takeBackInTime(deps: Omit<CheckpointDeps, 'runtime'>, id: string): Promise<void> {
  const { serviceCtx } = deps
  for (let delayMs = 250; !serviceCtx.signal.aborted; delayMs = Math.min(2 * delayMs, longestRetryMs)) {
    try {
      await takeBack(deps, serviceCtx, id)
      return
    } catch (error) {
      serviceCtx.log.warn({ err: error, container: id, retryInMs: delayMs }, 'cannot clear away a checkpoint, and its container may be frozen')
    }
    await pause(delayMs, serviceCtx.signal).catch(() => undefined)
  }
}

/** At the start: takes back the checkpoints that the service was killed in. */
export async function recoverCheckpoints(deps: Omit<CheckpointDeps, 'runtime'>): Promise<void> {
  const { layout, serviceCtx, background } = deps
  for (const id of await namesIn(layout.containersDir())) {
    if (!await pathExists(layout.containerCheckpointDir(id))) continue
    serviceCtx.log.info({ container: id }, 'taking back a checkpoint that was cut off half-way')
    try {
      await takeBack(deps, serviceCtx, id)
    } catch {
      background.run('clear away a checkpoint', takeBackInTime(deps, id))
    }
  }
}

/** Of the lease, the view of the image and the layer. */
function nameOf(id: string): string {
  return `cri-shim-checkpoint-${id}`
}
