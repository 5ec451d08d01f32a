import type { Counters } from './counters.ts'
import type { EntryClock } from './entry-clock.ts'

const newline = 10
const carriageReturn = 13
const zero = 48
const tagPartial = 80
const tagFull = 70
/** `2006-01-02T15:04:05.` */
const fractionOffset = 20
const tagOffset = 38
/** `2006-01-02T15:04:05.999999999Z stdout F ` */
const prefixBytes = 40

/** A line without an end must not fill the memory, whatever the configuration says; a reader joins the parts. */
export const hardLineLimitBytes = 16 * 1024 * 1024

/** Below this a loop over the bytes is faster than a call into native code. */
const shortLineBytes = 24
/** A tail buffer that has grown beyond this is given back after its line. */
const keptTailBytes = 64 * 1024

/** Where formatted entries collect until they are written. One for the whole worker: it is empty at the end of every turn. */
export interface OutputBuffer {
  readonly bytes: Buffer
}

export interface CriFormatterDeps {
  readonly clock: EntryClock
  readonly output: OutputBuffer
  readonly counters: Counters
  /** Takes whole entries, now; the memory is used again afterwards. */
  readonly write: (bytes: Buffer, length: number) => void
}

/**
 * Cuts one stream into lines and formats them as CRI log entries (`<RFC 3339 time> <stream> <P|F> <content>`): a line longer than
 * the limit becomes P entries of exactly the limit and one last F; `\r\n` ends a line like `\n`; what is left without a newline at
 * the end of the stream is a P entry. This is what containerd's logger writes, so readers see no difference.
 */
export class CriFormatter {
  readonly #limit: number
  readonly #deps: CriFormatterDeps
  readonly #out: Buffer
  readonly #prefix: Buffer
  #prefixSeconds = -1
  #used = 0
  /** The beginning of a line whose end has not been read: at most the limit and two bytes. */
  #tail = Buffer.alloc(0)
  #tailLength = 0
  #entries = 0
  #splits = 0

  constructor(stream: 'stdout' | 'stderr', maxLineBytes: number, deps: CriFormatterDeps) {
    this.#limit = maxLineBytes > 0 ? Math.min(maxLineBytes, hardLineLimitBytes) : hardLineLimitBytes
    this.#deps = deps
    this.#out = deps.output.bytes
    this.#prefix = Buffer.from(`0000-00-00T00:00:00.000000000Z ${stream} F `, 'latin1')
  }

  /** Formats a piece of the stream and writes every entry that it completes. */
  chunk(bytes: Buffer): void {
    this.#stamp()
    const end = bytes.length
    let from = 0
    while (from < end) {
      const at = bytes.indexOf(newline, from)
      if (at < 0) {
        this.#keep(bytes, from, end)
        break
      }
      if (this.#tailLength > 0) {
        this.#keep(bytes, from, at)
        this.#finishTail()
      } else {
        this.#line(bytes, from, at > from && bytes[at - 1] === carriageReturn ? at - 1 : at)
      }
      from = at + 1
    }
    this.#flush()
  }

  /** Writes what has no newline yet as a P entry: at the end of the stream, and before the log moves to another file. */
  finish(): void {
    if (this.#tailLength === 0) return
    this.#stamp()
    // Only a held-back \r can make it longer than the limit.
    for (let from = 0; from < this.#tailLength; from += this.#limit) {
      this.#entry(tagPartial, this.#tail, from, Math.min(from + this.#limit, this.#tailLength))
    }
    this.#dropTail()
    this.#flush()
  }

  /** Bytes of an unterminated line held in memory. */
  get pendingBytes(): number {
    return this.#tailLength
  }

  /** A whole line without its line end. */
  #line(bytes: Buffer, from: number, to: number): void {
    let start = from
    while (to - start > this.#limit) {
      this.#entry(tagPartial, bytes, start, start + this.#limit)
      start += this.#limit
    }
    this.#entry(tagFull, bytes, start, to)
  }

  /** Adds to the unfinished line; whatever is certain to be beyond the limit leaves as P entries. */
  #keep(bytes: Buffer, from: number, to: number): void {
    let start = from
    while (start < to) {
      // One byte more than the limit proves that the line is longer, unless it is the \r of a \r\n: then it takes a second one.
      const count = Math.min(this.#limit + 2 - this.#tailLength, to - start)
      this.#reserve(this.#tailLength + count)
      bytes.copy(this.#tail, this.#tailLength, start, start + count)
      this.#tailLength += count
      start += count
      const certain = this.#tail[this.#tailLength - 1] === carriageReturn ? this.#tailLength - 1 : this.#tailLength
      if (certain <= this.#limit) continue
      this.#entry(tagPartial, this.#tail, 0, this.#limit)
      this.#tail.copyWithin(0, this.#limit, this.#tailLength)
      this.#tailLength -= this.#limit
    }
  }

  #finishTail(): void {
    const length = this.#tail[this.#tailLength - 1] === carriageReturn ? this.#tailLength - 1 : this.#tailLength
    this.#line(this.#tail, 0, length)
    this.#dropTail()
  }

  #dropTail(): void {
    this.#tailLength = 0
    if (this.#tail.length > keptTailBytes) this.#tail = Buffer.alloc(0)
  }

  #reserve(length: number): void {
    if (this.#tail.length >= length) return
    const grown = Buffer.allocUnsafeSlow(Math.min(this.#limit + 2, Math.max(length, this.#tail.length * 2, 256)))
    this.#tail.copy(grown, 0, 0, this.#tailLength)
    this.#tail = grown
  }

  #entry(tag: number, bytes: Buffer, from: number, to: number): void {
    const length = prefixBytes + to - from + 1
    if (length > this.#out.length - this.#used) this.#flush()
    let out = this.#out
    let at = this.#used
    if (length > out.length) {
      out = Buffer.allocUnsafeSlow(length)
      at = 0
    }
    this.#prefix[tagOffset] = tag
    out.set(this.#prefix, at)
    at += prefixBytes
    if (to - from < shortLineBytes) for (let i = from; i < to; i++) out[at++] = bytes[i] as number
    else at += bytes.copy(out, at, from, to)
    out[at] = newline
    this.#entries++
    if (tag === tagPartial) this.#splits++
    this.#nextStamp()
    if (out === this.#out) this.#used = at + 1
    else this.#deps.write(out, length)
  }

  #flush(): void {
    const { counters, write } = this.#deps
    if (this.#entries > 0) {
      counters.add('entries', this.#entries)
      counters.add('splitEntries', this.#splits)
      this.#entries = 0
      this.#splits = 0
    }
    const length = this.#used
    // Reset first: an exception below must not leave this container's lines to the next one.
    this.#used = 0
    if (length > 0) write(this.#out, length)
  }

  #stamp(): void {
    this.#deps.clock.refresh()
    this.#render()
  }

  #render(): void {
    const { seconds, nanos } = this.#deps.clock
    if (seconds !== this.#prefixSeconds) {
      this.#prefix.write(new Date(seconds * 1000).toISOString().slice(0, fractionOffset - 1), 'latin1')
      this.#prefixSeconds = seconds
    }
    let rest = nanos
    for (let i = fractionOffset + 8; i >= fractionOffset; i--) {
      const quotient = Math.floor(rest / 10)
      this.#prefix[i] = zero + rest - quotient * 10
      rest = quotient
    }
  }

  /** Counts the digits of the fraction up in place: much cheaper than writing them anew for each of a chunk's lines. */
  #nextStamp(): void {
    const prefix = this.#prefix
    this.#deps.clock.advance()
    for (let i = fractionOffset + 8; i >= fractionOffset; i--) {
      const digit = prefix[i] as number
      if (digit < zero + 9) {
        prefix[i] = digit + 1
        return
      }
      prefix[i] = zero
    }
    this.#render()
  }
}
