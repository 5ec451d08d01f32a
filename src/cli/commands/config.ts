import { existsSync } from 'node:fs'
import { formatDiagnostics, hasErrors } from '../../config/diagnostics.ts'
import { DEFAULT_CONFIG_HOST, checkConfig } from '../../config/load-settings.ts'
import { renderDefault, renderEffective } from '../../config/render.ts'
import { type Command, ExitCode } from '../command.ts'
import { serviceFlags, settingsFor } from '../service-flags.ts'

export const configCheck: Command = {
  name: 'config check',
  summary: 'find unknown, misspelt, misplaced and contradictory settings',
  positionals: '[FILE]',
  maxPositionals: 1,
  flags: {},
  details: `Without FILE it checks the file that "serve" would read: the first of ${DEFAULT_CONFIG_HOST.files.join(', ')} that exists.\nExit code 1 if the service would not start with it.`,
  async run({ positionals: [file] }, output) {
    const checked = file ?? DEFAULT_CONFIG_HOST.files.find((path) => existsSync(path))
    const diagnostics = checkConfig(checked)
    if (diagnostics.length > 0) output.stdout(`${formatDiagnostics(diagnostics)}\n`)
    else output.stdout(`${checked ?? 'no configuration file, built-in defaults'}: no mistakes found\n`)
    return hasErrors(diagnostics) ? ExitCode.failure : ExitCode.ok
  },
}

export const configShow: Command = {
  name: 'config show',
  summary: 'print the effective settings and where each comes from',
  maxPositionals: 0,
  flags: serviceFlags,
  details: 'With the flags of "serve" it prints what that command would run with. Passwords and tokens are not printed.',
  async run(args, output) {
    const loaded = settingsFor(args)
    if (loaded.diagnostics.length > 0) output.stderr(`${formatDiagnostics(loaded.diagnostics)}\n`)
    output.stdout(renderEffective(loaded))
    return ExitCode.ok
  },
}

export const configDefault: Command = {
  name: 'config default',
  summary: 'print a commented configuration file with every setting at its default',
  maxPositionals: 0,
  flags: { imports: { type: 'string', value: 'FILE', help: 'import this file, for one that keeps what /etc/containerd/config.toml says' } },
  async run({ flags }, output) {
    output.stdout(renderDefault({ imports: flags['imports'] }))
    return ExitCode.ok
  },
}
