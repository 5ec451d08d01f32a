import { join } from 'node:path'
import type { ContainerHost } from './deps.ts'

/** FIFO paths as Tasks.Create and Tasks.Exec take them: empty for a stream that there is not. */
export interface FifoPaths {
  readonly stdin: string
  readonly stdout: string
  readonly stderr: string
}

/** A terminal has one output: everything comes on stdout. */
export function fifoPaths(dir: string, name: string, streams: { readonly stdin: boolean; readonly tty: boolean }): FifoPaths {
  return {
    stdin: streams.stdin ? join(dir, `${name}-stdin`) : '',
    stdout: join(dir, `${name}-stdout`),
    stderr: streams.tty ? '' : join(dir, `${name}-stderr`),
  }
}

/** Makes the FIFOs, and the directory that they are in. */
export function makeFifos(host: Pick<ContainerHost, 'makeFifos'>, dir: string, paths: FifoPaths): void {
  host.makeFifos(dir, [paths.stdin, paths.stdout, paths.stderr].filter((path) => path !== ''))
}
