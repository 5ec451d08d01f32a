import { Duplex } from 'node:stream'
import type { SpdyHeaders } from './header-block.ts'
import { RstStatus } from './protocol.ts'

/** What a stream asks of the connection's end of it. */
export interface StreamPort {
  readonly id: number
  readonly headers: SpdyHeaders
  readonly remoteClosed: boolean
  /** The consumer has taken what it was given and wants more. */
  pull(): void
  /** `done` is called when the transport has room again after these bytes. */
  write(chunks: Buffer[], bytes: number, done: (error?: Error | null) => void): void
  finish(done: (error?: Error | null) => void): void
  reply(headers: SpdyHeaders, fin: boolean): void
  /** Ends the stream on the wire, if it has not ended there. */
  abandon(status: number): void
}

/**
 * One stream of a SpdyConnection. `end()` sends FIN, the peer's FIN is 'end'; both are independent of each other. Backpressure works through
 * the usual means of a Duplex in both directions.
 *
 * - Every stream must be read (`resume()` if nothing is expected on it) or reset: what waits in one that is not read counts against the
 *   connection's bound, and at the bound nothing more is read for any of its streams.
 * - `for await`, node:stream/consumers and pipeline() destroy a Duplex whose reading has ended: where the other side goes on, use 'data' and 'end', or pipe().
 * - A reset by the peer, or the end of the connection, destroys the stream with a SpdyError (SPDY_STREAM_RESET, SPDY_CLOSED), and 'close' follows.
 *   A listener for 'error' is not needed: an error nobody listens to is dropped, so that a peer can never end the process.
 * - `destroy()` before both sides have ended sends RST_STREAM (CANCEL).
 * - On the creating side 'reply' comes with the headers of SYN_REPLY. Data written before that waits for it (Go's implementation drops data that
 *   comes before its own reply).
 * - HEADERS frames come as 'headers'.
 */
export class SpdyStream extends Duplex {
  readonly #port: StreamPort
  #status: number = RstStatus.CANCEL

  /** Made by SpdyConnection only. */
  constructor(port: StreamPort) {
    // One piece at a time is handed to the readable side: what waits stays with the connection, which counts it.
    super({ readableHighWaterMark: 1, writableHighWaterMark: 64 * 1024, allowHalfOpen: true, autoDestroy: true })
    this.#port = port
    this.on('error', () => undefined)
  }

  get id(): number {
    return this.#port.id
  }

  /** The headers it was created with, names in lower case. */
  get headers(): SpdyHeaders {
    return this.#port.headers
  }

  /** Whether the peer's FIN (or reset) has arrived, read by the consumer or not. */
  get remoteClosed(): boolean {
    return this.#port.remoteClosed
  }

  /** Sends SYN_REPLY; only once, on the accepting side. It is sent by itself, empty, before the first data if this was not called. */
  reply(headers: SpdyHeaders = {}, options: { readonly fin?: boolean } = {}): void {
    this.#port.reply(headers, options.fin === true)
    if (options.fin === true) this.end()
  }

  /** Ends both sides at once with RST_STREAM; what is buffered is dropped. */
  reset(status: number = RstStatus.CANCEL): void {
    this.#status = status
    this.destroy()
  }

  override _read(): void {
    this.#port.pull()
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, callback: (error?: Error | null) => void): void {
    this.#port.write([chunk], chunk.length, callback)
  }

  override _writev(items: Array<{ chunk: unknown }>, callback: (error?: Error | null) => void): void {
    const chunks = items.map((item) => item.chunk as Buffer)
    this.#port.write(
      chunks,
      chunks.reduce((sum, chunk) => sum + chunk.length, 0),
      callback,
    )
  }

  override _final(callback: (error?: Error | null) => void): void {
    this.#port.finish(callback)
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.#port.abandon(this.#status)
    callback(error)
  }
}
