import { Code, CriError } from '../errors/cri-error.ts'

/** A place in a file: line and column count from 1. */
export interface Origin {
  readonly file: string
  readonly line: number
  readonly column: number
}

/**
 * `error`: the file cannot mean what it says (a wrong value, a contradiction, a misspelt or misplaced setting); the service does not start.
 * `warning`: the service runs, but probably not as the writer expects.
 */
export type Severity = 'error' | 'warning'

export type DiagnosticCode =
  | 'unreadable' // a file cannot be read
  | 'syntax' // not TOML
  | 'version' // the version line is missing or names a version that does not exist
  | 'import' // an import that cannot be followed
  | 'unknown-key' // nobody reads this key
  | 'misspelt-key' // nearly the name of a setting
  | 'misplaced-key' // a setting in a table where it is not read
  | 'misplaced-section' // a plugin section of another file version
  | 'wrong-type' // the value has another TOML type than the setting
  | 'bad-value' // the type is right, the value is not
  | 'contradiction' // two settings that exclude each other
  | 'no-effect' // a setting that means nothing any more
  | 'missing-path' // names a file or directory that is not there
  | 'missing-plugin' // a CNI plugin binary is not installed
  | 'cgroup-driver' // the kubelet and the runtimes disagree

/** One finding about a configuration. `file` is absent for findings about command line flags. */
export interface Diagnostic {
  readonly severity: Severity
  readonly code: DiagnosticCode
  /** What is wrong, in which setting, and what to do. Never holds a secret. */
  readonly message: string
  readonly file?: string
  readonly line?: number
  readonly column?: number
  /** The key as written, with its table. */
  readonly key?: string
  /** The key that was probably meant. */
  readonly intended?: string
  /** The table where the setting belongs, as a TOML header: `[plugins."…".containerd]`. */
  readonly belongs?: string
}

/** Collects findings while a configuration is read. */
export class Diagnostics {
  readonly list: Diagnostic[] = []

  add(
    severity: Severity,
    code: DiagnosticCode,
    message: string,
    origin?: Origin,
    more: { readonly key?: string; readonly intended?: string; readonly belongs?: string } = {},
  ): void {
    const place = origin === undefined ? {} : { file: origin.file, line: origin.line, column: origin.column }
    this.list.push({ severity, code, message, ...place, ...more })
  }

  error(code: DiagnosticCode, message: string, origin?: Origin, more?: { readonly key?: string; readonly intended?: string; readonly belongs?: string }): void {
    this.add('error', code, message, origin, more)
  }

  warning(code: DiagnosticCode, message: string, origin?: Origin, more?: { readonly key?: string; readonly intended?: string; readonly belongs?: string }): void {
    this.add('warning', code, message, origin, more)
  }
}

/** Whether the service may not start with this. */
export function hasErrors(diagnostics: readonly Diagnostic[]): boolean {
  return diagnostics.some((diagnostic) => diagnostic.severity === 'error')
}

/** One line per finding, `file:line:column: error: message`, as compilers print them, so that editors can jump there. */
export function formatDiagnostics(diagnostics: readonly Diagnostic[]): string {
  return diagnostics.map((d) => `${location(d)}${d.severity}: ${d.message}`).join('\n')
}

function location(d: Diagnostic): string {
  if (d.file === undefined) return ''
  return d.line === undefined || d.line === 0 ? `${d.file}: ` : `${d.file}:${d.line}:${d.column ?? 1}: `
}

/** The configuration cannot be used. The message lists every finding. */
export class ConfigError extends CriError {
  readonly diagnostics: readonly Diagnostic[]

  constructor(diagnostics: readonly Diagnostic[]) {
    const errors = diagnostics.filter((d) => d.severity === 'error').length
    const head = `the configuration has ${errors === 1 ? 'an error' : `${errors} errors`}:`
    super(Code.FAILED_PRECONDITION, `${head}\n${formatDiagnostics(diagnostics)}`, { reason: 'InvalidConfiguration' })
    this.diagnostics = diagnostics
  }
}
