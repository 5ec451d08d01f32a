import { invalidArgument } from '../errors/cri-error.ts'
import type { UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'

export interface UpdateRuntimeConfigDeps {
  /** Writes the conflist from `conf_template`; false when nothing was to be done. */
  readonly setPodCidrs: (cidrs: readonly string[]) => Promise<boolean>
}

/** UpdateRuntimeConfig: the pod CIDRs of the node (several, separated by commas) into `conf_template`. Nothing happens without one. */
export async function updateRuntimeConfig(deps: UpdateRuntimeConfigDeps, ctx: Ctx, request: UpdateRuntimeConfigRequest): Promise<Init<UpdateRuntimeConfigResponse>> {
  const cidr = request.runtime_config?.network_config?.pod_cidr ?? ''
  if (request.runtime_config === null) throw invalidArgument('runtime_config is missing')
  const cidrs = cidr.split(',').map((part) => part.trim()).filter((part) => part !== '')
  if (cidrs.length === 0) return {}
  const written = await deps.setPodCidrs(cidrs)
  ctx.log.info({ cidrs, written }, written ? 'wrote the CNI configuration from conf_template' : 'the pod CIDR changes nothing: there is no conf_template, or a network is configured already')
  return {}
}
