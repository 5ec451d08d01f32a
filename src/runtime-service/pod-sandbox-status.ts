import { nowNanoseconds } from '../containerd/timestamp.ts'
import { type LinuxContainerResources, NamespaceMode, type PodSandboxConfig, type PodSandboxStatus, type PodSandboxStatusRequest, type PodSandboxStatusResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import { stringifyOciJson } from '../oci-spec/json.ts'
import { toGoJson } from '../state/go-json.ts'
import type { Sandbox } from '../state/records.ts'
import { containersOf, containerStatusMessage } from './container-message.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { sandboxState } from './filters.ts'
import { specOf } from './spec-of.ts'

type Deps = Pick<RuntimeServiceDeps, 'sandbox' | 'sandboxes' | 'containers' | 'images'>

/** A sandbox's status as CRI gives it. */
export function sandboxStatusMessage(sandbox: Sandbox): Init<PodSandboxStatus> {
  const { config, ips, runtimeHandler } = sandbox.metadata
  const options = config.linux?.security_context?.namespace_options ?? { network: NamespaceMode.POD, pid: NamespaceMode.POD, ipc: NamespaceMode.POD, target_id: '', userns_options: null }
  const [ip = '', ...additional] = ips
  return {
    id: sandbox.id, metadata: config.metadata, state: sandboxState(sandbox), created_at: String(sandbox.createdAt),
    network: { ip: sandbox.networkDown ? '' : ip, additional_ips: sandbox.networkDown ? [] : additional.map((address) => ({ ip: address })) },
    linux: { namespaces: { options } }, labels: config.labels, annotations: config.annotations, runtime_handler: runtimeHandler,
  }
}

/** PodSandboxStatus; verbose adds the runtime spec and the CNI result, in the JSON that `crictl inspectp` shows. */
export async function podSandboxStatus(deps: Deps, ctx: Ctx, request: PodSandboxStatusRequest): Promise<Init<PodSandboxStatusResponse>> {
  const sandbox = deps.sandboxes.find(request.pod_sandbox_id)
  const { config, runtimeHandler } = sandbox.metadata
  const answer: Init<PodSandboxStatusResponse> = {
    status: sandboxStatusMessage(sandbox),
    containers_statuses: containersOf(deps.containers, sandbox.id).map((container) => containerStatusMessage(container, deps.images)),
    // The clock of container events: the kubelet takes the later of the two for the newer one.
    timestamp: String(nowNanoseconds()),
  }
  if (!request.verbose) return answer
  const record = await deps.sandbox.containerd.containers.get(ctx, sandbox.id)
  const info = {
    pid: sandbox.pid, processStatus: sandbox.state === 'ready' ? 'running' : 'stopped', netNamespaceClosed: sandbox.networkDown, netNamespacePath: sandbox.metadata.netnsPath,
    image: record?.image ?? '', snapshotKey: record?.snapshot_key ?? '', snapshotter: record?.snapshotter ?? '', runtimeHandler, runtimeType: record?.runtime?.name ?? '',
    config: toGoJson('runtime.v1.PodSandboxConfig', config), ...podResources(config), runtimeSpec: specOf(record), cniResult: sandbox.metadata.cniResult ?? null,
  }
  return { ...answer, info: { info: stringifyOciJson(info) } }
}

/** As containerd shows them: what UpdatePodSandboxResources said last, or the pod's start. */
function podResources({ linux }: PodSandboxConfig): Readonly<Record<string, unknown>> {
  const shown = (resources: LinuxContainerResources | null): unknown => (resources === null ? undefined : toGoJson('runtime.v1.ContainerResources', { linux: resources }))
  return { overhead: shown(linux?.overhead ?? null), resources: shown(linux?.resources ?? null) }
}
