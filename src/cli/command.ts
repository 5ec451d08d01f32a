import { type ParseArgsOptionDescriptor, parseArgs } from 'node:util'
import { nearestWord } from '../config/edit-distance.ts'

/** What the process ends with. */
export const ExitCode = {
  ok: 0,
  /** The configuration is wrong, the start failed, or something unexpected ended the service. */
  failure: 1,
  /** The command line is wrong. */
  usage: 2,
} as const

/** Where a command writes; the process's own streams outside of tests. */
export interface Output {
  stdout(text: string): void
  stderr(text: string): void
}

/** A flag of a command. */
export interface Flag extends ParseArgsOptionDescriptor {
  /** What stands for the value in the help, `FILE`; absent for a flag without one. */
  readonly value?: string
  readonly help: string
}

/** What was given on the command line. */
export interface Arguments {
  readonly flags: Readonly<Record<string, string | undefined>>
  readonly positionals: readonly string[]
}

/** A command of the binary. */
export interface Command {
  /** `config check`; what the user types. */
  readonly name: string
  /** One line for the overview. */
  readonly summary: string
  /** The positional arguments in the help, `[FILE]`; absent if there are none. */
  readonly positionals?: string
  readonly maxPositionals: number
  readonly flags: Readonly<Record<string, Flag>>
  /** More for `help COMMAND`. */
  readonly details?: string
  /** The process's exit code. */
  run(args: Arguments, output: Output): Promise<number>
}

/** The command line is wrong; the message says what, and what was probably meant. Exit code 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}

/** `; did you mean X?`, or nothing when no candidate is near. */
export function suggestion(word: string, candidates: Iterable<string>, show: (candidate: string) => string = (candidate) => candidate): string {
  const near = nearestWord(word, candidates)
  return near === undefined ? '' : `; did you mean ${show(near.word)}?`
}

/** Reads the words after a command's name. A boolean flag that is given has the value `true`. Throws a UsageError. */
export function parseArguments(command: Command, words: readonly string[]): Arguments {
  const options = Object.fromEntries(Object.entries(command.flags).map(([name, { type }]) => [name, { type }]))
  const { tokens } = parseArgs({ args: [...words], options, allowPositionals: true, strict: false, tokens: true })
  const flags: Record<string, string | undefined> = {}
  const positionals: string[] = []
  for (const token of tokens) {
    if (token.kind === 'positional') positionals.push(token.value)
    if (token.kind !== 'option') continue
    const flag = command.flags[token.name]
    if (flag === undefined || !token.rawName.startsWith('--')) {
      throw new UsageError(`${command.name}: unknown flag ${token.rawName}${suggestion(token.name, Object.keys(command.flags), (name) => `--${name}`)}`)
    }
    if (flags[token.name] !== undefined) throw new UsageError(`${command.name}: ${token.rawName} is given twice`)
    if (flag.type === 'boolean') {
      if (token.value !== undefined) throw new UsageError(`${command.name}: ${token.rawName} takes no value`)
      flags[token.name] = 'true'
      continue
    }
    // The next flag in the place of a value: the value was forgotten. One that does begin with a dash is given with "=".
    if (token.value === undefined || (!token.inlineValue && token.value.startsWith('-') && token.value !== '-')) {
      throw new UsageError(`${command.name}: ${token.rawName} needs a value: ${token.rawName} ${flag.value ?? 'VALUE'}`)
    }
    flags[token.name] = token.value
  }
  if (positionals.length > command.maxPositionals) {
    throw new UsageError(`${command.name}: unexpected argument "${positionals[command.maxPositionals]}"`)
  }
  return { flags, positionals }
}
