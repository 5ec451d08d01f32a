import { stopContainer as stop } from '../container/stop-container.ts'
import { invalidArgument } from '../errors/cri-error.ts'
import type { StopContainerRequest, StopContainerResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { RuntimeServiceDeps } from './deps.ts'

type Deps = Pick<RuntimeServiceDeps, 'container' | 'containers'>

/**
 * StopContainer: the stop signal, `timeout` seconds, SIGKILL. Idempotent; OK for one that does not exist. Not ordered by the container's
 * mutex: a second call with a shorter grace period must not wait for the first one's.
 */
export async function stopContainer(deps: Deps, ctx: Ctx, request: StopContainerRequest): Promise<Init<StopContainerResponse>> {
  const seconds = Number(request.timeout)
  if (seconds < 0) throw invalidArgument(`timeout ${request.timeout} is negative`)
  const container = deps.containers.lookup(request.container_id)
  if (container === undefined) return {}
  await stop(deps.container, ctx, container, seconds * 1000)
  return {}
}
