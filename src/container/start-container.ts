import { nowNanoseconds } from '../containerd/timestamp.ts'
import { join } from '../concurrency/join.ts'
import type { Operation } from '../concurrency/operation.ts'
import { labelledMounts } from '../containerd/mount-label.ts'
import { Code, CriError, failedPrecondition, invalidArgument, messageOf } from '../errors/cri-error.ts'
import type { Mount } from '../generated/containerd.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import { parseOciSpec } from '../oci-spec/json.ts'
import { hostIds } from '../oci-spec/user-namespace.ts'
import type { Container, ContainerStatus, Sandbox } from '../state/records.ts'
import { encodeStatus, writeJsonPage } from '../state/status-file.ts'
import { forgetCutOff, whenCleanedUp } from './cut-off-start.ts'
import type { ContainerDeps } from './deps.ts'
import { fifoPaths, makeFifos } from './fifos.ts'
import { saveEnd, saveStatus, statusPath } from './status.ts'
import { mappingsOf, readIdmapped, usernsOf } from './user-namespace.ts'

/** Why and with which exit code a container could not be started, as `kubectl describe pod` shows it. */
export function startFailure(message: string): Pick<ContainerStatus, 'reason' | 'exitCode' | 'message'> {
  if (/executable file not found|exec: .*no such file or directory|stat .*: no such file or directory/.test(message)) return { reason: 'ContainerCannotRun', exitCode: 127, message }
  if (/exec: .*(?:permission denied|is a directory)|exec .*: permission denied|exec format error/.test(message)) return { reason: 'ContainerCannotRun', exitCode: 126, message }
  return { reason: 'StartError', exitCode: 128, message }
}

/**
 * Starts a created container: FIFOs, log, task. Whoever handles its exit waits until this is over, so that a process that ends at once is
 * seen running first. A container that cannot be started has ended: its status says why. `readyPod` throws when the pod is not ready; it is asked
 * in the very moment in which the start becomes visible to whoever stops the pod.
 */
export async function startContainer(deps: ContainerDeps, ctx: Ctx, operation: Operation, container: Container, readyPod: () => Sandbox): Promise<void> {
  const { id } = container
  await deps.teardown.exclusive(id, async () => {
    const pod = readyPod()
    const now = deps.containers.update(id, (record) => (mayStart(record) ? { ...record, starting: true } : record))
    if (now === undefined || !now.starting) throw failedPrecondition(notStartable(now ?? container), { reason: 'WrongState' })
    try {
      await run(deps, ctx, operation, now, pod)
    } catch (error) {
      await failed(deps, withSignal(ctx, AbortSignal.timeout(120_000)), operation, now, error)
      throw startError(`container ${id} cannot be started`, error)
    }
  }, ctx.signal)
}

/** A command that is not in the image is no fault of this service, whatever code containerd gives it: nobody is to be alarmed by a pod that goes on trying. */
function startError(context: string, error: unknown): CriError {
  const failure = CriError.from(error, context)
  const { reason } = startFailure(failure.message)
  return failure.code === Code.INTERNAL && reason === 'ContainerCannotRun' ? invalidArgument(failure.message, { reason, cause: error }) : failure
}

function mayStart(container: Container): boolean {
  return container.status.state === 'created' && !container.starting && !container.removing
}

function notStartable(container: Container): string {
  const { id, status } = container
  if (container.removing) return `container ${id} is being removed`
  if (status.state === 'running') return `container ${id} runs already`
  return `container ${id} is ${status.state}: only a created container can be started, and only once; create a new one`
}

async function run(deps: ContainerDeps, ctx: Ctx, operation: Operation, container: Container, pod: Sandbox): Promise<void> {
  const { id, metadata } = container
  const { containerd, layout } = deps
  const runtime = deps.runtime(pod.metadata.runtimeHandler)
  const io = layout.containerIoDir(id)
  const { tty, stdin } = metadata.config
  const fifos = fifoPaths(io, id, { tty, stdin })
  operation.onUndo('close log', () => deps.io.closeLog(id))
  // Both to their end, also when one fails: a log that is opened after it was closed would stay open.
  const [mounts] = await join<[Awaited<ReturnType<typeof containerd.snapshots.mounts>>, void]>(ctx.signal, [
    (signal) => operation.step('snapshot mounts', () => deps.rootfs.take(id) ?? rootfsMounts(deps, withSignal(ctx, signal), container, runtime.snapshotter)),
    () => operation.step('open log', async () => {
      makeFifos(deps.host, io, fifos)
      deps.stdin.hold(id, fifos.stdin)
      await deps.io.openLog({
        id, stdoutFifo: fifos.stdout, stderrFifo: fifos.stderr === '' ? undefined : fifos.stderr,
        logPath: metadata.logPath === '' ? undefined : metadata.logPath, maxLineBytes: deps.settings.maxContainerLogLineSize,
      })
    }),
  ])
  operation.onUndo('destroy task', (signal) => deps.teardown.destroyHeld(withSignal(ctx, signal), id))
  const mappings = mappingsOf(metadata.config)
  const createTask = (rootfs: readonly Mount[]): Promise<number> => whenCleanedUp(ctx, () => containerd.tasks.create(ctx, {
    containerId: id, rootfs, ...fifos, terminal: tty, runtimePath: runtime.path,
    // The program may open its output anew (/dev/stdout), which only who owns it can.
    options: mappings === undefined ? runtime.options : runtime.optionsFor(hostIds(mappings, container.user ?? { uid: 0, gid: 0 })),
  }))
  const pid = await operation.step('create task', async () => (mappings === undefined ? createTask(mounts)
    : deps.host.withIdmapped({ rootfs: mounts, volumes: await readIdmapped(layout, id), dir: layout.containerIdmapDir(id), userns: usernsOf(pod) }, createTask)))
  deps.stdin.made(id)
  await forgetCutOff(layout, id)
  // The cgroup is asked for while the process is sure to be there. Written down at once: a restart of this service knows by it that the
  // process may have run, and whether it was killed for lack of memory.
  const cgroups = await operation.step('find cgroup', () => deps.host.cgroupPathsOf(pid))
  await operation.step('note cgroup', () => writeJsonPage(statusPath(layout, id), encodeStatus({ ...container, cgroups })))
  // Taken before: a program that ends at once has ended when the answer comes, and nothing ends before it started.
  const startedAt = nowNanoseconds()
  await operation.step('start task', () => containerd.tasks.start(ctx, id))
  deps.io.started(id)
  await operation.step('write status', () => saveStatus(deps.layout, deps.containers, {
    ...container, starting: false, cgroups, status: { ...container.status, state: 'running', pid, startedAt },
  }))
}

/** Of a container that another process of this service has made. */
async function rootfsMounts({ containerd }: ContainerDeps, ctx: Ctx, { id, metadata }: Container, snapshotter: string): Promise<Mount[]> {
  const mounts = await containerd.snapshots.mounts(ctx, snapshotter, id)
  if (metadata.processLabel === '') return mounts
  const record = await containerd.containers.get(ctx, id)
  return labelledMounts(mounts, record === undefined || record.spec === null ? '' : parseOciSpec(record.spec.value).linux?.mountLabel ?? '')
}

async function failed(deps: ContainerDeps, ctx: Ctx, operation: Operation, container: Container, error: unknown): Promise<void> {
  deps.io.started(container.id)
  for (const failure of await operation.undo()) ctx.log.error({ err: failure.error, container: container.id, step: failure.name }, 'cannot undo a failed start')
  deps.stdin.release(container.id)
  const at = nowNanoseconds()
  await saveEnd(ctx, deps.layout, deps.containers, {
    ...container, starting: false, status: { ...container.status, state: 'exited', pid: 0, startedAt: at, finishedAt: at, ...startFailure(messageOf(error)) },
  })
}
