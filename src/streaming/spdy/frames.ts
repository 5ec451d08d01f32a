import { FLAG_FIN, FRAME_HEADER_BYTES, FrameType, SPDY_VERSION } from './protocol.ts'

/** A control frame with its header filled in and `length` bytes of payload to be written from FRAME_HEADER_BYTES on. */
function controlFrame(type: number, flags: number, length: number): Buffer {
  const frame = Buffer.allocUnsafe(FRAME_HEADER_BYTES + length)
  frame.writeUInt16BE(0x8000 | SPDY_VERSION, 0)
  frame.writeUInt16BE(type, 2)
  frame.writeUInt32BE(((flags << 24) | length) >>> 0, 4)
  return frame
}

function words(type: number, ...values: readonly number[]): Buffer {
  const frame = controlFrame(type, 0, values.length * 4)
  values.forEach((value, i) => frame.writeUInt32BE(value, FRAME_HEADER_BYTES + i * 4))
  return frame
}

/** @param block the encoded header block; @param flags FLAG_FIN, FLAG_UNIDIRECTIONAL */
export function synStreamFrame(id: number, flags: number, block: Buffer): Buffer {
  const frame = controlFrame(FrameType.SYN_STREAM, flags, 10 + block.length)
  frame.writeUInt32BE(id, 8)
  // No associated stream, priority 0, no credential slot.
  frame.fill(0, 12, 18)
  block.copy(frame, 18)
  return frame
}

export function synReplyFrame(id: number, flags: number, block: Buffer): Buffer {
  const frame = controlFrame(FrameType.SYN_REPLY, flags, 4 + block.length)
  frame.writeUInt32BE(id, 8)
  block.copy(frame, 12)
  return frame
}

export function rstStreamFrame(id: number, status: number): Buffer {
  return words(FrameType.RST_STREAM, id, status)
}

export function settingsFrame(values: ReadonlyArray<readonly [id: number, value: number]>): Buffer {
  return words(FrameType.SETTINGS, values.length, ...values.flat())
}

export function pingFrame(id: number): Buffer {
  return words(FrameType.PING, id)
}

export function goAwayFrame(lastGoodStreamId: number, status: number): Buffer {
  return words(FrameType.GOAWAY, lastGoodStreamId, status)
}

/** @param id 0 for the window of the connection */
export function windowUpdateFrame(id: number, delta: number): Buffer {
  return words(FrameType.WINDOW_UPDATE, id, delta)
}

/** The header alone: the payload is written after it, so that it need not be copied. @param length at most 2^24 - 1 */
export function dataHeader(id: number, length: number, fin: boolean): Buffer {
  const header = Buffer.allocUnsafe(FRAME_HEADER_BYTES)
  header.writeUInt32BE(id, 0)
  header.writeUInt32BE(fin ? ((FLAG_FIN << 24) | length) >>> 0 : length, 4)
  return header
}
