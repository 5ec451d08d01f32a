import { accessSync, constants, readFileSync, readdirSync, statSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { messageOf } from '../errors/cri-error.ts'
import type { Diagnostics, Origin } from './diagnostics.ts'
import { editDistance } from './edit-distance.ts'
import { isRuncType } from './keys.ts'
import { type Settings, type Sources, cgroupDriverOf, sourceOf } from './settings.ts'

/** Places on the host that the checks look at. */
export interface HostPaths {
  readonly kubeletConfig: string
  /** Exists on cgroup v2 only. */
  readonly cgroupControllers: string
  /** Used by newer containerd without being configured. */
  readonly certsDir: string
  /** Other directories where distributions put CNI plugins. */
  readonly cniPluginDirs: readonly string[]
}

/** Compares the settings with what is on this host: directories, CNI plugins, the kubelet's cgroup driver, files to be read at the start. */
export function checkHost(settings: Settings, sources: Sources, paths: HostPaths, diagnostics: Diagnostics): void {
  const origin = (...path: string[]): Origin | undefined => {
    const source = sourceOf(sources, ...path)
    return source.kind === 'file' ? source : undefined
  }
  checkConfigPath(settings, origin('registry', 'configPath'), paths, diagnostics)
  const cniOrigin = origin('cni', 'binDirs') ?? origin('cni', 'confDir')
  checkCniPlugins(settings, settings.cni.confDir, settings.cni.maxConfNum, cniOrigin, paths, diagnostics)
  for (const [name, runtime] of Object.entries(settings.runtimes)) {
    const at = (key: string): Origin | undefined => origin('runtimes', name, key)
    if (runtime.cniConfDir !== '') checkCniPlugins(settings, runtime.cniConfDir, runtime.cniMaxConfNum, at('cniConfDir'), paths, diagnostics)
    if (runtime.cgroupWritable && !exists(paths.cgroupControllers)) {
      diagnostics.error(
        'contradiction',
        `runtime ${name}: cgroup_writable needs cgroup v2, and this host runs cgroup v1: take it out`,
        at('cgroupWritable'),
        { key: 'cgroup_writable' },
      )
    }
    if (runtime.baseRuntimeSpec !== '') checkJson(`runtime ${name}: base_runtime_spec`, runtime.baseRuntimeSpec, at('baseRuntimeSpec'), diagnostics)
    if (runtime.runtimePath !== '' && !isExecutable(runtime.runtimePath)) {
      diagnostics.warning(
        'missing-path',
        `runtime ${name}: runtime_path ${runtime.runtimePath} is not an executable file: pods of this runtime will not start`,
        at('runtimePath'),
        { key: 'runtime_path' },
      )
    }
    const binary = runtime.options.kind === 'runc' ? runtime.options.binaryName : ''
    if (binary.startsWith('/') && !isExecutable(binary)) {
      diagnostics.warning(
        'missing-path',
        `runtime ${name}: BinaryName ${binary} is not an executable file: pods of this runtime will not start`,
        origin('runtimes', name, 'options', 'binaryName'),
        { key: 'BinaryName' },
      )
    }
  }
  if (settings.cni.confTemplate !== '' && !exists(settings.cni.confTemplate)) {
    diagnostics.warning(
      'missing-path',
      `cni.conf_template: there is no file ${settings.cni.confTemplate}: no CNI configuration will be made from the pod CIDR`,
      origin('cni', 'confTemplate'),
      { key: 'conf_template' },
    )
  }
  checkKeyPair(settings, origin, diagnostics)
  checkCgroupDriver(settings, sources, paths, diagnostics)
}

function checkConfigPath(settings: Settings, origin: Origin | undefined, paths: HostPaths, diagnostics: Diagnostics): void {
  const { configPath, mirrors } = settings.registry
  if (configPath.length === 0 && Object.keys(mirrors).length === 0 && entries(paths.certsDir).length > 0) {
    const message = `there are registry settings in ${paths.certsDir}, but registry.config_path does not name that directory: they are not used. Set config_path = "${paths.certsDir}"`
    diagnostics.warning('missing-path', message, origin, { key: 'config_path', intended: paths.certsDir })
    return
  }
  for (const directory of configPath) {
    if (!directory.startsWith('/') || isDirectory(directory)) continue
    if (exists(directory)) {
      diagnostics.error(
        'bad-value',
        `registry.config_path: ${directory} is a file; name the directory that holds HOST/hosts.toml, usually ${dirname(directory)}`,
        origin,
        { key: 'config_path' },
      )
      continue
    }
    const others = configPath.some((each) => each !== directory && isDirectory(each))
    // containerd's own default names two such directories, of which most nodes have one.
    if (others && basename(directory) === basename(paths.certsDir)) continue
    const near = nearestDirectory(directory, paths.certsDir, configPath)
    const remedy = near === undefined ? `make it, or take ${others ? 'it' : 'the setting'} out` : `did you mean ${near}?`
    diagnostics.warning(
      'missing-path',
      `registry.config_path: there is no directory ${directory}, so no registry mirrors are ${others ? 'taken from there' : 'used'}; ${remedy}`,
      origin,
      { key: 'config_path', ...(near === undefined ? {} : { intended: near }) },
    )
  }
}

/** A directory beside the missing one with nearly its name; else the usual one, when it exists. None of `taken`. */
function nearestDirectory(path: string, usual: string, taken: readonly string[]): string | undefined {
  const wanted = basename(path)
  const siblings = entries(dirname(path))
    .map((name) => ({ name, distance: editDistance(name.toLowerCase(), wanted.toLowerCase()) }))
    .filter(({ name, distance }) => distance <= Math.max(2, Math.floor(wanted.length / 3)) && !taken.includes(join(dirname(path), name)) && isDirectory(join(dirname(path), name)))
    .sort((a, b) => a.distance - b.distance)
  const best = siblings[0]
  if (best !== undefined) return join(dirname(path), best.name)
  return isDirectory(usual) && usual !== path && !taken.includes(usual) ? usual : undefined
}

function checkCniPlugins(settings: Settings, confDir: string, maxConfNum: number, origin: Origin | undefined, paths: HostPaths, diagnostics: Diagnostics): void {
  const files = entries(confDir).filter((name) => /\.(conflist|conf|json)$/.test(name))
  const { binDirs } = settings.cni
  const missing = new Map<string, string>()
  let used = 0
  for (const name of files) {
    if (maxConfNum > 0 && used >= maxConfNum) break
    const file = join(confDir, name)
    const types = pluginTypes(file)
    if (types === undefined) {
      diagnostics.warning(
        'bad-value',
        `${file} is not a CNI configuration (JSON with "type", or "plugins" with a "type" each): it is skipped`,
        origin,
        { key: 'conf_dir' },
      )
      continue
    }
    used++
    for (const type of types) if (!binDirs.some((directory) => isExecutable(join(directory, type)))) missing.set(type, file)
  }
  for (const [file, plugins] of Map.groupBy(missing.keys(), (type) => missing.get(type) ?? '')) {
    const holdsAll = (directory: string): boolean => plugins.every((type) => isExecutable(join(directory, type)))
    const found = paths.cniPluginDirs.find((directory) => !binDirs.includes(directory) && holdsAll(directory))
    const [noun, verb, here, object] = plugins.length === 1 ? ['plugin', 'is', 'it is', 'it'] : ['plugins', 'are', 'they are', 'them']
    const remedy =
      found === undefined
        ? `install ${object} there (Debian: containernetworking-plugins), or name the right directory in cni.bin_dirs`
        : `${here} in ${found}: set cni.bin_dirs = ["${found}"]`
    const message = `${file} needs the CNI ${noun} ${plugins.join(', ')}, which ${verb} not in ${binDirs.join(' or ')}; ${remedy}`
    diagnostics.warning('missing-plugin', message, origin, { key: 'bin_dirs', ...(found === undefined ? {} : { intended: found }) })
  }
}

/** The plugins that a network configuration names; undefined for a file that is none. */
function pluginTypes(file: string): string[] | undefined {
  try {
    const parsed: unknown = JSON.parse(readFileSync(file, 'utf8'))
    if (typeof parsed !== 'object' || parsed === null) return undefined
    const plugins: unknown = 'plugins' in parsed ? parsed.plugins : [parsed]
    if (!Array.isArray(plugins) || plugins.length === 0) return undefined
    const types = plugins.map((plugin: unknown) => (typeof plugin === 'object' && plugin !== null && 'type' in plugin ? plugin.type : undefined))
    return types.every((type) => typeof type === 'string' && type !== '' && !type.includes('/')) ? (types as string[]) : undefined
  } catch {
    return undefined
  }
}

function checkKeyPair(settings: Settings, origin: (...path: string[]) => Origin | undefined, diagnostics: Diagnostics): void {
  if (!settings.streaming.enableTls) return
  for (const [setting, key] of [['certFile', 'tls_cert_file'], ['keyFile', 'tls_key_file']] as const) {
    const file = settings.streaming[setting]
    if (file === '') continue
    try {
      accessSync(file, constants.R_OK)
    } catch (error) {
      diagnostics.error(
        'missing-path',
        `x509_key_pair_streaming.${key}: cannot read ${file}: ${messageOf(error)}`,
        origin('streaming', setting),
        { key },
      )
    }
  }
}

function checkJson(what: string, file: string, origin: Origin | undefined, diagnostics: Diagnostics): void {
  try {
    JSON.parse(readFileSync(file, 'utf8'))
  } catch (error) {
    diagnostics.error('missing-path', `${what}: cannot use ${file}: ${messageOf(error)}`, origin, { key: 'base_runtime_spec' })
  }
}

/** The kubelet before 1.31 takes its own word for the driver; two drivers on one node end in evicted and killed pods. */
function checkCgroupDriver(settings: Settings, sources: Sources, paths: HostPaths, diagnostics: Diagnostics): void {
  const ours = cgroupDriverOf(settings)
  if (ours === undefined) return
  const where = (name: string): Origin | undefined => {
    for (const path of [['runtimes', name, 'options', 'systemdCgroup'], ['runtimes', name, 'runtimeType'], ['defaultRuntimeName']]) {
      const source = sourceOf(sources, ...path)
      if (source.kind === 'file') return source
    }
    return undefined
  }
  for (const [name, runtime] of Object.entries(settings.runtimes)) {
    if (!isRuncType(runtime.runtimeType) || runtime.options.kind !== 'runc') continue
    const driver = runtime.options.systemdCgroup ? 'systemd' : 'cgroupfs'
    // The runtime named runc is always there; unless it is configured or the default, nobody uses it.
    const isUsed = name === settings.defaultRuntimeName || sourceOf(sources, 'runtimes', name, 'options', 'systemdCgroup').kind === 'file'
    if (driver !== ours && isUsed) {
      const message = `runtime ${name} uses the cgroup driver ${driver}, the default runtime ${ours}: set SystemdCgroup = ${ours === 'systemd'} in its options, so that all pods of the node use one driver`
      diagnostics.warning('cgroup-driver', message, where(name), { key: `runtimes.${name}.options.SystemdCgroup` })
    }
  }
  const theirs = kubeletDriver(paths.kubeletConfig)
  if (theirs === undefined || theirs === ours) return
  const message =
    `the kubelet's cgroupDriver is ${theirs} (${paths.kubeletConfig}), but SystemdCgroup is ${ours === 'systemd'}, which means ${ours}: ` +
    `set SystemdCgroup = ${theirs === 'systemd'} in containerd.runtimes.${settings.defaultRuntimeName}.options`
  diagnostics.warning(
    'cgroup-driver',
    message,
    where(settings.defaultRuntimeName),
    { key: 'SystemdCgroup', intended: `SystemdCgroup = ${theirs === 'systemd'}` },
  )
}

/** cgroupDriver of a KubeletConfiguration, YAML or JSON; undefined when it is not written there. */
function kubeletDriver(file: string): 'systemd' | 'cgroupfs' | undefined {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch {
    return undefined
  }
  const pattern = text.trimStart().startsWith('{') ? /"cgroupDriver"\s*:\s*"(systemd|cgroupfs)"/ : /^["']?cgroupDriver["']?\s*:\s*["']?(systemd|cgroupfs)\b/m
  return pattern.exec(text)?.[1] as 'systemd' | 'cgroupfs' | undefined
}

function entries(directory: string): string[] {
  try {
    return readdirSync(directory).sort()
  } catch {
    return []
  }
}

function exists(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false }) !== undefined
}

function isDirectory(path: string): boolean {
  try {
    return statSync(path).isDirectory()
  } catch {
    return false
  }
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return statSync(path).isFile()
  } catch {
    return false
  }
}
