/**
 * The OCI runtime specification (config.md, config-linux.md of opencontainers/runtime-spec 1.1), as far as this service writes it.
 * Fields that only an administrator's base_runtime_spec may bring are kept as they are.
 */

/** A 64-bit integer of the specification: a number while that is exact, a bigint beyond 2^53 (see json.ts). */
export type OciInteger = number | bigint

export interface OciUser {
  uid: number
  gid: number
  umask?: number
  additionalGids?: number[]
}

export interface OciCapabilities {
  bounding?: string[]
  effective?: string[]
  inheritable?: string[]
  permitted?: string[]
  ambient?: string[]
}

export interface OciRlimit {
  type: string
  hard: OciInteger
  soft: OciInteger
}

export interface OciProcess {
  terminal?: boolean
  consoleSize?: { height: number; width: number }
  user: OciUser
  args?: string[]
  env?: string[]
  cwd: string
  capabilities?: OciCapabilities
  rlimits?: OciRlimit[]
  noNewPrivileges?: boolean
  apparmorProfile?: string
  oomScoreAdj?: number
  selinuxLabel?: string
}

export interface OciIdMapping {
  containerID: number
  hostID: number
  size: number
}

export interface OciMount {
  destination: string
  type?: string
  source?: string
  options?: string[]
  uidMappings?: OciIdMapping[]
  gidMappings?: OciIdMapping[]
}

export type OciNamespaceType = 'pid' | 'network' | 'mount' | 'ipc' | 'uts' | 'user' | 'cgroup' | 'time'

export interface OciNamespace {
  type: OciNamespaceType
  path?: string
}

export interface OciDevice {
  path: string
  type: string
  major: number
  minor: number
  fileMode?: number
  uid?: number
  gid?: number
}

export interface OciDeviceCgroup {
  allow: boolean
  type?: string
  major?: number
  minor?: number
  access?: string
}

export interface OciThrottleDevice {
  major: number
  minor: number
  /** Bytes or operations a second. */
  rate: OciInteger
}

export interface OciBlockIO {
  weight?: number
  leafWeight?: number
  weightDevice?: { major: number; minor: number; weight?: number; leafWeight?: number }[]
  throttleReadBpsDevice?: OciThrottleDevice[]
  throttleWriteBpsDevice?: OciThrottleDevice[]
  throttleReadIOPSDevice?: OciThrottleDevice[]
  throttleWriteIOPSDevice?: OciThrottleDevice[]
}

export interface OciResources {
  devices?: OciDeviceCgroup[]
  memory?: { limit?: OciInteger; reservation?: OciInteger; swap?: OciInteger; kernel?: OciInteger; disableOOMKiller?: boolean }
  cpu?: { shares?: OciInteger; quota?: OciInteger; period?: OciInteger; cpus?: string; mems?: string }
  pids?: { limit: OciInteger }
  blockIO?: OciBlockIO
  hugepageLimits?: { pageSize: string; limit: OciInteger }[]
  unified?: Record<string, string>
}

export interface OciSeccompArg {
  index: number
  value: OciInteger
  valueTwo?: OciInteger
  op: string
}

export interface OciSyscallRule {
  names: string[]
  action: string
  errnoRet?: number
  args?: OciSeccompArg[]
}

export interface OciSeccomp {
  defaultAction: string
  defaultErrnoRet?: number
  architectures?: string[]
  flags?: string[]
  listenerPath?: string
  listenerMetadata?: string
  syscalls?: OciSyscallRule[]
}

export interface OciLinux {
  uidMappings?: OciIdMapping[]
  gidMappings?: OciIdMapping[]
  sysctl?: Record<string, string>
  resources?: OciResources
  cgroupsPath?: string
  namespaces?: OciNamespace[]
  devices?: OciDevice[]
  seccomp?: OciSeccomp
  rootfsPropagation?: string
  maskedPaths?: string[]
  readonlyPaths?: string[]
  mountLabel?: string
  intelRdt?: object
  /** By the interface's name on the node (runtime-spec 1.3). */
  netDevices?: Record<string, { name?: string }>
}

export interface OciHook {
  path: string
  args?: readonly string[]
  env?: readonly string[]
  timeout?: number
}

/** By the moment at which the runtime runs them. */
export type OciHooks = Partial<Record<'prestart' | 'createRuntime' | 'createContainer' | 'startContainer' | 'poststart' | 'poststop', OciHook[]>>

export interface OciSpec {
  ociVersion: string
  process?: OciProcess
  root?: { path: string; readonly?: boolean }
  hostname?: string
  domainname?: string
  mounts?: OciMount[]
  hooks?: OciHooks
  annotations?: Record<string, string>
  linux?: OciLinux
}
