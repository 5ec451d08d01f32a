import { type Frame, fragmentOf } from './frames.ts'

/** `:authority` in the static table of HPACK (RFC 7541, appendix A). */
const authorityIndex = 1
/** How many symbols of HPACK's Huffman code have how many bits (RFC 7541, appendix B); the code is canonical, so this says where each symbol ends. */
const symbolsOfLength: ReadonlyMap<number, number> = new Map([
  [5, 10], [6, 26], [7, 32], [8, 6], [10, 5], [11, 3], [12, 2], [13, 6], [14, 2], [15, 3], [19, 3], [20, 8], [21, 13], [22, 26], [23, 29], [24, 12], [25, 4], [26, 15], [27, 19],
  [28, 29], [30, 4],
])
/** The codes of `/`, of a space, and of `.` that takes their place: all of six bits. */
const [slashCode, spaceCode, dotCode, replacedBits] = [0x18, 0x14, 0x17, 6]

/** Whether an HTTP/2 server lets a byte pass in `:authority`: RFC 3986, what a host and a port are made of. */
const isAuthorityByte = (byte: number): boolean => /[\w\-.~!$&'()*+,;=:@%[\]]/.test(String.fromCharCode(byte))

/** Walks over the Huffman code from byte `start` to `end` and makes `/` and space to `.`; whether there was any. */
function mendHuffman(block: Buffer, start: number, end: number): boolean {
  const bitAt = (bit: number): number => ((block[bit >> 3] ?? 0) >> (7 - (bit & 7))) & 1
  let mended = false
  let bit = start * 8
  for (const last = end * 8; bit < last;) {
    let [code, first, length] = [0, 0, 0]
    for (;;) {
      if (bit + length >= last) return mended // the padding at the end
      code = code << 1 | bitAt(bit + length++)
      first <<= 1
      const count = symbolsOfLength.get(length) ?? 0
      if (code - first < count) break
      first += count
    }
    if (length === replacedBits && (code === slashCode || code === spaceCode)) {
      mended = true
      for (let i = 0; i < replacedBits; i++) {
        const [at, mask] = [bit + i, 0x80 >> ((bit + i) & 7)]
        const byte = block[at >> 3] ?? 0
        block[at >> 3] = (dotCode >> (replacedBits - 1 - i)) & 1 ? byte | mask : byte & ~mask
      }
    }
    bit += length
  }
  return mended
}

function mendPlain(block: Buffer, start: number, end: number): boolean {
  let mended = false
  for (let i = start; i < end; i++) {
    if (isAuthorityByte(block[i] ?? 0)) continue
    block[i] = 0x2e
    mended = true
  }
  return mended
}

/**
 * Makes a path that stands in `:authority` of a header block into what may stand there: `/run/a.sock` becomes `.run.a.sock`. In place and of the same length,
 * encoded and not, so that the dynamic tables of both sides stay the same. Returns whether there was anything to do. A block that is not
 * well-formed is left to whoever reads it in earnest.
 */
export function mendAuthority(block: Buffer): boolean {
  let at = 0
  let mended = false
  // RFC 7541, section 5.1; NaN when it goes beyond the block.
  const integer = (bits: number): number => {
    const most = (1 << bits) - 1
    let value = (block[at++] ?? 0) & most
    if (value < most) return value
    for (let shift = 0; ; shift += 7) {
      const byte = block[at++]
      if (byte === undefined || shift > 21) return NaN
      value += (byte & 0x7f) * 2 ** shift
      if (byte < 0x80) return value
    }
  }
  const string = (isAuthority: boolean): boolean => {
    const huffman = ((block[at] ?? 0) & 0x80) !== 0
    const length = integer(7)
    const start = at
    at += length
    if (!(at <= block.length)) return false
    if (isAuthority && (huffman ? mendHuffman : mendPlain)(block, start, at)) mended = true
    return true
  }
  while (at < block.length) {
    const byte = block[at] ?? 0
    if (byte >= 0x80) integer(7)
    else if (byte >= 0x20 && byte < 0x40) integer(5)
    else {
      const name = integer(byte >= 0x40 ? 6 : 4)
      if (name === 0 && !string(false)) break
      if (!string(name === authorityIndex)) break
    }
    if (Number.isNaN(at)) break
  }
  return mended
}

/** Mends `:authority` in the frames of one header block (HEADERS and what continues it), in place. Returns whether there was anything to do. */
export function mendFrames(bytes: Buffer, frames: readonly Frame[]): boolean {
  const parts = frames.map((frame) => bytes.subarray(...fragmentOf(bytes, frame)))
  const [only] = parts
  if (parts.length === 1 && only !== undefined) return mendAuthority(only)
  const block = Buffer.concat(parts)
  if (!mendAuthority(block)) return false
  let offset = 0
  for (const part of parts) offset += block.copy(part, 0, offset, offset + part.length)
  return true
}
