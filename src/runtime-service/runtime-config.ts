import { CgroupDriver, type RuntimeConfigRequest, type RuntimeConfigResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'

export interface RuntimeConfigDeps {
  /** SystemdCgroup of the default runtime handler. */
  readonly systemdCgroup: boolean
}

/** RuntimeConfig: the cgroup driver, which the kubelet adopts instead of its own setting. */
export async function runtimeConfig(deps: RuntimeConfigDeps, _ctx: Ctx, _request: RuntimeConfigRequest): Promise<Init<RuntimeConfigResponse>> {
  return { linux: { cgroup_driver: deps.systemdCgroup ? CgroupDriver.SYSTEMD : CgroupDriver.CGROUPFS } }
}
