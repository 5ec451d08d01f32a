/** The few pieces of ASN.1 (X.690, distinguished encoding) that a certificate is made of. */

const tags = { boolean: 0x01, integer: 0x02, bitString: 0x03, octetString: 0x04, oid: 0x06, utf8String: 0x0c, sequence: 0x30, set: 0x31, utcTime: 0x17, generalizedTime: 0x18 } as const

function encode(tag: number, ...contents: readonly Uint8Array[]): Buffer {
  const content = Buffer.concat(contents)
  const { length } = content
  if (length < 0x80) return Buffer.concat([Buffer.from([tag, length]), content])
  const digits = length < 0x100 ? [length] : [length >> 8, length & 0xff]
  if (length > 0xffff) throw new RangeError(`a DER value of ${length} bytes`)
  return Buffer.concat([Buffer.from([tag, 0x80 | digits.length, ...digits]), content])
}

export const sequence = (...items: readonly Uint8Array[]): Buffer => encode(tags.sequence, ...items)
export const set = (...items: readonly Uint8Array[]): Buffer => encode(tags.set, ...items)
export const octets = (content: Uint8Array): Buffer => encode(tags.octetString, content)
/** A whole number of bytes. */
export const bits = (content: Uint8Array): Buffer => encode(tags.bitString, Buffer.of(0), content)
export const yes = (): Buffer => encode(tags.boolean, Buffer.of(0xff))
export const text = (value: string): Buffer => encode(tags.utf8String, Buffer.from(value))

/** A positive number, the highest byte first. */
export function integer(bytes: Uint8Array): Buffer {
  let from = 0
  while (from < bytes.length - 1 && bytes[from] === 0) from++
  const rest = bytes.subarray(from)
  return encode(tags.integer, ...((rest[0] ?? 0) >= 0x80 ? [Buffer.of(0)] : []), rest)
}

/** From its dotted form. */
export function oid(dotted: string): Buffer {
  const [first = 0, second = 0, ...rest] = dotted.split('.').map(Number)
  const bytes = [first * 40 + second]
  for (const arc of rest) {
    const digits = [arc & 0x7f]
    for (let high = arc >>> 7; high > 0; high >>>= 7) digits.unshift(0x80 | (high & 0x7f))
    bytes.push(...digits)
  }
  return encode(tags.oid, Buffer.from(bytes))
}

/** As RFC 5280 wants it: two digits of the year until 2049. */
export function time(date: Date): Buffer {
  const digits = `${date.toISOString().replaceAll(/[-:T]|\..*/g, '')}Z`
  return date.getUTCFullYear() < 2050 ? encode(tags.utcTime, Buffer.from(digits.slice(2))) : encode(tags.generalizedTime, Buffer.from(digits))
}

/** A field that is known by its number. `constructed`: it has whole values in it. */
export function field(number: number, content: Uint8Array, constructed: boolean): Buffer {
  return encode((constructed ? 0xa0 : 0x80) | number, content)
}
