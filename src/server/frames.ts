/** What of HTTP/2's framing (RFC 9113, section 4.1) one has to know to look for a header on the way. */
export const frameType = { headers: 1, settings: 4, ping: 6, continuation: 9 } as const
export const frameFlag = { ack: 0x1, endHeaders: 0x4, padded: 0x8, priority: 0x20 } as const

const headerBytes = 9

/** One frame as it stands in a buffer, from its header at `start` to `end`. */
export interface Frame {
  readonly type: number
  readonly flags: number
  readonly start: number
  readonly end: number
}

/** The frame that begins at `start`, undefined as long as its header is not there; `end` may be beyond the buffer. */
export function frameAt(bytes: Buffer, start: number): Frame | undefined {
  if (start + headerBytes > bytes.length) return undefined
  return { type: bytes[start + 3] ?? 0, flags: bytes[start + 4] ?? 0, start, end: start + headerBytes + bytes.readUIntBE(start, 3) }
}

/** A frame on stream 0. */
export function connectionFrame(type: number, flags: number, payload: Uint8Array = new Uint8Array()): Buffer {
  const frame = Buffer.alloc(headerBytes + payload.length)
  frame.writeUIntBE(payload.length, 0, 3)
  frame.set([type, flags], 3)
  frame.set(payload, headerBytes)
  return frame
}

export const payloadOf = (bytes: Buffer, frame: Frame): Buffer => bytes.subarray(frame.start + headerBytes, frame.end)

/** Where the part of a header block is that a HEADERS or CONTINUATION frame holds. */
export function fragmentOf(bytes: Buffer, frame: Frame): [start: number, end: number] {
  let [start, end] = [frame.start + headerBytes, frame.end]
  if (frame.type === frameType.headers) {
    if ((frame.flags & frameFlag.padded) !== 0) end -= bytes[start++] ?? 0
    if ((frame.flags & frameFlag.priority) !== 0) start += 5
  }
  return [start, Math.max(start, end)]
}

export const isHeaders = (frame: Frame): boolean => frame.type === frameType.headers || frame.type === frameType.continuation
export const endsHeaders = (frame: Frame): boolean => (frame.flags & frameFlag.endHeaders) !== 0
