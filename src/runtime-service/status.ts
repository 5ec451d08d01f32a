import type { CniStatus } from '../cni/status.ts'
import type { Containerd } from '../containerd/containerd.ts'
import { messageOf, type CriError } from '../errors/cri-error.ts'
import type { RuntimeHandler, StatusRequest, StatusResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'

export interface StatusDeps {
  readonly containerd: Pick<Containerd, 'introspection'>
  /** The reason why calls are refused now, undefined when they run. */
  readonly gate: () => CriError | undefined
  readonly network: () => Promise<CniStatus>
  readonly runtimeHandlers: () => Promise<readonly Init<RuntimeHandler>[]>
  /** What `crictl info` shows beside the conditions; values are JSON. */
  readonly info: () => Readonly<Record<string, string>>
}

/** Status: whether pods can run (RuntimeReady) and get a network (NetworkReady), and if not, what to do about it. */
export async function status(deps: StatusDeps, ctx: Ctx, request: StatusRequest): Promise<Init<StatusResponse>> {
  const [runtime, network, handlers] = await Promise.all([runtimeProblem(deps, ctx), deps.network(), deps.runtimeHandlers()])
  return {
    status: {
      conditions: [
        { type: 'RuntimeReady', status: runtime === undefined, reason: runtime === undefined ? '' : 'ContainerdNotReady', message: runtime ?? '' },
        { type: 'NetworkReady', status: network.ready, reason: network.reason, message: network.message },
      ],
    },
    runtime_handlers: [...handlers],
    features: {
      supplemental_groups_policy: true,
      // The network is none of the parts that user namespaces take.
      user_namespaces_host_network: handlers.find(({ name }) => name === '')?.features?.user_namespaces ?? false,
    },
    info: request.verbose ? { ...deps.info(), cniStatus: JSON.stringify(network) } : {},
  }
}

async function runtimeProblem(deps: StatusDeps, ctx: Ctx): Promise<string | undefined> {
  const closed = deps.gate()
  if (closed !== undefined) return closed.message
  try {
    await deps.containerd.introspection.version(ctx)
    return undefined
  } catch (error) {
    return messageOf(error)
  }
}
