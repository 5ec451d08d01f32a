import type { Containerd } from '../containerd/containerd.ts'
import type { VersionRequest, VersionResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'

export interface VersionDeps {
  readonly containerd: Pick<Containerd, 'introspection'>
}

/**
 * Version. The runtime's name is containerd and its version containerd's own, as with its CRI plugin: tools decide by it what the node
 * can do.
 */
export async function version(deps: VersionDeps, ctx: Ctx, _request: VersionRequest): Promise<Init<VersionResponse>> {
  const { version: runtimeVersion } = await deps.containerd.introspection.version(ctx)
  // The kubelet's own protocol version, as every runtime answers it.
  return { version: '0.1.0', runtime_name: 'containerd', runtime_version: runtimeVersion, runtime_api_version: 'v1' }
}
