import type { StopPodSandboxRequest, StopPodSandboxResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import { stopContainer } from '../container/stop-container.ts'
import { stopSandbox } from '../sandbox/stop-sandbox.ts'
import type { Sandbox } from '../state/records.ts'
import { containersOf } from './container-message.ts'
import type { RuntimeServiceDeps } from './deps.ts'

type Deps = Pick<RuntimeServiceDeps, 'sandbox' | 'container' | 'sandboxes' | 'containers' | 'mutex'>

/** StopPodSandbox: kills what runs in the pod and gives its address back. Idempotent; OK for a pod that does not exist. */
export async function stopPodSandbox(deps: Deps, ctx: Ctx, request: StopPodSandboxRequest): Promise<Init<StopPodSandboxResponse>> {
  const found = deps.sandboxes.lookup(request.pod_sandbox_id)
  if (found === undefined) return {}
  await deps.mutex.run(found.id, async () => {
    const sandbox = deps.sandboxes.get(found.id)
    if (sandbox !== undefined) await stopHeld(deps, ctx, sandbox)
  }, ctx.signal)
  return {}
}

/** The same for a caller that holds the sandbox's mutex. */
export async function stopHeld(deps: Deps, ctx: Ctx, sandbox: Sandbox): Promise<void> {
  const own = containersOf(deps.containers, sandbox.id)
  const results = await Promise.allSettled([
    ...own.map((container) => stopContainer(deps.container, ctx, container, 0)),
    stopSandbox(deps.sandbox, ctx, sandbox),
  ])
  for (const result of results) if (result.status === 'rejected') throw result.reason
}
