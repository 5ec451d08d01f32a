import type { MessagePort } from 'node:worker_threads'
import type { Code } from '../../errors/cri-error.ts'

/** What the worker must know of one container's output. Handles, not ids, name pumps: an id may be opened again after it was closed. */
export interface LogSpec {
  /** The container's id, for messages. */
  readonly id: string
  readonly stdoutFifo: string | undefined
  readonly stderrFifo: string | undefined
  /** Undefined: the output is read and thrown away. */
  readonly logPath: string | undefined
  /** Bytes of content per entry; 0 or less: no limit of its own. */
  readonly maxLineBytes: number
  /** The container runs already: a log file that cannot be opened is tried again later instead of failing the call. */
  readonly recover: boolean
}

/** Which of a container's streams a client that attaches gets. */
export interface AttachSpec {
  readonly stdout: boolean
  readonly stderr: boolean
}

/** What the worker must know of one exec process's output. */
export interface CaptureSpec {
  readonly id: string
  readonly stdoutFifo: string | undefined
  readonly stderrFifo: string | undefined
  /** Bytes kept per stream; what comes after is read and thrown away. */
  readonly limitBytes: number
}

/** Output of a finished exec process as it crosses the threads; the buffers are transferred. */
export interface CapturedOutput {
  readonly stdout: ArrayBuffer
  readonly stderr: ArrayBuffer
  readonly truncated: { readonly stdout: boolean, readonly stderr: boolean }
  readonly timedOut: boolean
}

/** Calls that are answered. */
export type Request =
  | { readonly type: 'openLog', readonly handle: number, readonly spec: LogSpec }
  | { readonly type: 'reopenLog', readonly handle: number }
  | { readonly type: 'closeLog', readonly handle: number }
  /** `handle` names the log, `client` the client. */
  | { readonly type: 'attach', readonly handle: number, readonly client: number, readonly spec: AttachSpec, readonly port: MessagePort }
  | { readonly type: 'openCapture', readonly handle: number, readonly spec: CaptureSpec }
  | { readonly type: 'captureResult', readonly handle: number, readonly drainTimeoutMs: number }
  | { readonly type: 'closeCapture', readonly handle: number }

/** What the answer to each call carries. */
export interface Responses {
  readonly openLog: undefined
  readonly reopenLog: undefined
  readonly closeLog: undefined
  readonly attach: undefined
  readonly openCapture: undefined
  readonly captureResult: CapturedOutput
  readonly closeCapture: undefined
}

/** Main thread → worker. */
export type ToWorker =
  | { readonly type: 'call', readonly seq: number, readonly request: Request }
  | { readonly type: 'started', readonly handle: number }
  /** Closes whatever may be open under the handle: the call that opened it has failed or was given up. */
  | { readonly type: 'abandon', readonly handle: number }
  | { readonly type: 'shutdown' }

/** Worker → main thread. */
export type FromWorker =
  | { readonly type: 'ready' }
  | { readonly type: 'answer', readonly seq: number, readonly value: CapturedOutput | undefined }
  | { readonly type: 'failure', readonly seq: number, readonly code: Code, readonly message: string, readonly reason: string }
  /** Every stream of a log pump is at its end and everything is written. */
  | { readonly type: 'ended', readonly handle: number }
  /** An attached client gets nothing any more: the output is at its end, or the client is gone. */
  | { readonly type: 'detached', readonly client: number, readonly how: 'end' | 'gone' }
  | { readonly type: 'log', readonly level: 'info' | 'warn' | 'error', readonly fields: Readonly<Record<string, unknown>>, readonly message: string }

/** Memory that both threads see, so that it outlives a crash of the worker. */
export interface WorkerMemory {
  readonly descriptors: SharedArrayBuffer
  readonly counters: SharedArrayBuffer
}
