import type { MessagePort } from 'node:worker_threads'
import type { StreamFifos, StreamKind, StreamResult, StreamSession, TerminalSize } from './types.ts'

/** A certificate chain and its private key, PEM. */
export interface KeyPair {
  readonly cert: string
  readonly key: string
}

/** Bounds that tests make smaller. */
export interface StreamingLimits {
  /** Until a client has opened the streams of its exec or attach, and each pair of a port-forward. */
  readonly streamCreationMs: number
  /** Connections at once; more are not accepted. */
  readonly maxConnections: number
  /** For the rest of the output, the status and the client's own close, once the command has ended. */
  readonly finishMs: number
  /** Between two signs of life that are sent to a client whose input waits. */
  readonly keepAliveMs: number
}

export const defaultLimits: StreamingLimits = { streamCreationMs: 30_000, maxConnections: 4096, finishMs: 120_000, keepAliveMs: 10_000 }

/** What the worker is started with. */
export interface WorkerStart {
  readonly address: string
  readonly port: number
  readonly idleTimeoutMs: number
  readonly tls: KeyPair | undefined
  readonly limits: StreamingLimits
  /** Memory that both threads see, so that it outlives a crash of the worker. */
  readonly descriptors: SharedArrayBuffer
  readonly counters: SharedArrayBuffer
}

export type Transport = 'spdy' | 'websocket' | 'none'

/** How a session ended, for the metrics. */
export const streamEnds = ['success', 'exit_code', 'error', 'refused', 'client_gone', 'idle', 'drained', 'fault'] as const
export type StreamEnd = (typeof streamEnds)[number]

/** Why a session cannot go on. */
export type GoneReason = 'client_gone' | 'idle' | 'drained' | 'fault'

/** Streaming worker → main thread. `id` is the session's. */
export type FromWorker =
  | { readonly type: 'listening'; readonly port: number }
  | { readonly type: 'listenFailed'; readonly errno: string | undefined; readonly message: string }
  /** Answered with `redeemed`. */
  | { readonly type: 'redeem'; readonly seq: number; readonly kind: StreamKind; readonly token: string }
  /** The client has its streams: the backend may begin. Exec and attach only. */
  | { readonly type: 'begin'; readonly id: number }
  | { readonly type: 'resize'; readonly id: number; readonly size: TerminalSize }
  | { readonly type: 'stdinClosed'; readonly id: number }
  | { readonly type: 'gone'; readonly id: number; readonly reason: GoneReason; readonly message: string }
  /** Answers `open` and `drain`. */
  | { readonly type: 'done'; readonly seq: number; readonly result?: 'drained' | 'timeout'; readonly error?: string }
  /** Nothing of the session is left in the worker. */
  | { readonly type: 'over'; readonly id: number; readonly transport: Transport; readonly end: StreamEnd }
  /** Port-forward: answered with `connected` or `refused`. */
  | { readonly type: 'connect'; readonly id: number; readonly seq: number; readonly port: number }
  /** Nobody waits for the connection any more. */
  | { readonly type: 'abandon'; readonly seq: number }
  | { readonly type: 'fault'; readonly message: string }
  | { readonly type: 'log'; readonly level: 'debug' | 'info' | 'warn' | 'error'; readonly fields: Readonly<Record<string, unknown>>; readonly message: string }

/** Main thread → streaming worker. */
export type ToWorker =
  | { readonly type: 'redeemed'; readonly seq: number; readonly id: number; readonly session: StreamSession }
  | { readonly type: 'unredeemed'; readonly seq: number; readonly status: 404 | 503; readonly text: string }
  | { readonly type: 'open'; readonly id: number; readonly seq: number; readonly fifos: StreamFifos }
  | { readonly type: 'started'; readonly id: number }
  | { readonly type: 'closeStdin'; readonly id: number }
  | { readonly type: 'drain'; readonly id: number; readonly seq: number; readonly timeoutMs: number }
  | { readonly type: 'attach'; readonly id: number; readonly port: MessagePort }
  | { readonly type: 'finish'; readonly id: number; readonly result: StreamResult }
  | { readonly type: 'connected'; readonly seq: number; readonly fd: number }
  | { readonly type: 'refused'; readonly seq: number; readonly message: string }
  | { readonly type: 'keyPair'; readonly tls: KeyPair }
  /** Ends every session with this error; the listener stays. */
  | { readonly type: 'endAll'; readonly message: string }
  /** Closes what is left, then the thread ends. */
  | { readonly type: 'shutdown' }
