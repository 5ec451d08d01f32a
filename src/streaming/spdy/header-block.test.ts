import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { describe, it } from 'node:test'
import { constants, createDeflate, createInflate, deflateRawSync } from 'node:zlib'
import * as fc from 'fast-check'
import { HEADER_DICTIONARY, HEADER_DICTIONARY_ID } from './dictionary.ts'
import { SpdyError } from './errors.ts'
import { HeaderDecoder, HeaderEncoder } from './header-block.ts'

/** The same cases every time, so that a change is what makes a test fail; `FUZZ_SEED=$RANDOM` finds others. */
fc.configureGlobal({ seed: Number(process.env['FUZZ_SEED'] ?? 1) })

/** zlib as another implementation uses it: one context for the whole connection. */
class ReferenceEncoder {
  readonly #deflate
  #parts: Buffer[] = []

  constructor(options: { readonly level?: number; readonly strategy?: number; readonly dictionary?: Buffer } = { dictionary: HEADER_DICTIONARY }) {
    this.#deflate = createDeflate(options)
    this.#deflate.on('data', (part: Buffer) => this.#parts.push(part))
  }
  async encode(plain: Buffer): Promise<Buffer> {
    this.#parts = []
    this.#deflate.write(plain)
    await new Promise<void>((resolve) => this.#deflate.flush(constants.Z_SYNC_FLUSH, resolve))
    return Buffer.concat(this.#parts)
  }
  close(): void {
    this.#deflate.close()
  }
}

function plainBlock(pairs: ReadonlyArray<readonly [name: string, value: string]>, count = pairs.length): Buffer {
  const uint32 = (value: number): Buffer => Buffer.from([value >>> 24, value >>> 16, value >>> 8, value])
  return Buffer.concat([uint32(count), ...pairs.flatMap(([name, value]) => [uint32(name.length), Buffer.from(name, 'latin1'), uint32(value.length), Buffer.from(value, 'latin1')])])
}

const protocolError = (message: RegExp) => (error: unknown) => error instanceof SpdyError && error.code === 'SPDY_PROTOCOL' && message.test(error.message)

describe('the header dictionary', () => {
  it('is that of SPDY/3', () => {
    let a = 1
    let b = 0
    for (const byte of HEADER_DICTIONARY) {
      a = (a + byte) % 65_521
      b = (b + a) % 65_521
    }
    assert.equal(HEADER_DICTIONARY.length, 1423)
    assert.equal(((b << 16) | a) >>> 0, HEADER_DICTIONARY_ID)
  })
})

describe('HeaderDecoder', () => {
  it('reads what moby/spdystream writes, block after block', () => {
    const decoder = new HeaderDecoder(1024)
    const blocks = [
      ['78f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff', { streamtype: 'error' }],
      ['c22e555c92929907000000ffff', { streamtype: 'stdin' }],
      ['6260606000000000ffff', {}],
      // Two values: the first one counts.
      ['824a3356804b52862400000000ffff', { x: 'a' }],
      ['028901000000ffff', {}],
      ['828981b2096312000000ffff', { a: 'b' }],
    ] as const
    for (const [hex, headers] of blocks) {
      const decoded = decoder.decode(Buffer.from(hex, 'hex'))
      assert.deepEqual({ ...decoded.headers }, headers)
      assert.equal(decoded.malformed, undefined)
    }
  })

  it('follows one zlib context through any blocks, levels and strategies, beyond the 32 KiB window', async () => {
    const text = (maxLength: number) => fc.string({ minLength: 1, maxLength, unit: fc.constantFrom(...'abcdefghijklmnopqrstuvwxyz-0123456789'.split('')) })
    const block = fc.uniqueArray(fc.tuple(text(40), fc.oneof(text(20), text(3000), fc.constantFrom('stdin', 'stdout', '200 OK'))), { maxLength: 8, selector: ([name]) => name })
    await fc.assert(
      fc.asyncProperty(
        fc.array(block, { minLength: 1, maxLength: 25 }),
        fc.integer({ min: 0, max: 9 }),
        fc.constantFrom(constants.Z_DEFAULT_STRATEGY, constants.Z_FIXED, constants.Z_HUFFMAN_ONLY, constants.Z_RLE, constants.Z_FILTERED),
        fc.boolean(),
        async (blocks, level, strategy, dictionary) => {
          const encoder = new ReferenceEncoder({ level, strategy, ...(dictionary ? { dictionary: HEADER_DICTIONARY } : {}) })
          const decoder = new HeaderDecoder(1 << 20)
          try {
            for (const pairs of blocks) {
              const { headers, malformed } = decoder.decode(await encoder.encode(plainBlock(pairs)))
              assert.equal(malformed, undefined)
              assert.deepEqual(new Map(Object.entries(headers)), new Map(pairs))
            }
          } finally {
            encoder.close()
          }
        },
      ),
      { numRuns: 40 },
    )
  })

  it('stops at the bound, whatever the block would have grown to', async () => {
    const encoder = new ReferenceEncoder()
    const decoder = new HeaderDecoder(4096)
    const fits = plainBlock([['a', 'x'.repeat(4096 - 4 - 9)]])
    assert.equal(fits.length, 4096)
    assert.equal(decoder.decode(await encoder.encode(fits)).headers['a']?.length, 4083)
    assert.throws(() => new HeaderDecoder(4095).decode(Buffer.from(fits)), protocolError(/zlib/))
    const bomb = await encoder.encode(Buffer.alloc(16 << 20))
    assert.ok(bomb.length < 20_000)
    const before = process.memoryUsage.rss()
    for (let i = 0; i < 50; i++) assert.throws(() => decoder.decode(bomb), protocolError(/longer than 4096 bytes/))
    assert.ok(process.memoryUsage.rss() - before < 64 << 20, 'the bomb went off')
    encoder.close()
  })

  it('refuses blocks that are not the next part of the zlib stream', async () => {
    const encoder = new ReferenceEncoder()
    const first = await encoder.encode(plainBlock([['a', 'b']]))
    const fresh = (): HeaderDecoder => new HeaderDecoder(4096)
    assert.throws(() => fresh().decode(Buffer.alloc(0)), protocolError(/not a zlib stream/))
    assert.throws(() => fresh().decode(Buffer.from('7801', 'hex')), protocolError(/sync flush/))
    assert.throws(() => fresh().decode(Buffer.from('790000000000ffff', 'hex')), protocolError(/not a zlib stream/))
    assert.throws(() => fresh().decode(Buffer.concat([Buffer.from('78bb00000001', 'hex'), first.subarray(6)])), protocolError(/another dictionary/))
    assert.throws(() => fresh().decode(Buffer.from('78bb', 'hex')), protocolError(/another dictionary/))
    assert.throws(() => fresh().decode(first.subarray(0, -1)), protocolError(/sync flush/))
    assert.throws(() => fresh().decode(Buffer.concat([first.subarray(0, 6), Buffer.from('ffffff0000ffff', 'hex')])), protocolError(/cannot be decompressed/))
    // A reference back beyond everything that was sent.
    const decoder = fresh()
    decoder.decode(first)
    const before = Buffer.concat([Buffer.from('what was never sent here'), randomBytes(30_000)])
    const far = deflateRawSync(plainBlock([['a', 'what was never sent here']]), { dictionary: before, finishFlush: constants.Z_SYNC_FLUSH })
    assert.throws(() => decoder.decode(far), protocolError(/cannot be decompressed/))
    encoder.close()
  })

  it('believes no count and no length that the block has no room for', () => {
    const decode = (plain: Buffer): unknown => new HeaderDecoder(4096).decode(Buffer.concat([Buffer.from('7801', 'hex'), deflateRawSync(plain, { finishFlush: constants.Z_SYNC_FLUSH })]))
    assert.throws(() => decode(Buffer.alloc(0)), protocolError(/cut off/))
    assert.throws(() => decode(Buffer.alloc(3)), protocolError(/cut off/))
    assert.throws(() => decode(plainBlock([], 0xffff_ffff)), protocolError(/claims 4294967295 headers/))
    assert.throws(() => decode(plainBlock([['a', 'b']], 2)), protocolError(/claims 2|cut off/))
    assert.throws(() => decode(Buffer.concat([plainBlock([]), Buffer.from([0])])), protocolError(/after the last header/))
    assert.throws(() => decode(Buffer.from('00000001fffffffffffffff0', 'hex')), protocolError(/longer than its block/))
  })

  it('finds fault with single headers without losing the stream', () => {
    const encoder = (plain: Buffer): Buffer => deflateRawSync(plain, { finishFlush: constants.Z_SYNC_FLUSH })
    const decoder = new HeaderDecoder(4096)
    const cases: ReadonlyArray<readonly [pairs: ReadonlyArray<readonly [string, string]>, malformed: RegExp | undefined]> = [
      [[['ok', '']], undefined],
      [[['', 'x']], /without a name/],
      [[['Upper', 'x']], /upper-case/],
      [[['a\0b', 'x']], /NUL/],
      [[['a', 'x'], ['a', 'y']], /twice/],
      [[['a', '\0x']], /empty value/],
      [[['a', 'x\0']], /empty value/],
      [[['a', 'x\0\0y']], /empty value/],
      [[['__proto__', 'x'], ['constructor', 'y']], undefined],
    ]
    for (const [i, [pairs, malformed]] of cases.entries()) {
      const block = encoder(plainBlock(pairs))
      const decoded = decoder.decode(i === 0 ? Buffer.concat([Buffer.from('7801', 'hex'), block]) : block)
      if (malformed === undefined) assert.equal(decoded.malformed, undefined)
      else assert.match(decoded.malformed ?? '', malformed)
      if (i === cases.length - 1) assert.deepEqual(Object.entries(decoded.headers), [['__proto__', 'x'], ['constructor', 'y']])
    }
  })
})

describe('HeaderEncoder', () => {
  it('writes what zlib, given the dictionary when it asks, reads as one stream', async () => {
    const encoder = new HeaderEncoder()
    const inflate = createInflate({ dictionary: HEADER_DICTIONARY })
    const sets = [{ streamtype: 'stdin' }, {}, { a: 'x'.repeat(100_000), b: 'y' }, { Port: '80', requestid: '7' }]
    for (const headers of sets) {
      const block = encoder.encode(headers)
      assert.equal(block.subarray(-5).toString('hex'), '000000ffff')
      const plain = plainBlock(Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]))
      inflate.write(block)
      let read = Buffer.alloc(0)
      while (read.length < plain.length) read = Buffer.concat([read, inflate.read() as Buffer ?? (await once(inflate, 'readable'), Buffer.alloc(0))])
      assert.ok(read.equals(plain))
    }
    inflate.close()
  })

  it('refuses headers that the format cannot carry', () => {
    const encoder = new HeaderEncoder()
    for (const headers of [{ '': 'x' }, { 'a b': 'x' }, { é: 'x' }, { a: 'x\0y' }, { a: 'x\ny' }, { a: '€' }]) assert.throws(() => encoder.encode(headers), TypeError)
    // And is not disturbed by it.
    assert.deepEqual({ ...new HeaderDecoder(100).decode(encoder.encode({ a: 'é' })).headers }, { a: 'é' })
  })
})
