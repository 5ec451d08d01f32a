/**
 * Every key that is read, in one table: where it stands in each version of the file, its type, default and effect.
 * Reading, checking, `config show` and `config default` all follow from it.
 */

/** The plugin sections of containerd's file that hold CRI settings, and our own. */
export const PLUGIN_IDS = {
  /** Version 3: images. */
  images: 'io.containerd.cri.v1.images',
  /** Version 3: runtime. */
  runtime: 'io.containerd.cri.v1.runtime',
  /** Version 3: the streaming server. In version 2 the same id holds everything. */
  server: 'io.containerd.grpc.v1.cri',
  /** Our own settings, the same in all versions. */
  shim: 'io.cri-shim.v1',
} as const

export type Section = keyof typeof PLUGIN_IDS

export const SECTIONS = ['shim', 'images', 'runtime', 'server'] as const satisfies readonly Section[]

/** The name of the CRI section in a version 1 file: `[plugins.cri]`. */
export const V1_PLUGIN_ID = 'cri'

/** `duration`: Go's syntax (`5m0s`), kept in milliseconds. `seconds`: an integer number of seconds, kept in milliseconds. */
export type Kind = 'bool' | 'int' | 'string' | 'strings' | 'duration' | 'seconds' | 'any'

export interface Key {
  /** Section and path in version 3; `*` stands for a name that the user chooses. */
  readonly id: string
  readonly kind: Kind
  /** In the unit of the file. Absent: empty (`""`, `[]`, false, 0). */
  readonly default?: boolean | number | string | readonly string[]
  /** The path in the settings object; absent: accepted, without effect here. */
  readonly setting?: string
  /** What it does, for the person who edits the file. */
  readonly doc: string
  /** The path below the version 2 plugin, where it is not the same as in version 3. null: not in version 2. */
  readonly v2?: string | null
  /** Older names, in version 2 only. */
  readonly v2Aliases?: readonly string[]
  /** Only in version 2 (removed in containerd 2). */
  readonly v2Only?: true
  readonly min?: number
  readonly max?: number
  readonly values?: readonly string[]
  /** An absolute path, when not empty. */
  readonly path?: true
  /** Never printed. */
  readonly secret?: true
}

const RUNTIME = 'runtime.containerd.runtimes.*'
const MAX_UINT32 = 4_294_967_295

/** The keys of `runtimes.NAME.options` for the runc shim; other shims define their own. */
export const RUNC_OPTIONS = [
  { name: 'SystemdCgroup', kind: 'bool', setting: 'systemdCgroup', doc: 'Put containers into cgroups through systemd. Must agree with the kubelet\'s cgroupDriver: true for "systemd", false for "cgroupfs".' },
  { name: 'BinaryName', kind: 'string', setting: 'binaryName', doc: 'The OCI runtime to execute, a name in PATH or a path: "runc" when empty, "/usr/bin/crun" for crun.' },
  { name: 'Root', kind: 'string', setting: 'root', doc: 'The state directory of the OCI runtime; the shim\'s own choice when empty.' },
  { name: 'ShimCgroup', kind: 'string', setting: 'shimCgroup', doc: 'A cgroup to put the shim process into.' },
  { name: 'NoPivotRoot', kind: 'bool', setting: 'noPivotRoot', doc: 'Use MS_MOVE instead of pivot_root; needed on a root file system in RAM, weaker otherwise.' },
  { name: 'NoNewKeyring', kind: 'bool', setting: 'noNewKeyring', doc: 'Do not create a session keyring per container.' },
  { name: 'IoUid', kind: 'int', max: MAX_UINT32, setting: 'ioUid', doc: 'The owner of the containers\' stdio pipes.' },
  { name: 'IoGid', kind: 'int', max: MAX_UINT32, setting: 'ioGid', doc: 'The group of the containers\' stdio pipes.' },
  { name: 'CriuImagePath', kind: 'string', setting: 'criuImagePath', doc: 'Where CRIU puts checkpoint images.' },
  { name: 'CriuWorkPath', kind: 'string', setting: 'criuWorkPath', doc: 'Where CRIU puts its work files and logs.' },
  // Known to containerd 1.x, or to its sandbox API only: accepted, without effect.
  { name: 'CriuPath', kind: 'string', doc: 'Not used since containerd 2.0.' },
  { name: 'TaskApiAddress', kind: 'string', doc: 'Set by sandbox controllers, not by hand.' },
  { name: 'TaskApiVersion', kind: 'int', doc: 'Set by sandbox controllers, not by hand.' },
] as const satisfies readonly (Omit<Key, 'id'> & { readonly name: string })[]

/** The keys of `runtimes.NAME.options` for shims that take a generic configuration (kata, runsc, …). */
export const GENERIC_OPTIONS = ['TypeUrl', 'ConfigPath', 'ConfigBody'] as const

/** Shim types that take runc's options. */
export function isRuncType(runtimeType: string): boolean {
  return runtimeType === 'io.containerd.runc.v2' || runtimeType === 'io.containerd.runc.v1'
}

const authKeys = (id: string, setting: string): readonly Key[] => [
  { id: `${id}.username`, kind: 'string', setting: `${setting}.username`, doc: 'User name for the registry.' },
  { id: `${id}.password`, kind: 'string', secret: true, setting: `${setting}.password`, doc: 'Password for the registry.' },
  { id: `${id}.auth`, kind: 'string', secret: true, setting: `${setting}.auth`, doc: 'base64 of "user:password", instead of the two.' },
  { id: `${id}.identitytoken`, kind: 'string', secret: true, setting: `${setting}.identityToken`, doc: 'An OAuth2 refresh token for the registry.' },
]

const TRACE_SAMPLERS = ['always_on', 'always_off', 'traceidratio', 'parentbased_always_on', 'parentbased_always_off', 'parentbased_traceidratio', ''] as const
const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal'] as const

export const KEYS: readonly Key[] = [
  { id: 'shim.listen', kind: 'string', default: 'unix:///run/cri-shim/cri-shim.sock', setting: 'shim.listen', doc: 'The socket that the kubelet and crictl connect to. Flag: --listen.' },
  { id: 'shim.containerd', kind: 'string', default: 'unix:///run/containerd/containerd.sock', setting: 'shim.containerd', doc: 'containerd\'s socket. When it is not set, grpc.address of the same file is taken. Flag: --containerd.' },
  { id: 'shim.root', kind: 'string', path: true, default: '/var/lib/cri-shim', setting: 'shim.root', doc: 'Files that survive a reboot: exit codes, /etc/hosts and resolv.conf of pods. Flag: --root.' },
  { id: 'shim.state', kind: 'string', path: true, default: '/run/cri-shim', setting: 'shim.state', doc: 'Files of the current boot: pipes, /dev/shm of pods, network namespaces. Flag: --state.' },
  { id: 'shim.metrics_address', kind: 'string', default: '127.0.0.1:10270', setting: 'shim.metricsAddress', doc: 'HOST:PORT or unix:///PATH where /metrics, /healthz and /readyz are served over plain HTTP; "" switches it off. Flag: --metrics-address.' },
  { id: 'shim.log_level', kind: 'string', default: 'info', values: LOG_LEVELS, setting: 'shim.logLevel', doc: 'What is logged: trace, debug, info, warn, error or fatal. SIGUSR1 changes it at run time. Flag: --log-level.' },
  { id: 'shim.blockio_config_file', kind: 'string', path: true, setting: 'blockioConfigFile', doc: 'Blockio classes, in the YAML of goresctrl. When it is not set, blockio_config_file of containerd\'s own section "io.containerd.service.v1.tasks-service" is taken.' },
  { id: 'shim.rdt_config_file', kind: 'string', path: true, setting: 'rdtConfigFile', doc: 'RDT classes, in the YAML of goresctrl; containerd sets them up from the same file. When it is not set, rdt_config_file of containerd\'s own section "io.containerd.service.v1.tasks-service" is taken.' },
  { id: 'shim.max_concurrent_transfers', kind: 'int', min: 0, default: 16, setting: 'maxConcurrentTransfers', doc: 'How many layers, or ranges of layers, the node downloads at the same time, of all images together (max_concurrent_downloads is for one image); 0: no limit.' },
  { id: 'shim.parallel_ranges', kind: 'int', min: 1, default: 3, setting: 'parallelRanges', doc: 'In how many ranges a large layer is downloaded side by side, from registries that serve ranges; 1: as a whole.' },
  { id: 'shim.parallel_ranges_from_mib', kind: 'int', min: 1, default: 128, setting: 'parallelRangesFromMib', doc: 'What is missing of a layer must be so many MiB for that. After a crash such a layer is downloaded anew, a smaller one from where it was.' },
  { id: 'shim.registry.credential_helper_dir', kind: 'string', path: true, setting: 'registry.credentialHelperDir', doc: 'Where credential helpers (docker-credential-NAME) are; when empty they are looked for in PATH.' },
  { id: 'shim.registry.credentials.*.config_file', kind: 'string', path: true, setting: 'registry.credentials.*.configFile', doc: 'A Docker config.json whose auths, credHelpers and credsStore are used for this host. The host may be "*.example.com" or "*".' },
  { id: 'shim.registry.credentials.*.helper', kind: 'string', setting: 'registry.credentials.*.helper', doc: 'The credential helper that is asked about this host: "ecr-login" for docker-credential-ecr-login, or an absolute path.' },
  { id: 'shim.registry.credentials.*.pull_secrets_of', kind: 'strings', setting: 'registry.credentials.*.pullSecretsOf', doc: 'Registries whose pull secrets this host gets too, for a mirror or server of another name: ["docker.io"]. By default it gets none.' },
  ...authKeys('shim.registry.credentials.*', 'registry.credentials.*'),
  { id: 'shim.tracing.endpoint', kind: 'string', setting: 'shim.tracing.endpoint', doc: 'Where spans are sent to by OTLP over HTTP: a collector\'s base URL such as http://127.0.0.1:4318. Empty, and no OTEL_EXPORTER_OTLP_ENDPOINT in the environment: no tracing.' },
  { id: 'shim.tracing.headers.*', kind: 'string', secret: true, setting: 'shim.tracing.headers.*', doc: 'HTTP headers for the collector: a table of strings.' },
  { id: 'shim.tracing.service_name', kind: 'string', setting: 'shim.tracing.serviceName', doc: 'The service.name of the spans; empty: OTEL_SERVICE_NAME, else cri-shim.' },
  { id: 'shim.tracing.sampler', kind: 'string', values: TRACE_SAMPLERS, setting: 'shim.tracing.sampler', doc: 'Which traces are recorded: always_on, always_off, traceidratio, or one of them with parentbased_ before it, which follows the caller. Empty: OTEL_TRACES_SAMPLER, else parentbased_always_on.' },
  { id: 'shim.tracing.sampler_arg', kind: 'string', setting: 'shim.tracing.samplerArg', doc: 'The ratio of the samplers that take one, in quotes: "0.1". Empty: OTEL_TRACES_SAMPLER_ARG, else 1.' },
  { id: 'shim.tracing.timeout', kind: 'duration', setting: 'shim.tracing.timeoutMs', doc: 'How long the collector may take to answer. Not set: OTEL_EXPORTER_OTLP_TIMEOUT, else 10s.' },
  { id: 'shim.audit.log', kind: 'string', setting: 'shim.audit.log', doc: 'Where the audit log goes: a file, or "stdout" (with systemd that is the journal; "journal" means the same). Empty: there is none.' },
  { id: 'shim.audit.commands', kind: 'bool', default: true, setting: 'shim.audit.commands', doc: 'Write down the commands of exec. They may hold secrets that somebody typed.' },

  { id: 'images.snapshotter', v2: 'containerd.snapshotter', kind: 'string', default: 'overlayfs', setting: 'snapshotter', doc: 'The containerd snapshotter for image layers and containers.' },
  { id: 'images.disable_snapshot_annotations', v2: 'containerd.disable_snapshot_annotations', kind: 'bool', default: true, setting: 'disableSnapshotAnnotations', doc: 'Do not pass image information to the snapshotter. Set false for lazy-pulling snapshotters (stargz, nydus, …), as proxy_plugins.NAME.exports.enable_remote_snapshot_annotations = "true" does.' },
  { id: 'images.discard_unpacked_layers', v2: 'containerd.discard_unpacked_layers', kind: 'bool', default: false, setting: 'discardUnpackedLayers', doc: 'Let containerd delete the compressed layers once they are unpacked: saves disk, but the image cannot be pushed or exported.' },
  { id: 'images.max_concurrent_downloads', kind: 'int', min: 0, default: 3, setting: 'maxConcurrentDownloads', doc: 'How many layers of one image are downloaded at the same time; 0: no limit of its own. In a version 3 file that of "io.containerd.transfer.v1.local" counts where containerd 2.1 uses it.' },
  { id: 'images.image_pull_progress_timeout', kind: 'duration', default: '5m0s', setting: 'imagePullProgressTimeoutMs', doc: 'A pull that receives no byte for so long is cancelled; "0s": never.' },
  { id: 'images.image_pull_with_sync_fs', kind: 'bool', default: false, setting: 'imagePullWithSyncFs', doc: 'Sync the file system after each unpacked layer; by cri-shim itself where containerd does not know how (before 1.7.14).' },
  { id: 'images.stats_collect_period', kind: 'seconds', min: 1, default: 10, setting: 'statsCollectPeriodMs', doc: 'Seconds between two measurements of how much disk the containers\' snapshots use.' },
  { id: 'images.pinned_images.sandbox', v2: 'sandbox_image', kind: 'string', default: 'registry.k8s.io/pause:3.10', setting: 'sandboxImage', doc: 'The pause image of every pod. Pulled when missing, never removed by image garbage collection.' },
  { id: 'images.pinned_images.*', v2: null, kind: 'string', setting: 'pinnedImages.*', doc: 'More images that image garbage collection leaves alone.' },
  { id: 'images.registry.config_path', kind: 'string', setting: 'registry.configPath', doc: 'Directories with one HOST/hosts.toml per registry, separated by ":" (usually "/etc/containerd/certs.d"). Read at every pull.' },
  { id: 'images.registry.headers.*', kind: 'strings', secret: true, setting: 'registry.headers.*', doc: 'HTTP headers for all registries: a table of arrays of strings.' },
  { id: 'images.registry.mirrors.*.endpoint', kind: 'strings', setting: 'registry.mirrors.*.endpoints', doc: 'Mirror URLs of a registry. Superseded by config_path, which excludes it.' },
  { id: 'images.registry.configs.*.tls.insecure_skip_verify', kind: 'bool', setting: 'registry.configs.*.tls.insecureSkipVerify', doc: 'Do not verify the registry\'s certificate. Superseded by skip_verify in hosts.toml.' },
  { id: 'images.registry.configs.*.tls.ca_file', kind: 'string', setting: 'registry.configs.*.tls.caFile', doc: 'CA certificates for the registry. Superseded by ca in hosts.toml.' },
  { id: 'images.registry.configs.*.tls.cert_file', kind: 'string', setting: 'registry.configs.*.tls.certFile', doc: 'Client certificate. Superseded by client in hosts.toml.' },
  { id: 'images.registry.configs.*.tls.key_file', kind: 'string', setting: 'registry.configs.*.tls.keyFile', doc: 'Key of the client certificate.' },
  ...authKeys('images.registry.configs.*.auth', 'registry.configs.*.auth'),
  ...authKeys('images.registry.auths.*', 'registry.auths.*'),
  { id: 'images.image_decryption.key_model', kind: 'string', doc: 'Where keys of encrypted images live: "node". Accepted; decryption is done by containerd\'s stream processors.' },
  { id: 'images.runtime_platforms.*.platform', v2: null, kind: 'string', doc: 'Accepted, without effect.' },
  { id: 'images.runtime_platforms.*.snapshotter', v2: null, kind: 'string', doc: 'Accepted, without effect: use containerd.runtimes.NAME.snapshotter.' },
  { id: 'images.use_local_image_pull', v2: null, kind: 'bool', doc: 'Accepted, without effect: images are always pulled by cri-shim.' },
  { id: 'images.concurrent_layer_fetch_buffer', v2: null, kind: 'int', doc: 'Accepted, without effect.' },

  { id: 'runtime.enable_selinux', kind: 'bool', default: false, setting: 'enableSelinux', doc: 'Label containers for SELinux.' },
  { id: 'runtime.selinux_category_range', kind: 'int', min: 0, max: 1024, default: 1024, setting: 'selinuxCategoryRange', doc: 'How many SELinux categories to choose from; 0 means 1024.' },
  { id: 'runtime.max_container_log_line_size', kind: 'int', min: -1, default: 16_384, setting: 'maxContainerLogLineSize', doc: 'Bytes after which a log line is split; -1 (or 0): no limit.' },
  { id: 'runtime.disable_cgroup', kind: 'bool', default: false, setting: 'disableCgroup', doc: 'Make no cgroups at all: resource limits have no effect. For rootless set-ups only.' },
  { id: 'runtime.disable_apparmor', kind: 'bool', default: false, setting: 'disableApparmor', doc: 'Do not apply AppArmor profiles.' },
  { id: 'runtime.restrict_oom_score_adj', kind: 'bool', default: false, setting: 'restrictOomScoreAdj', doc: 'Never ask for an oom_score_adj below our own: needed without CAP_SYS_RESOURCE.' },
  { id: 'runtime.disable_proc_mount', kind: 'bool', default: false, setting: 'disableProcMount', doc: 'Ignore securityContext.procMount and mask /proc always.' },
  { id: 'runtime.unset_seccomp_profile', kind: 'string', setting: 'unsetSeccompProfile', doc: 'The seccomp profile of containers that name none: "" or "unconfined", "runtime/default", or "localhost/PATH".' },
  { id: 'runtime.tolerate_missing_hugetlb_controller', kind: 'bool', default: true, setting: 'tolerateMissingHugetlbController', doc: 'Ignore huge page limits when the kernel has no such cgroup controller, instead of failing.' },
  { id: 'runtime.disable_hugetlb_controller', kind: 'bool', default: true, setting: 'disableHugetlbController', doc: 'Never set huge page limits, even with the controller there.' },
  { id: 'runtime.device_ownership_from_security_context', kind: 'bool', default: false, setting: 'deviceOwnershipFromSecurityContext', doc: 'Devices in containers belong to runAsUser and runAsGroup instead of their owner on the host.' },
  { id: 'runtime.ignore_image_defined_volumes', kind: 'bool', default: false, setting: 'ignoreImageDefinedVolumes', doc: 'Make no anonymous volumes for the image\'s VOLUME lines.' },
  { id: 'runtime.netns_mounts_under_state_dir', kind: 'bool', default: false, setting: 'netnsMountsUnderStateDir', doc: 'Keep network namespaces under our state directory instead of /var/run/netns. Remove all pods before changing it.' },
  { id: 'runtime.enable_unprivileged_ports', kind: 'bool', default: true, setting: 'enableUnprivilegedPorts', doc: 'Let every process of a pod bind ports below 1024 (pods with their own network).' },
  { id: 'runtime.enable_unprivileged_icmp', kind: 'bool', default: true, setting: 'enableUnprivilegedIcmp', doc: 'Let every process of a pod send pings (pods with their own network).' },
  { id: 'runtime.enable_cdi', kind: 'bool', default: true, setting: 'enableCdi', doc: 'Inject devices as Container Device Interface specifications describe them.' },
  { id: 'runtime.cdi_spec_dirs', kind: 'strings', default: ['/etc/cdi', '/var/run/cdi'], setting: 'cdiSpecDirs', doc: 'Where CDI specifications are.' },
  { id: 'runtime.enable_experimental_restore_via_create', kind: 'bool', doc: 'Accepted, without effect.' },
  { id: 'runtime.drain_exec_sync_io_timeout', kind: 'duration', default: '10s', setting: 'drainExecSyncIoTimeoutMs', doc: 'How long ExecSync waits for output after its process has exited while a background child keeps the pipe open. "0s" means 10s here: the wait is never endless.' },
  { id: 'runtime.stats_collect_period', v2: null, kind: 'duration', default: '1s', setting: 'cpuStatsCollectPeriodMs', doc: 'Time between two samples of CPU usage.' },
  { id: 'runtime.stats_retention_period', kind: 'duration', doc: 'Accepted, without effect.' },
  { id: 'runtime.ignore_deprecation_warnings', kind: 'strings', doc: 'Accepted, without effect.' },
  { id: 'runtime.enable_criu', kind: 'bool', default: true, setting: 'enableCriu', doc: 'Checkpoints of containers (CheckpointContainer), which need CRIU on the node.' },

  { id: 'runtime.cni.bin_dirs', kind: 'strings', default: ['/opt/cni/bin'], setting: 'cni.binDirs', doc: 'Where CNI plugins are. When it is not set and /opt/cni/bin is empty or missing, /usr/lib/cni (Debian) is searched as well.' },
  { id: 'runtime.cni.bin_dir', kind: 'string', doc: 'The older form of bin_dirs, for one directory.' },
  { id: 'runtime.cni.conf_dir', kind: 'string', path: true, default: '/etc/cni/net.d', setting: 'cni.confDir', doc: 'Where CNI network configurations are; watched, the first by name is used.' },
  { id: 'runtime.cni.max_conf_num', kind: 'int', min: 0, default: 1, setting: 'cni.maxConfNum', doc: 'How many configurations of conf_dir each pod gets, one interface each; 0: all.' },
  { id: 'runtime.cni.conf_template', kind: 'string', path: true, setting: 'cni.confTemplate', doc: 'A Go template that becomes a CNI configuration once the kubelet tells the pod CIDR.' },
  { id: 'runtime.cni.ip_pref', kind: 'string', default: 'ipv4', values: ['ipv4', 'ipv6', 'cni'], setting: 'cni.ipPref', doc: 'Which address is the pod\'s first: ipv4, ipv6, or cni (in the plugin\'s order).' },
  { id: 'runtime.cni.setup_serially', kind: 'bool', default: false, setting: 'cni.setupSerially', doc: 'Attach several networks one after the other.' },
  { id: 'runtime.cni.use_internal_loopback', kind: 'bool', default: false, setting: 'cni.useInternalLoopback', doc: 'Accepted; the loopback interface is always brought up without a plugin.' },

  { id: 'runtime.containerd.default_runtime_name', kind: 'string', default: 'runc', setting: 'defaultRuntimeName', doc: 'The runtime of pods without a RuntimeClass.' },
  { id: 'runtime.containerd.ignore_blockio_not_enabled_errors', kind: 'bool', setting: 'ignoreBlockioNotEnabledErrors', doc: 'Run a container that asks for a blockio class without one when there is no blockio_config_file; otherwise it is refused.' },
  { id: 'runtime.containerd.ignore_rdt_not_enabled_errors', kind: 'bool', setting: 'ignoreRdtNotEnabledErrors', doc: 'Run a container that asks for an RDT class without one when there is no rdt_config_file or the CPU has no RDT; otherwise it is refused.' },

  { id: `${RUNTIME}.runtime_type`, kind: 'string', default: 'io.containerd.runc.v2', setting: 'runtimes.*.runtimeType', doc: 'The containerd shim: io.containerd.runc.v2 for runc and crun, io.containerd.kata.v2, io.containerd.runsc.v1, … Only the runtime named runc has a default.' },
  { id: `${RUNTIME}.runtime_path`, kind: 'string', path: true, setting: 'runtimes.*.runtimePath', doc: 'The shim binary, when it is not in PATH under the name that runtime_type implies.' },
  { id: `${RUNTIME}.pod_annotations`, kind: 'strings', setting: 'runtimes.*.podAnnotations', doc: 'Pod annotations that reach the runtime, as shell patterns whose "*" stops at a slash: "example.com/*".' },
  { id: `${RUNTIME}.container_annotations`, kind: 'strings', setting: 'runtimes.*.containerAnnotations', doc: 'Container annotations that reach the runtime, as shell patterns whose "*" stops at a slash: "example.com/*".' },
  { id: `${RUNTIME}.privileged_without_host_devices`, kind: 'bool', setting: 'runtimes.*.privilegedWithoutHostDevices', doc: 'Privileged containers get no host devices.' },
  { id: `${RUNTIME}.privileged_without_host_devices_all_devices_allowed`, kind: 'bool', setting: 'runtimes.*.privilegedWithoutHostDevicesAllDevicesAllowed', doc: 'They may still make and use any device node. Needs privileged_without_host_devices.' },
  { id: `${RUNTIME}.cgroup_writable`, kind: 'bool', setting: 'runtimes.*.cgroupWritable', doc: 'Mount /sys/fs/cgroup writable in unprivileged containers. Needs cgroup v2.' },
  { id: `${RUNTIME}.base_runtime_spec`, kind: 'string', path: true, setting: 'runtimes.*.baseRuntimeSpec', doc: 'A JSON file with the OCI specification that every container starts from.' },
  { id: `${RUNTIME}.cni_conf_dir`, kind: 'string', path: true, setting: 'runtimes.*.cniConfDir', doc: 'Another conf_dir for pods of this runtime.' },
  { id: `${RUNTIME}.cni_max_conf_num`, kind: 'int', min: 0, setting: 'runtimes.*.cniMaxConfNum', doc: 'Another max_conf_num for pods of this runtime, read with cni_conf_dir only; 0: all.' },
  { id: `${RUNTIME}.snapshotter`, kind: 'string', setting: 'runtimes.*.snapshotter', doc: 'Another snapshotter for this runtime.' },
  { id: `${RUNTIME}.sandboxer`, v2Aliases: ['containerd.runtimes.*.sandbox_mode'], kind: 'string', default: 'podsandbox', setting: 'runtimes.*.sandboxer', doc: 'Who makes the sandbox: podsandbox (a pause container). Pods of a handler with another one (shim) are refused.' },
  { id: `${RUNTIME}.io_type`, kind: 'string', default: 'fifo', values: ['fifo', 'streaming'], setting: 'runtimes.*.ioType', doc: 'Accepted; container output always comes through FIFOs.' },
  { id: `${RUNTIME}.disable_pause_image_pull`, kind: 'bool', setting: 'runtimes.*.disablePauseImagePull', doc: 'Accepted; every pod has a pause container, whose image is pulled when it is missing.' },

  { id: 'server.stream_server_address', kind: 'string', default: '127.0.0.1', setting: 'streaming.address', doc: 'The address of the exec, attach and port-forward server. The kubelet connects to it from the same node; "" means 127.0.0.1 here.' },
  { id: 'server.stream_server_port', kind: 'string', default: '0', setting: 'streaming.port', doc: 'Its port, in quotes; "0": any free one.' },
  { id: 'server.stream_idle_timeout', kind: 'duration', default: '4h0m0s', setting: 'streaming.idleTimeoutMs', doc: 'A stream without traffic for so long is closed; "0s": never.' },
  { id: 'server.enable_tls_streaming', kind: 'bool', default: false, setting: 'streaming.enableTls', doc: 'Serve streams over TLS, self-signed unless a key pair is given.' },
  { id: 'server.x509_key_pair_streaming.tls_cert_file', kind: 'string', path: true, setting: 'streaming.certFile', doc: 'The certificate of the streaming server.' },
  { id: 'server.x509_key_pair_streaming.tls_key_file', kind: 'string', path: true, setting: 'streaming.keyFile', doc: 'Its private key.' },
  { id: 'server.disable_tcp_service', kind: 'bool', doc: 'Accepted, without effect: CRI is served on the unix socket only.' },

  // Removed in containerd 2; files printed by containerd 1.x hold them with empty values.
  { id: 'runtime.systemd_cgroup', v2Only: true, kind: 'bool', doc: 'For the long gone runtime v1: use SystemdCgroup in the options of the runtime.' },
  { id: 'runtime.containerd.no_pivot', v2Only: true, kind: 'bool', doc: 'For the long gone runtime v1: use NoPivotRoot in the options of the runtime.' },
  { id: `${RUNTIME}.runtime_engine`, v2Only: true, kind: 'string', doc: 'For the long gone runtime v1: use BinaryName in the options of the runtime.' },
  { id: `${RUNTIME}.runtime_root`, v2Only: true, kind: 'string', doc: 'For the long gone runtime v1: use Root in the options of the runtime.' },
]

const BY_ID: ReadonlyMap<string, Key> = new Map(KEYS.map((key) => [key.id, key]))

/** The key of an id; throws for an id that is not in the table (a mistake in this code). */
export function keyOf(id: string): Key {
  const key = BY_ID.get(id)
  if (key === undefined) throw new Error(`no key ${id} in the table`)
  return key
}
