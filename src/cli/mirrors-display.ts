import { type Diagnostic, formatDiagnostics } from '../config/diagnostics.ts'
import type { LoadedSettings } from '../config/load-settings.ts'
import { formatSource, sourceOf } from '../config/settings.ts'
import type { ExplainedHost, Explanation, LookedAt } from '../registry-mirrors/explain.ts'
import type { PeerCertificate } from '../registry-mirrors/peer-certificate.ts'
import type { Probe } from '../registry-mirrors/probe.ts'
import { allCapabilities, defaultDialTimeoutMs } from '../registry-mirrors/registry-host.ts'

/** A digest that a tag means, and the hosts that say so. */
export interface SaidDigest {
  readonly digest: string
  readonly hosts: readonly string[]
}

/** What `mirrors explain` has found out. */
export interface ExplainReport {
  readonly loaded: LoadedSettings
  readonly explanation: Explanation
  /** Of the configuration, of the files, and what came up while asking. */
  readonly warnings: readonly string[]
  /** In the order of the hosts. */
  readonly probes?: readonly Probe[] | undefined
}

/** For programs: names and meanings stay, fields may be added. */
export function explainJson({ loaded, explanation, warnings, probes }: ExplainReport): string {
  const source = formatSource(sourceOf(loaded.sources, 'registry', 'configPath'))
  return JSON.stringify({
    config: loaded.files, configPath: loaded.settings.registry.configPath, configPathSource: source, ...explanation, warnings,
    ...(probes === undefined ? {} : { probes, digests: digestsOf(probes) }),
  }, null, 2)
}

/** For people. `columns`: where a line ends; absent: nothing is wrapped, as grep likes it. */
export function explainText({ loaded, explanation, warnings, probes }: ExplainReport, columns?: number): string {
  const { lookedAt, nearMisses, hosts, problem } = explanation
  const page = new Page(columns)
  page.row('', 14, 'image', explanation.image)
  page.row('', 14, 'registry', explanation.registry)
  page.row('', 14, 'settings', loaded.files.length === 0 ? 'built-in defaults, no file' : loaded.files.join(', '))
  const source = formatSource(sourceOf(loaded.sources, 'registry', 'configPath'))
  page.row('', 14, 'config_path', `${loaded.settings.registry.configPath.length === 0 ? 'not set, so no hosts.toml is read' : loaded.settings.registry.configPath.join(':')} (${source})`)
  page.list('looked at', lookedAt.map(({ path, state }) => `${path}${stateText[state]}`))
  page.list('there, and not read', nearMisses.map(({ path, why }) => `${path}: ${why}`))
  if (problem !== undefined) {
    page.line('')
    page.line(`error: ${problem}`, '  ')
    page.line(hosts.length === 0 ? `Every pull from ${explanation.registry} fails until this is mended.` : 'Every pull of this image fails until this is mended.')
  }
  if (hosts.length > 0) page.heading('hosts, in the order in which they are asked')
  for (const [index, host] of hosts.entries()) hostRows(page, index + 1, host, probes?.[index])
  page.list('warnings', [...warnings, ...probes === undefined ? [] : disagreement(probes)])
  return page.text()
}

/** What the hosts say that the name means, the first host's word first; more than one: they do not agree. */
export function digestsOf(probes: readonly Probe[]): SaidDigest[] {
  const digests = new Map<string, string[]>()
  for (const { digest, url } of probes) if (digest !== undefined) digests.set(digest, [...digests.get(digest) ?? [], url])
  return [...digests].map(([digest, hosts]) => ({ digest, hosts }))
}

/** The findings of a configuration that matter to pulls. */
export function registryWarnings(diagnostics: readonly Diagnostic[]): string[] {
  return diagnostics.filter((diagnostic) => /registry|config_path|hosts\.toml/.test(`${diagnostic.key ?? ''} ${diagnostic.message}`))
    .map((diagnostic) => formatDiagnostics([diagnostic]).replace(/: warning: /, ': '))
}

const stateText: Readonly<Record<LookedAt['state'], string>> = {
  'not there': ': not there', read: ': read', broken: ': cannot be used', certificates: ': has no hosts.toml, its certificate files count',
  empty: ': has no hosts.toml and no certificates: the registry itself is asked', shadowed: ': there, not read, since an earlier one counts',
}

function hostRows(page: Page, number: number, host: ExplainedHost, probe: Probe | undefined): void {
  const { ca, client, skipVerify } = host.tls
  const tls = [...ca.map((file) => `ca ${file}`), ...client.map((file) => `client ${file}`), ...skipVerify ? ['not verified'] : []]
  page.line(`  ${number}. ${host.url}`)
  const row = (name: string, text: string): void => page.row('     ', 12, name, text)
  row('from', `${host.source}${host.line === undefined ? '' : `:${host.line}`}`)
  row('asked for', `${host.askedFor}${host.capabilities.length === allCapabilities.length ? '' : ` (${host.capabilities.join(', ')})`}`)
  row('manifest', host.manifestUrl)
  row('credential', host.credentials.length === 0 ? 'none, anonymous' : host.credentials.join(', else '))
  row('TLS', tls.join(', '))
  row('headers', host.headers.join(', '))
  if (host.dialTimeoutMs !== defaultDialTimeoutMs) row('timeout', `${host.dialTimeoutMs / 1000} s to connect`)
  if (host.proxy !== undefined) row('proxy', `${host.proxy}, by this command's environment; the service has its own`)
  if (host.unusable !== undefined) row('warning', `it is passed over: ${host.unusable}`)
  for (const warning of host.warnings) row('warning', warning)
  if (probe === undefined) return
  const wait = probe.retryAfterMs === undefined ? '' : `, to be asked again in ${Math.ceil(probe.retryAfterMs / 1000)} s`
  row('answer', `${probe.status}, ${probe.ms} ms${wait}${probe.digest === undefined ? '' : `, ${probe.digest}`}`)
  if (probe.certificate !== undefined) certificateRows(row, probe.certificate)
}

/** When a certificate that is about to expire is worth a word. */
const soonMs = 14 * 24 * 3600_000

function certificateRows(row: (name: string, text: string) => void, { subject, issuer, validFrom, validTo, problem }: PeerCertificate): void {
  const leftMs = Date.parse(validTo) - Date.now()
  const soon = leftMs > 0 && leftMs < soonMs ? `; it expires at ${validTo}` : ''
  row('certificate', `${subject}, issued by ${issuer}, valid ${validFrom.slice(0, 10)} to ${validTo.slice(0, 10)}${soon}`)
  if (problem !== undefined) row('', problem)
}

/** Mirrors that lag behind, or serve something else. */
function disagreement(probes: readonly Probe[]): string[] {
  const digests = digestsOf(probes)
  return digests.length < 2 ? [] : ['the hosts do not agree on what the tag means:', ...digests.map(({ digest, hosts }) => `  ${digest} at ${hosts.join(', ')}`)]
}

/** Lines that end at the right edge of a terminal, and go on below where they began. */
class Page {
  readonly #columns: number
  readonly #lines: string[] = []

  constructor(columns = Number.POSITIVE_INFINITY) {
    this.#columns = Math.max(columns, 40)
  }

  line(text: string, hanging = ''): void {
    // File names and what hosts say must not reach the terminal as commands.
    // eslint-disable-next-line no-control-regex
    const plain = text.replace(/[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g, '\ufffd')
    const indent = /^ */.exec(plain)?.[0] ?? ''
    let line = indent
    for (const word of plain.slice(indent.length).split(' ')) {
      const begun = line.trim() !== ''
      // A first word that is too long for its line is too long for the next one as well.
      if (begun && line.length > hanging.length && line.length + 1 + word.length > this.#columns) {
        this.#lines.push(line)
        line = hanging + word
      } else line += begun ? ` ${word}` : word
    }
    this.#lines.push(line)
  }

  /** A name and its value, in two columns; nothing when there is no value. */
  row(indent: string, width: number, name: string, text: string): void {
    if (text !== '') this.line(`${indent}${name.padEnd(width)}${text}`, ' '.repeat(indent.length + width))
  }

  heading(title: string): void {
    this.#lines.push('', title)
  }

  list(title: string, items: readonly string[]): void {
    if (items.length > 0) this.heading(title)
    for (const item of items) this.line(`  ${item}`, '      ')
  }

  text(): string {
    return `${this.#lines.join('\n')}\n`
  }
}
