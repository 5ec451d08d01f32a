import { mkdirSync } from 'node:fs'
import { check, cString, libc } from './libc.ts'

/**
 * Makes a directory of our own (mode 0700) with FIFOs in it (0600). At once and on the calling thread: the state directory is in memory, and each of
 * these takes some microseconds where a message to another thread and back takes a millisecond. Not for paths that a pod has chosen.
 * Errors: CriErrors that name the path and the errno.
 */
export function makeFifosAt(dir: string, paths: readonly string[]): void {
  mkdirSync(dir, { recursive: true, mode: 0o700 })
  for (const path of paths) check(`make FIFO ${path}`, libc.mkfifo(cString(path), 0o600))
}
