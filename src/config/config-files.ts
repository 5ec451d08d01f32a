import { readFileSync, realpathSync } from 'node:fs'
import { dirname, isAbsolute, join, normalize } from 'node:path'
import { TomlError, type TomlTable, parse } from 'smol-toml'
import { errnoOf, messageOf } from '../errors/cri-error.ts'
import type { Diagnostics, Origin } from './diagnostics.ts'
import { globPaths } from './glob.ts'
import { type TomlPositions, scanTomlPositions } from './toml-positions.ts'

/** The newest file version there is; version 4 (containerd 2.3) differs from 3 in containerd's own sections only. */
const NEWEST_VERSION = 4

export interface ConfigFile {
  readonly path: string
  readonly tree: TomlTable
  readonly positions: TomlPositions
  /** Absent: the file has no version line, which containerd 1.x takes for version 1. */
  readonly version: number | undefined
  /** Whether another file imports this one. */
  readonly imported: boolean
}

/** Where a key of a file stands; the nearest table around it if the key itself cannot be found. */
export function originOf(file: ConfigFile, path: readonly string[]): Origin {
  return { file: file.path, ...file.positions.near(path) }
}

interface Pending {
  readonly path: string
  /** Real paths of the files that led here, the main file first. */
  readonly chain: readonly string[]
  /** Where the import is written. */
  readonly from?: Origin
}

/**
 * Reads a file and what it imports, in the order in which containerd merges them: the file, its imports, their imports. Each file is read once.
 * A file that cannot be used is reported and left out.
 */
export function readConfigFiles(path: string, diagnostics: Diagnostics): ConfigFile[] {
  const files: ConfigFile[] = []
  const seen = new Set<string>()
  const pending: Pending[] = [{ path, chain: [] }]
  for (let next = pending.shift(); next !== undefined; next = pending.shift()) {
    const real = realPath(next.path)
    if (seen.has(real)) continue
    seen.add(real)
    const file = readConfigFile(next, diagnostics)
    if (file === undefined) continue
    files.push(file)
    pending.push(...importsOf(file, [...next.chain, real], diagnostics))
  }
  return files
}

function readConfigFile(next: Pending, diagnostics: Diagnostics): ConfigFile | undefined {
  const { path } = next
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    const reason = errnoOf(error) === 'ENOENT' ? 'there is no such file' : messageOf(error)
    if (next.from === undefined) diagnostics.error('unreadable', `cannot read the configuration: ${reason}`, { file: path, line: 0, column: 0 })
    else diagnostics.error('import', `cannot import ${path}: ${reason}`, next.from)
    return undefined
  }
  try {
    const tree = parse(text, { integersAsBigInt: 'asNeeded' })
    const positions = scanTomlPositions(text)
    const version = readVersion(tree, { file: path, ...positions.near(['version']) }, diagnostics)
    return { path, tree, positions, version, imported: next.from !== undefined }
  } catch (error) {
    if (!(error instanceof TomlError)) throw error
    const reason = (error.message.split('\n')[0] ?? '').replace(/^Invalid TOML document: /, '')
    diagnostics.error('syntax', `not valid TOML: ${reason}`, { file: path, line: error.line, column: error.column })
    return undefined
  }
}

function readVersion(tree: TomlTable, origin: Origin, diagnostics: Diagnostics): number | undefined {
  const version = tree['version']
  if (version === undefined || version === 0) return undefined
  if (typeof version !== 'number' || !Number.isInteger(version) || version < 0) {
    diagnostics.error('version', 'version must be an integer: 2 for containerd 1.x, 3 for containerd 2.x', origin, { key: 'version' })
    return undefined
  }
  if (version > NEWEST_VERSION) {
    diagnostics.error('version', `version ${version} of this file is not known here: the newest is ${NEWEST_VERSION}`, origin, { key: 'version' })
  }
  return version
}

function importsOf(file: ConfigFile, chain: readonly string[], diagnostics: Diagnostics): Pending[] {
  const imports = file.tree['imports']
  if (imports === undefined) return []
  if (!Array.isArray(imports) || !imports.every((item) => typeof item === 'string')) {
    diagnostics.error('wrong-type', 'imports must be an array of strings', originOf(file, ['imports']), { key: 'imports' })
    return []
  }
  return imports.flatMap((item, index) => {
    const from = originOf(file, ['imports', String(index)])
    const path = isAbsolute(item) ? normalize(item) : join(dirname(file.path), item)
    const isPattern = path.includes('*')
    return (isPattern ? globPaths(path) : [path]).flatMap((match): Pending[] => {
      const real = realPath(match)
      if (!chain.includes(real)) return [{ path: match, chain, from }]
      // `containerd config dump` of 1.x prints the file's own name among its imports: nothing is lost, and nobody made a mistake.
      if (real === chain.at(-1)) return []
      const way = [...chain, match].join(' → ')
      const message = isPattern
        ? `the pattern ${item} matches a file that leads here (${way}); it is not read again`
        : `the imports form a cycle: ${way}; each file is read once, take one of them out`
      diagnostics.warning('import', message, from, { key: 'imports' })
      return []
    })
  })
}

/** What tells two names of one file from two files; the name itself when the file is not there. */
function realPath(path: string): string {
  try {
    return realpathSync(path)
  } catch {
    return normalize(path)
  }
}
