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
export async function makeFifos(host: Pick<ContainerHost, 'mkdirAll' | 'mkfifo'>, dir: string, paths: FifoPaths): Promise<void> {
  await host.mkdirAll(dir, 0o700)
  await Promise.all([paths.stdin, paths.stdout, paths.stderr].filter((path) => path !== '').map((path) => host.mkfifo(path, 0o600)))
}
