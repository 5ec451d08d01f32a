import { existsSync } from 'node:fs'
import { DEFAULT_CONFIG_HOST, type LoadedSettings } from '../../config/load-settings.ts'
import { backgroundCtx } from '../../observability/context.ts'
import { createLogger } from '../../observability/logger.ts'
import type { PullAuth } from '../../registry-mirrors/credentials.ts'
import type { ImageRef } from '../../registry-mirrors/image-ref.ts'
import type { Probe } from '../../registry-mirrors/probe.ts'
import type { RegistryHost } from '../../registry-mirrors/registry-host.ts'
import { authOf } from '../auth-file.ts'
import { type Command, ExitCode, UsageError } from '../command.ts'
import { imageArgument } from '../image-argument.ts'
import { explainJson, explainText, registryWarnings } from '../mirrors-display.ts'
import { serviceFlags, settingsFor } from '../service-flags.ts'
import { versions } from '../version-info.ts'

export interface ExplainCommandDeps {
  /** Where standard output goes: lines are wrapped for a terminal alone. */
  readonly terminal: { readonly isTTY?: boolean; readonly columns?: number }
  /** Where settings are looked for when no file is named; the first that exists counts. */
  readonly configFiles: readonly string[]
}

/** The command that says how an image would be pulled. */
export function explainCommand(deps: ExplainCommandDeps = { terminal: process.stdout, configFiles: DEFAULT_CONFIG_HOST.files }): Command {
  return {
    name: 'mirrors explain',
    summary: 'print from where an image would be pulled, and with which credentials',
    positionals: 'IMAGE',
    maxPositionals: 1,
    flags: {
      config: serviceFlags.config,
      probe: { type: 'boolean', help: 'ask each host for the image: status, time, certificate and the digest that it gives' },
      'auth-file': { type: 'string', value: 'FILE', help: 'with --probe: a Docker config.json whose credential stands for a pod\'s pull secret' },
      json: { type: 'boolean', help: 'print JSON' },
    },
    details: `Reads the files as they are now, so an edit can be tried out before the next pull. Nothing is pulled; without --probe nobody is asked and
no credential helper is run. Credentials are named by where they come from, never printed.
Exit codes: 0 the image can be pulled as far as can be told (with --probe: a host has it), 1 it cannot, 2 wrong command line.`,
    async run(args, output) {
      const { flags } = args
      const ref = await imageArgument('mirrors explain', args)
      const asks = flags['probe'] !== undefined
      if (flags['auth-file'] !== undefined && !asks) throw new UsageError('mirrors explain: --auth-file is used with --probe alone')
      const loaded = settingsFor({ ...args, flags: { config: flags['config'] } })
      const { explain } = await import('../../registry-mirrors/explain.ts')
      const { explanation, hosts } = await explain(ref, { settings: loaded.settings.registry, env: process.env })
      const warnings = [...flags['config'] === undefined ? notReadDefaults(loaded, deps.configFiles) : [], ...registryWarnings(loaded.diagnostics), ...explanation.warnings]
      let probes: readonly Probe[] | undefined
      if (asks && hosts.length > 0) {
        const auth = flags['auth-file'] === undefined ? null : await authOf(flags['auth-file'], ref)
        if (deps.terminal.isTTY === true) output.stderr(`asking ${hosts.length} ${hosts.length === 1 ? 'host' : 'hosts'}; one that is silent takes up to a minute\n`)
        const asked = await probeAll(loaded, ref, { hosts, auth })
        probes = asked.probes
        const said = [...warnings, ...explanation.hosts.flatMap((host) => host.warnings.map((warning) => warning.replace(/^no credential: /, '')))]
        warnings.push(...asked.warnings.filter((warning) => !warning.includes(' is passed over: ') && !said.some((each) => warning.endsWith(each))))
      }
      const report = { loaded, explanation, warnings, probes }
      const { isTTY, columns = 0 } = deps.terminal
      output.stdout(flags['json'] === undefined ? explainText(report, isTTY === true ? (columns > 0 ? columns : 80) : undefined) : `${explainJson(report)}\n`)
      const works = explanation.problem === undefined && (probes === undefined || probes.some(({ ok }) => ok))
      return works ? ExitCode.ok : ExitCode.failure
    },
  }
}

async function probeAll(loaded: LoadedSettings, ref: ImageRef, { hosts, auth }: { readonly hosts: readonly RegistryHost[]; readonly auth: PullAuth }): Promise<{ readonly probes: Probe[]; readonly warnings: readonly string[] }> {
  const { RegistryClient } = await import('../../registry-mirrors/registry-client.ts')
  const { probe } = await import('../../registry-mirrors/probe.ts')
  const warnings: string[] = []
  // What a service would log: helpers that fail, credentials that cannot be read.
  const log = createLogger('warn', { write: (line) => void warnings.push((JSON.parse(line) as { msg: string }).msg) })
  const client = new RegistryClient({ ...loaded.settings.registry, log, userAgent: `cri-shim/${versions.criShim}` })
  try {
    return { probes: await probe(client, ref, hosts, { ctx: backgroundCtx(createLogger('fatal'), 'probe'), env: process.env, auth }), warnings }
  } finally {
    client.close()
  }
}

/** Files that would have been read, had an earlier one not been there. */
function notReadDefaults(loaded: LoadedSettings, candidates: readonly string[]): string[] {
  const counts = candidates.findIndex((file) => existsSync(file))
  if (counts < 0) return []
  return candidates.slice(counts + 1).filter((file) => existsSync(file) && !loaded.files.includes(file))
    .map((file) => `${file} is there and not read: ${candidates[counts] ?? ''} counts; imports = ["${file}"] in it would take the other in`)
}
