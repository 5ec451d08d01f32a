import { invalidArgument } from '../errors/cri-error.ts'
import type { LinuxContainerSecurityContext } from '../generated/cri.ts'
import type { HostFacts, ResolvedDevice, RuntimeView, SpecSettings } from './input.ts'
import { idOf } from './integers.ts'
import type { OciDevice, OciDeviceCgroup } from './types.ts'

export interface DevicesInput {
  readonly devices: readonly ResolvedDevice[]
  readonly securityContext: LinuxContainerSecurityContext | null
  readonly hostFacts: Pick<HostFacts, 'hostDevices'>
  readonly runtime: Pick<RuntimeView, 'privilegedWithoutHostDevices' | 'privilegedWithoutHostDevicesAllDevicesAllowed'>
  readonly settings: Pick<SpecSettings, 'deviceOwnershipFromSecurityContext'>
}

/** linux.devices and what the devices cgroup allows on top of the base spec's rules. Throws INVALID_ARGUMENT for permissions other than r, w, m. */
export function linuxDevices(input: DevicesInput): { readonly devices: OciDevice[]; readonly rules: OciDeviceCgroup[]; readonly allAllowed: boolean } {
  const { devices, securityContext, hostFacts, runtime } = input
  const owner = ownership(input)
  const requested = new Map(devices.map((device) => [device.path, { ...nodeOf(device), ...owner }]))
  // A FIFO is in no device cgroup.
  const rules = devices.filter(({ type }) => type !== 'p').map((device) => ({ allow: true, type: device.type, major: device.major, minor: device.minor, access: access(device) }))
  const privileged = securityContext?.privileged === true
  const withHost = privileged && !runtime.privilegedWithoutHostDevices
  const host = withHost ? hostFacts.hostDevices.filter((device) => !requested.has(device.path)).map(nodeOf) : []
  return {
    devices: [...requested.values(), ...host],
    rules,
    allAllowed: withHost || (privileged && runtime.privilegedWithoutHostDevicesAllDevicesAllowed === true),
  }
}

function nodeOf(device: ResolvedDevice): OciDevice {
  const { path, type, major, minor, fileMode, uid, gid } = device
  return { path, type, major, minor, fileMode: fileMode & 0o7777, uid, gid }
}

function access(device: ResolvedDevice): string {
  if (/^[rwm]{1,3}$/.test(device.permissions) && new Set(device.permissions).size === device.permissions.length) return device.permissions
  throw invalidArgument(`device "${device.path}": the permissions "${device.permissions}" are not one or more of r, w and m`)
}

/** `device_ownership_from_security_context`: a container that does not run as root owns its devices. */
function ownership({ securityContext, settings }: DevicesInput): { uid?: number; gid?: number } {
  if (settings.deviceOwnershipFromSecurityContext !== true || securityContext === null) return {}
  const uid = securityContext.run_as_user === null ? 0 : idOf(securityContext.run_as_user.value, 'run_as_user')
  const gid = securityContext.run_as_group === null ? 0 : idOf(securityContext.run_as_group.value, 'run_as_group')
  return { ...(uid === 0 ? {} : { uid }), ...(gid === 0 ? {} : { gid }) }
}
