import { join } from 'node:path'
import type { ContainerRecord } from '../containerd/containers.ts'
import type { Ctx } from '../observability/context.ts'
import { parseOciSpec } from '../oci-spec/json.ts'
import { decodeContainerMetadata } from '../state/metadata.ts'
import { pluginDirs } from '../state/plugin-files.ts'
import type { Container } from '../state/records.ts'
import { removeCutOff } from './cut-off-start.ts'
import type { ContainerDeps } from './deps.ts'
import { removeContainerState, removeImageViews } from './image-volumes.ts'

/** Deletes a container that does not run: task (should one be left), snapshot, files, record. Idempotent. */
export async function removeContainer(deps: ContainerDeps, ctx: Ctx, container: Pick<Container, 'id'>): Promise<void> {
  const { id } = container
  const [record] = await Promise.all([deps.containerd.containers.get(ctx, id), deps.teardown.destroy(ctx, id)])
  if (record !== undefined) await removeCutOff(deps, ctx, record)
  await deps.io.closeLog(id)
  deps.stdin.release(id)
  await Promise.all([
    // The snapshot is where the record says, whatever is configured by now. It goes first: while the record is there, a failure in between is found again.
    record === undefined || record.snapshotter === '' ? undefined : deps.containerd.snapshots.remove(ctx, record.snapshotter, id),
    removeContainerState(deps, id).then(() => (record === undefined ? undefined : removeImageViews(deps, ctx, record))),
  ])
  // What containerd's own CRI plugin kept of it, if that made it.
  const mounts = record === undefined || record.spec === null ? [] : parseOciSpec(record.spec.value).mounts ?? []
  for (const dir of pluginDirs(mounts, sandboxOf(record))) await deps.host.removeTree(join(dir, 'containers', id))
  await deps.containerd.containers.delete(ctx, id)
  await deps.host.removeTree(deps.layout.containerDir(id))
}

/** Empty when the record does not tell: a container with unreadable metadata must be removable. */
function sandboxOf(record: ContainerRecord | undefined): string {
  try {
    return record === undefined ? '' : decodeContainerMetadata(record.extensions)?.sandboxId ?? ''
  } catch {
    return ''
  }
}
