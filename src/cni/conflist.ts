import { readdir, readFile, stat } from 'node:fs/promises'
import { extname, join } from 'node:path'
import { errnoOf, messageOf } from '../errors/cri-error.ts'
import { isJsonObject, parseJsonObject } from './json.ts'
import type { ConfProblem, JsonObject, LoadedNetwork, NetworkList, PluginConf } from './types.ts'
import { compareCniVersions, isAtLeast, isCniVersion, newestCniVersion } from './version.ts'

const extensions = new Set(['.conf', '.conflist', '.json'])
const validName = /^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/

/** Whether CNI allows it as a network name or container id. It becomes part of a file name, so nothing else may pass. */
export function isValidCniName(name: string): boolean {
  return validName.test(name)
}

/** What a configuration directory holds. */
export interface ConfDir {
  readonly exists: boolean
  readonly networks: readonly LoadedNetwork[]
  readonly problems: readonly ConfProblem[]
  /** Every candidate file with what became of it, for the next load's `before`. */
  readonly good: ReadonlyMap<string, NetworkList>
  /** Folders with further plugins of a network (`<confDir>/<network>/*.conf`), which exist or may come to be. */
  readonly pluginDirs: readonly string[]
}

/**
 * Reads the first `maxConfNum` (0: all) networks of a directory, files in byte order of their names.
 *
 * A file that cannot be used is skipped and reported. If it was good before (`before`), that version stays in use: a file that is just
 * being written must neither make the node NotReady nor let pods slip to the next network in the list.
 */
export async function loadConfDir(dir: string, maxConfNum: number, before: ReadonlyMap<string, NetworkList> = new Map()): Promise<ConfDir> {
  const networks: LoadedNetwork[] = []
  const problems: ConfProblem[] = []
  const good = new Map<string, NetworkList>()
  const pluginDirs: string[] = []
  let names: string[]
  try {
    names = await confFiles(dir, extensions)
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return { exists: false, networks, problems, good, pluginDirs }
    return { exists: true, networks, problems: [{ file: dir, problem: `cannot be read: ${messageOf(error)}`, lastGoodInUse: false }], good, pluginDirs }
  }
  for (const name of names) {
    if (maxConfNum > 0 && networks.length >= maxConfNum) break
    const file = join(dir, name)
    let list: NetworkList | undefined
    try {
      list = await loadFile(dir, file, pluginDirs)
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') continue
      list = before.get(file)
      problems.push({ file, problem: messageOf(error), lastGoodInUse: list !== undefined })
    }
    if (list === undefined) continue
    good.set(file, list)
    networks.push({ file, list })
  }
  return { exists: true, networks, problems, good, pluginDirs }
}

async function confFiles(dir: string, wanted: ReadonlySet<string>): Promise<string[]> {
  const entries = await readdir(dir, { withFileTypes: true })
  const names: string[] = []
  for (const entry of entries) {
    if (!wanted.has(extname(entry.name))) continue
    // A ConfigMap mount consists of links; a link to a directory is a directory.
    if (entry.isSymbolicLink() && (await stat(join(dir, entry.name)).catch(() => undefined))?.isDirectory() === true) continue
    if (!entry.isDirectory()) names.push(entry.name)
  }
  return names.sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
}

async function loadFile(dir: string, file: string, pluginDirs: string[]): Promise<NetworkList> {
  const text = await readFile(file, 'utf8')
  if (extname(file) !== '.conflist') return parseConf(text)
  const raw = parseJsonObject(text)
  const name = networkName(raw)
  if (flag(raw, 'loadOnlyInlinedPlugins')) return listOf(raw, text)
  const pluginDir = join(dir, name)
  pluginDirs.push(pluginDir)
  const further = await furtherPlugins(pluginDir)
  if (further.length === 0) return listOf(raw, text)
  const inline = raw['plugins'] === undefined ? [] : raw['plugins']
  if (!Array.isArray(inline)) throw new Error('has "plugins" that is not a list')
  // The cache must hold what ran, also when those files have changed by the time of the DEL.
  const whole = { ...raw, plugins: [...(inline as unknown[]), ...further], loadOnlyInlinedPlugins: true }
  return listOf(whole, JSON.stringify(whole))
}

async function furtherPlugins(dir: string): Promise<JsonObject[]> {
  let names: string[]
  try {
    names = await confFiles(dir, new Set(['.conf']))
  } catch (error) {
    const errno = errnoOf(error)
    if (errno === 'ENOENT' || errno === 'ENOTDIR') return []
    throw error
  }
  const plugins: JsonObject[] = []
  for (const name of names) {
    const file = join(dir, name)
    try {
      const raw = parseJsonObject(await readFile(file, 'utf8'))
      pluginOf(raw, name)
      plugins.push(raw)
    } catch (error) {
      throw new Error(`needs ${file}, which ${messageOf(error)}`, { cause: error })
    }
  }
  return plugins
}

/** A conflist (CNI specification, section 1). The error says what is wrong with it, to follow the file's name. */
export function parseConflist(text: string): NetworkList {
  return listOf(parseJsonObject(text), text)
}

/** A configuration of a single plugin, as CNI had it before 1.0, made into a list of one. */
export function parseConf(text: string): NetworkList {
  const raw = parseJsonObject(text)
  if (raw['type'] === undefined && raw['plugins'] !== undefined) {
    throw new Error('holds a list of plugins: rename it to end in .conflist (.conf and .json are for a single plugin)')
  }
  const list = { cniVersion: raw['cniVersion'] ?? '', name: raw['name'], plugins: [raw] }
  return listOf(list, JSON.stringify(list))
}

function listOf(raw: JsonObject, source: string): NetworkList {
  const name = networkName(raw)
  const cniVersion = versionOf(raw)
  const disableCheck = flag(raw, 'disableCheck')
  const plugins = raw['plugins']
  if (plugins !== undefined && !Array.isArray(plugins)) throw new Error('has "plugins" that is not a list')
  if (plugins === undefined || plugins.length === 0) throw new Error('has no "plugins": a network needs at least one')
  return { name, cniVersion, disableCheck, plugins: plugins.map((plugin, i) => pluginOf(plugin, `plugins[${i}]`)), source }
}

function pluginOf(raw: unknown, where: string): PluginConf {
  if (!isJsonObject(raw)) throw new Error(`has ${where} that is not an object`)
  const type = raw['type']
  if (typeof type !== 'string' || type === '') throw new Error(`has no "type" in ${where}: it names the plugin's binary`)
  if (type.includes('/') || type === '.' || type === '..') throw new Error(`has the type ${JSON.stringify(type)} in ${where}: it must be a plain file name`)
  const declared = raw['capabilities'] ?? {}
  if (!isJsonObject(declared)) throw new Error(`has "capabilities" in ${where} that is not an object of true and false`)
  const capabilities = new Set<string>()
  for (const [capability, value] of Object.entries(declared)) {
    if (typeof value !== 'boolean') throw new Error(`has the capability ${JSON.stringify(capability)} in ${where} that is neither true nor false`)
    if (value) capabilities.add(capability)
  }
  return { type, capabilities, raw }
}

function networkName(raw: JsonObject): string {
  const name = raw['name']
  if (name === undefined || name === '') throw new Error('has no "name"')
  if (typeof name !== 'string') throw new Error('has a "name" that is not a string')
  if (!isValidCniName(name)) throw new Error(`has the name ${JSON.stringify(name)}: only letters, digits, "_", "." and "-" are allowed, a letter or digit first`)
  return name
}

function versionOf(raw: JsonObject): string {
  const single = raw['cniVersion'] ?? ''
  if (typeof single !== 'string' || !isCniVersion(single)) throw new Error(`has the cniVersion ${JSON.stringify(single)}, which is no version such as "1.0.0"`)
  const several = raw['cniVersions']
  if (several === undefined) return single
  if (!Array.isArray(several)) throw new Error('has "cniVersions" that is not a list')
  let best = single !== '' && isAtLeast(newestCniVersion, single) ? single : undefined
  for (const version of several as unknown[]) {
    if (typeof version !== 'string' || version === '' || !isCniVersion(version)) throw new Error(`has ${JSON.stringify(version)} in "cniVersions", which is no version such as "1.0.0"`)
    if (isAtLeast(newestCniVersion, version) && (best === undefined || compareCniVersions(version, best) === 1)) best = version
  }
  return best ?? single
}

function flag(raw: JsonObject, key: string): boolean {
  const value = raw[key]
  if (value === undefined) return false
  if (typeof value === 'boolean') return value
  const text = typeof value === 'string' ? value.toLowerCase() : undefined
  if (text === 'true' || text === 'false') return text === 'true'
  throw new Error(`has ${JSON.stringify(value)} as "${key}", which must be true or false`)
}
