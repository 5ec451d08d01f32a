import { CriError, messageOf } from '../errors/cri-error.ts'
import { causesOf } from '../server/status.ts'
import { type Command, ExitCode, type Output, UsageError, parseArguments, suggestion } from './command.ts'
import { configCheck, configDefault, configShow } from './commands/config.ts'
import { explainCommand } from './commands/mirrors.ts'
import { mirrorsMigrate } from './commands/mirrors-migrate.ts'
import { pullCommand } from './commands/pull.ts'
import { serveCommand } from './commands/serve.ts'
import { version } from './commands/version.ts'
import { warmUpCommand } from './commands/warm-up.ts'
import { commandHelp, overview } from './help.ts'
import type { Compose } from './run-service.ts'

/** Every command. `loadCompose` brings the composition root for `serve`. */
export function commandsWith(loadCompose: () => Promise<Compose>): readonly Command[] {
  return [serveCommand(loadCompose), configCheck, configShow, configDefault, explainCommand(), mirrorsMigrate, pullCommand(), version, warmUpCommand]
}

/** The command that the first words name, and what follows it. */
function find(commands: readonly Command[], words: readonly string[]): { readonly command: Command; readonly rest: readonly string[] } | undefined {
  for (const command of commands) {
    const name = command.name.split(' ')
    if (name.every((word, index) => words[index] === word)) return { command, rest: words.slice(name.length) }
  }
  return undefined
}

function unknown(commands: readonly Command[], words: readonly string[]): UsageError {
  const [first = '', second] = words
  const group = commands.filter((command) => command.name.startsWith(`${first} `)).map((command) => command.name)
  if (group.length > 0) {
    const hint = second === undefined || second.startsWith('-') ? '' : suggestion(`${first} ${second}`, group)
    return new UsageError(second === undefined || second.startsWith('-') ? `${first} needs one of: ${group.join(', ')}` : `unknown command "${first} ${second}"${hint}`)
  }
  if (first.startsWith('-')) return new UsageError(`a command comes first, flags after it: cri-shim serve ${words.join(' ')}`)
  const firstWords = new Set([...commands.map((command) => command.name.split(' ', 1)[0] ?? ''), 'help'])
  return new UsageError(`unknown command "${first}"${suggestion(first, firstWords)}`)
}

/** Runs the command line and gives the exit code. */
export async function main(commands: readonly Command[], words: readonly string[], output: Output): Promise<number> {
  try {
    const [first] = words
    if (first === undefined) {
      output.stderr(overview(commands))
      return ExitCode.usage
    }
    if (first === 'help' || first === '--help' || first === '-h') {
      const found = find(commands, words.slice(1))
      if (first === 'help' && words.length > 1 && found === undefined) throw unknown(commands, words.slice(1))
      output.stdout(found === undefined ? overview(commands) : commandHelp(found.command))
      return ExitCode.ok
    }
    const found = find(commands, first === '--version' || first === '-v' ? ['version'] : words)
    if (found === undefined) throw unknown(commands, words)
    const options = found.rest.slice(0, found.rest.includes('--') ? found.rest.indexOf('--') : undefined)
    if (options.includes('--help') || options.includes('-h')) {
      output.stdout(commandHelp(found.command))
      return ExitCode.ok
    }
    return await found.command.run(parseArguments(found.command, found.rest), output)
  } catch (error) {
    if (error instanceof UsageError) {
      output.stderr(`cri-shim: ${error.message}\nSee "cri-shim help".\n`)
      return ExitCode.usage
    }
    const causes = causesOf(error).map((cause) => `\n  caused by: ${cause}`).join('')
    // What is not a CriError was not foreseen: where it comes from is what a report of the problem needs.
    const stack = error instanceof Error && !(error instanceof CriError) ? `\n${error.stack ?? ''}` : ''
    output.stderr(`cri-shim: ${messageOf(error)}${causes}${stack}\n`)
    return ExitCode.failure
  }
}

/** Runs the command line of this process and ends the process when its output is written. */
export async function runProcess(loadCompose: () => Promise<Compose>): Promise<never> {
  // A reader that has seen enough (config show | head) is no failure.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(ExitCode.ok)
    throw error
  })
  const code = await main(commandsWith(loadCompose), process.argv.slice(2), {
    stdout: (text) => void process.stdout.write(text),
    stderr: (text) => void process.stderr.write(text),
  })
  // Writing to a pipe is asynchronous.
  for (const stream of [process.stdout, process.stderr]) await new Promise<void>((resolve) => stream.write('', () => resolve()))
  process.exit(code)
}
