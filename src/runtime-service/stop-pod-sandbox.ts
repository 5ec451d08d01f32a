import { allOf } from '../concurrency/join.ts'
import type { StopPodSandboxRequest, StopPodSandboxResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import { stopContainer } from '../container/stop-container.ts'
import { markNotReady, stopSandbox } from '../sandbox/stop-sandbox.ts'
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
  const stopContainers = (): Promise<void>[] => containersOf(deps.containers, sandbox.id).map((container) => stopContainer(deps.container, ctx, container, 0))
  if (sandbox.byPlugin === true) {
    // containerd 2 ends the shim of such a pod with the task of its pause process, if no other task is left then, and with no other.
    markNotReady(deps.sandbox, sandbox.id)
    await allOf(stopContainers())
    await stopSandbox(deps.sandbox, ctx, sandbox)
  } else await allOf([...stopContainers(), stopSandbox(deps.sandbox, ctx, sandbox)])
}
