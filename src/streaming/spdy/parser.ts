import { violation } from './errors.ts'
import { FLAG_FIN, FRAME_HEADER_BYTES, FrameType, MAX_STREAM_ID, nameIn, SPDY_VERSION } from './protocol.ts'

/** What the parser hands on, in the order of the bytes. Header blocks are still compressed; buffers are slices of what was pushed. */
export interface FrameHandler {
  /** @returns false when nothing more is to be handed on: the connection has ended */
  readonly active: boolean
  /** A piece of a DATA frame's payload. `last` marks the frame's last piece, only then `fin` counts; an empty frame is one empty piece. */
  data(id: number, piece: Buffer, last: boolean, fin: boolean): void
  synStream(id: number, flags: number, block: Buffer): void
  synReply(id: number, flags: number, block: Buffer): void
  headers(id: number, flags: number, block: Buffer): void
  rstStream(id: number, status: number): void
  settings(values: ReadonlyArray<readonly [id: number, value: number]>): void
  ping(id: number): void
  goAway(lastGoodStreamId: number, status: number): void
  windowUpdate(id: number, delta: number): void
}

const EMPTY = Buffer.alloc(0)

/**
 * Cuts a byte stream into frames. Holds at most one control frame, of at most `maxFrameBytes`; DATA is passed through in the pieces it came in.
 * Throws SpdyError at the first violation; it must not be used after that.
 */
export class FrameParser {
  readonly #handler: FrameHandler
  readonly #maxFrameBytes: number
  /** A frame header that came in pieces. */
  readonly #header = Buffer.alloc(FRAME_HEADER_BYTES)
  #headerFill = 0
  /** The DATA frame that is being passed through. */
  #dataId = 0
  #dataLeft = 0
  #dataFin = false
  /** The control frame that is being collected, when it came in pieces. */
  #type = 0
  #flags = 0
  #payload: Buffer | undefined
  #payloadFill = 0

  constructor(handler: FrameHandler, maxFrameBytes: number) {
    this.#handler = handler
    this.#maxFrameBytes = maxFrameBytes
  }

  /** Whether the bytes so far end within a frame. */
  get midFrame(): boolean {
    return this.#headerFill > 0 || this.#dataLeft > 0 || this.#payload !== undefined
  }

  push(chunk: Buffer): void {
    let at = 0
    while (at < chunk.length && this.#handler.active) {
      if (this.#dataLeft > 0) at = this.#passData(chunk, at)
      else if (this.#payload !== undefined) at = this.#collect(chunk, at, this.#payload)
      else at = this.#readHeader(chunk, at)
    }
  }

  #passData(chunk: Buffer, at: number): number {
    const end = Math.min(chunk.length, at + this.#dataLeft)
    this.#dataLeft -= end - at
    this.#handler.data(this.#dataId, at === 0 && end === chunk.length ? chunk : chunk.subarray(at, end), this.#dataLeft === 0, this.#dataFin)
    return end
  }

  #readHeader(chunk: Buffer, at: number): number {
    if (this.#headerFill === 0 && chunk.length - at >= FRAME_HEADER_BYTES) return this.#startFrame(chunk, at, chunk, at + FRAME_HEADER_BYTES)
    const copied = chunk.copy(this.#header, this.#headerFill, at, at + FRAME_HEADER_BYTES - this.#headerFill)
    this.#headerFill += copied
    if (this.#headerFill < FRAME_HEADER_BYTES) return at + copied
    this.#headerFill = 0
    return this.#startFrame(this.#header, 0, chunk, at + copied)
  }

  /** @returns where in the chunk to go on */
  #startFrame(header: Buffer, headerAt: number, chunk: Buffer, at: number): number {
    const first = header.readUInt32BE(headerAt)
    const second = header.readUInt32BE(headerAt + 4)
    const flags = second >>> 24
    const length = second & 0xff_ffff
    if (first >>> 31 === 0) {
      if (first === 0) throw violation('DATA on stream 0')
      if (length === 0) {
        this.#handler.data(first, EMPTY, true, (flags & FLAG_FIN) !== 0)
        return at
      }
      this.#dataId = first
      this.#dataLeft = length
      this.#dataFin = (flags & FLAG_FIN) !== 0
      return at
    }
    const version = (first >>> 16) & 0x7fff
    const type = first & 0xffff
    if (version !== SPDY_VERSION) throw violation(`a control frame of version ${version}; this side speaks version ${SPDY_VERSION}`)
    if (length > this.#maxFrameBytes) throw violation(`a ${nameIn(FrameType, type)} frame of ${length} bytes; at most ${this.#maxFrameBytes} are accepted`)
    const end = at + length
    if (end <= chunk.length) {
      this.#control(type, flags, chunk.subarray(at, end))
      return end
    }
    this.#type = type
    this.#flags = flags
    this.#payload = Buffer.allocUnsafeSlow(length)
    this.#payloadFill = 0
    return at
  }

  #collect(chunk: Buffer, at: number, payload: Buffer): number {
    const copied = chunk.copy(payload, this.#payloadFill, at)
    this.#payloadFill += copied
    if (this.#payloadFill === payload.length) {
      this.#payload = undefined
      this.#control(this.#type, this.#flags, payload)
    }
    return at + copied
  }

  #control(type: number, flags: number, payload: Buffer): void {
    const exactly = (length: number): void => {
      if (payload.length !== length) throw violation(`a ${nameIn(FrameType, type)} frame of ${payload.length} bytes instead of ${length}`)
    }
    const atLeast = (length: number): void => {
      if (payload.length < length) throw violation(`a ${nameIn(FrameType, type)} frame of ${payload.length} bytes; it has at least ${length}`)
    }
    const streamId = (): number => {
      const id = payload.readUInt32BE(0) & MAX_STREAM_ID
      if (id === 0) throw violation(`${nameIn(FrameType, type)} on stream 0`)
      return id
    }
    switch (type) {
      case FrameType.SYN_STREAM:
        atLeast(10)
        this.#handler.synStream(streamId(), flags, payload.subarray(10))
        return
      case FrameType.SYN_REPLY:
        atLeast(4)
        this.#handler.synReply(streamId(), flags, payload.subarray(4))
        return
      case FrameType.HEADERS:
        atLeast(4)
        this.#handler.headers(streamId(), flags, payload.subarray(4))
        return
      case FrameType.RST_STREAM:
        exactly(8)
        this.#handler.rstStream(streamId(), payload.readUInt32BE(4))
        return
      case FrameType.SETTINGS:
        atLeast(4)
        this.#handler.settings(readSettings(payload))
        return
      case FrameType.PING:
        exactly(4)
        this.#handler.ping(payload.readUInt32BE(0))
        return
      case FrameType.GOAWAY:
        exactly(8)
        this.#handler.goAway(payload.readUInt32BE(0) & MAX_STREAM_ID, payload.readUInt32BE(4))
        return
      case FrameType.WINDOW_UPDATE:
        exactly(8)
        this.#handler.windowUpdate(payload.readUInt32BE(0) & MAX_STREAM_ID, payload.readUInt32BE(4) & 0x7fff_ffff)
        return
      default:
      // The draft: types that are not known (NOOP and CREDENTIAL of other versions too) are ignored.
    }
  }
}

/** The count is believed only when the frame has the room for it: an attacker's count must not size an allocation. */
function readSettings(payload: Buffer): ReadonlyArray<readonly [id: number, value: number]> {
  const count = payload.readUInt32BE(0)
  if (payload.length !== 4 + count * 8) throw violation(`a SETTINGS frame of ${payload.length} bytes claims ${count} settings`)
  return Array.from({ length: count }, (_, i) => [payload.readUInt32BE(4 + i * 8) & 0xff_ffff, payload.readUInt32BE(8 + i * 8)] as const)
}
