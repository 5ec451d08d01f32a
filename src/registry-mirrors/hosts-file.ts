import { isUtf8 } from 'node:buffer'
import path from 'node:path'
import { parse, TomlDate, TomlError } from 'smol-toml'
import { nearestWord } from '../config/edit-distance.ts'
import { parseGoDuration } from '../config/go-duration.ts'
import { type Position, scanTomlPositions, type TomlPositions } from '../config/toml-positions.ts'
import { CriError, Code, messageOf } from '../errors/cri-error.ts'
import { type HostAddress, parseHostUrl, withoutSecrets } from './host-url.ts'
import { type Capability, type Headers, type HostTls, allCapabilities, requestHeaders } from './registry-host.ts'

/** What can be said of one host, at the root of the file (for `server`) or under `[host."URL"]`. */
export interface HostSettings {
  readonly capabilities?: readonly Capability[]
  /** Undefined: nothing is said about TLS. */
  readonly tls?: HostTls
  readonly headers: Headers
  readonly overridePath: boolean
  readonly dialTimeoutMs?: number
}

export interface HostEntry extends HostSettings {
  readonly address: HostAddress
  /** Where it stands in the file. */
  readonly line: number
}

/** A hosts.toml, read and checked. */
export interface HostsFile {
  /** The path of the file. */
  readonly file: string
  /** In the order of the file. */
  readonly hosts: readonly HostEntry[]
  /** Absent when the registry itself is the fallback; the settings are its own then. */
  readonly server?: HostEntry
  readonly root: HostSettings
  /** What is odd but not wrong: unknown keys, `server = "https://docker.io"`. Each begins with file and line. */
  readonly warnings: readonly string[]
}

const hostKeys = ['capabilities', 'ca', 'client', 'skip_verify', 'header', 'override_path', 'dial_timeout']
const rootKeys = ['server', 'host', ...hostKeys]
/** Names of Docker Hub that serve no registry API. */
const notRegistries = new Set(['docker.io', 'www.docker.io', 'hub.docker.com', 'docker.com'])

type Table = Readonly<Record<string, unknown>>

/** Nobody writes more by hand, and positions are looked for in all of it. */
export const maxFileBytes = 256 * 1024
const maxDepth = 16

/** Reads a hosts.toml. Throws FAILED_PRECONDITION naming file, line and remedy, and nothing else. */
export function parseHostsFile(content: string | Buffer, file: string): HostsFile {
  const bytes = typeof content === 'string' ? Buffer.from(content) : content
  if (bytes.length > maxFileBytes) throw tooLarge(file, bytes.length)
  // Editors on other systems begin a file with a byte order mark.
  const text = (typeof content === 'string' ? content : decode(content, file)).replace(/^\ufeff/, '')
  let root: Table
  try {
    root = parse(text)
  } catch (error) {
    throw notToml(text, file, error)
  }
  if (isDeep(root, maxDepth)) throw brokenFile(file, deepLine(text), 'tables are nested too deep: hosts are written [host."https://mirror.example"]')
  return new Reader(file, scanTomlPositions(text)).read(root)
}

function notToml(text: string, file: string, error: unknown): CriError {
  const what = clip((messageOf(error).split('\n')[0] ?? '').replace(/^Invalid TOML document: /, ''))
  if (!(error instanceof TomlError)) return brokenFile(file, 1, `not valid TOML: ${what}`)
  const { line, column } = error
  // To the parser the end of the line is a control character in the string.
  const written = text.split('\n')[line - 1]?.replace(/\r$/, '') ?? ''
  const open = what.includes('in strings') ? column > written.length : what.includes('unfinished string')
  return brokenFile(file, line, `not valid TOML: ${open ? 'a string that begins in this line has no closing quote' : `${what}${hintOf(written)}`}`)
}

/** What people take for TOML. */
function hintOf(line: string): string {
  if (/[“”„‟«»‘’]/.test(line)) return ' (typographic quotes: write ")'
  if (/^\s*[\w.-]+\s*:(?:\s|$)/.test(line) || /^\s*(?:---|- )/.test(line)) return ' (this looks like YAML: write key = "value")'
  if (/^\s*[{}]/.test(line)) return ' (this looks like JSON: write key = "value")'
  return /=\s*[A-Za-z~/.]/.test(line) ? ' (text needs quotes: key = "value")' : ''
}

function decode(bytes: Buffer, file: string): string {
  // Nobody writes a NUL, and of UTF-16 every other byte is one.
  if (bytes.subarray(0, 64).includes(0)) throw brokenFile(file, 1, 'it is not a text in UTF-8 (UTF-16, perhaps): save the file in UTF-8')
  if (isUtf8(bytes)) return bytes.toString('utf8')
  const before = bytes.toString('latin1').split('\n')
  let offset = 0
  const line = before.findIndex((text) => {
    const part = bytes.subarray(offset, offset + text.length)
    offset += text.length + 1
    return !isUtf8(part)
  })
  throw brokenFile(file, line + 1, 'a character is not UTF-8: save the file in UTF-8')
}

function isDeep(value: unknown, left: number): boolean {
  if (typeof value !== 'object' || value === null || value instanceof TomlDate) return false
  return left === 0 || Object.values(value).some((item) => isDeep(item, left - 1))
}

/** The first line that could have that many keys or brackets. */
function deepLine(text: string): number {
  return Math.max(1, text.split('\n').findIndex((line) => (line.match(/[.[{]/g)?.length ?? 0) >= maxDepth) + 1)
}

/** The error for a host configuration that cannot be used. It concerns the pulls of that registry alone. */
export function brokenFile(file: string, line: number | undefined, what: string, cause?: unknown): CriError {
  const where = line === undefined ? file : `${file}:${line}`
  return new CriError(Code.FAILED_PRECONDITION, `${where}: ${what}`, { reason: 'BROKEN_HOSTS_FILE', cause })
}

/** The error for a file of more than `maxFileBytes`. */
export function tooLarge(file: string, bytes: number): CriError {
  return brokenFile(file, 1, `it has ${bytes} bytes, more than ${maxFileBytes}: is this the right file?`)
}

class Reader {
  readonly #file: string
  readonly #positions: TomlPositions
  readonly #warnings: string[] = []

  constructor(file: string, positions: TomlPositions) {
    this.#file = file
    this.#positions = positions
  }

  read(root: Table): HostsFile {
    this.#warnUnknown(root, [], rootKeys)
    const settings = this.#settings(root, [])
    const hosts = this.#hostNames(root).map(([name, table]) => this.#host(name, table))
    const server = this.#server(root, settings)
    if (server === undefined) this.#warnOfServerKeys(root)
    return { file: this.#file, hosts, root: settings, warnings: this.#warnings, ...(server === undefined ? {} : { server }) }
  }

  /** As in containerd, these say nothing about the registry itself when the file does not name it. */
  #warnOfServerKeys(root: Table): void {
    for (const key of ['capabilities', 'override_path']) {
      if (root[key] !== undefined) this.#warn([key], `${key} is not used: there is no server = "https://…" that it could be about; for a mirror it belongs below its [host."…"] line`)
    }
  }

  /** The hosts in the order in which the file first names them. */
  #hostNames(root: Table): [string, Table][] {
    const value = root['host']
    if (value === undefined) return []
    const table = this.#table(value, ['host'], 'hosts are written [host."https://mirror.example"]')
    const named = Object.entries(table).map(([name, item]) => {
      const hint = `"${clip(withoutSecrets(name))}" under [host] is not a table: hosts are written [host."https://mirror.example"]`
      const settings = this.#table(item, ['host', name], hint)
      return { name, settings, at: this.#firstMention(['host', name], Object.keys(settings)) }
    })
    return named.sort((a, b) => a.at.line - b.at.line || a.at.column - b.at.column).map(({ name, settings }) => [name, settings])
  }

  /** A host may be named first by a table inside of it: [host."URL".header]. */
  #firstMention(at: readonly string[], keys: readonly string[]): Position {
    const found = [at, ...keys.map((key) => [...at, key])].map((place) => this.#positions.get(place)).filter((position) => position !== undefined)
    return found.reduce((a, b) => (b.line < a.line || (b.line === a.line && b.column < a.column) ? b : a), found[0] ?? this.#positions.near(at))
  }

  #host(name: string, table: Table): HostEntry {
    const at = ['host', name]
    this.#warnUnknown(table, at, hostKeys)
    return { ...this.#settings(table, at), address: this.#address(name, at, `host "${clip(withoutSecrets(name))}"`), line: this.#positions.near(at).line }
  }

  #server(root: Table, settings: HostSettings): HostEntry | undefined {
    const at = ['server']
    const value = root['server']
    if (value === undefined) return undefined
    if (typeof value !== 'string') throw this.#bad(at, 'server must be a string such as "https://registry.example"')
    if (value === '') return undefined
    return { ...settings, address: this.#address(value, at, `server "${clip(withoutSecrets(value))}"`), line: this.#positions.near(at).line }
  }

  #address(text: string, at: readonly string[], what: string): HostAddress {
    const address = parseHostUrl(text)
    if (typeof address === 'string') throw this.#bad(at, `${what}: ${address}`)
    if (address.hasCredentials) this.#warn(at, `${what}: the user name and password in the URL are not used; write them to [plugins."io.cri-shim.v1".registry.credentials."${address.host}"] in the configuration`)
    if (/[?#]/.test(text)) this.#warn(at, `${what}: what follows ? or # in the URL is not used`)
    if (!notRegistries.has(address.host)) return address
    this.#warn(at, `${what} serves no registry API; registry-1.docker.io is used instead: write https://registry-1.docker.io`)
    return { ...address, host: 'registry-1.docker.io' }
  }

  #settings(table: Table, at: readonly string[]): HostSettings {
    const capabilities = this.#capabilities(table['capabilities'], [...at, 'capabilities'])
    const tls = this.#tls(table, at)
    const dialTimeoutMs = this.#dialTimeout(table['dial_timeout'], [...at, 'dial_timeout'])
    return {
      headers: this.#headers(table['header'], [...at, 'header']),
      overridePath: this.#boolean(table['override_path'], [...at, 'override_path']) ?? false,
      ...(capabilities === undefined ? {} : { capabilities }),
      ...(tls === undefined ? {} : { tls }),
      ...(dialTimeoutMs === undefined ? {} : { dialTimeoutMs }),
    }
  }

  #capabilities(value: unknown, at: readonly string[]): readonly Capability[] | undefined {
    if (value === undefined) return undefined
    const names = this.#strings(value, at, 'capabilities must be an array such as ["pull", "resolve"]')
    if (names.length === 0) return undefined
    return names.map((name) => {
      const known = allCapabilities.find((capability) => capability === name.toLowerCase())
      if (known === undefined) throw this.#bad(at, `unknown capability "${clip(name)}": use pull, resolve, push`)
      return known
    })
  }

  #tls(table: Table, at: readonly string[]): HostTls | undefined {
    const { ca, client } = table
    const skipVerify = this.#boolean(table['skip_verify'], [...at, 'skip_verify'])
    if (ca === undefined && client === undefined && skipVerify === undefined) return undefined
    const caFiles = ca === undefined ? [] : typeof ca === 'string' ? [ca] : this.#strings(ca, [...at, 'ca'], 'ca must be a path or an array of paths')
    return {
      caFiles: caFiles.map((name) => this.#path(name, [...at, 'ca'])),
      clientPairs: this.#clientPairs(client, [...at, 'client']),
      skipVerify: skipVerify ?? false,
    }
  }

  #clientPairs(value: unknown, at: readonly string[]): HostTls['clientPairs'] {
    const shape = 'client must be a path, an array of paths, or an array of ["cert", "key"] pairs'
    if (value === undefined) return []
    if (typeof value === 'string') return [{ certFile: this.#path(value, at) }]
    if (!Array.isArray(value)) throw this.#bad(at, shape)
    return value.map((item: unknown) => {
      if (typeof item === 'string') return { certFile: this.#path(item, at) }
      const [cert, key, ...more] = this.#strings(item, at, shape)
      if (cert === undefined || key === undefined || more.length > 0) throw this.#bad(at, shape)
      return key === '' ? { certFile: this.#path(cert, at) } : { certFile: this.#path(cert, at), keyFile: this.#path(key, at) }
    })
  }

  #headers(value: unknown, at: readonly string[]): Headers {
    if (value === undefined) return {}
    const table = this.#table(value, at, 'header must be a table of strings or arrays of strings')
    return Object.fromEntries(
      Object.entries(table).map(([name, item]) => {
        const here = [...at, name]
        if (!/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(name)) throw this.#bad(here, `"${clip(name)}" is not a header name`)
        const values = typeof item === 'string' ? [item] : this.#strings(item, here, `header "${clip(name)}" must be a string or an array of strings`)
        if (rootKeys.includes(name)) this.#warn(here, `header "${clip(name)}" looks like a setting of the host: it belongs above the [….header] line`)
        if (requestHeaders.has(name.toLowerCase())) this.#warn(here, `header "${clip(name)}" is not used: it belongs to the request itself`)
        // The value is not shown: headers carry credentials.
        if (values.some((text) => /[^\t\x20-\x7e\x80-\xff]/.test(text))) throw this.#bad(here, `header "${clip(name)}" has a character that headers must not have`)
        return [name, values]
      }),
    )
  }

  #dialTimeout(value: unknown, at: readonly string[]): number | undefined {
    if (value === undefined || value === '') return undefined
    const ms = typeof value === 'string' ? parseGoDuration(value) : undefined
    if (ms === undefined) throw this.#bad(at, 'dial_timeout must be a duration in quotes such as "5s" or "500ms"')
    if (ms < 0) throw this.#bad(at, 'dial_timeout must not be negative')
    // To a Go dialer 0 means no limit of its own; ours stays bounded by the default.
    return ms === 0 ? undefined : Math.min(Math.max(ms, 1), 2 ** 31 - 1)
  }

  #boolean(value: unknown, at: readonly string[]): boolean | undefined {
    if (value === undefined || typeof value === 'boolean') return value
    throw this.#bad(at, `${at.at(-1)} must be true or false, without quotes`)
  }

  #strings(value: unknown, at: readonly string[], shape: string): string[] {
    if (!Array.isArray(value) || !value.every((item) => typeof item === 'string')) throw this.#bad(at, shape)
    return value
  }

  #table(value: unknown, at: readonly string[], shape: string): Table {
    if (typeof value !== 'object' || value === null || Array.isArray(value) || value instanceof TomlDate) throw this.#bad(at, shape)
    return value as Table
  }

  #path(name: string, at: readonly string[]): string {
    if (name === '') throw this.#bad(at, `${at.at(-1)} names no file`)
    return path.resolve(path.dirname(this.#file), name)
  }

  #warnUnknown(table: Table, at: readonly string[], known: readonly string[]): void {
    for (const key of Object.keys(table)) {
      if (known.includes(key)) continue
      const likely = nearestWord(key, known)?.word
      const belongs = at.length > 0 && key === 'server' ? 'it belongs above the first [host."…"] table' : undefined
      const split = at.length === 2 && typeof table[key] === 'object' && !Array.isArray(table[key]) ? `names with dots are quoted: [host."${clip(`${at[1]}.${key}`)}"]` : undefined
      const misnamed = at.length === 0 && typeof table[key] === 'object' && /host|mirror|server/i.test(key) ? 'hosts are written [host."https://mirror.example"]' : undefined
      const hint = belongs ?? split ?? misnamed ?? (likely === undefined ? `known here: ${known.join(', ')}` : `did you mean ${likely}?`)
      this.#warn([...at, key], `unknown key "${clip(key)}" is ignored; ${hint}`)
    }
  }

  #warn(at: readonly string[], what: string): void {
    this.#warnings.push(`${this.#file}:${this.#positions.near(at).line}: ${what}`)
  }

  #bad(at: readonly string[], what: string): CriError {
    return brokenFile(this.#file, this.#positions.near(at).line, what)
  }
}

/** In one short line. */
function clip(text: string): string {
  // eslint-disable-next-line no-control-regex
  const line = text.replace(/[\x00-\x1f\x7f-\x9f\u2028\u2029]+/g, ' ')
  return line.length > 100 ? `${line.slice(0, 100)}…` : line
}
