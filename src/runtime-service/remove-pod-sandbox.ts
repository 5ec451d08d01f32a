import { removeContainer } from '../container/remove-container.ts'
import type { RemovePodSandboxRequest, RemovePodSandboxResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import { removeSandbox } from '../sandbox/stop-sandbox.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { forgetContainer } from './remove-container.ts'
import { stopHeld } from './stop-pod-sandbox.ts'

type Deps = Pick<RuntimeServiceDeps, 'sandbox' | 'container' | 'sandboxes' | 'containers' | 'sandboxNames' | 'containerNames' | 'mutex'>

/** RemovePodSandbox: stops the pod if it must, removes its containers and everything of it. Idempotent; OK for a pod that does not exist. */
export async function removePodSandbox(deps: Deps, ctx: Ctx, request: RemovePodSandboxRequest): Promise<Init<RemovePodSandboxResponse>> {
  const found = deps.sandboxes.lookup(request.pod_sandbox_id)
  if (found === undefined) return {}
  await deps.mutex.run(found.id, async () => {
    const sandbox = deps.sandboxes.get(found.id)
    if (sandbox === undefined) return
    await stopHeld(deps, ctx, sandbox)
    for (const container of deps.containers.values()) {
      if (container.metadata.sandboxId !== sandbox.id) continue
      await deps.mutex.run(container.id, async () => {
        await removeContainer(deps.container, ctx, container)
        forgetContainer(deps, container)
      }, ctx.signal)
    }
    await removeSandbox(deps.sandbox, ctx, sandbox)
    deps.sandboxes.delete(sandbox.id)
    deps.sandboxNames.release(sandbox.metadata.name, sandbox.id)
  }, ctx.signal)
  return {}
}
