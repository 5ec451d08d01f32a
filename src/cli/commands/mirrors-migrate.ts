import { mkdir, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { ConfigError } from '../../config/diagnostics.ts'
import { inspectSettings, type LoadedSettings } from '../../config/load-settings.ts'
import { errnoOf } from '../../errors/cri-error.ts'
import type { MigratedFile } from '../../registry-mirrors/migrate.ts'
import { type Command, ExitCode, type Output } from '../command.ts'
import { registryWarnings } from '../mirrors-display.ts'
import { serviceFlags } from '../service-flags.ts'

export const mirrorsMigrate: Command = {
  name: 'mirrors migrate',
  summary: 'print the hosts.toml files that replace registry.mirrors and registry.configs',
  maxPositionals: 0,
  flags: { config: serviceFlags.config, write: { type: 'string', value: 'DIR', help: 'write them below this directory, which then goes into config_path' } },
  details: `registry.mirrors, registry.configs and registry.auths are deprecated, and containerd 2.4 is to drop them; here they go on working.
With --write, files that are there already are left alone: exit code 1 when one of them says something else.`,
  async run({ flags }, output) {
    const loaded = inspect(flags['config'])
    const { migrateRegistries } = await import('../../registry-mirrors/migrate.ts')
    const { files, notes } = migrateRegistries(loaded.settings.registry)
    if (files.length === 0 && notes.length === 0) {
      output.stdout(`${loaded.files.join(', ') || 'the built-in defaults'}: no registry.mirrors, registry.configs or registry.auths, nothing to migrate\n`)
      return ExitCode.ok
    }
    const directory = flags['write']
    const kept = directory === undefined ? [] : await write(directory, files, output)
    if (directory === undefined) for (const file of files) output.stdout(`# --- ${file.path}\n${file.text}\n`)
    output.stdout(`${remarks(loaded, files, notes, directory).map((note) => note.split('\n').map((line) => `# ${line}`).join('\n')).join('\n#\n')}\n`)
    for (const file of kept) output.stderr(`cri-shim: ${file} is there and says something else: it is left alone\n`)
    return kept.length > 0 ? ExitCode.failure : ExitCode.ok
  },
}

/** The settings, also when mirrors stand beside a config_path: that is what this command is for. */
function inspect(file: string | undefined): LoadedSettings {
  const loaded = inspectSettings({ file })
  const errors = loaded.diagnostics.filter(({ severity, code, key }) => severity === 'error' && !(code === 'contradiction' && key?.startsWith('registry.') === true))
  if (errors.length > 0) throw new ConfigError(errors)
  return loaded
}

/** Returns the files that are there with other content. */
async function write(directory: string, files: readonly MigratedFile[], output: Output): Promise<string[]> {
  const kept: string[] = []
  for (const { path: name, text } of files) {
    const file = path.join(directory, name)
    await mkdir(path.dirname(file), { recursive: true })
    try {
      await writeFile(file, text, { flag: 'wx' })
      output.stdout(`# wrote ${file}\n`)
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw error
      if (await readFile(file, 'utf8') !== text) kept.push(file)
    }
  }
  return kept
}

function remarks(loaded: LoadedSettings, files: readonly MigratedFile[], notes: readonly string[], directory: string | undefined): string[] {
  if (files.length === 0) return [...notes]
  const { configPath } = loaded.settings.registry
  const places = new Set<string>()
  for (const [setting, source] of loaded.sources) if (/^registry\/(?:mirrors|configs\/.*\/tls)\//.test(setting) && source.kind === 'file') places.add(`${source.file}:${source.line}`)
  const target = directory === undefined ? configPath[0] ?? '/etc/containerd/certs.d' : path.resolve(directory)
  const steps = [
    ...directory === undefined ? [`put these files below ${target}`] : [],
    ...configPath.includes(target) ? [] : [`set registry.config_path = "${target}"`],
    `take registry.mirrors and registry.configs.*.tls out (${[...places].join(', ')})`,
  ]
  const text = steps.join(', ')
  return [`${text.charAt(0).toUpperCase()}${text.slice(1)}, in one step: config_path and the old settings exclude each other. Then restart the service.`, ...unread(loaded), ...notes]
}

/** Settings of the registries that nobody reads: what they were meant to say is not in the files either. */
function unread({ diagnostics }: LoadedSettings): string[] {
  return registryWarnings(diagnostics.filter(({ code }) => code === 'unknown-key' || code === 'misspelt-key' || code === 'misplaced-key'))
    .map((warning) => (/\brewrite\b/.test(warning) ? `${warning}. It is an addition of k3s and RKE2; a mirror with another path is written with that path and override_path = true` : warning))
}
