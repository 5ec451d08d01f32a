import { isRuncType } from './keys.ts'

/** Settings of the service itself: `[plugins."io.cri-shim.v1"]` and the command line. */
export interface ShimSettings {
  /** The CRI socket, `unix:///…`. */
  readonly listen: string
  /** containerd's socket, `unix:///…`. */
  readonly containerd: string
  readonly root: string
  readonly state: string
  /** `HOST:PORT` or `unix:///PATH`, empty: no metrics endpoint. */
  readonly metricsAddress: string
  readonly logLevel: LogLevel
  readonly tracing: TracingFileSettings
  readonly audit: AuditSettings
}

/** `[plugins."io.cri-shim.v1".tracing]`; what is empty or 0 is left to the OTEL_* variables. */
export interface TracingFileSettings {
  readonly endpoint: string
  readonly headers: Readonly<Record<string, string>>
  readonly serviceName: string
  readonly sampler: string
  /** A ratio. */
  readonly samplerArg: string
  readonly timeoutMs: number
}

/** `[plugins."io.cri-shim.v1".audit]` */
export interface AuditSettings {
  /** An absolute path, `stdout` or `journal`; empty: no audit log. */
  readonly log: string
  /** Whether the commands of exec are in it. */
  readonly commands: boolean
}

export type LogLevel = 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal'

export interface RegistryAuth {
  readonly username: string
  readonly password: string
  /** base64 of `user:password`. */
  readonly auth: string
  readonly identityToken: string
}

export interface RegistryTls {
  readonly insecureSkipVerify: boolean
  readonly caFile: string
  readonly certFile: string
  readonly keyFile: string
}

/** What is known of credentials for one host, in our own section. */
export interface HostCredentials extends RegistryAuth {
  /** A Docker config.json; empty: none. */
  readonly configFile: string
  /** The NAME of `docker-credential-NAME`, or an absolute path; empty: none. */
  readonly helper: string
  /** Registries whose pull secrets this host is given as well. */
  readonly pullSecretsOf: readonly string[]
}

export interface RegistrySettings {
  /** Directories with `HOST/hosts.toml`, in the order of search; empty: none. */
  readonly configPath: readonly string[]
  readonly headers: Readonly<Record<string, readonly string[]>>
  /** By registry host (`docker.io`, `*` for any). */
  readonly mirrors: Readonly<Record<string, { readonly endpoints: readonly string[] }>>
  /** By registry host. */
  readonly configs: Readonly<Record<string, { readonly tls?: RegistryTls; readonly auth?: RegistryAuth }>>
  /** By registry URL or host. */
  readonly auths: Readonly<Record<string, RegistryAuth>>
  /** By host with its port, `*.example.com` or `*`. */
  readonly credentials: Readonly<Record<string, HostCredentials>>
  /** Empty: helpers are looked for in PATH. */
  readonly credentialHelperDir: string
}

export interface CniSettings {
  readonly binDirs: readonly string[]
  readonly confDir: string
  /** 0: no limit. */
  readonly maxConfNum: number
  /** Empty: no template. */
  readonly confTemplate: string
  readonly ipPref: 'ipv4' | 'ipv6' | 'cni'
  readonly setupSerially: boolean
  readonly useInternalLoopback: boolean
}

/** Options of the runc shim (runc, crun, youki); empty strings mean "the shim's default". */
export interface RuncOptions {
  readonly kind: 'runc'
  readonly systemdCgroup: boolean
  readonly binaryName: string
  readonly root: string
  readonly shimCgroup: string
  readonly noPivotRoot: boolean
  readonly noNewKeyring: boolean
  readonly ioUid: number
  readonly ioGid: number
  readonly criuImagePath: string
  readonly criuWorkPath: string
}

/**
 * Options of any other shim. Without a ConfigPath the whole options table is handed over as TOML in `configBody`, as containerd does.
 * All three empty: no options were given, send none.
 */
export interface GenericOptions {
  readonly kind: 'generic'
  readonly typeUrl: string
  readonly configPath: string
  readonly configBody: string
}

export interface RuntimeSettings {
  readonly runtimeType: string
  readonly runtimePath: string
  readonly podAnnotations: readonly string[]
  readonly containerAnnotations: readonly string[]
  readonly privilegedWithoutHostDevices: boolean
  readonly privilegedWithoutHostDevicesAllDevicesAllowed: boolean
  readonly baseRuntimeSpec: string
  /** Empty: as cni.confDir. */
  readonly cniConfDir: string
  /** Read with cniConfDir only; 0: no limit. */
  readonly cniMaxConfNum: number
  /** Empty: the snapshotter of all. */
  readonly snapshotter: string
  readonly sandboxer: string
  readonly ioType: 'fifo' | 'streaming'
  readonly cgroupWritable: boolean
  readonly disablePauseImagePull: boolean
  readonly options: RuncOptions | GenericOptions
}

export interface StreamingSettings {
  readonly address: string
  /** 0: any free port. */
  readonly port: number
  /** 0: never. */
  readonly idleTimeoutMs: number
  readonly enableTls: boolean
  /** Empty, as keyFile: self-signed. */
  readonly certFile: string
  readonly keyFile: string
}

/** The effective configuration, frozen through and through. Times are in milliseconds, sizes in bytes. */
export interface Settings {
  readonly shim: ShimSettings

  readonly sandboxImage: string
  /** Images that garbage collection leaves alone, by purpose; `sandbox` is among them. */
  readonly pinnedImages: Readonly<Record<string, string>>
  readonly snapshotter: string
  readonly disableSnapshotAnnotations: boolean
  readonly discardUnpackedLayers: boolean
  /** 0: no limit. */
  readonly maxConcurrentDownloads: number
  /** 0: no timeout. */
  readonly imagePullProgressTimeoutMs: number
  readonly imagePullWithSyncFs: boolean
  /** Transfers of all pulls together; 0: no limit. */
  readonly maxConcurrentTransfers: number
  /** Of one layer, side by side. */
  readonly parallelRanges: number
  readonly parallelRangesFromMib: number
  readonly registry: RegistrySettings
  /** Between two measurements of the snapshots' disk usage. */
  readonly statsCollectPeriodMs: number
  /** Between two samples of CPU usage. */
  readonly cpuStatsCollectPeriodMs: number

  readonly enableSelinux: boolean
  readonly selinuxCategoryRange: number
  /** -1: no limit. */
  readonly maxContainerLogLineSize: number
  readonly disableCgroup: boolean
  readonly disableApparmor: boolean
  readonly disableProcMount: boolean
  readonly restrictOomScoreAdj: boolean
  /** Empty: unconfined. */
  readonly unsetSeccompProfile: string
  readonly tolerateMissingHugetlbController: boolean
  readonly disableHugetlbController: boolean
  /** Empty: there are no classes. */
  readonly blockioConfigFile: string
  readonly rdtConfigFile: string
  readonly ignoreBlockioNotEnabledErrors: boolean
  readonly ignoreRdtNotEnabledErrors: boolean
  readonly deviceOwnershipFromSecurityContext: boolean
  readonly ignoreImageDefinedVolumes: boolean
  readonly netnsMountsUnderStateDir: boolean
  readonly enableUnprivilegedPorts: boolean
  readonly enableUnprivilegedIcmp: boolean
  readonly enableCdi: boolean
  /** Checkpoints of containers. */
  readonly enableCriu: boolean
  readonly cdiSpecDirs: readonly string[]
  /** Always finite and above 0: a value of 0 in the file means the default, 10 s. */
  readonly drainExecSyncIoTimeoutMs: number

  readonly cni: CniSettings
  readonly defaultRuntimeName: string
  /** By runtime handler. */
  readonly runtimes: Readonly<Record<string, RuntimeSettings>>
  readonly streaming: StreamingSettings
}

/** Where an effective setting came from. */
export type Source =
  | { readonly kind: 'default' }
  | { readonly kind: 'file'; readonly file: string; readonly line: number; readonly column: number; readonly note?: string }
  | { readonly kind: 'flag'; readonly flag: string }

/** `/etc/containerd/config.toml:12`, `default`, `flag --root`. */
export function formatSource(source: Source): string {
  if (source.kind === 'default') return 'default'
  if (source.kind === 'flag') return `flag ${source.flag}`
  return `${source.file}:${source.line}${source.note === undefined ? '' : ` (${source.note})`}`
}

/** By path in the settings, `/` between the parts: `cni/binDirs`, `runtimes/runc/options/systemdCgroup`. What is missing is a default. */
export type Sources = ReadonlyMap<string, Source>

/** A setting's source by its path. */
export function sourceOf(sources: Sources, ...path: readonly string[]): Source {
  return sources.get(path.join('/')) ?? { kind: 'default' }
}

/** The cgroup driver that the runc-based runtimes ask for, the default runtime's first; undefined when there is none of them. */
export function cgroupDriverOf(settings: Settings): 'systemd' | 'cgroupfs' | undefined {
  const preferred = settings.runtimes[settings.defaultRuntimeName]
  for (const runtime of [...(preferred === undefined ? [] : [preferred]), ...Object.values(settings.runtimes)]) {
    if (isRuncType(runtime.runtimeType) && runtime.options.kind === 'runc') return runtime.options.systemdCgroup ? 'systemd' : 'cgroupfs'
  }
  return undefined
}

/** Freezes a plain object with everything in it. */
export function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value)
    for (const child of Object.values(value)) deepFreeze(child)
  }
  return value
}
