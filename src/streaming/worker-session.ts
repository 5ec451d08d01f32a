import type { MessagePort } from 'node:worker_threads'
import type { Descriptors } from '../linux/descriptors.ts'
import type { ByteCounters } from './counters.ts'
import type { FromWorker, GoneReason, StreamEnd, StreamingLimits, Transport } from './protocol.ts'
import type { StreamFifos, StreamResult } from './types.ts'

export type WorkerLog = (level: 'debug' | 'info' | 'warn' | 'error', fields: Readonly<Record<string, unknown>>, message: string) => void

/** What every session in the worker needs. */
export interface WorkerDeps {
  readonly descriptors: Descriptors
  readonly counters: ByteCounters
  readonly limits: StreamingLimits
  /** 0: never. */
  readonly idleTimeoutMs: number
  readonly log: WorkerLog
  readonly post: (message: FromWorker) => void
  /** Nothing is left of the session: it is forgotten and main told. */
  readonly over: (id: number, transport: Transport, end: StreamEnd) => void
  /** A connected socket's descriptor from the main thread, which is the caller's from then on. Rejects with the reason for the user. */
  readonly connect: (id: number, port: number, signal: AbortSignal) => Promise<number>
}

/** One stream in the worker, as main's messages reach it. */
export interface WorkerSession {
  open(fifos: StreamFifos): void
  started(): void
  closeStdin(): void
  drained(timeoutMs: number): Promise<'drained' | 'timeout'>
  attach(port: MessagePort): void
  finish(result: StreamResult): Promise<void>
  /** It cannot go on; `over` follows. */
  end(reason: GoneReason, message: string): void
}

/** Calls `onIdle` once nothing has happened for `timeoutMs` (0: never). Returns what stops the watch. */
export function watchIdle(timeoutMs: number, lastActivityMs: () => number, onIdle: (message: string) => void): () => void {
  if (timeoutMs <= 0) return () => undefined
  let timer: NodeJS.Timeout
  const check = (): void => {
    const left = timeoutMs - (performance.now() - lastActivityMs())
    // A timer cannot be set for more than 24 days.
    if (left > 0) timer = setTimeout(check, Math.min(left + 1, 2 ** 31 - 1))
    else onIdle(`nothing went either way for ${timeoutMs / 1000} s, which is the limit (stream_idle_timeout)`)
  }
  timer = setTimeout(check, Math.min(timeoutMs, 2 ** 31 - 1))
  return () => clearTimeout(timer)
}
