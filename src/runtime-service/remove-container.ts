import { removeContainer as remove } from '../container/remove-container.ts'
import { stopContainer } from '../container/stop-container.ts'
import { failedPrecondition } from '../errors/cri-error.ts'
import type { RemoveContainerRequest, RemoveContainerResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { Container } from '../state/records.ts'
import type { RuntimeServiceDeps } from './deps.ts'

type Deps = Pick<RuntimeServiceDeps, 'container' | 'containers' | 'containerNames' | 'mutex'>

/** RemoveContainer: kills the container if it still runs, removes everything of it. Idempotent; OK for one that does not exist. */
export async function removeContainer(deps: Deps, ctx: Ctx, request: RemoveContainerRequest): Promise<Init<RemoveContainerResponse>> {
  const found = deps.containers.lookup(request.container_id)
  if (found === undefined) return {}
  await deps.mutex.run(found.id, async () => {
    const container = deps.containers.get(found.id)
    if (container === undefined) return
    if (container.starting) throw failedPrecondition(`container ${container.id} is being started: try again when that is over`)
    deps.containers.update(container.id, (now) => ({ ...now, removing: true }))
    try {
      await stopContainer(deps.container, ctx, container, 0)
      await remove(deps.container, ctx, container)
      forgetContainer(deps, container)
    } finally {
      // Only what could not be removed is still there: the next try may have it.
      deps.containers.update(container.id, (now) => ({ ...now, removing: false }))
    }
  }, ctx.signal)
  return {}
}

/** Takes a removed container out of memory. */
export function forgetContainer(deps: Pick<RuntimeServiceDeps, 'containers' | 'containerNames'>, container: Container): void {
  deps.containers.delete(container.id)
  deps.containerNames.release(container.metadata.name, container.id)
}
