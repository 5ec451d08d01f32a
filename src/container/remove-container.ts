import type { Ctx } from '../observability/context.ts'
import type { Container } from '../state/records.ts'
import type { ContainerDeps } from './deps.ts'

/** Deletes a container that does not run: task (should one be left), snapshot, files, record. Idempotent. */
export async function removeContainer(deps: ContainerDeps, ctx: Ctx, container: Pick<Container, 'id'>): Promise<void> {
  const { id } = container
  await deps.teardown.destroy(ctx, id)
  await deps.io.closeLog(id)
  deps.stdin.release(id)
  // The snapshot is where the record says, whatever is configured by now. It goes first: while the record is there, a failure in between is found again.
  const record = await deps.containerd.containers.get(ctx, id)
  if (record !== undefined && record.snapshotter !== '') await deps.containerd.snapshots.remove(ctx, record.snapshotter, id)
  await deps.host.removeTree(deps.layout.containerStateDir(id))
  await deps.containerd.containers.delete(ctx, id)
  await deps.host.removeTree(deps.layout.containerDir(id))
}
