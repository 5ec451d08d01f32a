import { constants, inflateRawSync } from 'node:zlib'
import { HEADER_DICTIONARY, HEADER_DICTIONARY_ID } from './dictionary.ts'
import { SpdyError, violation } from './errors.ts'

/** Lower-case names to values; of a header with several values, the first (as Go's Header.Get reads it). No prototype. */
export type SpdyHeaders = Readonly<Record<string, string>>

/** Headers as they arrived; `malformed` says what is wrong with this block alone: the stream is to be reset, the connection goes on. */
export interface DecodedHeaders {
  readonly headers: SpdyHeaders
  readonly malformed: string | undefined
}

const WINDOW_BYTES = 32 * 1024
const ZLIB_HEADER_BYTES = 2
const DICTID_BYTES = 4
const FDICT = 0x20
const SYNC_MARKER = Buffer.from([0x00, 0x00, 0xff, 0xff])
const MAX_STORED_BYTES = 0xffff

/**
 * Reads the header blocks of one direction of a connection, which are one zlib stream cut by sync flushes.
 *
 * A sync flush ends on a byte boundary, so each block is a raw deflate stream of its own whose dictionary is what came before it. That lets the
 * public, synchronous zlib call be used per block: frames are handled in order without waiting for a thread, the output is bounded, and
 * nothing native stays open between blocks (28 µs a block; a connection has a few).
 */
export class HeaderDecoder {
  readonly #maxBytes: number
  /** What a back reference may reach: the dictionary, then the output so far, at most 32 KiB. */
  #history: Buffer | undefined

  /** @param maxBytes the largest block, decompressed */
  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes
  }

  /** The headers of the next block. Throws SpdyError when the compression context is lost or the bound is passed: the connection must end. */
  decode(block: Buffer): DecodedHeaders {
    return parseNameValues(this.#inflate(block))
  }

  #inflate(block: Buffer): Buffer {
    const deflated = this.#history === undefined ? this.#readZlibHeader(block) : block
    if (!deflated.subarray(-SYNC_MARKER.length).equals(SYNC_MARKER)) throw violation('a header block does not end with a zlib sync flush')
    let plain: Buffer
    try {
      plain = inflateRawSync(deflated, {
        dictionary: this.#history ?? Buffer.alloc(0),
        finishFlush: constants.Z_SYNC_FLUSH,
        maxOutputLength: this.#maxBytes,
        chunkSize: 4096,
      })
    } catch (error) {
      if (error instanceof RangeError) throw violation(`a header block is longer than ${this.#maxBytes} bytes decompressed`)
      throw new SpdyError('SPDY_PROTOCOL', 'SPDY peer broke the protocol: a header block cannot be decompressed', { cause: error })
    }
    this.#history = Buffer.concat([this.#history ?? Buffer.alloc(0), plain]).subarray(-WINDOW_BYTES)
    return plain
  }

  /** Checks the header of the zlib stream (RFC 1950) and primes the history. */
  #readZlibHeader(block: Buffer): Buffer {
    const [cmf = 0, flags = 0] = block
    if (block.length < ZLIB_HEADER_BYTES || (cmf & 0x0f) !== 8 || ((cmf << 8) | flags) % 31 !== 0) throw violation('the first header block is not a zlib stream')
    if ((flags & FDICT) === 0) {
      this.#history = Buffer.alloc(0)
      return block.subarray(ZLIB_HEADER_BYTES)
    }
    const end = ZLIB_HEADER_BYTES + DICTID_BYTES
    if (block.length < end || block.readUInt32BE(ZLIB_HEADER_BYTES) !== HEADER_DICTIONARY_ID) throw violation('the header blocks use another dictionary than that of SPDY/3')
    this.#history = HEADER_DICTIONARY
    return block.subarray(end)
  }
}

/**
 * Writes the header blocks of one direction. Blocks are stored, not compressed: a stream's headers here are tens of bytes, often none, and
 * stored blocks need no compressor (256 KiB a connection) and leak nothing through their length. Each block ends with the empty stored block
 * of a sync flush: Go's reader hands out what it decoded only when it sees that.
 */
export class HeaderEncoder {
  #started = false

  /** Throws TypeError for a name or value that the format cannot carry. */
  encode(headers: SpdyHeaders): Buffer {
    const plain = writeNameValues(headers)
    const parts: Buffer[] = []
    if (!this.#started) {
      this.#started = true
      parts.push(ZLIB_PREFACE)
    }
    for (let at = 0; at < plain.length; at += MAX_STORED_BYTES) {
      const piece = plain.subarray(at, at + MAX_STORED_BYTES)
      parts.push(storedHeader(piece.length), piece)
    }
    parts.push(storedHeader(0))
    return Buffer.concat(parts)
  }
}

/** CMF 0x78 (deflate, 32 KiB window), FLG 0xbb (dictionary given, level 2, check bits), DICTID. */
const ZLIB_PREFACE = Buffer.from([0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2])

function storedHeader(length: number): Buffer {
  const header = Buffer.allocUnsafe(5)
  header[0] = 0
  header.writeUInt16LE(length, 1)
  header.writeUInt16LE(length ^ 0xffff, 3)
  return header
}

/** Throws violation when the counts and lengths do not fit the block: nothing after that can be trusted. */
function parseNameValues(block: Buffer): DecodedHeaders {
  const headers: Record<string, string> = Object.create(null) as Record<string, string>
  let at = 0
  let malformed: string | undefined
  const readLength = (): number => {
    if (block.length - at < 4) throw violation('a header block is cut off')
    const length = block.readUInt32BE(at)
    at += 4
    return length
  }
  const readText = (): string => {
    const length = readLength()
    if (length > block.length - at) throw violation('a header is longer than its block')
    const text = block.toString('latin1', at, at + length)
    at += length
    return text
  }
  const count = readLength()
  // Each pair takes at least its two lengths.
  if (count > (block.length - at) / 8) throw violation(`a header block of ${block.length} bytes claims ${count} headers`)
  for (let i = 0; i < count; i++) {
    const name = readText()
    const value = readText()
    if (name === '') malformed ??= 'a header without a name'
    else if (/[A-Z]/.test(name)) malformed ??= 'a header name with upper-case letters'
    else if (name.includes('\0')) malformed ??= 'a header name with a NUL'
    else if (Object.hasOwn(headers, name)) malformed ??= 'the same header twice'
    else if (value.startsWith('\0') || value.endsWith('\0') || value.includes('\0\0')) malformed ??= 'an empty value among several'
    else headers[name] = firstValue(value)
  }
  if (at !== block.length) throw violation('bytes after the last header of a block')
  return { headers, malformed }
}

function firstValue(value: string): string {
  const end = value.indexOf('\0')
  return end === -1 ? value : value.slice(0, end)
}

function writeNameValues(headers: SpdyHeaders): Buffer {
  const pairs = Object.entries(headers)
  const parts: Buffer[] = [uint32(pairs.length)]
  for (const [name, value] of pairs) {
    if (name === '' || /[^\x21-\x7e]/.test(name)) throw new TypeError(`SPDY header name ${JSON.stringify(name)} is not printable ASCII`)
    if (/[^\x20-\xff\t]/.test(value)) throw new TypeError(`the value of SPDY header ${name} has control characters or is not latin1`)
    parts.push(uint32(name.length), Buffer.from(name.toLowerCase(), 'latin1'), uint32(value.length), Buffer.from(value, 'latin1'))
  }
  return Buffer.concat(parts)
}

function uint32(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(4)
  bytes.writeUInt32BE(value)
  return bytes
}
