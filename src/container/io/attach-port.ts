import type { MessagePort } from 'node:worker_threads'
import type { AttachOutputAck, AttachOutputMessage } from '../../streaming/types.ts'
import type { ByteSink } from './fifo-reader.ts'

/** As much as may be under way to one client. */
const limitBytes = 4 * 1024 * 1024
/** One that fell behind gets output again when it has caught up this far: many small gaps would be of no use to it. */
const resumeBytes = limitBytes / 2

export interface AttachPortDeps {
  /** Bytes that this client did not get. */
  readonly onSkipped: (bytes: number) => void
  /** Once: `end` when the container's output is at its end, `gone` when the port was closed. */
  readonly onOver: (how: 'end' | 'gone') => void
}

/**
 * One attached client: pieces of a container's output go to its port. A client that does not keep up misses output and is told how much; it
 * never holds up the container, its log or other clients.
 */
export class AttachPort {
  readonly #port: MessagePort
  readonly #deps: AttachPortDeps
  #open = 0
  #unacknowledged = 0
  #skipped = 0
  #over = false

  constructor(port: MessagePort, deps: AttachPortDeps) {
    this.#port = port
    this.#deps = deps
    port.on('message', ({ acked }: AttachOutputAck) => this.#acknowledge(acked))
    port.once('close', () => this.#finish('gone'))
  }

  /** Where the pieces of one stream go. Every one that was asked for has to end. */
  sink(stream: 1 | 2): ByteSink {
    this.#open++
    return { chunk: (bytes) => this.#chunk(stream, bytes), end: () => this.#end() }
  }

  /** Nothing comes any more. Idempotent. */
  close(): void {
    if (this.#over) return
    this.#tellSkipped()
    this.#post({ end: true })
    this.#finish('end')
  }

  #chunk(stream: 1 | 2, bytes: Buffer): void {
    if (this.#over) return
    const limit = this.#skipped > 0 ? resumeBytes : limitBytes
    if (this.#unacknowledged + bytes.length > limit) {
      this.#skipped += bytes.length
      this.#deps.onSkipped(bytes.length)
      return
    }
    this.#tellSkipped()
    this.#unacknowledged += bytes.length
    // The reader's memory is used again at once.
    const copy = new Uint8Array(bytes)
    this.#post({ stream, bytes: copy }, [copy.buffer])
  }

  #end(): void {
    if (--this.#open === 0) this.close()
  }

  #acknowledge(bytes: number): void {
    this.#unacknowledged -= bytes
    if (this.#unacknowledged <= resumeBytes) this.#tellSkipped()
  }

  #tellSkipped(): void {
    if (this.#skipped === 0) return
    this.#post({ skipped: this.#skipped })
    this.#skipped = 0
  }

  #post(message: AttachOutputMessage, transfer: ArrayBuffer[] = []): void {
    this.#port.postMessage(message, transfer)
  }

  /** What was posted before arrives all the same. */
  #finish(how: 'end' | 'gone'): void {
    if (this.#over) return
    this.#over = true
    this.#port.close()
    this.#deps.onOver(how)
  }
}
