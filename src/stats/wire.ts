/**
 * Writes protobuf messages field by field. The stats calls tell thousands of numbers at a time, which a general encoder spends ten times as
 * long on; field numbers are api/cri's, and the tests read what is written with the general decoder.
 */
export class MessageWriter {
  #bytes: Buffer
  #length = 0

  constructor(sizeHint = 4096) {
    this.#bytes = Buffer.allocUnsafe(sizeHint)
  }

  /** What was written, without a copy: the writer must not be used afterwards. */
  finish(): Buffer {
    return this.#bytes.subarray(0, this.#length)
  }

  get length(): number {
    return this.#length
  }

  /** An integer field; 0 is left out, as proto3 does. A whole number of 0 or more, up to 2^64 (as exact as a double is). */
  integer(field: number, value: number): void {
    if (value === 0) return
    this.#room(15)
    this.#tag(field, 0)
    this.#varint(value)
  }

  double(field: number, value: number): void {
    if (value === 0) return
    this.#room(14)
    this.#tag(field, 1)
    this.#length = this.#bytes.writeDoubleLE(value, this.#length)
  }

  string(field: number, value: string): void {
    if (value === '') return
    const length = Buffer.byteLength(value)
    this.#room(10 + length)
    this.#tag(field, 2)
    this.#varint(length)
    this.#length += this.#bytes.write(value, this.#length, 'utf8')
  }

  /** An element of a repeated string, which is there when it is empty too. */
  element(field: number, value: string): void {
    const length = Buffer.byteLength(value)
    this.#room(10 + length)
    this.#tag(field, 2)
    this.#varint(length)
    this.#length += this.#bytes.write(value, this.#length, 'utf8')
  }

  /** A message that is encoded already. */
  encoded(field: number, body: Uint8Array): void {
    this.#room(10 + body.length)
    this.#tag(field, 2)
    this.#varint(body.length)
    this.#bytes.set(body, this.#length)
    this.#length += body.length
  }

  /** Whole fields that are encoded already. */
  fields(bytes: Uint8Array): void {
    this.#room(bytes.length)
    this.#bytes.set(bytes, this.#length)
    this.#length += bytes.length
  }

  /** A message whose fields `body` writes. */
  message(field: number, body: () => void): void {
    this.#room(6)
    this.#tag(field, 2)
    // Most are shorter than 128 bytes; a longer one is moved to make room for its length.
    const start = this.#length + 1
    this.#length = start
    body()
    const size = this.#length - start
    const extra = varintLength(size) - 1
    if (extra > 0) {
      this.#room(extra)
      this.#bytes.copyWithin(start + extra, start, start + size)
    }
    this.#length = start - 1
    this.#varint(size)
    this.#length += size
  }

  /** A google.protobuf-like UInt64Value: nothing for NaN, a message for every number, 0 too. */
  wrapped(field: number, value: number): void {
    if (Number.isNaN(value)) return
    this.#room(17)
    this.#tag(field, 2)
    const whole = value < 0 ? 0 : Math.min(Math.floor(value), 2 ** 64)
    if (whole === 0) {
      this.#bytes[this.#length++] = 0
      return
    }
    const at = this.#length++
    this.#bytes[this.#length++] = 0x08
    this.#varint(whole)
    this.#bytes[at] = this.#length - at - 1
  }

  #room(bytes: number): void {
    if (this.#length + bytes <= this.#bytes.length) return
    const larger = Buffer.allocUnsafe(Math.max(this.#bytes.length * 2, this.#length + bytes))
    this.#bytes.copy(larger, 0, 0, this.#length)
    this.#bytes = larger
  }

  #tag(field: number, wireType: number): void {
    this.#varint(field * 8 + wireType)
  }

  #varint(value: number): void {
    const bytes = this.#bytes
    let at = this.#length
    if (value < 0x80) {
      bytes[at] = value
      this.#length = at + 1
      return
    }
    // In halves of 32 bits: shifts know no more. 2^64 - 1 is no double, so 2^64 stands for it.
    let [high, low] = value >= 2 ** 64 ? [0xffffffff, 0xffffffff] : [Math.floor(value / 2 ** 32), value % 2 ** 32]
    while (high > 0 || low > 0x7f) {
      bytes[at++] = (low & 0x7f) | 0x80
      low = ((low >>> 7) | (high << 25)) >>> 0
      high >>>= 7
    }
    bytes[at++] = low
    this.#length = at
  }
}

function varintLength(value: number): number {
  let length = 1
  for (let rest = value; rest > 0x7f; rest = Math.floor(rest / 128)) length += 1
  return length
}
