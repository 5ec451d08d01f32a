import { Duplex } from 'node:stream'
import type { RawData, WebSocket } from 'ws'

/**
 * A WebSocket as a byte stream, for SPDY tunnelled through it: every binary message is the next piece, a normal close its end. (ws has such
 * a wrapper too; its close has no code, which client-go takes for an error.)
 */
export class WebSocketDuplex extends Duplex {
  readonly #socket: WebSocket

  constructor(socket: WebSocket) {
    super({ allowHalfOpen: true, readableHighWaterMark: 64 * 1024, writableHighWaterMark: 64 * 1024 })
    this.#socket = socket
    // Its 'close' follows.
    socket.on('error', () => undefined)
    socket.on('message', (data: RawData, isBinary: boolean) => {
      if (!isBinary) this.destroy(new Error('a text message came where a piece of the SPDY connection was expected'))
      else if (!this.push(data)) socket.pause()
    })
    socket.once('close', () => {
      this.push(null)
      this.destroy()
    })
  }

  override _read(): void {
    if (this.#socket.isPaused) this.#socket.resume()
  }

  override _write(piece: Buffer, _encoding: BufferEncoding, callback: (error?: Error | null) => void): void {
    this.#socket.send(piece, { binary: true }, callback)
  }

  override _writev(pieces: { chunk: Buffer }[], callback: (error?: Error | null) => void): void {
    this.#socket.send(pieces.length === 1 && pieces[0] !== undefined ? pieces[0].chunk : Buffer.concat(pieces.map(({ chunk }) => chunk)), { binary: true }, callback)
  }

  override _final(callback: (error?: Error | null) => void): void {
    this.#socket.close(1000)
    callback()
  }

  override _destroy(error: Error | null, callback: (error?: Error | null) => void): void {
    this.#socket.terminate()
    callback(error)
  }
}
