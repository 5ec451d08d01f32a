import type { MessagePort } from 'node:worker_threads'
import { internal, type CriError } from '../errors/cri-error.ts'
import type { ToWorker } from './protocol.ts'
import type { StreamFifos, StreamIo, StreamSession, TerminalSize } from './types.ts'

/** What a stream's main side needs of the server. */
export interface StreamIoDeps {
  readonly post: (message: ToWorker, transfer?: readonly MessagePort[]) => void
  /** Sends a message that is answered by `done`. */
  readonly ask: (make: (seq: number) => ToWorker) => Promise<'drained' | 'timeout' | undefined>
}

/** The main thread's side of one running stream. */
export class MainStream implements StreamIo {
  readonly id: number
  readonly session: StreamSession
  readonly #deps: StreamIoDeps
  readonly #abort = new AbortController()
  readonly #stdinClosed = Promise.withResolvers<void>()
  #listener: ((size: TerminalSize) => void) | undefined
  #size: TerminalSize | undefined
  #settled = false
  #started = false

  constructor(id: number, session: StreamSession, deps: StreamIoDeps) {
    this.id = id
    this.session = session
    this.#deps = deps
  }

  get signal(): AbortSignal {
    return this.#abort.signal
  }

  get stdinClosed(): Promise<void> {
    return this.#stdinClosed.promise
  }

  onResize(listener: (size: TerminalSize) => void): void {
    this.#listener = listener
    if (this.#size !== undefined) listener(this.#size)
  }

  async openFifos(fifos: StreamFifos): Promise<void> {
    this.#check()
    await this.#deps.ask((seq) => ({ type: 'open', id: this.id, seq, fifos }))
  }

  started(): void {
    if (this.#started || this.#settled) return
    this.#started = true
    this.#deps.post({ type: 'started', id: this.id })
  }

  async drained(timeoutMs: number): Promise<'drained' | 'timeout'> {
    this.#check()
    return await this.#deps.ask((seq) => ({ type: 'drain', id: this.id, seq, timeoutMs })) ?? 'drained'
  }

  closeStdin(): void {
    if (!this.#settled) this.#deps.post({ type: 'closeStdin', id: this.id })
  }

  attachOutput(port: MessagePort): void {
    if (this.#settled) port.close()
    else this.#deps.post({ type: 'attach', id: this.id, port }, [port])
  }

  /** From the worker: what the client did. */
  resized(size: TerminalSize): void {
    this.#size = size
    this.#listener?.(size)
  }

  stdinEnded(): void {
    this.#stdinClosed.resolve()
  }

  end(reason: CriError): void {
    this.#abort.abort(reason)
  }

  /** The backend has settled: nothing may be asked of the worker any more. */
  settle(): void {
    this.#settled = true
    this.#listener = undefined
  }

  #check(): void {
    if (this.#settled) throw internal('the stream is over')
  }
}
