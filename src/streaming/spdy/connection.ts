import type { Duplex } from 'node:stream'
import { Channel } from './channel.ts'
import type { ChannelHost } from './channel.ts'
import { SpdyError, streamReset, violation } from './errors.ts'
import { dataHeader, goAwayFrame, pingFrame, rstStreamFrame, settingsFrame, synReplyFrame, synStreamFrame, windowUpdateFrame } from './frames.ts'
import { HeaderDecoder, HeaderEncoder } from './header-block.ts'
import type { DecodedHeaders, SpdyHeaders } from './header-block.ts'
import { resolveLimits } from './limits.ts'
import type { SpdyLimits } from './limits.ts'
import { FrameParser } from './parser.ts'
import type { FrameHandler } from './parser.ts'
import { DEFAULT_WINDOW_BYTES, FLAG_FIN, FLAG_UNIDIRECTIONAL, GoAwayStatus, MAX_STREAM_ID, MAX_WINDOW_BYTES, RstStatus, SettingsId } from './protocol.ts'
import type { SpdyStream } from './stream.ts'

export { SpdyError } from './errors.ts'
export { DEFAULT_LIMITS } from './limits.ts'
export type { SpdyLimits } from './limits.ts'
export { RstStatus } from './protocol.ts'
export { SpdyStream } from './stream.ts'
export type { SpdyHeaders } from './header-block.ts'

export interface SpdyConnectionOptions {
  readonly side: 'server' | 'client'
  readonly limits?: Partial<SpdyLimits>
  /** A stream of the peer. What it throws ends the connection. */
  readonly onStream: (stream: SpdyStream) => void
  /** Bytes that were read from the transport before it was handed over (the `head` of an HTTP upgrade). */
  readonly head?: Buffer
  /**
   * How often a PING is written while nothing is read because consumers do not read (see SpdyLimits.maxBufferedBytes): the end of a peer is not seen
   * then except by writing to it. Default: 5 s.
   */
  readonly pausedPingMs?: number
}

/** The largest DATA frame we send: large enough that its header costs nothing, small enough that streams take turns. */
const DATA_FRAME_BYTES = 64 * 1024
/** Payloads up to this are copied behind their header: one small write is cheaper than two buffers. */
const INLINE_BYTES = 1024
/** Pieces up to this are copied out of the buffer they came in, so that a few waiting bytes do not keep 64 KiB of it. */
const DETACH_BYTES = 4096
/** How long a peer that says nothing may leave our question open whether it does flow control. */
const PROBE_MS = 500
/** How long a transport may take to flush GOAWAY after a violation, or to a peer that has closed its side. */
const LINGER_MS = 1000
/** How long it may take when the connection ends in order. */
const CLOSE_MS = 10_000
const MAX_OPEN_PINGS = 64
/** A peer has no reason to send more of them, and each costs a walk over the streams. */
const MAX_SETTINGS_FRAMES = 1000
const PAUSED_PING_MS = 5000

/**
 * SPDY/3.1 over any byte stream: a socket, TLS, or a WebSocket tunnel.
 *
 * Flow control: our windows are offered to every peer (SETTINGS, WINDOW_UPDATE). A peer's windows are respected when it does flow control, which
 * it shows by sending SETTINGS or WINDOW_UPDATE; Go's moby/spdystream (kubectl, crictl) never does and would never open a window. A peer that has
 * said nothing when the first window is used up is asked by a PING: once that is answered without a WINDOW_UPDATE before it, it is taken for
 * one that does none. Towards such peers the transport's own backpressure is all there is, see SpdyLimits.maxBufferedBytes.
 */
export class SpdyConnection {
  readonly #transport: Duplex
  readonly #side: 'server' | 'client'
  readonly #limits: SpdyLimits
  readonly #onStream: (stream: SpdyStream) => void
  readonly #pausedPingMs: number
  readonly #parser: FrameParser
  readonly #decoder: HeaderDecoder
  readonly #encoder = new HeaderEncoder()
  readonly #host: ChannelHost

  readonly #channels = new Map<number, Channel>()
  #nextStreamId: number
  #lastPeerStreamId = 0
  /** The peer's among them. */
  #peerStreams = 0
  #peerMaxStreams = Infinity
  #peerGoneAway = false
  #draining = false
  #goAwaySent = false

  /** Whether the peer's windows bind us: 'unknown' until it shows whether it does flow control. */
  #peerFlow: 'unknown' | 'windows' | 'none' = 'unknown'
  /** The peer has sent more than our windows allowed, without ever having shown flow control: it need not be told of windows any more. */
  #overrun = false
  #settingsFrames = 0
  #probeTimer: NodeJS.Timeout | undefined
  #probing = false
  #peerInitialWindow = DEFAULT_WINDOW_BYTES
  #sendWindow = DEFAULT_WINDOW_BYTES
  /** What we let a peer send before consumers have read, all streams together. */
  readonly #windowBytes: number
  #receiveWindow: number
  #unacknowledged = 0

  #buffered = 0
  #paused = false
  #pausedTimer: NodeJS.Timeout | undefined
  /** Channels that have data to send and only wait for the transport, in the order of their turns. */
  readonly #ready = new Set<Channel>()
  /** Writers whose bytes are with the transport, to be told when it has room. */
  #waitingDone: Array<(error?: Error | null) => void> = []
  #pumping = false
  #queuedFrames = 0
  readonly #frameFlushed = (): void => {
    this.#queuedFrames--
  }

  #nextPingId: number
  readonly #pings = new Map<number, { resolve: () => void; reject: (error: Error) => void }>()
  #lastActivityMs = performance.now()
  #ended: SpdyError | undefined
  #reason: Error | undefined
  #lingerTimer: NodeJS.Timeout | undefined
  readonly #closed = Promise.withResolvers<Error | undefined>()

  constructor(transport: Duplex, options: SpdyConnectionOptions) {
    this.#transport = transport
    this.#side = options.side
    this.#limits = resolveLimits(options.limits)
    this.#onStream = options.onStream
    this.#pausedPingMs = options.pausedPingMs ?? PAUSED_PING_MS
    this.#decoder = new HeaderDecoder(this.#limits.maxHeaderBytes)
    this.#parser = new FrameParser(this.#frameHandler(), this.#limits.maxFrameBytes)
    this.#host = this.#channelHost()
    this.#nextStreamId = options.side === 'server' ? 2 : 1
    this.#nextPingId = options.side === 'server' ? 2 : 1
    // Below the bound, so that a peer that keeps to the window never brings the transport to a stop, and its control frames are always read.
    this.#windowBytes = Math.max(DEFAULT_WINDOW_BYTES, Math.floor(this.#limits.maxBufferedBytes * 0.75))
    this.#receiveWindow = this.#windowBytes

    transport.on('error', (error) => this.#end(error, 'destroy'))
    transport.on('close', () => this.#transportClosed())
    transport.on('end', () => this.#transportEnded())
    transport.on('drain', () => this.#drained())
    this.#sendControl(settingsFrame([[SettingsId.INITIAL_WINDOW_SIZE, this.#limits.initialWindowBytes]]))
    if (this.#windowBytes > DEFAULT_WINDOW_BYTES) this.#sendControl(windowUpdateFrame(0, this.#windowBytes - DEFAULT_WINDOW_BYTES))
    // Not before the caller has its connection: onStream may need it.
    process.nextTick(() => this.#start(options.head))
  }

  /** Settles when the transport is closed: undefined after an orderly end, else what ended the connection. Never rejects. */
  get closed(): Promise<Error | undefined> {
    return this.#closed.promise
  }

  /** When bytes last went in either direction, on the clock of performance.now(). */
  get lastActivityMs(): number {
    return this.#lastActivityMs
  }

  /** Open streams of both sides. */
  get streams(): number {
    return this.#channels.size
  }

  /** Bytes (with the cost of their pieces) that wait for consumers. */
  get bufferedBytes(): number {
    return this.#buffered
  }

  /**
   * Opens a stream. Throws SpdyError (SPDY_CLOSED, SPDY_REFUSED) when the connection has ended or drains, TypeError for headers that cannot be sent.
   * The peer's answer comes as 'reply' on the stream.
   */
  createStream(headers: SpdyHeaders, options: { readonly fin?: boolean } = {}): SpdyStream {
    if (this.#ended !== undefined) throw this.#ended
    if (this.#draining || this.#peerGoneAway) throw new SpdyError('SPDY_REFUSED', 'no new SPDY stream: the connection is going away')
    if (this.#channels.size - this.#peerStreams >= this.#peerMaxStreams) throw new SpdyError('SPDY_REFUSED', `no new SPDY stream: the peer allows ${this.#peerMaxStreams}`)
    if (this.#nextStreamId > MAX_STREAM_ID) throw new SpdyError('SPDY_REFUSED', 'no new SPDY stream: the connection has used up its stream ids')
    const fin = options.fin === true
    const block = this.#encoder.encode(headers)
    const id = this.#nextStreamId
    this.#nextStreamId += 2
    const channel = this.#addChannel(id, headers, false)
    this.#sendControl(synStreamFrame(id, fin ? FLAG_FIN : 0, block))
    if (fin) {
      channel.localClosed = true
      channel.stream.end()
    }
    return channel.stream
  }

  /** Resolves with the peer's answer; rejects when the connection ends before it, or when too many are open already. */
  ping(): Promise<void> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended)
    if (this.#pings.size >= MAX_OPEN_PINGS) return Promise.reject(new SpdyError('SPDY_REFUSED', `the peer has left ${MAX_OPEN_PINGS} SPDY pings unanswered`))
    const id = this.#takePingId()
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.#pings.set(id, { resolve, reject })
    this.#sendControl(pingFrame(id))
    return promise
  }

  /**
   * Takes no new streams any more (they are refused); GOAWAY is sent when the last open one has ended, since Go's implementation
   * stops reading at GOAWAY.
   */
  goAway(): void {
    if (this.#ended !== undefined) return
    this.#draining = true
    this.#goAwayWhenIdle()
  }

  /**
   * Ends the connection in order: streams on which end() was called are flushed, then GOAWAY and the end of the transport; streams that are still
   * open are destroyed with SPDY_CLOSED. Resolves when the transport is closed.
   *
   * @param timeoutMs after that the transport is destroyed, flushed or not
   */
  async close(timeoutMs: number = CLOSE_MS): Promise<void> {
    if (this.#ended === undefined) {
      this.#draining = true
      const timer = setTimeout(() => this.destroy(), timeoutMs)
      try {
        await Promise.all(Array.from(this.#channels.values(), (channel) => flushed(channel.stream)))
        this.#end(undefined, 'end', timeoutMs)
        await this.closed
      } finally {
        clearTimeout(timer)
      }
    }
    await this.closed
  }

  /** Ends everything at once. Streams are destroyed with SPDY_CLOSED. */
  destroy(error?: Error): void {
    if (this.#ended === undefined) this.#end(error, 'destroy')
    else this.#transport.destroy()
  }

  // The transport

  #start(head: Buffer | undefined): void {
    if (this.#ended !== undefined) return
    if (head !== undefined && head.length > 0) this.#receive(head)
    this.#transport.on('data', (chunk: Buffer) => this.#receive(chunk))
    if (this.#paused) this.#transport.pause()
    else this.#transport.resume()
    // What was over before the transport was handed over says so no more.
    if (this.#transport.closed) this.#transportClosed()
    else if (this.#transport.readableEnded) this.#transportEnded()
  }

  #receive(chunk: Buffer): void {
    if (this.#ended !== undefined) return
    this.#lastActivityMs = performance.now()
    this.#transport.cork()
    try {
      this.#parser.push(chunk)
      if (this.#queuedFrames > this.#limits.maxQueuedFrames) throw violation(`it makes us answer and does not read the answers; ${this.#queuedFrames} are waiting`)
    } catch (error) {
      this.#fail(error instanceof SpdyError ? error : new SpdyError('SPDY_INTERNAL', 'a SPDY frame could not be handled', { cause: error }))
    } finally {
      this.#transport.uncork()
    }
  }

  #transportEnded(): void {
    this.#end(this.#parser.midFrame ? new SpdyError('SPDY_CLOSED', 'the SPDY peer closed the connection within a frame') : undefined, 'end')
  }

  #transportClosed(): void {
    this.#end(this.#goAwaySent || this.#peerGoneAway ? undefined : new SpdyError('SPDY_CLOSED', 'the SPDY connection was closed'), 'destroy')
    clearTimeout(this.#lingerTimer)
    this.#closed.resolve(this.#reason)
  }

  /** A violation, or a failure of our own: the peer is told by GOAWAY. */
  #fail(error: SpdyError): void {
    if (this.#ended !== undefined) return
    this.#sendGoAway(error.code === 'SPDY_PROTOCOL' ? GoAwayStatus.PROTOCOL_ERROR : GoAwayStatus.INTERNAL_ERROR)
    this.#end(error, 'end')
  }

  /** Ends the connection once; every stream learns it. @param how whether what is queued is still sent, or all dropped */
  #end(reason: Error | undefined, how: 'end' | 'destroy', lingerMs: number = LINGER_MS): void {
    if (this.#ended !== undefined) {
      if (how === 'destroy') this.#transport.destroy()
      return
    }
    if (how === 'end') this.#sendGoAway(GoAwayStatus.OK)
    const ended = reason instanceof SpdyError ? reason : new SpdyError('SPDY_CLOSED', reason === undefined ? 'the SPDY connection has ended' : `the SPDY connection has ended: ${reason.message}`, { cause: reason })
    this.#ended = ended
    this.#reason = reason
    clearTimeout(this.#probeTimer)
    clearInterval(this.#pausedTimer)
    this.#ready.clear()
    this.#waitingDone = []
    for (const channel of this.#channels.values()) channel.connectionEnded(ended)
    this.#channels.clear()
    for (const ping of this.#pings.values()) ping.reject(ended)
    this.#pings.clear()
    if (how === 'destroy') {
      this.#transport.destroy()
      return
    }
    // What the peer still sends is read and dropped, so that closing the socket does not reset it under our last frames.
    this.#transport.resume()
    this.#transport.end()
    this.#lingerTimer = setTimeout(() => this.#transport.destroy(), lingerMs)
  }

  // Sending

  #sendControl(frame: Buffer): void {
    if (this.#ended !== undefined || !this.#transport.writable) return
    this.#lastActivityMs = performance.now()
    this.#queuedFrames++
    this.#transport.write(frame, this.#frameFlushed)
  }

  #sendGoAway(status: number): void {
    if (this.#goAwaySent) return
    this.#sendControl(goAwayFrame(this.#lastPeerStreamId, status))
    this.#goAwaySent = true
  }

  #goAwayWhenIdle(): void {
    if (this.#channels.size > 0 || this.#ended !== undefined) return
    if (this.#peerGoneAway) this.#end(undefined, 'end', CLOSE_MS)
    else if (this.#draining) this.#sendGoAway(GoAwayStatus.OK)
  }

  #schedule(channel: Channel): void {
    this.#ready.add(channel)
    this.#pump()
  }

  #drained(): void {
    const waiting = this.#waitingDone
    this.#waitingDone = []
    // Each may have the next chunk ready: it takes its turn behind those that wait.
    this.#pumping = true
    for (const done of waiting) done()
    this.#pumping = false
    this.#pump()
  }

  /** One frame of each channel in turn, until the transport or the connection's window is full, or nobody can go on. */
  #pump(): void {
    if (this.#pumping) return
    this.#pumping = true
    for (const channel of this.#ready) {
      if (this.#transport.writableNeedDrain || (this.#peerFlow === 'windows' && this.#sendWindow <= 0)) break
      this.#ready.delete(channel)
      this.#sendData(channel)
    }
    this.#pumping = false
  }

  #sendData(channel: Channel): void {
    const room = this.#sendRoom(channel)
    const bytes = Math.min(channel.outgoingBytes, DATA_FRAME_BYTES, room)
    if (bytes <= 0) return
    this.#lastActivityMs = performance.now()
    this.#sendWindow -= bytes
    if (bytes <= INLINE_BYTES) {
      const frame = Buffer.allocUnsafe(8 + bytes)
      frame.writeUInt32BE(channel.id, 0)
      frame.writeUInt32BE(bytes, 4)
      let at = 8
      channel.take(bytes, (slice) => {
        at += slice.copy(frame, at)
      })
      this.#transport.write(frame)
    } else {
      this.#transport.cork()
      this.#transport.write(dataHeader(channel.id, bytes, false))
      channel.take(bytes, (slice) => this.#transport.write(slice))
      this.#transport.uncork()
    }
    if (channel.outgoingBytes > 0) {
      this.#ready.add(channel)
      return
    }
    const done = channel.takeDone()
    if (done === undefined) return
    if (this.#transport.writableNeedDrain) this.#waitingDone.push(done)
    else done()
  }

  /** How many bytes the channel may send now. */
  #sendRoom(channel: Channel): number {
    if (!channel.replied) return 0
    if (this.#peerFlow === 'none') return Infinity
    const room = Math.min(channel.sendWindow, this.#sendWindow)
    if (room <= 0 && this.#peerFlow === 'unknown') this.#probe()
    return room
  }

  /** Asks whether the peer does flow control: had it read our data and opened windows, its WINDOW_UPDATE would come before the answer. */
  #probe(): void {
    if (this.#probing) return
    this.#probing = true
    const settle = (): void => {
      clearTimeout(this.#probeTimer)
      if (this.#peerFlow !== 'unknown') return
      this.#peerFlow = 'none'
      this.#wakeAll()
    }
    this.#probeTimer = setTimeout(settle, PROBE_MS)
    this.ping().then(settle, settle)
  }

  #wakeAll(): void {
    if (this.#ended !== undefined) return
    for (const channel of this.#channels.values()) if (channel.outgoingBytes > 0) this.#ready.add(channel)
    this.#pump()
  }

  // Channels

  #channelHost(): ChannelHost {
    const ended = (): SpdyError | undefined => this.#ended
    return {
      get ended() {
        return ended()
      },
      schedule: (channel) => this.#schedule(channel),
      sendReply: (channel, headers, fin) => {
        this.#sendControl(synReplyFrame(channel.id, fin ? FLAG_FIN : 0, this.#encoder.encode(headers)))
        channel.replied = true
      },
      sendFin: (channel) => this.#sendControl(dataHeader(channel.id, 0, true)),
      sendReset: (channel, status) => this.#sendControl(rstStreamFrame(channel.id, status)),
      sendWindowUpdate: (channel, delta) => {
        if (!this.#overrun) this.#sendControl(windowUpdateFrame(channel.id, delta))
      },
      charge: (cost) => this.#charge(cost),
      credit: (bytes) => this.#credit(bytes),
      remove: (channel) => this.#removeChannel(channel),
    }
  }

  #charge(cost: number): void {
    this.#buffered += cost
    if (!this.#paused && this.#buffered > this.#limits.maxBufferedBytes) {
      this.#paused = true
      this.#transport.pause()
      this.#pausedTimer = setInterval(() => this.#knock(), this.#pausedPingMs)
    } else if (this.#paused && this.#buffered <= this.#limits.maxBufferedBytes / 2) {
      this.#paused = false
      clearInterval(this.#pausedTimer)
      if (this.#ended === undefined) this.#transport.resume()
    }
  }

  #credit(bytes: number): void {
    this.#unacknowledged += bytes
    if (this.#unacknowledged < this.#windowBytes / 2) return
    const delta = this.#unacknowledged
    this.#unacknowledged = 0
    this.#receiveWindow += delta
    if (!this.#overrun) this.#sendControl(windowUpdateFrame(0, delta))
  }

  /** A write that fails when the peer is gone. Not an activity: neither side wanted anything. */
  #knock(): void {
    const before = this.#lastActivityMs
    this.#sendControl(pingFrame(this.#takePingId()))
    this.#lastActivityMs = before
  }

  #takePingId(): number {
    const id = this.#nextPingId
    this.#nextPingId = id + 2 > MAX_STREAM_ID ? id % 2 || 2 : id + 2
    return id
  }

  #addChannel(id: number, headers: SpdyHeaders, accepted: boolean): Channel {
    const channel = new Channel(this.#host, { id, headers, accepted, sendWindow: this.#peerInitialWindow, windowBytes: this.#limits.initialWindowBytes })
    this.#channels.set(id, channel)
    return channel
  }

  #removeChannel(channel: Channel): void {
    if (!this.#channels.delete(channel.id)) return
    this.#ready.delete(channel)
    if (channel.accepted) this.#peerStreams--
    this.#goAwayWhenIdle()
  }

  // Frames

  #frameHandler(): FrameHandler {
    const active = (): boolean => this.#ended === undefined
    return {
      get active() {
        return active()
      },
      data: (id, piece, last, fin) => this.#onData(id, piece, last && fin),
      synStream: (id, flags, block) => this.#onSynStream(id, flags, this.#decoder.decode(block)),
      synReply: (id, flags, block) => this.#onSynReply(id, flags, this.#decoder.decode(block)),
      headers: (id, flags, block) => this.#onHeaders(id, flags, this.#decoder.decode(block)),
      rstStream: (id, status) => this.#channels.get(id)?.receiveReset(status),
      settings: (values) => this.#onSettings(values),
      ping: (id) => this.#onPing(id),
      goAway: (lastGoodStreamId) => this.#onGoAway(lastGoodStreamId),
      windowUpdate: (id, delta) => this.#onWindowUpdate(id, delta),
    }
  }

  #onData(id: number, piece: Buffer, fin: boolean): void {
    const channel = this.#channels.get(id)
    this.#receiveWindow -= piece.length
    if (this.#receiveWindow < 0 && !this.#overrun) {
      if (this.#peerFlow === 'windows') throw violation('it sends more than the window of the connection')
      this.#peerDoesNone()
    }
    if (channel === undefined || channel.remoteClosed) {
      this.#credit(piece.length)
      if (channel !== undefined) this.#streamError(channel, RstStatus.STREAM_ALREADY_CLOSED, 'it sends data after its FIN')
      // For a stream that has ended the frames were on their way; answering each would be a flood of our own.
      else if (!this.#wasOpened(id)) this.#sendControl(rstStreamFrame(id, RstStatus.INVALID_STREAM))
      return
    }
    if (!channel.accepted && !channel.replied) {
      this.#credit(piece.length)
      this.#streamError(channel, RstStatus.PROTOCOL_ERROR, 'data came before SYN_REPLY')
      return
    }
    if (piece.length > 0) {
      if (channel.receiveWindow < piece.length && !this.#overrun) {
        if (this.#peerFlow === 'windows') {
          this.#credit(piece.length)
          this.#streamError(channel, RstStatus.FLOW_CONTROL_ERROR, 'it sends more than its window')
          return
        }
        this.#peerDoesNone()
      }
      channel.receive(piece.length <= DETACH_BYTES && piece.buffer.byteLength > 4 * piece.length ? Buffer.from(piece) : piece)
    }
    if (fin && !channel.remoteClosed) channel.receiveFin()
  }

  /** More came than we allowed, from a peer that has not shown flow control. */
  #peerDoesNone(): void {
    this.#overrun = true
    if (this.#peerFlow !== 'unknown') return
    this.#peerFlow = 'none'
    this.#wakeAll()
  }

  #onSynStream(id: number, flags: number, { headers, malformed }: DecodedHeaders): void {
    if ((id & 1) === (this.#side === 'server' ? 0 : 1)) throw violation(`SYN_STREAM with id ${id}, which is ours to give`)
    if (id < this.#lastPeerStreamId) throw violation(`SYN_STREAM with id ${id} after ${this.#lastPeerStreamId}`)
    if (id === this.#lastPeerStreamId) {
      const channel = this.#channels.get(id)
      if (channel !== undefined) this.#streamError(channel, RstStatus.PROTOCOL_ERROR, 'it was opened twice')
      return
    }
    this.#lastPeerStreamId = id
    if (malformed !== undefined) {
      this.#sendControl(rstStreamFrame(id, RstStatus.PROTOCOL_ERROR))
      return
    }
    if (this.#draining || this.#peerStreams >= this.#limits.maxStreams) {
      this.#sendControl(rstStreamFrame(id, RstStatus.REFUSED_STREAM))
      return
    }
    const channel = this.#addChannel(id, headers, true)
    this.#peerStreams++
    if ((flags & FLAG_UNIDIRECTIONAL) !== 0) {
      channel.replied = true
      channel.localClosed = true
      channel.stream.end()
    }
    if ((flags & FLAG_FIN) !== 0) channel.receiveFin()
    this.#onStream(channel.stream)
  }

  #onSynReply(id: number, flags: number, { headers, malformed }: DecodedHeaders): void {
    const channel = this.#channels.get(id)
    if (channel === undefined) return
    if (channel.accepted) throw violation(`SYN_REPLY to stream ${id}, which it opened itself`)
    if (malformed !== undefined) this.#streamError(channel, RstStatus.PROTOCOL_ERROR, malformed)
    else if (channel.replied) this.#streamError(channel, RstStatus.STREAM_IN_USE, 'a second SYN_REPLY')
    else {
      channel.replied = true
      channel.stream.emit('reply', headers)
      if ((flags & FLAG_FIN) !== 0 && !channel.remoteClosed) channel.receiveFin()
      if (channel.outgoingBytes > 0) this.#schedule(channel)
    }
  }

  #onHeaders(id: number, flags: number, { headers, malformed }: DecodedHeaders): void {
    const channel = this.#channels.get(id)
    if (channel === undefined) return
    if (malformed !== undefined) this.#streamError(channel, RstStatus.PROTOCOL_ERROR, malformed)
    else if (channel.remoteClosed) this.#streamError(channel, RstStatus.STREAM_ALREADY_CLOSED, 'it sends headers after its FIN')
    else {
      channel.stream.emit('headers', headers)
      if ((flags & FLAG_FIN) !== 0 && !channel.remoteClosed) channel.receiveFin()
    }
  }

  #onSettings(values: ReadonlyArray<readonly [id: number, value: number]>): void {
    if (++this.#settingsFrames > MAX_SETTINGS_FRAMES) throw violation(`more than ${MAX_SETTINGS_FRAMES} SETTINGS frames`)
    this.#peerDoesFlowControl()
    // Of an id that comes twice in a frame the first counts.
    const valueOf = (wanted: number): number | undefined => values.find(([id]) => id === wanted)?.[1]
    this.#peerMaxStreams = valueOf(SettingsId.MAX_CONCURRENT_STREAMS) ?? this.#peerMaxStreams
    const window = valueOf(SettingsId.INITIAL_WINDOW_SIZE) ?? this.#peerInitialWindow
    if (window > MAX_WINDOW_BYTES) throw violation(`an initial window of ${window} bytes`)
    const delta = window - this.#peerInitialWindow
    if (delta === 0) return
    this.#peerInitialWindow = window
    for (const channel of this.#channels.values()) {
      channel.sendWindow += delta
      if (channel.sendWindow > MAX_WINDOW_BYTES) throw violation(`the window of stream ${channel.id} grows beyond ${MAX_WINDOW_BYTES} bytes`)
    }
    this.#wakeAll()
  }

  #onPing(id: number): void {
    if ((id & 1) === (this.#side === 'server' ? 1 : 0)) {
      this.#sendControl(pingFrame(id))
      return
    }
    this.#pings.get(id)?.resolve()
    this.#pings.delete(id)
  }

  #onGoAway(lastGoodStreamId: number): void {
    this.#peerGoneAway = true
    for (const channel of this.#channels.values()) {
      if (!channel.accepted && channel.id > lastGoodStreamId) channel.receiveReset(RstStatus.REFUSED_STREAM)
    }
    this.#goAwayWhenIdle()
  }

  #onWindowUpdate(id: number, delta: number): void {
    this.#peerDoesFlowControl()
    if (id === 0) {
      if (delta === 0) throw violation('a WINDOW_UPDATE by 0')
      this.#sendWindow += delta
      if (this.#sendWindow > MAX_WINDOW_BYTES) throw violation(`the window of the connection grows beyond ${MAX_WINDOW_BYTES} bytes`)
      this.#pump()
      return
    }
    const channel = this.#channels.get(id)
    if (channel === undefined) return
    channel.sendWindow += delta
    if (delta === 0) this.#streamError(channel, RstStatus.PROTOCOL_ERROR, 'a WINDOW_UPDATE by 0')
    else if (channel.sendWindow > MAX_WINDOW_BYTES) this.#streamError(channel, RstStatus.FLOW_CONTROL_ERROR, `its window grows beyond ${MAX_WINDOW_BYTES} bytes`)
    else if (channel.outgoingBytes > 0) this.#schedule(channel)
  }

  #peerDoesFlowControl(): void {
    if (this.#peerFlow === 'windows') return
    this.#peerFlow = 'windows'
    clearTimeout(this.#probeTimer)
    this.#wakeAll()
  }

  /** Ends one stream for something the peer did. */
  #streamError(channel: Channel, status: number, why: string): void {
    this.#sendControl(rstStreamFrame(channel.id, status))
    channel.localClosed = true
    channel.remoteClosed = true
    this.#removeChannel(channel)
    channel.stream.destroy(streamReset(channel.id, status, 'us', why))
  }

  /** Whether a stream of this id has been open. */
  #wasOpened(id: number): boolean {
    const ours = (id & 1) === (this.#side === 'server' ? 0 : 1)
    return ours ? id < this.#nextStreamId : id <= this.#lastPeerStreamId
  }
}

/** Resolves when a stream that was ended is flushed, or has gone; at once for one that was not ended. */
function flushed(stream: SpdyStream): Promise<void> {
  if (!stream.writableEnded || stream.writableFinished || stream.destroyed) return Promise.resolve()
  return new Promise((resolve) => {
    stream.once('finish', resolve)
    stream.once('close', resolve)
  })
}
