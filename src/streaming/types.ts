import type { MessagePort } from 'node:worker_threads'

/** A validated Exec call, as it is kept with its token. Without a tty at least one of the three streams is wanted. */
export interface ExecSession {
  readonly kind: 'exec'
  readonly containerId: string
  readonly command: readonly string[]
  readonly tty: boolean
  readonly stdin: boolean
  readonly stdout: boolean
  /** False with a tty: everything comes on stdout. */
  readonly stderr: boolean
  /** Of the call that asked for it, for logs. */
  readonly requestId?: string
}

/** A validated Attach call. */
export interface AttachSession {
  readonly kind: 'attach'
  readonly containerId: string
  readonly tty: boolean
  readonly stdin: boolean
  readonly stdout: boolean
  readonly stderr: boolean
  /** Of the call that asked for it, for logs. */
  readonly requestId?: string
}

/** A validated PortForward call. */
export interface PortForwardSession {
  readonly kind: 'portforward'
  readonly podSandboxId: string
  /** The ports of the call. For information: which ports are used is said by each stream, as with containerd. */
  readonly ports: readonly number[]
  /** Of the call that asked for it, for logs. */
  readonly requestId?: string
}

export type StreamSession = ExecSession | AttachSession | PortForwardSession
export type StreamKind = StreamSession['kind']

/** A terminal's size in cells, both in 1..65535. */
export interface TerminalSize {
  readonly width: number
  readonly height: number
}

/** FIFOs to be opened for one stream. One that the client did not ask for is given too: it is opened, and read to nowhere. */
export interface StreamFifos {
  readonly stdin?: string | undefined
  readonly stdout?: string | undefined
  readonly stderr?: string | undefined
}

/**
 * One running exec or attach, as the backend (main thread) sees it. Everything here is over once the backend's promise has
 * settled: FIFOs are closed then, ports too.
 */
export interface StreamIo {
  /**
   * Aborted when the client is gone, nothing went either way for the idle timeout, the worker died, or the drain deadline has passed; the reason is a
   * CriError. From then on, until the backend's promise settles, the writing end of stdin is closed and output is read to nowhere: a process that is
   * told to end must not wait for a reader.
   */
  readonly signal: AbortSignal
  /** The latest size is replayed to a listener that comes late. One listener. */
  onResize(listener: (size: TerminalSize) => void): void
  /**
   * The worker opens these FIFOs and pumps them. Resolves once they are open, so before the process is started; rejects with a CriError when one
   * cannot be opened. What the client sends before is kept back. The writing end of stdin is closed when the client has closed its
   * stdin, after everything was written, and not before `started()`.
   */
  openFifos(fifos: StreamFifos): Promise<void>
  /** The process has its FIFOs open (Tasks.Start returned) or never will: our keep-alive ends are closed, end of file may come. */
  started(): void
  /** The outputs are at their end and have been handed to the client, or nothing has moved for `timeoutMs`: a slow client has all the time it needs. */
  drained(timeoutMs: number): Promise<'drained' | 'timeout'>
  /** Closes the writing end of stdin now; what the client still sends is thrown away. For an attach whose container's stdin another client has ended. */
  closeStdin(): void
  /** Attach: output arrives from another thread through this port (transferred) as AttachOutputMessage; see there. Counts for `drained` until its `end`. */
  attachOutput(port: MessagePort): void
  /** Resolves when the client has closed its stdin by a half-close and everything it sent is written (for stdin_once). Never when the client is merely gone. */
  readonly stdinClosed: Promise<void>
}

/** Source of an attach's output → streaming worker. The `bytes` are a copy of their own (structured clone or transfer). */
export type AttachOutputMessage =
  | { readonly stream: 1 | 2; readonly bytes: Uint8Array }
  /** Bytes left out because this client was too slow; shown to it as a line on stderr (stdout with a tty). */
  | { readonly skipped: number }
  /** Nothing comes after it: the container's output is at its end. */
  | { readonly end: true }

/**
 * Streaming worker → source of an attach's output: so many more bytes have gone to the client's connection. The port is closed when the client
 * is gone or the session is over.
 */
export interface AttachOutputAck {
  readonly acked: number
}

/**
 * What ends an exec or attach: an exit code 0..255 (attach: 0 unless the stream broke), or an error to be shown to the client.
 */
export type StreamResult = { readonly exitCode: number } | { readonly error: string }

/** What really runs and attaches: the floors above. */
export interface StreamingBackend {
  /** A rejection is shown to the client as an error too. */
  exec(session: ExecSession, io: StreamIo): Promise<StreamResult>
  attach(session: AttachSession, io: StreamIo): Promise<StreamResult>
  /**
   * The descriptor of a connected, non-blocking TCP socket in the pod's network namespace, 127.0.0.1 first, then ::1; its owner is
   * the worker from then on. Rejects with a CriError whose message is for the user when refused.
   */
  connect(session: PortForwardSession, port: number, signal: AbortSignal): Promise<number>
}

/** What the RPCs and the composition root need of the streaming server (class StreamingServer in server.ts). */
export interface StreamingHandle {
  /**
   * A URL with a token for this one session: good for one use within a minute. Starts the worker when it does not run. RESOURCE_EXHAUSTED when
   * too many unused tokens wait, UNAVAILABLE when the listener cannot be opened or the service is shutting down.
   */
  url(session: StreamSession): Promise<string>
  /** Starts worker and listener now, so that a taken port is an error at the service's start. */
  listen(): Promise<void>
  /** Refuses new streams at once, lets running ones go on for `drainMs`, then ends them with an error, and the worker. Idempotent. */
  close(drainMs: number): Promise<void>
}
