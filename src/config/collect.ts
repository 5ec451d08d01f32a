import type { TomlTable, TomlValue } from 'smol-toml'
import { type ConfigFile, originOf } from './config-files.ts'
import type { Diagnostics, Origin } from './diagnostics.ts'
import { editDistance } from './edit-distance.ts'
import { type Key, PLUGIN_IDS, V1_PLUGIN_ID } from './keys.ts'
import { LEGACY_DEFAULT_RUNTIME, LEGACY_UNTRUSTED_RUNTIME, type Layout, type LayoutNode, dottedKey, guessKey, sectionLayout, tableHeader } from './layout.ts'
import { type OwnPulls, collectOwnPulls } from './own-pulls.ts'
import { isTable, valueAt } from './toml-tree.ts'
import { type Value, parseValue } from './values.ts'

/** The tables of containerd 1.x that stood for a runtime, and the runtime's name. */
export const LEGACY_RUNTIME_NAMES: ReadonlyMap<string, { readonly name: string; readonly table: string }> = new Map([
  [LEGACY_DEFAULT_RUNTIME, { name: 'default', table: 'default_runtime' }],
  [LEGACY_UNTRUSTED_RUNTIME, { name: 'untrusted', table: 'untrusted_workload_runtime' }],
])

/** A setting that a file makes. */
export interface Assignment {
  readonly key: Key
  /** What stands for each `*` of the key's id. */
  readonly names: readonly string[]
  readonly value: Value
  readonly origin: Origin
}

/** An entry of `runtimes.NAME.options`; which ones there may be depends on the runtime's type, known only when all files are merged. */
export interface OptionEntry {
  readonly path: readonly string[]
  readonly value: TomlValue
  readonly origin: Origin
  readonly layout: Layout
  /** The path of the options table in its file. */
  readonly table: readonly string[]
}

/** Settings in a section that the file's version does not read. */
export interface ForeignSection {
  readonly origin: Origin
  readonly message: string
  readonly belongs: string
  readonly content: Collected
}

/** All settings of all files, later files over earlier ones: tables are merged key by key, values and arrays are replaced. */
export class Collected {
  readonly #values = new Map<string, Assignment>()
  /** Runtimes that are mentioned, also when their table is empty. */
  readonly runtimes = new Map<string, Origin>()
  readonly options = new Map<string, Map<string, OptionEntry>>()
  readonly foreign: ForeignSection[] = []
  /** Files that containerd's tasks service is configured with. */
  readonly tasksService = new Map<TasksServiceFile, { readonly value: string; readonly origin: Origin }>()
  readonly ownPulls: OwnPulls = { annotated: new Map() }
  /** containerd's own socket, from its part of the file. */
  grpcAddress: { readonly value: string; readonly origin: Origin } | undefined

  set(assignment: Assignment): void {
    this.#values.set(concreteId(assignment.key.id, assignment.names), assignment)
  }

  get(id: string, names: readonly string[] = []): Assignment | undefined {
    return this.#values.get(concreteId(id, names))
  }

  delete(id: string, names: readonly string[] = []): void {
    this.#values.delete(concreteId(id, names))
  }

  all(): Assignment[] {
    return [...this.#values.values()]
  }

  setOption(runtime: string, entry: OptionEntry): void {
    const entries = this.options.get(runtime) ?? new Map<string, OptionEntry>()
    entries.set(entry.path.join('\u0000').toLowerCase(), entry)
    this.options.set(runtime, entries)
  }
}

function concreteId(id: string, names: readonly string[]): string {
  return [id, ...names].join('\u0000')
}

/** Reads the parts of a file that are ours into `collected`, and reports what nobody reads. */
export function collectFile(file: ConfigFile, collected: Collected, diagnostics: Diagnostics): void {
  collectGrpcAddress(file, collected)
  collectTasksService(file, collected)
  collectOwnPulls(file, collected.ownPulls)
  const plugins = file.tree['plugins']
  if (plugins === undefined) return
  if (!isTable(plugins)) {
    diagnostics.error('wrong-type', 'plugins must be a table', originOf(file, ['plugins']), { key: 'plugins' })
    return
  }
  const ids = Object.keys(plugins).filter((id) => sectionLayout('v2', id) !== undefined || sectionLayout('v3', id) !== undefined)
  if (file.version === undefined && !file.imported && ids.some((id) => id !== V1_PLUGIN_ID && id !== PLUGIN_IDS.shim)) {
    const version = ids.some((id) => id === PLUGIN_IDS.images || id === PLUGIN_IDS.runtime) ? 3 : 2
    const where = { file: file.path, line: 1, column: 1 }
    diagnostics.warning(
      'version',
      `there is no version line: containerd 1.x takes the file for version 1 and reads none of its plugin sections; write version = ${version} at the top`,
      where,
    )
  }
  for (const [id, table] of Object.entries(plugins)) {
    const path = ['plugins', id]
    const layout = layoutOf(file, id)
    if (layout === undefined) {
      checkForeignId(file, id, table, diagnostics)
      continue
    }
    // The short name of version 1 means nothing in a later file.
    const node = id === V1_PLUGIN_ID && (file.version ?? 1) > 1 ? undefined : sectionLayout(layout, id)
    if (node === undefined) {
      collectForeign(file, id, table, collected)
    } else if (isTable(table)) {
      const walk = new Walk(file, layout, collected, diagnostics)
      if (layout === 'v3' && id === PLUGIN_IDS.server) collectOldServerSection(file, id, table, collected, walk)
      else walk.table(table, node, path, [])
      if (layout === 'v2' && id !== PLUGIN_IDS.shim) migrateBinDir(file, table, collected)
    } else {
      diagnostics.error('wrong-type', `${dottedKey(path)} must be a table`, originOf(file, path), { key: dottedKey(path) })
    }
  }
}

/**
 * The layout in which a section of this file is read, undefined when the section is none of ours. Without a version line, containerd 2
 * migrates the file from version 1, but leaves full plugin ids as they are: each section is read as what its id says.
 */
function layoutOf(file: ConfigFile, id: string): Layout | undefined {
  const isV3Id = id === PLUGIN_IDS.images || id === PLUGIN_IDS.runtime
  if (!isV3Id && sectionLayout('v2', id) === undefined) return undefined
  if (file.version === undefined) return isV3Id ? 'v3' : 'v2'
  return file.version >= 3 ? 'v3' : 'v2'
}

/** Version 2 files name one directory; it counts as bin_dirs, unless the same file has that as well. */
function migrateBinDir(file: ConfigFile, table: TomlTable, collected: Collected): void {
  const cni = table['cni']
  const old = collected.get('runtime.cni.bin_dir')
  if (old === undefined || old.origin.file !== file.path || (cni !== undefined && isTable(cni) && 'bin_dirs' in cni)) return
  collected.delete('runtime.cni.bin_dir')
  if (old.value !== '') collected.set({ ...old, key: { ...old.key, id: 'runtime.cni.bin_dirs', kind: 'strings' }, value: [String(old.value)] })
}

const SERVER_KEYS = sectionLayout('v3', PLUGIN_IDS.server)?.children ?? new Map<string, LayoutNode>()

/** The section that held everything in version 2 holds the streaming server in version 3: what else is in it is not read. */
function collectOldServerSection(file: ConfigFile, id: string, table: TomlTable, collected: Collected, walk: Walk): void {
  const old = sectionLayout('v2', id)?.children ?? new Map<string, LayoutNode>()
  const left = Object.entries(table).filter(([name]) => old.has(name) && !SERVER_KEYS.has(name))
  const rest = Object.entries(table).filter(([name]) => !old.has(name) || SERVER_KEYS.has(name))
  walk.table(Object.fromEntries(rest), sectionLayout('v3', id) ?? { children: new Map() }, ['plugins', id], [])
  if (left.length > 0) addForeign(file, id, Object.fromEntries(left), 'v2', collected)
}

function collectForeign(file: ConfigFile, id: string, table: TomlValue, collected: Collected): void {
  if (isTable(table)) addForeign(file, id, table, id === PLUGIN_IDS.images || id === PLUGIN_IDS.runtime ? 'v3' : 'v2', collected)
}

function addForeign(file: ConfigFile, id: string, table: TomlTable, written: Layout, collected: Collected): void {
  const content = new Collected()
  const node = sectionLayout(written, id)
  // What is wrong inside does not matter: nothing of it is read.
  if (node !== undefined) new Walk(file, written, content, { error: () => undefined, warning: () => undefined }).table(table, node, ['plugins', id], [])
  const names = Object.keys(table)
  if (names.length === 0) return
  const isV1 = id === V1_PLUGIN_ID
  const own = file.version ?? 1
  const homes = own >= 3 ? [...new Set(names.map((name) => homeInVersion3(name)))] : [tableHeader(['plugins', PLUGIN_IDS.server])]
  const first = names.slice(0, 6).join(', ') + (names.length > 6 ? ', …' : '')
  const which = isV1 ? 'version 1' : written === 'v2' ? 'version 2' : 'version 3'
  const only = names.length === 1 ? 'is' : 'are'
  const message =
    `${first} in ${tableHeader(['plugins', id])} ${only} not read: this is the place of a ${which} file, and this file says version = ${own}. ` +
    (own >= 3 ? `Move ${names.map((name) => `${name} to ${homeInVersion3(name)}`).slice(0, 6).join(', ')}` : `${isV1 ? 'Move' : 'Write version = 3 at the top, or move'} the settings to ${homes.join(', ')}`)
  // The header itself may not exist in the file (only sub-tables do): the first key is near enough.
  const at = file.positions.get(['plugins', id]) === undefined || (own >= 3 && id === PLUGIN_IDS.server) ? ['plugins', id, names[0] ?? ''] : ['plugins', id]
  const origin = originOf(file, file.positions.get(at) === undefined ? nearestChild(file, at, table) : at)
  collected.foreign.push({ origin, message, belongs: homes.join(', '), content })
}

/** The path of the first key below that has a position. */
function nearestChild(file: ConfigFile, path: readonly string[], table: TomlTable): readonly string[] {
  const visit = (at: readonly string[], value: TomlValue): readonly string[] | undefined => {
    if (file.positions.get(at) !== undefined) return at
    if (!isTable(value)) return undefined
    for (const [name, child] of Object.entries(value)) {
      const found = visit([...at, name], child)
      if (found !== undefined) return found
    }
    return undefined
  }
  const name = path[2]
  return visit(path, name === undefined ? table : (table[name] ?? '')) ?? path
}

/** Where the top-level name of a version 2 section went in version 3. */
function homeInVersion3(name: string): string {
  if (name === 'sandbox_image') return `${tableHeader(['plugins', PLUGIN_IDS.images, 'pinned_images'])} as sandbox`
  const inSection = (section: 'images' | 'runtime' | 'server'): boolean => sectionLayout('v3', PLUGIN_IDS[section])?.children.has(name) === true
  if (name === 'containerd') return `${tableHeader(['plugins', PLUGIN_IDS.runtime, name])} (its snapshotter settings to ${tableHeader(['plugins', PLUGIN_IDS.images])})`
  const section = inSection('images') ? 'images' : inSection('server') ? 'server' : 'runtime'
  return tableHeader(['plugins', PLUGIN_IDS[section]])
}

/** Section names that are nearly ours. Other plugins' sections are containerd's business. */
function checkForeignId(file: ConfigFile, id: string, table: TomlValue, diagnostics: Diagnostics): void {
  const origin = (path: readonly string[]): Origin => originOf(file, file.positions.get(path) === undefined && isTable(table) ? nearestChild(file, path, table) : path)
  if (id === 'io' && isTable(table)) {
    const nested = findNested(table, ['plugins', 'io'])
    if (nested !== undefined) {
      const wanted = tableHeader(['plugins', nested.slice(1).join('.')])
      diagnostics.error(
        'misplaced-section',
        `${tableHeader(nested)} is not read: the plugin's name needs quotes, ${wanted}`,
        originOf(file, nested),
        { key: dottedKey(nested), intended: wanted, belongs: wanted },
      )
    }
    return
  }
  const ours = file.version !== undefined && file.version < 3 ? [PLUGIN_IDS.server, PLUGIN_IDS.shim] : Object.values(PLUGIN_IDS)
  const meant = ours.find((own) => editDistance(own, id) === 1) ?? (/^(io\.)?cri-?shim/i.test(id) ? PLUGIN_IDS.shim : undefined)
  if (meant === undefined) return
  const wanted = tableHeader(['plugins', meant])
  diagnostics.error(
    'misspelt-key',
    `unknown plugin section ${tableHeader(['plugins', id])}: did you mean ${wanted}? As it is, nothing in it is read`,
    origin(['plugins', id]),
    { key: dottedKey(['plugins', id]), intended: meant, belongs: wanted },
  )
}

/** `[plugins.io.containerd.grpc.v1.cri]`, without the quotes, makes tables in tables. */
function findNested(table: TomlTable, path: readonly string[]): readonly string[] | undefined {
  for (const id of Object.values(PLUGIN_IDS)) {
    const parts = id.split('.').slice(1)
    if (isTable(valueAt(table, ...parts))) return [...path, ...parts]
  }
  return undefined
}

/** containerd's socket: grpc.address, or its own plugin section since version 4. Empty means not set. */
function collectGrpcAddress(file: ConfigFile, collected: Collected): void {
  for (const path of [['grpc', 'address'], ['plugins', 'io.containerd.server.v1.grpc', 'address']]) {
    const value = valueAt(file.tree, ...path)
    if (typeof value === 'string' && value !== '') collected.grpcAddress = { value, origin: originOf(file, path) }
  }
}

export type TasksServiceFile = 'blockio_config_file' | 'rdt_config_file'

const tasksServicePlugin = 'io.containerd.service.v1.tasks-service'

/** What pods' resources need of containerd's own part of the file. Empty means not set. */
function collectTasksService(file: ConfigFile, collected: Collected): void {
  for (const name of ['blockio_config_file', 'rdt_config_file'] as const) {
    const path = ['plugins', tasksServicePlugin, name]
    const value = valueAt(file.tree, ...path)
    if (typeof value === 'string' && value !== '') collected.tasksService.set(name, { value, origin: originOf(file, path) })
  }
}

type Reporter = Pick<Diagnostics, 'error' | 'warning'>

/** Reports a key that its table does not have. `known` are the names that it has. */
export function reportUnknownKey(
  at: { readonly layout: Layout; readonly table: readonly string[]; readonly name: string; readonly isTable: boolean; readonly origin: Origin },
  known: readonly string[],
  diagnostics: Reporter,
): void {
  const here = tableHeader(at.table)
  const key = dottedKey([...at.table, at.name])
  const what = at.isTable ? 'table' : 'key'
  const guess = guessKey(at.layout, at.table, at.name, known, at.isTable)
  if (guess === undefined) {
    diagnostics.warning('unknown-key', `unknown ${what} ${at.name} in ${here}: it has no effect`, at.origin, { key })
    return
  }
  const belongs = tableHeader(guess.table)
  const more = { key, intended: guess.name, belongs }
  if (guess.kind === 'place') {
    diagnostics.error('misplaced-key', `${at.name} has no effect in ${here}: it belongs in ${belongs}`, at.origin, more)
  } else if (guess.distance > 1) {
    const where = guess.kind === 'both' ? ` in ${belongs}` : ''
    diagnostics.warning(
      'unknown-key',
      `unknown ${what} ${at.name} in ${here}: it has no effect; did you mean ${guess.name}${where}?`,
      at.origin,
      more,
    )
  } else if (guess.kind === 'name') {
    diagnostics.error(
      'misspelt-key',
      `unknown ${what} ${at.name} in ${here}: did you mean ${guess.name}? As it is, it has no effect`,
      at.origin,
      more,
    )
  } else {
    diagnostics.error(
      'misplaced-key',
      `unknown ${what} ${at.name} in ${here}: write ${guess.name} in ${belongs} instead. As it is, it has no effect`,
      at.origin,
      more,
    )
  }
}

class Walk {
  readonly #file: ConfigFile
  readonly #layout: Layout
  readonly #collected: Collected
  readonly #diagnostics: Reporter

  constructor(file: ConfigFile, layout: Layout, collected: Collected, diagnostics: Reporter) {
    this.#file = file
    this.#layout = layout
    this.#collected = collected
    this.#diagnostics = diagnostics
  }

  table(table: TomlTable, node: LayoutNode, path: readonly string[], names: readonly string[]): void {
    for (const [name, value] of Object.entries(table)) {
      const child = this.#child(node, name, value, path)
      if (child === undefined) continue
      const childPath = [...path, name]
      const isWildcard = child === node.wildcard
      const childNames = isWildcard ? [...names, name] : child.runtimeName === undefined ? names : [...names, child.runtimeName]
      if ((isWildcard && path.at(-1) === 'runtimes') || child.runtimeName !== undefined) {
        this.#collected.runtimes.set(child.runtimeName ?? name, originOf(this.#file, childPath))
      }
      this.#entry(value, child, childPath, childNames)
    }
  }

  #entry(value: TomlValue, node: LayoutNode, path: readonly string[], names: readonly string[]): void {
    const origin = originOf(this.#file, path)
    const key = dottedKey(path)
    if (node.key === undefined || node.children.size > 0) {
      if (!isTable(value)) this.#diagnostics.error('wrong-type', `${key} must be a table`, origin, { key })
      else if (node.isOptions === true) this.#options(value, path, names, [])
      else this.table(value, node, path, names)
      return
    }
    const parsed = parseValue(node.key, value)
    if ('problem' in parsed) this.#diagnostics.error(parsed.code, `${key} ${parsed.problem}`, origin, { key })
    else this.#collected.set({ key: node.key, names, value: parsed.value, origin })
  }

  /** The node for a name; a name in other letters is accepted, because containerd's decoder accepts it. */
  #child(node: LayoutNode, name: string, value: TomlValue, path: readonly string[]): LayoutNode | undefined {
    const exact = node.children.get(name)
    if (exact !== undefined) return exact
    if (node.wildcard !== undefined) return node.wildcard
    const origin = originOf(this.#file, [...path, name])
    for (const [known, child] of node.children) {
      if (known.toLowerCase() !== name.toLowerCase()) continue
      this.#diagnostics.warning(
        'misspelt-key',
        `${name} in ${tableHeader(path)} is read as ${known}; write it so`,
        origin,
        { key: dottedKey([...path, name]), intended: known },
      )
      return child
    }
    const at = { layout: this.#layout, table: path, name, isTable: isTable(value), origin }
    const known = [...node.children].filter(([, child]) => child.key?.v2Only !== true && child.runtimeName === undefined)
    reportUnknownKey(at, known.map(([word]) => word), this.#diagnostics)
    return undefined
  }

  #options(table: TomlTable, path: readonly string[], names: readonly string[], below: readonly string[]): void {
    for (const [name, value] of Object.entries(table)) {
      const optionPath = [...below, name]
      if (isTable(value)) this.#options(value, path, names, optionPath)
      else this.#collected.setOption(names[0] ?? '', { path: optionPath, value, origin: originOf(this.#file, [...path, ...optionPath]), layout: this.#layout, table: path })
    }
  }
}
