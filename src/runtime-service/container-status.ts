import type { ContainerStatusRequest, ContainerStatusResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import { stringifyOciJson } from '../oci-spec/json.ts'
import { toGoJson } from '../state/go-json.ts'
import { containerStatusMessage } from './container-message.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { specOf } from './spec-of.ts'

type Deps = Pick<RuntimeServiceDeps, 'container' | 'containers' | 'images' | 'sandboxes'>

/** ContainerStatus; verbose adds the runtime spec and what the service knows, in the JSON that `crictl inspect` shows. */
export async function containerStatus(deps: Deps, ctx: Ctx, request: ContainerStatusRequest): Promise<Init<ContainerStatusResponse>> {
  const container = deps.containers.find(request.container_id)
  const status = containerStatusMessage(container, deps.images)
  if (!request.verbose) return { status }
  const record = await deps.container.containerd.containers.get(ctx, container.id)
  const info = {
    sandboxID: container.metadata.sandboxId, pid: container.status.pid, removing: container.removing, snapshotKey: record?.snapshot_key ?? '',
    snapshotter: record?.snapshotter ?? '', runtimeType: record?.runtime?.name ?? '', config: toGoJson('runtime.v1.ContainerConfig', container.metadata.config),
    runtimeSpec: specOf(record), oomKilled: container.oomKilled, cgroups: container.cgroups,
  }
  return { status, info: { info: stringifyOciJson(info) } }
}
