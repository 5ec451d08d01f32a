import { startContainer as start } from '../container/start-container.ts'
import { failedPrecondition } from '../errors/cri-error.ts'
import type { StartContainerRequest, StartContainerResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { Sandbox } from '../state/records.ts'
import type { RuntimeServiceDeps } from './deps.ts'

type Deps = Pick<RuntimeServiceDeps, 'container' | 'containers' | 'sandboxes' | 'mutex' | 'operation'>

/** StartContainer: runs a created container. One that cannot be started has ended, with a reason in its status. */
export async function startContainer(deps: Deps, ctx: Ctx, request: StartContainerRequest): Promise<Init<StartContainerResponse>> {
  const found = deps.containers.find(request.container_id)
  await deps.mutex.run(found.id, async () => {
    const container = deps.containers.find(found.id)
    const { sandboxId } = container.metadata
    const readySandbox = (): Sandbox => {
      const sandbox = deps.sandboxes.get(sandboxId)
      if (sandbox?.state !== 'ready') throw failedPrecondition(`container ${container.id} cannot be started: its pod sandbox ${sandboxId} is not ready`, { reason: 'SandboxNotReady' })
      return sandbox
    }
    await start(deps.container, ctx, deps.operation('StartContainer'), container, readySandbox)
  }, ctx.signal)
  return {}
}
