import type { Settings } from '../config/settings.ts'
import type { ContainerConfig, IDMapping, PodSandboxConfig } from '../generated/cri.ts'
import type { CdiInjection } from './cdi/apply.ts'
import type { ImageConfig } from './image-config.ts'
import type { RuntimeFeatures } from './runtime-features.ts'
import type { OciBlockIO, OciSpec } from './types.ts'

/** `legacy` is cgroup v1, `hybrid` is v1 with a v2 tree beside it (v1 for our purposes), `unified` is cgroup v2. */
export type CgroupMode = 'legacy' | 'hybrid' | 'unified'

/** A device node that the caller has looked up, as stat() gave it. */
export interface ResolvedDevice {
  /** Where it appears in the container. */
  readonly path: string
  readonly type: 'b' | 'c' | 'p'
  readonly major: number
  readonly minor: number
  /** The permission bits, without the file type. */
  readonly fileMode: number
  readonly uid: number
  readonly gid: number
  /** What the devices cgroup allows: letters out of `rwm`. */
  readonly permissions: string
}

/**
 * What the machine is like. Capabilities and OOM score are those of the process that starts the runtime (containerd, whose shims run runc),
 * which need not be those of this service.
 */
export interface HostFacts {
  readonly hostname: string
  /** As GOARCH names it, the way OCI platforms do: amd64, arm64, … */
  readonly arch: string
  /** Kernel version: major, minor. */
  readonly kernel: readonly [number, number]
  readonly cgroupMode: CgroupMode
  /** Mount options of the host's cgroup2 mount: kept where a container shares its superblock without a cgroup namespace. */
  readonly cgroup2MountOptions?: readonly string[]
  /** Whether swap is accounted: memory.memsw.limit_in_bytes (v1) or memory.swap.max (v2) exists. */
  readonly swapControllerAvailable: boolean
  readonly hugetlbControllerPresent: boolean
  /** What the machine can ever have, as the kernel lists it (`0-7`): /sys/devices/system/cpu/possible and node/possible; left out, nothing is checked. */
  readonly possibleCpus?: string | undefined
  readonly possibleMemoryNodes?: string | undefined
  /** The effective capabilities as a bit mask (CapEff of /proc/PID/status). */
  readonly effectiveCapabilities: bigint
  /** /proc/sys/kernel/cap_last_cap */
  readonly capLastCap: number
  readonly ownOomScoreAdj: number
  readonly seccompEnabled: boolean
  readonly apparmorEnabled: boolean
  /** Names of the AppArmor profiles that the kernel has loaded; left out, nothing is checked. */
  readonly apparmorProfiles?: ReadonlySet<string>
  /** Why the default profile cannot be loaded although apparmor_parser is there. */
  readonly apparmorFault?: string | undefined
  /** SELinux is on in the kernel and in the configuration (`enable_selinux`): then every spec needs labels. */
  readonly selinuxEnabled: boolean
  /** Whether this machine is itself inside a user namespace. */
  readonly inUserNamespace?: boolean
  /** Every device node of the host's /dev, for privileged containers. */
  readonly hostDevices: readonly ResolvedDevice[]
}

/** The settings of a runtime handler (`containerd.runtimes.NAME`) that shape a spec. */
export interface RuntimeView {
  readonly systemdCgroup: boolean
  readonly privilegedWithoutHostDevices: boolean
  readonly privilegedWithoutHostDevicesAllDevicesAllowed?: boolean
  /** The parsed base_runtime_spec; read it with parseOciJson(). */
  readonly baseSpec?: OciSpec | undefined
  readonly podAnnotations: readonly string[]
  readonly containerAnnotations: readonly string[]
  readonly cgroupWritable: boolean
  /** What the runtime says that it can do (`runc features`). */
  readonly features?: Partial<RuntimeFeatures>
}

/** The settings of the CRI section that shape a spec. */
export type SpecSettings = Pick<Settings,
  | 'disableCgroup' | 'disableApparmor' | 'disableProcMount' | 'restrictOomScoreAdj' | 'unsetSeccompProfile' | 'tolerateMissingHugetlbController'
  | 'disableHugetlbController' | 'enableUnprivilegedPorts' | 'enableUnprivilegedIcmp'> & Partial<Pick<Settings, 'deviceOwnershipFromSecurityContext'>>

/**
 * A bind mount whose host path the caller has created, resolved through symlinks, checked for the wanted propagation and relabelled.
 * `origin: 'cri'` marks the request's own mounts; `'host'` marks what this service adds (/etc/hosts, /dev/shm, image volumes …) and yields
 * to a request's mount on the same path.
 */
export interface ResolvedMount {
  readonly origin: 'cri' | 'host'
  readonly containerPath: string
  readonly hostPath: string
  readonly readonly: boolean
  readonly recursiveReadOnly?: boolean
  /** MountPropagation */
  readonly propagation?: number
  readonly uidMappings?: readonly IDMapping[]
  readonly gidMappings?: readonly IDMapping[]
  /** The caller gives what is at the host path the container's SELinux label. */
  readonly relabel?: boolean
}

/** The user that a process runs as; what resolveUser() returns. */
export interface ResolvedUser {
  readonly uid: number
  readonly gid: number
  readonly additionalGids: readonly number[]
  readonly username?: string
  /** The home directory from the image's /etc/passwd. */
  readonly home?: string
}

/** The labels that the caller has allocated; both empty without SELinux. */
export interface SelinuxLabels {
  readonly processLabel: string
  readonly mountLabel: string
}

interface CommonInput {
  readonly podConfig: PodSandboxConfig
  readonly imageConfig: ImageConfig
  readonly user: ResolvedUser
  readonly hostFacts: HostFacts
  readonly runtime: RuntimeView
  readonly settings: SpecSettings
  /** The text of the Localhost seccomp profile that seccompRequest() names. */
  readonly seccompProfile?: string | undefined
  readonly selinux?: SelinuxLabels | undefined
}

export interface ContainerSpecInput extends CommonInput {
  readonly containerId: string
  readonly containerName: string
  readonly sandboxId: string
  readonly sandboxPid: number
  readonly config: ContainerConfig
  readonly imageName: string
  /** The pod's network namespace; undefined for a pod on the host's network. */
  readonly netnsPath: string | undefined
  readonly mounts: readonly ResolvedMount[]
  /** What the container's classes come to (requestedClass()), undefined for none. */
  readonly blockIO?: OciBlockIO | undefined
  readonly rdtClass?: string | undefined
  /** The nodes behind config.devices. */
  readonly devices: readonly ResolvedDevice[]
  /** What the CDI devices of requestedCdiDevices() bring; undefined when the node injects none. */
  readonly cdi?: CdiInjection | undefined
  /** The process whose PID namespace a container in mode TARGET joins: the init process of `target_id`, which the caller has checked to be of this pod. */
  readonly targetPid?: number | undefined
}

export interface SandboxSpecInput extends CommonInput {
  readonly sandboxId: string
  /** The name of the pause image. */
  readonly imageName: string
  readonly netnsPath: string | undefined
  /** The pod's user namespace, pinned together with its network namespace; undefined to let the runtime make one. */
  readonly usernsPath?: string | undefined
  /** Host path of the pod's /dev/shm (the host's own with host IPC). */
  readonly shmPath: string
  /** Host path of the pod's resolv.conf. */
  readonly resolvConfPath: string
}
