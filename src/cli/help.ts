import type { Command, Flag } from './command.ts'

function columns(rows: readonly (readonly [string, string])[]): string {
  const width = Math.max(0, ...rows.map(([left]) => left.length))
  return rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}\n`).join('')
}

function written(name: string, flag: Flag): string {
  return flag.type === 'boolean' ? `--${name}` : `--${name} ${flag.value ?? 'VALUE'}`
}

function usageLine(command: Command): string {
  const flags = Object.entries(command.flags).map(([name, flag]) => `[${written(name, flag)}]`)
  return ['cri-shim', command.name, ...flags, ...(command.positionals === undefined ? [] : [command.positionals])].join(' ')
}

/** All commands, a line each. */
export function overview(commands: readonly Command[]): string {
  return `cri-shim serves the Kubernetes Container Runtime Interface in front of containerd.

Usage: cri-shim COMMAND [FLAGS]

Commands:
${columns([...commands.map((command) => [command.name, command.summary] as const), ['help [COMMAND]', 'print this, or what a command takes']])}
Exit codes: 0 success, 1 wrong configuration or failure, 2 wrong command line.
`
}

/** One command with its flags. */
export function commandHelp(command: Command): string {
  const flags = Object.entries(command.flags).map(([name, flag]) => [written(name, flag), flag.help] as const)
  return [
    `${command.name}: ${command.summary}\n\nUsage: ${usageLine(command)}\n`,
    flags.length === 0 ? '' : `\nFlags:\n${columns(flags)}`,
    command.details === undefined ? '' : `\n${command.details}\n`,
  ].join('')
}
