import { readdirSync } from 'node:fs'
import { stringify } from 'smol-toml'
import { type Collected, LEGACY_RUNTIME_NAMES, type OptionEntry, type TasksServiceFile, reportUnknownKey } from './collect.ts'
import { checkAuditLog, checkCredentialHost, checkEndpoint, checkHelper, checkHostPort, checkHttpUrl, checkRatio, checkRegistryUrl, checkSeccompProfile } from './checks.ts'
import type { Diagnostics, Origin } from './diagnostics.ts'
import { parseGoDuration } from './go-duration.ts'
import { GENERIC_OPTIONS, type Key, RUNC_OPTIONS, isRuncType, keyOf } from './keys.ts'
import { dottedKey } from './layout.ts'
import {
  type GenericOptions,
  type HostCredentials,
  type LogLevel,
  type RegistryAuth,
  type RegistrySettings,
  type RegistryTls,
  type RuncOptions,
  type RuntimeSettings,
  type Settings,
  type ShimSettings,
  type Source,
  deepFreeze,
} from './settings.ts'
import { type Value, parseValue } from './values.ts'

/** Command line flags; each wins over the file. */
export interface Overrides {
  readonly listen?: string | undefined
  readonly containerd?: string | undefined
  readonly root?: string | undefined
  readonly state?: string | undefined
  readonly metricsAddress?: string | undefined
  readonly logLevel?: string | undefined
}

/** Directories of CNI plugins that are looked at when the file names none. */
export interface CniDefaults {
  readonly standard: string
  /** Debian's place. */
  readonly fallback: string
}

export interface Resolved {
  readonly settings: Settings
  readonly sources: ReadonlyMap<string, Source>
}

/** Makes the effective settings of what was collected; what is wrong is reported and replaced by its default. */
export function resolveSettings(collected: Collected, overrides: Overrides, cniDefaults: CniDefaults, diagnostics: Diagnostics): Resolved {
  return new Resolver(collected, diagnostics).resolve(overrides, cniDefaults)
}

/** The one string of ours whose empty value is not its default. */
const METRICS = 'shim.metrics_address'
const EMPTY_AUTH = { username: '', password: '', auth: '', identityToken: '' }

class Resolver {
  readonly #collected: Collected
  readonly #diagnostics: Diagnostics
  readonly #sources = new Map<string, Source>()

  constructor(collected: Collected, diagnostics: Diagnostics) {
    this.#collected = collected
    this.#diagnostics = diagnostics
  }

  resolve(overrides: Overrides, cniDefaults: CniDefaults): Resolved {
    this.#adoptLegacyRuntimes()
    this.#reportObsolete()
    const runtimes = this.#runtimes()
    const registry = this.#registry()
    const sandboxImage = this.#string('images.pinned_images.sandbox')
    const settings: Settings = {
      shim: this.#shim(overrides),
      sandboxImage,
      pinnedImages: { ...Object.fromEntries(this.#matching('images.pinned_images.*').map(({ names, value }) => [names[0] ?? '', String(value)])), sandbox: sandboxImage },
      snapshotter: this.#string('images.snapshotter'),
      disableSnapshotAnnotations: this.#disableSnapshotAnnotations(runtimes),
      discardUnpackedLayers: this.#bool('images.discard_unpacked_layers'),
      maxConcurrentDownloads: this.#maxConcurrentDownloads(),
      imagePullProgressTimeoutMs: this.#number('images.image_pull_progress_timeout'),
      imagePullWithSyncFs: this.#bool('images.image_pull_with_sync_fs'),
      maxConcurrentTransfers: this.#number('shim.max_concurrent_transfers'),
      parallelRanges: this.#number('shim.parallel_ranges'),
      parallelRangesFromMib: this.#number('shim.parallel_ranges_from_mib'),
      registry,
      statsCollectPeriodMs: this.#number('images.stats_collect_period'),
      cpuStatsCollectPeriodMs: this.#number('runtime.stats_collect_period', { zero: 1000 }),
      enableSelinux: this.#bool('runtime.enable_selinux'),
      selinuxCategoryRange: this.#number('runtime.selinux_category_range', { zero: 1024 }),
      maxContainerLogLineSize: this.#number('runtime.max_container_log_line_size', { zero: -1 }),
      disableCgroup: this.#bool('runtime.disable_cgroup'),
      disableApparmor: this.#bool('runtime.disable_apparmor'),
      disableProcMount: this.#bool('runtime.disable_proc_mount'),
      restrictOomScoreAdj: this.#bool('runtime.restrict_oom_score_adj'),
      unsetSeccompProfile: this.#checked('runtime.unset_seccomp_profile', checkSeccompProfile),
      tolerateMissingHugetlbController: this.#bool('runtime.tolerate_missing_hugetlb_controller'),
      disableHugetlbController: this.#bool('runtime.disable_hugetlb_controller'),
      blockioConfigFile: this.#tasksServiceFile('shim.blockio_config_file', 'blockio_config_file'),
      rdtConfigFile: this.#tasksServiceFile('shim.rdt_config_file', 'rdt_config_file'),
      ignoreBlockioNotEnabledErrors: this.#bool('runtime.containerd.ignore_blockio_not_enabled_errors'),
      ignoreRdtNotEnabledErrors: this.#bool('runtime.containerd.ignore_rdt_not_enabled_errors'),
      deviceOwnershipFromSecurityContext: this.#bool('runtime.device_ownership_from_security_context'),
      ignoreImageDefinedVolumes: this.#bool('runtime.ignore_image_defined_volumes'),
      netnsMountsUnderStateDir: this.#bool('runtime.netns_mounts_under_state_dir'),
      enableUnprivilegedPorts: this.#bool('runtime.enable_unprivileged_ports'),
      enableUnprivilegedIcmp: this.#bool('runtime.enable_unprivileged_icmp'),
      enableCdi: this.#bool('runtime.enable_cdi'),
      enableCriu: this.#bool('runtime.enable_criu'),
      cdiSpecDirs: this.#strings('runtime.cdi_spec_dirs'),
      drainExecSyncIoTimeoutMs: this.#number('runtime.drain_exec_sync_io_timeout', { zero: 10_000 }),
      cni: {
        binDirs: this.#binDirs(cniDefaults),
        confDir: this.#string('runtime.cni.conf_dir'),
        maxConfNum: this.#number('runtime.cni.max_conf_num'),
        confTemplate: this.#string('runtime.cni.conf_template'),
        ipPref: this.#string('runtime.cni.ip_pref') as 'ipv4' | 'ipv6' | 'cni',
        setupSerially: this.#bool('runtime.cni.setup_serially'),
        useInternalLoopback: this.#bool('runtime.cni.use_internal_loopback'),
      },
      defaultRuntimeName: this.#defaultRuntimeName(runtimes),
      runtimes,
      streaming: this.#streaming(),
    }
    return { settings: deepFreeze(settings), sources: this.#sources }
  }

  // --- single values

  /** The value of a key, in the unit of the settings, and where it came from. An empty string means the default, if there is one. */
  #value(id: string, names: readonly string[] = []): Value {
    const key = keyOf(id)
    const assigned = this.#collected.get(id, names)
    const fallback = defaultOf(key)
    if (assigned === undefined) return fallback
    const useDefault = assigned.value === '' && fallback !== ''
    this.#setSource(key, names, fileSource(assigned.origin, useDefault ? 'empty there: the default' : undefined))
    return useDefault ? fallback : assigned.value
  }

  #bool(id: string, names: readonly string[] = []): boolean {
    return this.#value(id, names) === true
  }

  #string(id: string, names: readonly string[] = []): string {
    return String(this.#value(id, names))
  }

  #strings(id: string, names: readonly string[] = []): readonly string[] {
    const value = this.#value(id, names)
    return Array.isArray(value) ? value : []
  }

  /** `zero`: what a 0 in the file means. */
  #number(id: string, options: { readonly zero?: number; readonly names?: readonly string[] } = {}): number {
    const { zero, names = [] } = options
    const value = Number(this.#value(id, names))
    const origin = this.#origin(id, names)
    if (value !== 0 || zero === undefined || origin === undefined) return value
    const key = keyOf(id)
    const meaning = key.kind === 'duration' ? `0 there: ${zero / 1000}s here` : `0 there: ${zero} here`
    this.#setSource(key, names, fileSource(origin, meaning))
    return zero
  }

  /** A string that a check must accept; its answer is what is wrong. */
  #checked(id: string, check: (value: string) => string | undefined): string {
    const value = this.#string(id)
    const problem = value === '' ? undefined : check(value)
    if (problem === undefined) return value
    this.#diagnostics.error('bad-value', `${keyOf(id).id.split('.').slice(1).join('.')} ${problem}`, this.#origin(id), { key: lastPart(id) })
    return String(defaultOf(keyOf(id)))
  }

  #origin(id: string, names: readonly string[] = []): Origin | undefined {
    return this.#collected.get(id, names)?.origin
  }

  #setSource(key: Key, names: readonly string[], source: Source): void {
    if (key.setting === undefined) return
    let index = 0
    this.#sources.set(
      key.setting
        .split('.')
        .map((part) => (part === '*' ? (names[index++] ?? '') : part))
        .join('/'),
      source,
    )
  }

  /** What was assigned to the keys of one id with names in it. */
  #matching(id: string): { readonly names: readonly string[]; readonly value: Value; readonly origin: Origin }[] {
    const found = this.#collected.all().filter((assignment) => assignment.key.id === id)
    for (const { key, names, origin } of found) this.#setSource(key, names, fileSource(origin))
    return found
  }

  // --- our own settings

  #shim(overrides: Overrides): ShimSettings {
    const take = (id: string, flag: string, override: string | undefined, check?: (value: string) => string | undefined): string => {
      if (override === undefined) return check === undefined ? this.#string(id) : this.#checked(id, check)
      const key = keyOf(id)
      const problem = override === '' ? (id === METRICS ? undefined : 'must not be empty') : (problemOf(key, override) ?? check?.(override))
      if (problem !== undefined) this.#diagnostics.error('bad-value', `${flag} ${problem}`, undefined, { key: flag })
      this.#setSource(key, [], { kind: 'flag', flag })
      return override
    }
    const endpoint = (value: string): string => (value.startsWith('/') ? `unix://${value}` : value)
    const containerd = take('shim.containerd', '--containerd', overrides.containerd, checkEndpoint)
    const metrics = this.#collected.get(METRICS)
    const isOff = overrides.metricsAddress === undefined && metrics?.value === ''
    return {
      listen: endpoint(take('shim.listen', '--listen', overrides.listen, checkEndpoint)),
      containerd: endpoint(overrides.containerd === undefined ? this.#containerdAddress(containerd) : containerd),
      root: take('shim.root', '--root', overrides.root),
      state: take('shim.state', '--state', overrides.state),
      metricsAddress: isOff ? this.#off(METRICS, metrics.origin) : take(METRICS, '--metrics-address', overrides.metricsAddress, checkHostPort),
      logLevel: take('shim.log_level', '--log-level', overrides.logLevel) as LogLevel,
      tracing: {
        endpoint: this.#checked('shim.tracing.endpoint', checkHttpUrl),
        headers: Object.fromEntries(this.#matching('shim.tracing.headers.*').map(({ names, value }) => [names[0] ?? '', String(value)])),
        serviceName: this.#string('shim.tracing.service_name'),
        sampler: this.#string('shim.tracing.sampler'),
        samplerArg: this.#checked('shim.tracing.sampler_arg', checkRatio),
        timeoutMs: this.#number('shim.tracing.timeout'),
      },
      audit: { log: this.#checked('shim.audit.log', checkAuditLog), commands: this.#bool('shim.audit.commands') },
    }
  }

  /** An empty string that is meant. */
  #off(id: string, origin: Origin): string {
    this.#setSource(keyOf(id), [], fileSource(origin))
    return ''
  }

  #containerdAddress(own: string): string {
    const grpc = this.#collected.grpcAddress
    if (this.#collected.get('shim.containerd') !== undefined || grpc === undefined) return own
    const problem = checkEndpoint(grpc.value)
    if (problem !== undefined) {
      this.#diagnostics.error('bad-value', `containerd's own address ${problem}`, grpc.origin, { key: 'grpc.address' })
      return own
    }
    this.#sources.set('shim/containerd', fileSource(grpc.origin, 'grpc.address'))
    return grpc.value
  }

  /** A file that containerd reads too: our own key, else the one of its tasks service. */
  #tasksServiceFile(id: string, name: TasksServiceFile): string {
    const own = this.#string(id)
    const found = this.#collected.tasksService.get(name)
    if (this.#collected.get(id) !== undefined || found === undefined) return own
    const key = keyOf(id)
    const problem = problemOf(key, found.value)
    if (problem !== undefined) {
      this.#diagnostics.error('bad-value', `containerd's own ${name} ${problem}`, found.origin, { key: name })
      return own
    }
    this.#setSource(key, [], fileSource(found.origin, `containerd's ${name}`))
    return found.value
  }

  // --- images

  /**
   * Whether containerd 2.1 would pull as before, by the CRI section alone: when it is told to, and when that says what the transfer plugin,
   * which it uses otherwise, has no settings for. Then that plugin's settings, and what proxy snapshotters ask for, mean nothing.
   */
  #pullsByCriSection(): boolean {
    const isSet = ['use_local_image_pull', 'discard_unpacked_layers', 'image_pull_with_sync_fs'].some((name) => this.#bool(`images.${name}`))
    const downloads = this.#number('images.max_concurrent_downloads') !== defaultOf(keyOf('images.max_concurrent_downloads'))
    const registries = this.#collected.all().some(({ key }) => /^images\.registry\.(mirrors|configs|auths)\./.test(key.id))
    return isSet || downloads || registries || !this.#bool('images.disable_snapshot_annotations')
  }

  #maxConcurrentDownloads(): number {
    const own = this.#collected.ownPulls.maxConcurrentDownloads
    if (own === undefined || this.#pullsByCriSection()) return this.#number('images.max_concurrent_downloads')
    this.#setSource(keyOf('images.max_concurrent_downloads'), [], fileSource(own.origin, "containerd's transfer plugin"))
    return own.value
  }

  #disableSnapshotAnnotations(runtimes: Readonly<Record<string, RuntimeSettings>>): boolean {
    const id = 'images.disable_snapshot_annotations'
    const used = [this.#string('images.snapshotter'), ...Object.values(runtimes).map(({ snapshotter }) => snapshotter)]
    const origin = used.map((name) => this.#collected.ownPulls.annotated.get(name)).find((found) => found !== undefined)
    if (origin === undefined || this.#pullsByCriSection()) return this.#bool(id)
    this.#setSource(keyOf(id), [], fileSource(origin, 'enable_remote_snapshot_annotations'))
    return false
  }

  #registry(): RegistrySettings {
    const path = this.#string('images.registry.config_path')
    const configPath = path.split(':').filter((directory) => directory !== '')
    const pathOrigin = this.#origin('images.registry.config_path')
    const relative = configPath.find((directory) => !directory.startsWith('/'))
    if (relative !== undefined) {
      this.#diagnostics.error(
        'bad-value',
        `registry.config_path must hold absolute paths, separated by ":", not ${JSON.stringify(relative)}`,
        pathOrigin,
        { key: 'config_path' },
      )
    }
    const mirrors = this.#matching('images.registry.mirrors.*.endpoint')
    const configs = new Map<string, { tls?: RegistryTls; auth?: RegistryAuth }>()
    const auths = new Map<string, RegistryAuth>()
    const credentials = new Map<string, HostCredentials>()
    const tlsOrigins: Origin[] = []
    for (const { key, names, value, origin } of this.#collected.all()) {
      const host = names[0] ?? ''
      const field = key.setting?.split('.').at(-1) ?? ''
      if (key.id.startsWith('images.registry.configs.')) {
        const config = configs.get(host) ?? {}
        configs.set(host, config)
        if (key.id.includes('.tls.')) {
          config.tls = { ...(config.tls ?? { insecureSkipVerify: false, caFile: '', certFile: '', keyFile: '' }), [field]: value }
          tlsOrigins.push(origin)
        } else config.auth = { ...(config.auth ?? EMPTY_AUTH), [field]: value }
        this.#setSource(key, names, fileSource(origin))
      } else if (key.id.startsWith('images.registry.auths.')) {
        auths.set(host, { ...(auths.get(host) ?? EMPTY_AUTH), [field]: value })
        this.#setSource(key, names, fileSource(origin))
      } else if (key.id.startsWith('shim.registry.credentials.')) {
        credentials.set(host, { ...(credentials.get(host) ?? { ...EMPTY_AUTH, configFile: '', helper: '', pullSecretsOf: [] }), [field]: value })
        this.#setSource(key, names, fileSource(origin))
        const problem = checkCredentialHost(host) ?? (field === 'helper' ? checkHelper(String(value)) : undefined)
        if (problem !== undefined) this.#diagnostics.error('bad-value', `registry.credentials.${dottedKey([host])}${problem}`, origin, { key: lastPart(key.id) })
      }
    }
    for (const { value, origin } of mirrors) {
      for (const url of Array.isArray(value) ? value : []) {
        const problem = checkRegistryUrl(url)
        if (problem !== undefined) this.#diagnostics.error('bad-value', `the mirror endpoint ${problem}`, origin, { key: 'endpoint' })
      }
    }
    const exclusive = (what: string, origin: Origin | undefined): void => {
      if (configPath.length === 0 || origin === undefined) return
      const message = `registry.config_path and ${what} exclude each other: containerd refuses the pair. Put the mirrors into ${configPath[0]}/HOST/hosts.toml and take ${what} out`
      this.#diagnostics.error('contradiction', message, origin, { key: what, belongs: `${configPath[0]}/HOST/hosts.toml` })
    }
    exclusive('registry.mirrors', mirrors[0]?.origin)
    exclusive('registry.configs.*.tls', tlsOrigins[0])
    return {
      configPath,
      headers: Object.fromEntries(this.#matching('images.registry.headers.*').map(({ names, value }) => [names[0] ?? '', value as readonly string[]])),
      mirrors: Object.fromEntries(mirrors.map(({ names, value }) => [names[0] ?? '', { endpoints: value as readonly string[] }])),
      configs: Object.fromEntries(configs),
      auths: Object.fromEntries(auths),
      credentials: Object.fromEntries(credentials),
      credentialHelperDir: this.#string('shim.registry.credential_helper_dir'),
    }
  }

  // --- network

  #binDirs(defaults: CniDefaults): readonly string[] {
    const one = this.#collected.get('runtime.cni.bin_dir')
    const many = this.#collected.get('runtime.cni.bin_dirs')
    const list = (Array.isArray(many?.value) ? (many.value as readonly string[]) : []).filter((directory) => directory !== '')
    const single = one === undefined ? '' : String(one.value)
    if (one !== undefined && single !== '') {
      // A dump of the defaults holds bin_dirs too; containerd lets bin_dir win over that, and refuses any other pair.
      if (many !== undefined && list.length > 0 && list.join(':') !== defaults.standard && list.join(':') !== single) {
        this.#diagnostics.error(
          'contradiction',
          'cni.bin_dir and cni.bin_dirs exclude each other: keep bin_dirs',
          one.origin,
          { key: 'bin_dir', intended: 'bin_dirs' },
        )
      }
      this.#sources.set('cni/binDirs', fileSource(one.origin))
      return this.#absolute([single], one.origin)
    }
    if (many !== undefined && list.length > 0) {
      this.#sources.set('cni/binDirs', fileSource(many.origin))
      return this.#absolute(list, many.origin)
    }
    return isEmptyDirectory(defaults.standard) ? [defaults.standard, defaults.fallback] : [defaults.standard]
  }

  #absolute(directories: readonly string[], origin: Origin): readonly string[] {
    const relative = directories.find((directory) => !directory.startsWith('/'))
    if (relative !== undefined) {
      this.#diagnostics.error(
        'bad-value',
        `cni.bin_dirs must hold absolute paths, not ${JSON.stringify(relative)}`,
        origin,
        { key: 'bin_dirs' },
      )
    }
    return directories
  }

  // --- runtimes

  /** containerd 1.x: two tables that stood for runtimes, in force only when they name a type. */
  #adoptLegacyRuntimes(): void {
    for (const [legacy, { name, table }] of LEGACY_RUNTIME_NAMES) {
      const origin = this.#collected.runtimes.get(legacy)
      if (origin === undefined) continue
      this.#collected.runtimes.delete(legacy)
      const type = this.#collected.get('runtime.containerd.runtimes.*.runtime_type', [legacy])
      const moved = this.#collected.all().filter((assignment) => assignment.names[0] === legacy)
      for (const { key, names } of moved) this.#collected.delete(key.id, names)
      const options = this.#collected.options.get(legacy)
      this.#collected.options.delete(legacy)
      if (type === undefined || type.value === '') continue
      if (name === 'untrusted' && this.#collected.runtimes.has(name)) {
        this.#diagnostics.error(
          'contradiction',
          `containerd.${table} and containerd.runtimes.${name} define the same runtime: keep the second`,
          origin,
          { key: table },
        )
        continue
      }
      this.#diagnostics.warning(
        'no-effect',
        `containerd.${table} is deprecated: containerd 2 does not read it. Define containerd.runtimes.${name} instead${name === 'default' ? ' and set default_runtime_name' : ''}`,
        origin,
        { key: table },
      )
      this.#collected.runtimes.set(name, origin)
      for (const assignment of moved) this.#collected.set({ ...assignment, names: [name] })
      if (options !== undefined) this.#collected.options.set(name, options)
      if (name === 'default') this.#collected.set({ key: keyOf('runtime.containerd.default_runtime_name'), names: [], value: name, origin })
    }
  }

  #reportObsolete(): void {
    const remedies: Readonly<Record<string, string>> = { systemd_cgroup: 'SystemdCgroup', no_pivot: 'NoPivotRoot', runtime_engine: 'BinaryName', runtime_root: 'Root' }
    for (const { key, names, value, origin } of this.#collected.all()) {
      if (key.v2Only !== true || value === false || value === '') continue
      const name = lastPart(key.id)
      const option = remedies[name] ?? ''
      const runtime = names[0] ?? 'runc'
      const message = `${name} belongs to a runtime that no longer exists and has no effect: set ${option} in containerd.runtimes.${runtime}.options instead`
      this.#diagnostics.error('misplaced-key', message, origin, { key: name, intended: option, belongs: `containerd.runtimes.${runtime}.options` })
    }
  }

  #runtimes(): Record<string, RuntimeSettings> {
    const names = new Set(['runc', ...this.#collected.runtimes.keys()])
    return Object.fromEntries([...names].map((name) => [name, this.#runtime(name)]))
  }

  #runtime(name: string): RuntimeSettings {
    const id = (key: string): string => `runtime.containerd.runtimes.*.${key}`
    const at = [name]
    const typeSet = this.#collected.get(id('runtime_type'), at)
    if (name !== 'runc' && (typeSet === undefined || typeSet.value === '')) {
      const origin = typeSet?.origin ?? this.#collected.runtimes.get(name)
      const message = `the runtime ${name} has no runtime_type: write the containerd shim's name, for example runtime_type = "io.containerd.runc.v2" for runc and crun`
      this.#diagnostics.error('bad-value', message, origin, { key: `runtimes.${name}.runtime_type` })
    }
    const runtimeType = this.#string(id('runtime_type'), at)
    const runtime: RuntimeSettings = {
      runtimeType,
      runtimePath: this.#string(id('runtime_path'), at),
      podAnnotations: this.#strings(id('pod_annotations'), at),
      containerAnnotations: this.#strings(id('container_annotations'), at),
      privilegedWithoutHostDevices: this.#bool(id('privileged_without_host_devices'), at),
      privilegedWithoutHostDevicesAllDevicesAllowed: this.#bool(id('privileged_without_host_devices_all_devices_allowed'), at),
      baseRuntimeSpec: this.#string(id('base_runtime_spec'), at),
      cniConfDir: this.#string(id('cni_conf_dir'), at),
      cniMaxConfNum: this.#number(id('cni_max_conf_num'), { names: at }),
      snapshotter: this.#string(id('snapshotter'), at),
      sandboxer: this.#string(id('sandboxer'), at),
      ioType: this.#string(id('io_type'), at) as 'fifo' | 'streaming',
      cgroupWritable: this.#bool(id('cgroup_writable'), at),
      disablePauseImagePull: this.#bool(id('disable_pause_image_pull'), at),
      options: isRuncType(runtimeType) ? this.#runcOptions(name) : this.#genericOptions(name),
    }
    if (runtime.privilegedWithoutHostDevicesAllDevicesAllowed && !runtime.privilegedWithoutHostDevices) {
      const message = `runtime ${name}: privileged_without_host_devices_all_devices_allowed needs privileged_without_host_devices = true`
      this.#diagnostics.error(
        'contradiction',
        message,
        this.#origin(id('privileged_without_host_devices_all_devices_allowed'), at),
        { key: 'privileged_without_host_devices_all_devices_allowed' },
      )
    }
    return runtime
  }

  #runcOptions(runtime: string): RuncOptions {
    const result: Record<string, Value> = {}
    for (const option of RUNC_OPTIONS) {
      if ('setting' in option) result[option.setting] = option.kind === 'bool' ? false : option.kind === 'int' ? 0 : ''
    }
    for (const entry of this.#collected.options.get(runtime)?.values() ?? []) {
      const [written = '', ...below] = entry.path
      const option: (Omit<Key, 'id'> & { readonly name: string }) | undefined = RUNC_OPTIONS.find(({ name }) => name.toLowerCase() === written.toLowerCase())
      if (option === undefined) {
        const at = { layout: entry.layout, table: entry.table, name: written, isTable: below.length > 0, origin: entry.origin }
        reportUnknownKey(at, RUNC_OPTIONS.map(({ name }) => name), this.#diagnostics)
        continue
      }
      const key = dottedKey([...entry.table, written])
      if (option.name !== written) {
        this.#diagnostics.warning('misspelt-key', `${key} is read as ${option.name}; write it so`, entry.origin, { key, intended: option.name })
      }
      const parsed = parseValue({ id: option.name, ...option }, below.length > 0 ? {} : entry.value)
      if ('problem' in parsed) this.#diagnostics.error(parsed.code, `${key} ${parsed.problem}`, entry.origin, { key })
      else if (option.setting !== undefined) {
        result[option.setting] = parsed.value
        this.#sources.set(['runtimes', runtime, 'options', option.setting].join('/'), fileSource(entry.origin))
      }
    }
    return { kind: 'runc', ...result } as unknown as RuncOptions
  }

  #genericOptions(runtime: string): GenericOptions {
    const entries = [...(this.#collected.options.get(runtime)?.values() ?? [])]
    const known = new Map<string, string>()
    for (const entry of entries) {
      const option = GENERIC_OPTIONS.find((name) => entry.path.length === 1 && name.toLowerCase() === entry.path[0]?.toLowerCase())
      if (option === undefined) continue
      if (typeof entry.value === 'string') known.set(option, entry.value)
      else this.#diagnostics.error('wrong-type', `${dottedKey([...entry.table, ...entry.path])} must be a string`, entry.origin, { key: option })
      this.#sources.set(['runtimes', runtime, 'options', option.charAt(0).toLowerCase() + option.slice(1)].join('/'), fileSource(entry.origin))
    }
    const configPath = known.get('ConfigPath') ?? ''
    const first = entries[0]
    const passWhole = configPath === '' && first !== undefined && !known.has('ConfigBody')
    if (passWhole) this.#sources.set(['runtimes', runtime, 'options', 'configBody'].join('/'), fileSource(first.origin))
    return {
      kind: 'generic',
      typeUrl: known.get('TypeUrl') ?? '',
      configPath,
      configBody: passWhole ? stringify(nest(entries)) : (known.get('ConfigBody') ?? ''),
    }
  }

  #defaultRuntimeName(runtimes: Readonly<Record<string, RuntimeSettings>>): string {
    const id = 'runtime.containerd.default_runtime_name'
    const name = this.#string(id)
    if (!Object.hasOwn(runtimes, name)) {
      const message = `default_runtime_name is ${JSON.stringify(name)}, but there is no containerd.runtimes.${dottedKey([name])}: define it, or name one of ${Object.keys(runtimes).join(', ')}`
      this.#diagnostics.error('contradiction', message, this.#origin(id), { key: 'default_runtime_name' })
    }
    return name
  }

  // --- streaming

  #streaming(): Settings['streaming'] {
    const port = this.#string('server.stream_server_port')
    if (!/^\d{1,5}$/.test(port) || Number(port) > 65_535) {
      this.#diagnostics.error(
        'bad-value',
        `stream_server_port must be a port number between 0 and 65535 in quotes, not ${JSON.stringify(port)}`,
        this.#origin('server.stream_server_port'),
        { key: 'stream_server_port' },
      )
    }
    const streaming = {
      address: this.#string('server.stream_server_address'),
      port: Number(port),
      idleTimeoutMs: this.#number('server.stream_idle_timeout'),
      enableTls: this.#bool('server.enable_tls_streaming'),
      certFile: this.#string('server.x509_key_pair_streaming.tls_cert_file'),
      keyFile: this.#string('server.x509_key_pair_streaming.tls_key_file'),
    }
    const cert = this.#origin('server.x509_key_pair_streaming.tls_cert_file')
    const key = this.#origin('server.x509_key_pair_streaming.tls_key_file')
    const contradiction = (message: string, origin: Origin | undefined): void => this.#diagnostics.error('contradiction', message, origin, { key: 'x509_key_pair_streaming' })
    if (streaming.enableTls && streaming.certFile !== '' && streaming.keyFile === '') {
      contradiction(
        'tls_cert_file is set without tls_key_file: set both, or none for a self-signed certificate',
        cert,
      )
    } else if (streaming.enableTls && streaming.certFile === '' && streaming.keyFile !== '') {
      contradiction(
        'tls_key_file is set without tls_cert_file: set both, or none for a self-signed certificate',
        key,
      )
    } else if (!streaming.enableTls && (streaming.certFile !== '' || streaming.keyFile !== '')) {
      contradiction(
        'x509_key_pair_streaming is set, but enable_tls_streaming is false: set it to true, or take the key pair out',
        cert ?? key,
      )
    }
    return streaming
  }
}

/** The default in the unit of the settings. */
export function defaultOf(key: Key): Value {
  if (key.default !== undefined) {
    if (key.kind === 'duration') return parseGoDuration(String(key.default)) ?? 0
    return key.kind === 'seconds' ? Number(key.default) * 1000 : key.default
  }
  if (key.kind === 'bool') return false
  if (key.kind === 'strings') return []
  return key.kind === 'string' || key.kind === 'any' ? '' : 0
}

function problemOf(key: Key, value: string): string | undefined {
  const parsed = parseValue(key, value)
  return 'problem' in parsed ? parsed.problem : undefined
}

function fileSource(origin: Origin, note?: string): Source {
  return { kind: 'file', file: origin.file, line: origin.line, column: origin.column, ...(note === undefined ? {} : { note }) }
}

function lastPart(id: string): string {
  return id.slice(id.lastIndexOf('.') + 1)
}

function isEmptyDirectory(path: string): boolean {
  try {
    return readdirSync(path).length === 0
  } catch {
    return true
  }
}

/** The options table as it was written, of its entries. */
function nest(entries: readonly OptionEntry[]): Record<string, unknown> {
  const root: Record<string, unknown> = {}
  for (const { path, value } of entries) {
    let table = root
    for (const name of path.slice(0, -1)) {
      const next = table[name]
      const child = typeof next === 'object' && next !== null ? (next as Record<string, unknown>) : {}
      table[name] = child
      table = child
    }
    table[path.at(-1) ?? ''] = value
  }
  return root
}
