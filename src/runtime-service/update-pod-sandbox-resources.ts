import { failedPrecondition } from '../errors/cri-error.ts'
import type { LinuxContainerResources, PodSandboxConfig, UpdatePodSandboxResourcesRequest, UpdatePodSandboxResourcesResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import { encodeSandboxMetadata, sandboxExtension } from '../state/metadata.ts'
import type { RuntimeServiceDeps } from './deps.ts'

export interface UpdatePodSandboxResourcesDeps extends Pick<RuntimeServiceDeps, 'sandbox' | 'sandboxes' | 'mutex'> {
  /** Throws INVALID_ARGUMENT or FAILED_PRECONDITION for resources that this node cannot give. */
  readonly checkResources: (resources: LinuxContainerResources) => void
}

/**
 * UpdatePodSandboxResources: the pod's own resources and overhead are other ones from now on. They are recorded, in the sandbox's configuration,
 * and no cgroup is touched: the pod's cgroup is the kubelet's, which has written to it itself by then, and the pause container keeps its least
 * share of the CPU. What the request leaves out stays as it is.
 */
export async function updatePodSandboxResources(deps: UpdatePodSandboxResourcesDeps, ctx: Ctx, request: UpdatePodSandboxResourcesRequest): Promise<Init<UpdatePodSandboxResourcesResponse>> {
  const { id } = deps.sandboxes.find(request.pod_sandbox_id)
  const { overhead, resources } = request
  for (const part of [overhead, resources]) if (part !== null) deps.checkResources(part)
  await deps.mutex.run(id, async () => {
    const sandbox = deps.sandboxes.find(id)
    if (sandbox.state !== 'ready') throw failedPrecondition(`pod sandbox ${id} is not ready: its resources cannot be updated`, { reason: 'SandboxNotReady' })
    const metadata = { ...sandbox.metadata, config: withResources(sandbox.metadata.config, overhead, resources) }
    await deps.sandbox.containerd.containers.setExtension(ctx, id, sandboxExtension, encodeSandboxMetadata(metadata))
    deps.sandboxes.update(id, (now) => ({ ...now, metadata }))
  }, ctx.signal)
  return {}
}

function withResources(config: PodSandboxConfig, overhead: LinuxContainerResources | null, resources: LinuxContainerResources | null): PodSandboxConfig {
  const linux = config.linux ?? { cgroup_parent: '', security_context: null, sysctls: {}, overhead: null, resources: null }
  return { ...config, linux: { ...linux, overhead: overhead ?? linux.overhead, resources: resources ?? linux.resources } }
}
