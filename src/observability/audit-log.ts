import { constants } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
import { Counter } from 'prom-client'
import type { Logger } from './logger.ts'
import type { Metrics } from './metrics.ts'

/** One line: plain values only. */
export type AuditLine = Readonly<Record<string, unknown>>

export interface AuditLogOptions {
  /** An absolute path, or `stdout` (`journal` means the same: under systemd that is where it goes). */
  readonly target: string
  readonly log: Logger
  readonly metrics: Metrics
  /** How many lines may wait for the disk. Default: 10,000. */
  readonly maxQueued?: number
  /** Default: process.stdout. */
  readonly stdout?: { write(text: string): unknown }
}

/** How often a failure that lasts is said again, in milliseconds. */
const sayAgainMs = 60_000
const maxBatch = 500

/**
 * The audit log: JSON lines in a file of mode 0600, or on standard output with `"log":"audit"`. A file that was moved away (log rotation) or removed is made
 * anew with the next line, and on `reopen()`. A line that cannot be written is an error in the service's own log, with the line in it: the service goes on.
 */
export class AuditLog {
  readonly #options: AuditLogOptions
  readonly #toStdout: boolean
  readonly #lines: Counter<'result'>
  readonly #maxQueued: number
  #queue: AuditLine[] = []
  #writing: Promise<void> | undefined
  #file: FileHandle | undefined
  #reopen = false
  #saidAtMs = -Infinity
  #failing = false

  constructor(options: AuditLogOptions) {
    this.#options = options
    this.#toStdout = options.target === 'stdout' || options.target === 'journal'
    this.#maxQueued = options.maxQueued ?? 10_000
    this.#lines = new Counter({ name: 'cri_shim_audit_lines_total', help: 'Lines of the audit log: written, or failed (then they are in the log of the service).', labelNames: ['result'], registers: [options.metrics.registry] })
    this.#lines.inc({ result: 'failed' }, 0)
  }

  /** Opens the file now, so that a path that cannot be written is said at the start. Never rejects. */
  async start(): Promise<void> {
    if (this.#toStdout) return
    try {
      await this.#opened()
    } catch (error) {
      this.#failed(error, [])
    }
  }

  write(line: AuditLine): void {
    const timed = { time: new Date().toISOString(), ...line }
    if (this.#toStdout) {
      const { stdout = process.stdout } = this.#options
      stdout.write(`${JSON.stringify({ log: 'audit', ...timed })}\n`)
      this.#lines.inc({ result: 'written' })
      return
    }
    if (this.#queue.length >= this.#maxQueued) {
      this.#failed(new Error(`${this.#queue.length} lines wait for the disk already`), [timed])
      return
    }
    this.#queue.push(timed)
    this.#writing ??= this.#drain().finally(() => { this.#writing = undefined })
  }

  /** Opens the file anew before the next line. */
  reopen(): void {
    this.#reopen = true
  }

  /** Writes what waits. */
  async close(): Promise<void> {
    await this.#writing
    await this.#file?.close().catch(() => undefined)
    this.#file = undefined
  }

  async #drain(): Promise<void> {
    while (this.#queue.length > 0) {
      const batch = this.#queue.slice(0, maxBatch)
      try {
        const file = await this.#opened()
        await file.appendFile(batch.map((line) => `${JSON.stringify(line)}\n`).join(''))
        this.#lines.inc({ result: 'written' }, batch.length)
        if (this.#failing) this.#options.log.info({ path: this.#options.target }, 'the audit log can be written again')
        this.#failing = false
      } catch (error) {
        await this.#file?.close().catch(() => undefined)
        this.#file = undefined
        this.#failed(error, batch)
      }
      this.#queue.splice(0, batch.length)
    }
  }

  async #opened(): Promise<FileHandle> {
    const { target } = this.#options
    if (this.#file !== undefined && (this.#reopen || await isAnother(this.#file, target))) {
      await this.#file.close()
      this.#file = undefined
    }
    this.#reopen = false
    this.#file ??= await open(target, constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT | constants.O_NOFOLLOW, 0o600)
    return this.#file
  }

  #failed(error: unknown, lines: readonly AuditLine[]): void {
    const { log, target } = this.#options
    this.#lines.inc({ result: 'failed' }, lines.length)
    for (const line of lines) log.error({ audit: line }, 'a line that the audit log could not take')
    if (this.#failing && performance.now() - this.#saidAtMs < sayAgainMs) return
    this.#failing = true
    this.#saidAtMs = performance.now()
    log.error({ err: error, path: target }, 'the audit log cannot be written: its lines are in this log until it can; look at the path, its directory and the disk')
  }
}

async function isAnother(file: FileHandle, path: string): Promise<boolean> {
  const opened = await file.stat()
  const there = await stat(path).catch(() => undefined)
  return there === undefined || there.ino !== opened.ino || there.dev !== opened.dev
}
