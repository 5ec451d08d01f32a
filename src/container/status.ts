import { join } from 'node:path'
import type { Ctx } from '../observability/context.ts'
import type { Container } from '../state/records.ts'
import { encodeStatus, type Layout, writeJsonPage } from '../state/status-file.ts'
import type { Store } from '../state/store.ts'

export function statusPath(layout: Layout, id: string): string {
  return join(layout.containerDir(id), 'status.json')
}

/** Writes a container's status to its file and then to the store: what a reader sees survives a crash. */
export async function saveStatus(layout: Layout, containers: Store<Container>, container: Container): Promise<void> {
  await writeJsonPage(statusPath(layout, container.id), encodeStatus(container))
  apply(containers, container)
}

/** The same for an end, which is true whether the disk takes it or not: a container that has ended must not seem to run for ever. */
export async function saveEnd(ctx: Ctx, layout: Layout, containers: Store<Container>, container: Container): Promise<void> {
  try {
    await writeJsonPage(statusPath(layout, container.id), encodeStatus(container))
  } catch (error) {
    ctx.log.error({ err: error, container: container.id }, `cannot write down how a container ended: its exit code is lost when cri-shim restarts; look at the disk of ${layout.root}`)
  }
  apply(containers, container)
}

function apply(containers: Store<Container>, container: Container): void {
  // What else changed in the record meanwhile (a removal that has begun) stays.
  containers.update(container.id, (now) => ({ ...now, status: container.status, oomKilled: now.oomKilled || container.oomKilled, cgroups: container.cgroups, starting: container.starting }))
}
