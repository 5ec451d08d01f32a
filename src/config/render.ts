import { formatGoDuration } from './go-duration.ts'
import { GENERIC_OPTIONS, type Key, KEYS, PLUGIN_IDS, RUNC_OPTIONS, SECTIONS, type Section } from './keys.ts'
import { dottedKey, tableHeader } from './layout.ts'
import type { LoadedSettings } from './load-settings.ts'
import { defaultOf } from './resolve.ts'
import { formatSource, sourceOf } from './settings.ts'

const SECTION_TITLES: Readonly<Record<Section, string>> = {
  shim: 'cri-shim itself.',
  images: 'Images: pulling, registries, the pause image.',
  runtime: 'Pods and containers.',
  server: 'The exec, attach and port-forward server.',
}

/**
 * The effective settings as a version 3 file, with the source of each as a comment. It can be loaded again, except that credentials
 * are replaced by `[redacted]`.
 */
export function renderEffective(loaded: LoadedSettings): string {
  const from = loaded.files.length === 0 ? 'built-in defaults, no file' : loaded.files.join(', ')
  const lines = [`# The effective settings of cri-shim (${from}).`, 'version = 3']
  for (const section of SECTIONS) {
    const tables = new Map<string, string[]>()
    const line = (table: readonly string[], text: string): void => {
      const header = tableHeader(['plugins', PLUGIN_IDS[section], ...table])
      tables.set(header, [...(tables.get(header) ?? []), text])
    }
    for (const key of KEYS) {
      const path = key.id.split('.')
      if (path[0] !== section || key.setting === undefined) continue
      for (const { names, value, settingPath } of effectiveValues(loaded.settings, key.setting.split('.'))) {
        if (key.id === 'images.pinned_images.*' && names[0] === 'sandbox') continue
        const place = fill(path.slice(1), names)
        const source = formatSource(sourceOf(loaded.sources, ...settingPath))
        line(place.slice(0, -1), `${dottedKey(place.slice(-1))} = ${tomlValue(key, value)} # ${source}`)
      }
    }
    if (section === 'runtime') renderOptions(loaded, line)
    for (const [header, content] of tables) lines.push('', header, ...content.map((text) => `  ${text}`))
  }
  return `${lines.join('\n')}\n`
}

function renderOptions(loaded: LoadedSettings, line: (table: readonly string[], text: string) => void): void {
  for (const [name, { options }] of Object.entries(loaded.settings.runtimes)) {
    const table = ['containerd', 'runtimes', name, 'options']
    const add = (key: string, setting: string, value: unknown): void =>
      line(table, `${key} = ${JSON.stringify(value)} # ${formatSource(sourceOf(loaded.sources, 'runtimes', name, 'options', setting))}`)
    if (options.kind === 'runc') {
      for (const option of RUNC_OPTIONS) if ('setting' in option) add(option.name, option.setting, options[option.setting])
      continue
    }
    for (const key of GENERIC_OPTIONS) {
      const setting = key === 'TypeUrl' ? 'typeUrl' : key === 'ConfigPath' ? 'configPath' : 'configBody'
      if (options[setting] !== '') add(key, setting, options[setting])
    }
  }
}

interface Effective {
  readonly names: readonly string[]
  readonly settingPath: readonly string[]
  readonly value: unknown
}

/** The values at a path of the settings, one for each name that stands for a `*`. */
function effectiveValues(root: unknown, path: readonly string[]): Effective[] {
  let found: Effective[] = [{ names: [], settingPath: [], value: root }]
  for (const part of path) {
    found = found.flatMap(({ names, settingPath, value }): Effective[] => {
      if (typeof value !== 'object' || value === null) return []
      if (part === '*') return Object.entries(value).map(([name, child]) => ({ names: [...names, name], settingPath: [...settingPath, name], value: child as unknown }))
      const child: unknown = (value as Readonly<Record<string, unknown>>)[part]
      return child === undefined ? [] : [{ names, settingPath: [...settingPath, part], value: child }]
    })
  }
  return found
}

function fill(path: readonly string[], names: readonly string[]): string[] {
  let index = 0
  return path.map((part) => (part === '*' ? (names[index++] ?? '') : part))
}

/** A value of the settings as the file writes it. */
function tomlValue(key: Key, value: unknown): string {
  const isEmpty = value === '' || (Array.isArray(value) && value.length === 0)
  if (key.secret === true && !isEmpty) return Array.isArray(value) ? '["[redacted]"]' : '"[redacted]"'
  if (key.kind === 'duration') return JSON.stringify(formatGoDuration(Number(value)))
  if (key.kind === 'seconds') return String(Number(value) / 1000)
  // config_path and stream_server_port are strings in the file, whatever they are here.
  if (key.kind === 'string') return tomlString(Array.isArray(value) ? value.join(':') : String(value))
  return Array.isArray(value) ? `[${value.map((item) => tomlString(String(item))).join(', ')}]` : String(value)
}

/** JSON's escapes are TOML's, but for DEL, which TOML wants escaped as well. */
function tomlString(text: string): string {
  return JSON.stringify(text).replaceAll('\u007f', '\\u007f')
}

export interface DefaultFileOptions {
  /** A file to import, normally /etc/containerd/config.toml when it exists. Absent: the line is there as a comment. */
  readonly imports?: string | undefined
}

/** A file that changes nothing: every setting as a comment, with its type, default and effect. */
export function renderDefault(options: DefaultFileOptions = {}): string {
  const lines = [
    '# The configuration of cri-shim. It has the layout of containerd\'s config.toml, version 3, with the same keys.',
    '# Each setting stands here as a comment with its default: take away the "#" to change one.',
    '# "cri-shim config check" finds mistakes, "cri-shim config show" prints what is in force.',
    'version = 3',
    '',
    '# When this file is there, /etc/containerd/config.toml is not read, unless it is imported. What is imported wins over this file.',
    options.imports === undefined ? '# imports = ["/etc/containerd/config.toml"]' : `imports = [${tomlString(options.imports)}]`,
  ]
  for (const section of SECTIONS) {
    lines.push('', `# ${SECTION_TITLES[section]}`)
    const tables = Map.groupBy(KEYS.filter((key) => isPrinted(key, section)), (key) => tableOf(key, section))
    for (const [header, keys] of tables) {
      // Tables under a name that the user chooses would come into being by their header alone.
      const isExample = keys.some((key) => key.id.includes('*') && !key.id.startsWith('runtime.containerd.runtimes.'))
      lines.push('', isExample ? `# ${header}` : header)
      for (const key of keys) lines.push(...describe(key, `  # ${dottedKey([lastName(key)])} = ${exampleValue(key)}`))
      if (keys.some((key) => key.id.endsWith('.runtime_type'))) {
        lines.push('', tableHeader(['plugins', PLUGIN_IDS.runtime, 'containerd', 'runtimes', 'runc', 'options']))
        for (const option of RUNC_OPTIONS) if ('setting' in option) lines.push(...describe({ id: option.name, ...option }, `  # ${option.name} = ${exampleValue({ id: option.name, ...option })}`))
      }
    }
  }
  return `${lines.join('\n')}\n`
}

function isPrinted(key: Key, section: Section): boolean {
  return key.id.startsWith(`${section}.`) && key.setting !== undefined && key.v2Only !== true
}

/** The header under which a key is shown; the names that the user chooses are examples. */
function tableOf(key: Key, section: Section): string {
  const example: Readonly<Record<string, string>> = { mirrors: 'docker.io', configs: 'registry.example.com', auths: 'https://registry.example.com', credentials: 'registry.example.com', runtimes: 'runc' }
  const path = key.id.split('.').slice(1, -1)
  return tableHeader(['plugins', PLUGIN_IDS[section], ...path.map((part, index) => (part === '*' ? (example[path[index - 1] ?? ''] ?? 'NAME') : part))])
}

function lastName(key: Key): string {
  const name = key.id.slice(key.id.lastIndexOf('.') + 1)
  if (name !== '*') return name
  return key.id.startsWith('images.registry.headers') ? 'X-Meta-Example' : 'base'
}

function describe(key: Key, assignment: string): string[] {
  return ['', ...wrap(`${key.doc} (${typeOf(key)})`, 110).map((text) => `  # ${text}`), assignment]
}

const TYPES: Readonly<Record<Key['kind'], string>> = { bool: 'true or false', int: 'integer', string: 'string', strings: 'array of strings', duration: 'duration', seconds: 'integer, seconds', any: 'table' }

function typeOf(key: Key): string {
  return TYPES[key.kind]
}

function exampleValue(key: Key): string {
  return tomlValue(key, defaultOf(key))
}

function wrap(text: string, width: number): string[] {
  const lines: string[] = []
  let line = ''
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + word.length >= width) {
      lines.push(line)
      line = word
    } else line = line === '' ? word : `${line} ${word}`
  }
  return [...lines, line]
}

