import type { LoadedSettings } from '../../config/load-settings.ts'
import { type Diagnostic, formatDiagnostics } from '../../config/diagnostics.ts'
import { formatSource, sourceOf } from '../../config/settings.ts'
import { backgroundCtx } from '../../observability/context.ts'
import { createLogger } from '../../observability/logger.ts'
import type { ExplainedHost, Explanation, Probe } from '../../registry-mirrors/explain.ts'
import type { ImageRef } from '../../registry-mirrors/image-ref.ts'
import type { RegistryHost } from '../../registry-mirrors/registry-host.ts'
import { type Command, ExitCode, type Output, UsageError } from '../command.ts'
import { serviceFlags, settingsFor } from '../service-flags.ts'
import { versions } from '../version-info.ts'

export const mirrorsExplain: Command = {
  name: 'mirrors explain',
  summary: 'print from where an image would be pulled, and with which credentials',
  positionals: 'IMAGE',
  maxPositionals: 1,
  flags: {
    config: serviceFlags.config,
    probe: { type: 'boolean', help: 'ask each host for the image: status, time and the digest that it gives' },
    json: { type: 'boolean', help: 'print JSON' },
  },
  details: `Reads the files as they are now, so an edit can be tried out before the next pull. Nothing is pulled; without --probe nobody is asked and
no credential helper is run. Credentials are named by where they come from, never printed.
Exit code 1 when a file is broken (with file and line), or when --probe finds no host that has the image.`,
  async run(args, output) {
    const [name] = args.positionals
    if (name === undefined) throw new UsageError('mirrors explain: name an image, such as registry.k8s.io/pause:3.10')
    const loaded = settingsFor({ ...args, flags: { config: args.flags['config'] } })
    const { parseImageRef } = await import('../../registry-mirrors/image-ref.ts')
    const { explain } = await import('../../registry-mirrors/explain.ts')
    const ref = parseImageRef(name)
    const { explanation, hosts } = await explain(ref, { settings: loaded.settings.registry, env: process.env })
    const probes = args.flags['probe'] === undefined || hosts.length === 0 ? undefined : await probeAll(loaded, ref, hosts)
    if (args.flags['json'] === undefined) printText(output, loaded, explanation, probes)
    else output.stdout(`${JSON.stringify({ config: loaded.files, ...explanation, ...(probes === undefined ? {} : { probes }) }, null, 2)}\n`)
    const works = explanation.problem === undefined && (probes === undefined || probes.some(({ ok }) => ok))
    return works ? ExitCode.ok : ExitCode.failure
  },
}

async function probeAll(loaded: LoadedSettings, ref: ImageRef, hosts: readonly RegistryHost[]): Promise<Probe[]> {
  const { RegistryClient } = await import('../../registry-mirrors/registry-client.ts')
  const { probe } = await import('../../registry-mirrors/explain.ts')
  const log = createLogger('fatal')
  const client = new RegistryClient({ ...loaded.settings.registry, log, userAgent: `cri-shim/${versions.criShim}` })
  try {
    return await probe(client, ref, hosts, backgroundCtx(log, 'probe'))
  } finally {
    client.close()
  }
}

function printText(output: Output, loaded: LoadedSettings, explanation: Explanation, probes: readonly Probe[] | undefined): void {
  const { lookedAt, hosts, warnings, problem } = explanation
  const lines = [`image         ${explanation.image}`, `registry      ${explanation.registry}`, `settings      ${loaded.files.length === 0 ? 'built-in defaults, no file' : loaded.files.join(', ')}`]
  const source = formatSource(sourceOf(loaded.sources, 'registry', 'configPath'))
  lines.push(`config_path   ${loaded.settings.registry.configPath.length === 0 ? 'not set' : loaded.settings.registry.configPath.join(':')} (${source})`)
  if (lookedAt.length > 0) lines.push('', 'looked at', ...lookedAt.map(({ path, state }) => `  ${path}${stateText[state]}`))
  if (problem !== undefined) lines.push('', `error: ${problem}`, `Every pull from ${explanation.registry} fails until this is mended.`)
  if (hosts.length > 0) lines.push('', 'hosts, in the order in which they are asked')
  for (const [index, host] of hosts.entries()) lines.push(...hostLines(index + 1, host, probes?.[index]))
  const all = [...loaded.diagnostics.filter(isAboutRegistries).map((diagnostic) => formatDiagnostics([diagnostic]).replace(/: warning: /, ': ')), ...warnings, ...probes === undefined ? [] : differences(probes)]
  if (all.length > 0) lines.push('', 'warnings', ...all.map((warning) => `  ${warning}`))
  output.stdout(`${lines.join('\n')}\n`)
}

const stateText: Readonly<Record<Explanation['lookedAt'][number]['state'], string>> = {
  'not there': ': not there', read: ': read', certificates: ': has no hosts.toml, its certificate files count', shadowed: ': there, not read, since an earlier one counts',
}

function hostLines(number: number, host: ExplainedHost, probe: Probe | undefined): string[] {
  const { ca, client, skipVerify } = host.tls
  const tls = [...ca.map((file) => `ca ${file}`), ...client.map((file) => `client ${file}`), ...skipVerify ? ['not verified'] : []]
  const row = (name: string, text: string): string[] => (text === '' ? [] : [`     ${name.padEnd(12)}${text}`])
  return [
    `  ${number}. ${host.url}`,
    ...row('from', host.source),
    ...row('asked for', `${host.askedFor} (${host.capabilities.join(', ')})`),
    ...row('manifest', host.manifestUrl),
    ...row('credential', host.credentials.length === 0 ? 'none, anonymous' : host.credentials.join(', else ')),
    ...row('TLS', tls.join(', ')),
    ...row('headers', host.headers.join(', ')),
    ...row('timeout', `${host.dialTimeoutMs / 1000} s to connect`),
    ...host.warnings.flatMap((warning) => row('warning', warning)),
    ...probe === undefined ? [] : row('answer', `${probe.status}, ${probe.ms} ms${probe.digest === undefined ? '' : `, ${probe.digest}`}`),
  ]
}

/** Mirrors that lag behind, or serve something else. */
function differences(probes: readonly Probe[]): string[] {
  const digests = new Map<string, string[]>()
  for (const { digest, url } of probes) if (digest !== undefined) digests.set(digest, [...digests.get(digest) ?? [], url])
  if (digests.size < 2) return []
  return ['the hosts do not agree on what the tag means:', ...[...digests].map(([digest, urls]) => `  ${digest} at ${urls.join(', ')}`)]
}

function isAboutRegistries(diagnostic: Diagnostic): boolean {
  return /registry|config_path|hosts\.toml/.test(`${diagnostic.key ?? ''} ${diagnostic.message}`)
}
