import { streamReset } from './errors.ts'
import type { SpdyError } from './errors.ts'
import type { SpdyHeaders } from './header-block.ts'
import { SpdyStream } from './stream.ts'
import type { StreamPort } from './stream.ts'

/** What a channel asks of its connection. */
export interface ChannelHost {
  /** Undefined while the connection is up. */
  readonly ended: SpdyError | undefined
  /** Sends what the channel has to send, now or when there is room. */
  schedule(channel: Channel): void
  sendReply(channel: Channel, headers: SpdyHeaders, fin: boolean): void
  sendFin(channel: Channel): void
  sendReset(channel: Channel, status: number): void
  sendWindowUpdate(channel: Channel, delta: number): void
  /** Waiting bytes have come (positive) or gone. `cost` is what they take of the connection's bound. */
  charge(cost: number): void
  /** Payload has been consumed, or dropped: it is the connection's window again. */
  credit(bytes: number): void
  /** The channel is closed on the wire. */
  remove(channel: Channel): void
}

/** What a waiting piece takes besides its bytes: the slice and its place in a list. Counted, so that a flood of one-byte frames meets the bound too. */
const PIECE_COST = 256

/** The connection's end of a stream: its windows, what waits to be read and to be sent, and which sides are closed on the wire. */
export class Channel implements StreamPort {
  readonly id: number
  readonly headers: SpdyHeaders
  readonly stream: SpdyStream
  /** Whether the peer created it. */
  readonly accepted: boolean
  readonly #host: ChannelHost

  localClosed = false
  remoteClosed = false
  /** SYN_REPLY was sent (accepted) or has come (created). Data flows to the peer only then. */
  replied = false

  /** What may still be sent, in bytes. Below zero when the peer made the window smaller, or for one that was found to do flow control late. */
  sendWindow: number
  /** What the peer may still send. */
  receiveWindow: number
  readonly #windowBytes: number
  /** Consumed, but not yet told to the peer. */
  #unacknowledged = 0

  /** Pieces that wait, from #queueHead on. */
  #queue: Buffer[] = []
  #queueHead = 0
  /** The readable side has taken all it was given. */
  #wanted = false
  /** What it was given and has not taken. */
  #handedBytes = 0
  #handedCost = 0
  #ended = false

  /** What waits to be sent: the first chunk from #outgoingAt on. */
  #outgoing: Buffer[] = []
  #outgoingIndex = 0
  #outgoingAt = 0
  outgoingBytes = 0
  #outgoingDone: ((error?: Error | null) => void) | undefined

  constructor(host: ChannelHost, options: { readonly id: number; readonly headers: SpdyHeaders; readonly accepted: boolean; readonly sendWindow: number; readonly windowBytes: number }) {
    this.#host = host
    this.id = options.id
    this.headers = options.headers
    this.accepted = options.accepted
    this.sendWindow = options.sendWindow
    this.receiveWindow = options.windowBytes
    this.#windowBytes = options.windowBytes
    this.stream = new SpdyStream(this)
  }

  get closed(): boolean {
    return this.localClosed && this.remoteClosed
  }

  // Receiving

  /** A piece of payload, not empty. */
  receive(piece: Buffer): void {
    this.receiveWindow -= piece.length
    if (this.stream.destroyed) this.#host.credit(piece.length)
    else if (this.#wanted && this.#queueHead === this.#queue.length) this.#hand(piece)
    else {
      this.#queue.push(piece)
      this.#host.charge(piece.length + PIECE_COST)
    }
  }

  /** The peer's FIN. */
  receiveFin(): void {
    this.remoteClosed = true
    this.#endWhenRead()
    if (this.closed) this.#host.remove(this)
  }

  /** The peer's RST_STREAM: it wants nothing of the stream any more, so what waits is dropped. */
  receiveReset(status: number): void {
    this.localClosed = true
    this.remoteClosed = true
    this.#host.remove(this)
    this.stream.destroy(streamReset(this.id, status, 'peer'))
  }

  /**
   * The connection has ended. What the peer finished with FIN can still be read to its end; a stream that was cut off is destroyed.
   */
  connectionEnded(error: SpdyError): void {
    const complete = this.remoteClosed && !this.#ended
    this.localClosed = true
    this.remoteClosed = true
    if (!complete || this.#outgoingDone !== undefined) this.stream.destroy(error)
  }

  pull(): void {
    if (this.#handedCost > 0) {
      this.#host.charge(-this.#handedCost)
      this.#consumed(this.#handedBytes)
      this.#handedCost = 0
      this.#handedBytes = 0
    }
    this.#wanted = true
    while (this.#wanted && this.#queueHead < this.#queue.length) {
      const piece = this.#queue[this.#queueHead++] as Buffer
      this.#host.charge(-(piece.length + PIECE_COST))
      this.#hand(piece)
    }
    if (this.#queueHead === this.#queue.length) {
      this.#queue = this.#queue.length > 64 ? [] : this.#queue
      this.#queue.length = 0
      this.#queueHead = 0
    }
    this.#endWhenRead()
  }

  #hand(piece: Buffer): void {
    this.#wanted = this.stream.push(piece)
    if (this.stream.readableLength === 0) {
      // Went straight to a 'data' listener.
      this.#consumed(piece.length)
      return
    }
    this.#handedBytes += piece.length
    this.#handedCost += piece.length + PIECE_COST
    this.#host.charge(piece.length + PIECE_COST)
  }

  #endWhenRead(): void {
    if (!this.remoteClosed || this.#ended || this.#handedCost > 0 || this.#queueHead < this.#queue.length) return
    this.#ended = true
    if (!this.stream.destroyed) this.stream.push(null)
  }

  #consumed(bytes: number): void {
    this.#host.credit(bytes)
    if (this.remoteClosed) return
    this.#unacknowledged += bytes
    if (this.#unacknowledged < this.#windowBytes / 2) return
    const delta = this.#unacknowledged
    this.#unacknowledged = 0
    this.receiveWindow += delta
    this.#host.sendWindowUpdate(this, delta)
  }

  #dropWaiting(): void {
    let cost = this.#handedCost
    let bytes = this.#handedBytes
    for (let i = this.#queueHead; i < this.#queue.length; i++) {
      const length = (this.#queue[i] as Buffer).length
      cost += length + PIECE_COST
      bytes += length
    }
    this.#queue = []
    this.#queueHead = 0
    this.#handedCost = 0
    this.#handedBytes = 0
    if (cost > 0) this.#host.charge(-cost)
    if (bytes > 0) this.#host.credit(bytes)
  }

  // Sending

  write(chunks: Buffer[], bytes: number, done: (error?: Error | null) => void): void {
    const error = this.#host.ended
    if (error !== undefined) {
      done(error)
      return
    }
    if (bytes === 0) {
      done()
      return
    }
    if (this.accepted && !this.replied) this.#host.sendReply(this, {}, false)
    this.#outgoing = chunks
    this.#outgoingIndex = 0
    this.#outgoingAt = 0
    this.outgoingBytes = bytes
    this.#outgoingDone = done
    this.#host.schedule(this)
  }

  /** The next `bytes` of what waits, as slices. The caller has made sure that there are as many. */
  take(bytes: number, into: (slice: Buffer) => void): void {
    this.outgoingBytes -= bytes
    this.sendWindow -= bytes
    let left = bytes
    while (left > 0) {
      const chunk = this.#outgoing[this.#outgoingIndex] as Buffer
      const end = Math.min(chunk.length, this.#outgoingAt + left)
      if (end > this.#outgoingAt) into(this.#outgoingAt === 0 && end === chunk.length ? chunk : chunk.subarray(this.#outgoingAt, end))
      left -= end - this.#outgoingAt
      if (end === chunk.length) {
        this.#outgoingIndex++
        this.#outgoingAt = 0
      } else {
        this.#outgoingAt = end
      }
    }
  }

  /** Everything was handed to the transport. @returns what tells the writer so */
  takeDone(): ((error?: Error | null) => void) | undefined {
    const done = this.#outgoingDone
    this.#outgoing = []
    this.#outgoingDone = undefined
    return done
  }

  finish(done: (error?: Error | null) => void): void {
    if (!this.localClosed) {
      if (this.#host.ended !== undefined) {
        done(this.#host.ended)
        return
      }
      if (this.accepted && !this.replied) this.#host.sendReply(this, {}, true)
      else this.#host.sendFin(this)
      this.localClosed = true
      if (this.closed) this.#host.remove(this)
    }
    done()
  }

  reply(headers: SpdyHeaders, fin: boolean): void {
    if (!this.accepted) throw new TypeError('only the side that accepts a SPDY stream replies to it')
    if (this.replied || this.localClosed || this.#host.ended !== undefined) return
    this.#host.sendReply(this, headers, fin)
    if (!fin) return
    this.localClosed = true
    if (this.closed) this.#host.remove(this)
  }

  abandon(status: number): void {
    this.#dropWaiting()
    this.outgoingBytes = 0
    // The writer's callback needs no call: the stream is being destroyed.
    this.takeDone()
    if (this.closed) return
    if (this.#host.ended === undefined) this.#host.sendReset(this, status)
    this.localClosed = true
    this.remoteClosed = true
    this.#host.remove(this)
  }
}
