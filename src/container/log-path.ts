import { isAbsolute, join, normalize } from 'node:path'
import { invalidArgument } from '../errors/cri-error.ts'

/**
 * The container's log file: `log_path` below the pod's `log_directory` (RunPodSandbox, CreateContainer). Undefined when either is
 * empty: the output is not kept then. INVALID_ARGUMENT for a path that would leave the directory.
 */
export function containerLogPath(logDirectory: string, logPath: string): string | undefined {
  if (logDirectory === '' || logPath === '') return undefined
  if (!isAbsolute(logDirectory)) throw invalidArgument(`log_directory ${JSON.stringify(logDirectory)} must be an absolute path`)
  if (logPath.includes('\0') || logDirectory.includes('\0')) throw invalidArgument('log paths must not contain a NUL byte')
  if (isAbsolute(logPath)) throw invalidArgument(`log_path ${JSON.stringify(logPath)} must be relative to the pod's log directory ${logDirectory}`)
  const inside = normalize(logPath)
  if (inside === '..' || inside.startsWith('../') || inside === '.' || inside.endsWith('/')) {
    throw invalidArgument(`log_path ${JSON.stringify(logPath)} must name a file below the pod's log directory ${logDirectory}`)
  }
  return join(logDirectory, inside)
}
