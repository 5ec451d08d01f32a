import { failedPrecondition } from '../errors/cri-error.ts'
import type { ReopenContainerLogRequest, ReopenContainerLogResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { RuntimeServiceDeps } from './deps.ts'

type Deps = Pick<RuntimeServiceDeps, 'container' | 'containers'>

/** ReopenContainerLog: after the kubelet has renamed the file, output goes on in a new one; not a byte is lost. */
export async function reopenContainerLog(deps: Deps, _ctx: Ctx, request: ReopenContainerLogRequest): Promise<Init<ReopenContainerLogResponse>> {
  const container = deps.containers.find(request.container_id)
  if (container.status.state !== 'running') throw failedPrecondition(`container ${container.id} is ${container.status.state}: only a running container has a log to reopen`, { reason: 'NotRunning' })
  await deps.container.io.reopenLog(container.id)
  return {}
}
