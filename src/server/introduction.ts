import type { Socket } from 'node:net'
import { Duplex } from 'node:stream'
import { mendFrames } from './authority.ts'
import { type Frame, connectionFrame, endsHeaders, frameAt, frameFlag, frameType, isHeaders, payloadOf } from './frames.ts'

const preface = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 'latin1')
/** More than a client can send before it has read our settings, in bytes: its window is 64 KiB then. Whoever sends more is not held back for the sake of a header. */
const mostHeld = 1 << 20

/**
 * Listens to what a client says first, and hands the connection over with it.
 *
 * Kubelets up to 1.28, and whatever else is made with grpc-go before 1.57, send the path of the socket as `:authority`. That is not what the standard allows there,
 * and Node's HTTP/2 refuses each of their calls (PROTOCOL_ERROR), with no setting to change that. Their connections go on through a stream that mends the header;
 * all others are handed over as the sockets they are, which is twice as fast for a long list. Such a client does not call before it has our settings. So empty ones are sent here; the
 * answer to these is kept from the HTTP/2 server, which has not sent them.
 */
export function introduce(socket: Socket, handOver: (connection: Duplex) => void): void {
  let bytes: Buffer = Buffer.alloc(0)
  let next = preface.length
  let acknowledged = false
  let block: Frame[] = []
  let mended: boolean | undefined
  const cut = (frame: Frame): void => { bytes = Buffer.concat([bytes.subarray(0, frame.start), bytes.subarray(frame.end)]) }
  const done = (): void => {
    socket.off('data', listen)
    socket.pause() // what flows while nobody listens is lost
    // Not before the socket is done with this read: it would stop reading if it found too much in its buffer.
    process.nextTick(() => {
      if (socket.destroyed) return
      socket.off('error', ignore)
      if (mended === true) handOver(new MendedConnection(socket, bytes))
      else {
        socket.unshift(bytes)
        handOver(socket)
      }
    })
  }
  const listen = (data: Buffer | string): void => {
    const chunk = Buffer.from(data as Buffer)
    bytes = bytes.length === 0 ? chunk : Buffer.concat([bytes, chunk])
    const begin = Math.min(bytes.length, preface.length)
    if (bytes.compare(preface, 0, begin, 0, begin) !== 0) return done()
    for (let frame = frameAt(bytes, next); frame !== undefined && frame.end <= bytes.length; frame = frameAt(bytes, next)) {
      const isAck = (frame.flags & frameFlag.ack) !== 0
      if (frame.type === frameType.settings && isAck && !acknowledged) {
        acknowledged = true
        cut(frame)
        continue
      }
      if (frame.type === frameType.ping && !isAck) {
        socket.write(connectionFrame(frameType.ping, frameFlag.ack, payloadOf(bytes, frame)))
        cut(frame)
        continue
      }
      if (isHeaders(frame)) {
        block.push(frame)
        if (endsHeaders(frame)) {
          if (mendFrames(bytes, block)) mended = true
          mended ??= false
          block = []
        }
      }
      next = frame.end
    }
    if (acknowledged && mended !== undefined && block.length === 0) done()
    else if (bytes.length > mostHeld) socket.destroy()
  }
  const ignore = (): void => undefined // the end of a connection without a call; 'close' follows
  socket.on('error', ignore)
  socket.on('data', listen)
  socket.write(connectionFrame(frameType.settings, 0))
}

/** A connection on which `:authority` is mended in each header block. */
class MendedConnection extends Duplex {
  readonly #socket: Socket
  #held: Buffer

  /** `first` is what has been read already, mended as far as it is complete. */
  constructor(socket: Socket, first: Buffer) {
    super({ allowHalfOpen: true })
    this.#socket = socket
    this.#held = Buffer.alloc(0)
    this.#pass(first, preface.length)
    socket.on('data', (chunk: Buffer) => this.#pass(this.#held.length === 0 ? chunk : Buffer.concat([this.#held, chunk]), 0))
    socket.once('end', () => this.push(null))
    socket.once('error', (error) => this.destroy(error))
    socket.once('close', () => this.destroy())
  }

  /** Hands on what is complete: whole frames, and header blocks as a whole. */
  #pass(bytes: Buffer, from: number): void {
    let complete = from
    let next = from
    let block: Frame[] = []
    for (let frame = frameAt(bytes, next); frame !== undefined && frame.end <= bytes.length; frame = frameAt(bytes, next)) {
      next = frame.end
      if (isHeaders(frame)) block.push(frame)
      if (block.length > 0 && !endsHeaders(frame)) continue
      if (block.length > 0) mendFrames(bytes, block)
      block = []
      complete = next
    }
    // A frame as large as that is refused by the server.
    if (bytes.length - complete > mostHeld) complete = bytes.length
    this.#held = bytes.subarray(complete)
    if (complete > 0 && !this.push(bytes.subarray(0, complete))) this.#socket.pause()
  }

  override _read(): void {
    this.#socket.resume()
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    if (this.#socket.write(chunk)) done()
    else this.#socket.once('drain', done)
  }

  override _writev(chunks: readonly { readonly chunk: Buffer }[], done: (error?: Error | null) => void): void {
    this._write(Buffer.concat(chunks.map(({ chunk }) => chunk)), 'binary', done)
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#socket.end(done)
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#socket.destroy()
    done(error)
  }
}
