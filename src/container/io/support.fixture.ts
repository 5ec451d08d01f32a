/** Real FIFOs, real writers and the parsing of what arrived, for the tests of this folder. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import type { Logger } from '../../observability/logger.ts'
import { pause } from '../../concurrency/deadline.ts'

export interface LogLine {
  readonly level: number
  readonly msg: string
}

/** A logger whose lines a test can look at. */
export function recordingLogger(): { readonly log: Logger, readonly lines: LogLine[] } {
  const lines: LogLine[] = []
  return { log: pino({ base: null }, { write: (line: string) => void lines.push(JSON.parse(line) as LogLine) }), lines }
}

/** A directory that is gone after the test. */
export class Scratch implements Disposable {
  readonly path = mkdtempSync(join(tmpdir(), 'cri-shim-io-'))

  file(name: string): string {
    return join(this.path, name)
  }

  fifo(name: string): string {
    const path = this.file(name)
    execFileSync('mkfifo', ['-m', '0600', path])
    return path
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true })
  }
}

export interface Shell extends Disposable {
  readonly child: ChildProcess
  /** Rejects when the script fails. */
  readonly ended: Promise<void>
}

/** A shell script with its arguments as $1, $2, …, in a process group of its own that is killed when a failed test leaves it behind. */
export function shell(script: string, ...args: string[]): Shell {
  const child = spawn('/bin/sh', ['-c', script, 'sh', ...args], { stdio: ['pipe', 'ignore', 'inherit'], detached: true })
  const ended = once(child, 'exit').then(([code, signal]) => {
    if (code !== 0) throw new Error(`sh ended with ${code ?? signal}`)
  })
  return {
    child,
    ended,
    [Symbol.dispose]: () => {
      if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
      ended.catch(() => undefined)
      process.kill(-child.pid, 'SIGKILL')
    },
  }
}

/** Waits for what has no event. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const deadline = performance.now() + 60_000
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`waited in vain: ${what}`)
    await pause(2)
  }
}

export function openDescriptors(): number {
  return readdirSync('/proc/self/fd').length
}

export interface Entry {
  readonly stamp: string
  readonly stream: string
  readonly tag: string
  readonly content: string
}

const entryPattern = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([PF]) (.*)$/s

/** Every entry of a log; throws on anything that is not one. */
export function parseEntries(text: string): Entry[] {
  if (text === '') return []
  if (!text.endsWith('\n')) throw new Error('the log does not end with a newline')
  return text.slice(0, -1).split('\n').map((line) => {
    const [, stamp, stream, tag, content] = entryPattern.exec(line) ?? []
    if (stamp === undefined || stream === undefined || tag === undefined || content === undefined) throw new Error(`not an entry: ${JSON.stringify(line)}`)
    return { stamp, stream, tag, content }
  })
}

export function readEntries(...paths: string[]): Entry[] {
  return paths.flatMap((path) => parseEntries(readFileSync(path, 'latin1')))
}

/** What a stream wrote, as a reader of the log puts it together again. */
export function joined(entries: readonly Entry[], stream = 'stdout'): string {
  return entries.filter((entry) => entry.stream === stream).map(({ tag, content }) => tag === 'F' ? `${content}\n` : content).join('')
}
