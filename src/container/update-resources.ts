import { Code, CriError, failedPrecondition, isNotFound, notFound } from '../errors/cri-error.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import { ociResourcesAny, ociSpecAny, parseOciSpec } from '../oci-spec/json.ts'
import type { OciSpec } from '../oci-spec/types.ts'
import { type ResourceUpdate, resourcesOfSpec, revertingResources } from '../oci-spec/update-resources.ts'
import { pluginDirs, writePluginResources } from '../state/plugin-files.ts'
import type { Container } from '../state/records.ts'
import type { ContainerDeps } from './deps.ts'

type Deps = Pick<ContainerDeps, 'containerd' | 'containers' | 'updatedSpec'>

/** For taking back, which must not end with the caller. */
const revertMs = 30_000

/**
 * UpdateContainerResources: other limits for a container that was created or runs. A running task is told first, then the spec in
 * containerd's record, from which status and restarts take them: a crash in between leaves the old ones on record, and the kubelet, which compares,
 * tells the new ones again. When the record cannot be written the task gets its old limits back. The caller holds the container's mutex.
 */
export async function updateContainerResources(deps: Deps, ctx: Ctx, container: Container, update: Omit<ResourceUpdate, 'started'>, handler: string): Promise<void> {
  const { id } = container
  const { state } = container.status
  if (container.removing) throw failedPrecondition(`container ${id} is being removed`, { reason: 'WrongState' })
  if (state !== 'created' && state !== 'running') throw failedPrecondition(`container ${id} is ${state}: only a created or running container has resources to update`, { reason: 'WrongState' })
  const record = await deps.containerd.containers.get(ctx, id)
  if (record === undefined) throw notFound(`container ${id} is gone from containerd`)
  if (record.spec === null) throw failedPrecondition(`container ${id} has no OCI spec in containerd: it was not made by a CRI service`)
  const before = parseOciSpec(record.spec.value)
  const after = deps.updatedSpec(before, { ...update, started: state === 'running' }, handler)
  const applied = state === 'running' && await updateTask(deps, ctx, id, before, after)
  try {
    await deps.containerd.containers.setSpec(ctx, id, { ...record.spec, value: ociSpecAny(after).value })
  } catch (error) {
    if (applied) await revert(deps, ctx, id, before, after)
    throw CriError.from(error, `the resources of container ${id} are as they were: containerd cannot record the new ones`)
  }
  const resources = resourcesOfSpec(after)
  deps.containers.update(id, (now) => ({ ...now, resources }))
  try {
    await writePluginResources(pluginDirs(after.mounts ?? [], container.metadata.sandboxId), id, resources)
  } catch (error) {
    ctx.log.warn({ err: error, container: id }, 'containerd\'s own CRI plugin made this container, and would show its old resources: its status file cannot be changed')
  }
}

/** False when the task has ended by now: then there is nothing to limit any more. */
async function updateTask(deps: Deps, ctx: Ctx, id: string, before: OciSpec, after: OciSpec): Promise<boolean> {
  const annotations = Object.entries(after.annotations ?? {}).filter(([key, value]) => before.annotations?.[key] !== value)
  try {
    await deps.containerd.tasks.update(ctx, id, ociResourcesAny(after.linux?.resources ?? {}), Object.fromEntries(annotations))
    return true
  } catch (error) {
    if (isNotFound(error) || (error instanceof CriError && error.reason === 'ShimGone')) return false
    const task = await deps.containerd.tasks.get(ctx, id)
    if (task === undefined || task.state === 'stopped') return false
    throw refusal(error, id)
  }
}

/** What the kernel said, in the runtime's words, as a code: the runtime's own is always "unknown". */
function refusal(error: unknown, id: string): CriError {
  const cause = CriError.from(error, `container ${id}: the runtime cannot set these resources`)
  const code = /invalid argument|numerical result out of range|no such device/i.test(cause.message) ? Code.INVALID_ARGUMENT
    : /device or resource busy|unable to set memory limit/i.test(cause.message) ? Code.FAILED_PRECONDITION : cause.code
  return new CriError(code, cause.message, { reason: cause.reason, cause: error })
}

async function revert(deps: Deps, ctx: Ctx, id: string, before: OciSpec, applied: OciSpec): Promise<void> {
  const resources = revertingResources(before.linux?.resources ?? {}, applied.linux?.resources ?? {})
  try {
    await deps.containerd.tasks.update(withSignal(ctx, AbortSignal.timeout(revertMs)), id, ociResourcesAny(resources))
  } catch (error) {
    ctx.log.error({ err: error, container: id }, 'a container runs with other resources than are on record: they could be neither recorded nor taken back; the next update puts it right')
  }
}
