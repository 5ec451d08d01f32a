import { editDistance, looseKey, nearestWord } from './edit-distance.ts'
import { type Key, KEYS, PLUGIN_IDS, RUNC_OPTIONS, SECTIONS, V1_PLUGIN_ID } from './keys.ts'

/** The two ways in which containerd's file holds CRI settings: all in one section (versions 1 and 2), or split in three (3 and 4). */
export type Layout = 'v2' | 'v3'

/** One table or key that may be in the file. */
export interface LayoutNode {
  readonly children: Map<string, LayoutNode>
  /** For any name: runtimes, registry hosts. */
  wildcard?: LayoutNode
  key?: Key
  /** `runtimes.NAME.options`, whose keys depend on the shim. */
  isOptions?: true
  /** A table that stands for a runtime of this name: containerd 1.x's default_runtime and untrusted_workload_runtime. */
  runtimeName?: string
}

/** containerd 1.x: the runtime that replaces the default one, when its type is set. */
export const LEGACY_DEFAULT_RUNTIME = '<default_runtime>'
/** containerd 1.x: the runtime named `untrusted`, when its type is set. */
export const LEGACY_UNTRUSTED_RUNTIME = '<untrusted_workload_runtime>'

const newNode = (): LayoutNode => ({ children: new Map() })

function insert(root: LayoutNode, path: readonly string[], change: (node: LayoutNode) => void): void {
  let node = root
  for (const name of path) {
    let next = name === '*' ? node.wildcard : node.children.get(name)
    if (next === undefined) {
      next = newNode()
      if (name === '*') node.wildcard = next
      else node.children.set(name, next)
    }
    node = next
  }
  change(node)
}

/** The path of a key below the version 2 plugin. */
function v2Path(key: Key): readonly string[] | undefined {
  if (key.v2 === null) return undefined
  return key.v2 === undefined ? key.id.split('.').slice(1) : key.v2.split('.')
}

function buildLayout(layout: Layout): ReadonlyMap<string, LayoutNode> {
  const roots = new Map<string, LayoutNode>(SECTIONS.map((section) => [PLUGIN_IDS[section], newNode()]))
  const options = ['containerd', 'runtimes', '*', 'options']
  const runtime = roots.get(layout === 'v3' ? PLUGIN_IDS.runtime : PLUGIN_IDS.server) ?? newNode()
  for (const key of KEYS) {
    const [section = '', ...path] = key.id.split('.')
    const assign = (node: LayoutNode): void => {
      node.key = key
    }
    const root = roots.get(PLUGIN_IDS[section as keyof typeof PLUGIN_IDS]) ?? newNode()
    if (section === 'shim' || layout === 'v3') {
      if (key.v2Only !== true) insert(root, path, assign)
      continue
    }
    for (const place of [v2Path(key)?.join('.'), ...(key.v2Aliases ?? [])]) if (place !== undefined) insert(runtime, place.split('.'), assign)
  }
  insert(runtime, options, (node) => {
    node.isOptions = true
  })
  if (layout === 'v2') {
    for (const section of ['images', 'runtime'] as const) roots.delete(PLUGIN_IDS[section])
    const template = runtime.children.get('containerd')?.children.get('runtimes')?.wildcard ?? newNode()
    for (const [table, runtimeName] of [['default_runtime', LEGACY_DEFAULT_RUNTIME], ['untrusted_workload_runtime', LEGACY_UNTRUSTED_RUNTIME]] as const) {
      runtime.children.get('containerd')?.children.set(table, { ...template, runtimeName })
    }
  }
  return roots
}

const LAYOUTS: Readonly<Record<Layout, ReadonlyMap<string, LayoutNode>>> = { v2: buildLayout('v2'), v3: buildLayout('v3') }

/** What a plugin section may hold, undefined for a section that is none of ours. */
export function sectionLayout(layout: Layout, pluginId: string): LayoutNode | undefined {
  return LAYOUTS[layout].get(pluginId === V1_PLUGIN_ID && layout === 'v2' ? PLUGIN_IDS.server : pluginId)
}

/** A TOML table header: `[plugins."io.cri-shim.v1".tracing]`. */
export function tableHeader(path: readonly string[]): string {
  return `[${dottedKey(path)}]`
}

/** Keys joined as TOML writes them, quoted where they must be. */
export function dottedKey(path: readonly string[]): string {
  return path.map((name) => (/^[A-Za-z0-9_-]+$/.test(name) ? name : JSON.stringify(name))).join('.')
}

/** A place where a name is known. */
interface Place {
  readonly name: string
  /** The table around it, from `plugins` on, with `*`. */
  readonly table: readonly string[]
  readonly isTable: boolean
}

function placesOf(layout: Layout): readonly Place[] {
  const places: Place[] = []
  const visit = (node: LayoutNode, path: readonly string[]): void => {
    for (const [name, child] of node.children) {
      if (child.runtimeName !== undefined || child.key?.v2Only === true) continue
      const isTable = child.key === undefined || child.key.kind === 'any'
      places.push({ name, table: path, isTable })
      visit(child, [...path, name])
    }
    if (node.wildcard !== undefined) visit(node.wildcard, [...path, '*'])
    if (node.isOptions === true) for (const option of RUNC_OPTIONS) if ('setting' in option) places.push({ name: option.name, table: path, isTable: false })
  }
  for (const [id, node] of LAYOUTS[layout]) visit(node, ['plugins', id])
  return places
}

const PLACES: Readonly<Record<Layout, readonly Place[]>> = { v2: placesOf('v2'), v3: placesOf('v3') }

/** Names of the other layout: what the key is called here, and in which table. */
const RENAMED: Readonly<Record<Layout, Readonly<Record<string, Omit<Place, 'isTable'>>>>> = {
  v3: {
    sandbox_image: { name: 'sandbox', table: ['plugins', PLUGIN_IDS.images, 'pinned_images'] },
    sandbox_mode: { name: 'sandboxer', table: ['plugins', PLUGIN_IDS.runtime, 'containerd', 'runtimes', '*'] },
  },
  v2: { pinned_images: { name: 'sandbox_image', table: ['plugins', PLUGIN_IDS.server] } },
}

/** What a name that is not known in its table probably means. */
export interface Guess {
  /** `place`: the name is right, the table is not. `name`: the table is right. `both`: neither. */
  readonly kind: 'place' | 'name' | 'both'
  readonly name: string
  readonly table: readonly string[]
  /** Typing mistakes: 0 or 1 leave no doubt. */
  readonly distance: number
}

/**
 * Guesses what was meant by `name` in `table` (a path from `plugins` on). `known` are the names that the table has.
 */
export function guessKey(layout: Layout, table: readonly string[], name: string, known: readonly string[], isTable: boolean): Guess | undefined {
  const here = nearestWord(name, known)
  if (here !== undefined && here.distance === 0) return { kind: 'name', name: here.word, table, distance: 0 }
  const renamed = RENAMED[layout][name]
  if (renamed !== undefined) return { kind: 'both', name: renamed.name, table: concrete(renamed.table, table), distance: 0 }
  const elsewhere = bestPlace(layout, table, name, isTable)
  if (elsewhere !== undefined && elsewhere.name === name) return { kind: 'place', name, table: concrete(elsewhere.table, table), distance: 0 }
  if (here !== undefined && (elsewhere === undefined || here.distance <= distanceTo(name, elsewhere.name))) {
    return { kind: 'name', name: here.word, table, distance: here.distance }
  }
  if (elsewhere === undefined) return undefined
  return { kind: 'both', name: elsewhere.name, table: concrete(elsewhere.table, table), distance: distanceTo(name, elsewhere.name) }
}

/** The place whose name is nearest; among equals the one whose table is nearest. */
function bestPlace(layout: Layout, table: readonly string[], name: string, isTable: boolean): Place | undefined {
  const candidates = PLACES[layout].filter((place) => place.isTable === isTable)
  const nearest = nearestWord(name, candidates.map((place) => place.name))
  const word = candidates.some((place) => place.name === name) ? name : nearest?.word
  const shared = (place: Place): number => place.table.findIndex((part, index) => part !== '*' && part !== table[index])
  return candidates
    .filter((place) => place.name === word)
    .sort((a, b) => (shared(b) === -1 ? Infinity : shared(b)) - (shared(a) === -1 ? Infinity : shared(a)) || a.table.length - b.table.length)[0]
}

function distanceTo(name: string, word: string): number {
  return looseKey(name) === looseKey(word) ? 0 : editDistance(name.toLowerCase(), word.toLowerCase())
}

/** Fills the names that the user chooses: as in the table where the key was found, else runc for a runtime. */
function concrete(place: readonly string[], found: readonly string[]): readonly string[] {
  return place.map((part, index) => {
    if (part !== '*') return part
    const parent = place[index - 1]
    const at = parent === undefined ? -1 : found.indexOf(parent)
    return (at === -1 ? undefined : found[at + 1]) ?? (parent === 'runtimes' ? 'runc' : 'NAME')
  })
}
