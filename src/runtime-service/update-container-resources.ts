import { updateContainerResources as update } from '../container/update-resources.ts'
import { invalidArgument } from '../errors/cri-error.ts'
import type { UpdateContainerResourcesRequest, UpdateContainerResourcesResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { RuntimeServiceDeps } from './deps.ts'

type Deps = Pick<RuntimeServiceDeps, 'container' | 'containers' | 'sandboxes' | 'mutex'>

/** UpdateContainerResources: other limits for a created or running container; in ContainerStatus at once, and after a restart. */
export async function updateContainerResources(deps: Deps, ctx: Ctx, request: UpdateContainerResourcesRequest): Promise<Init<UpdateContainerResourcesResponse>> {
  if (request.windows !== null) throw invalidArgument('windows: this is a Linux node')
  const found = deps.containers.find(request.container_id)
  await deps.mutex.run(found.id, async () => {
    const container = deps.containers.find(found.id)
    const handler = deps.sandboxes.get(container.metadata.sandboxId)?.metadata.runtimeHandler ?? ''
    await update(deps.container, ctx, container, { linux: request.linux, annotations: request.annotations }, handler)
  }, ctx.signal)
  return {}
}
