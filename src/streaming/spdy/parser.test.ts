import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { SpdyError } from './errors.ts'
import { dataHeader, goAwayFrame, pingFrame, rstStreamFrame, settingsFrame, synReplyFrame, synStreamFrame, windowUpdateFrame } from './frames.ts'
import { HeaderEncoder } from './header-block.ts'
import { FrameParser } from './parser.ts'
import { dataFrame, recorder } from './fixtures.ts'
import type { Frame } from './fixtures.ts'

/** One of each, as moby/spdystream v0.5.1 writes them. */
const GO_FRAMES: ReadonlyArray<readonly [hex: string, frame: Frame]> = [
  ['80030001000000290000000100000000000078f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff', { type: 'synStream', id: 1, flags: 0, headers: { streamtype: 'error' } }],
  ['800300010100001700000003000000000000c22e555c92929907000000ffff', { type: 'synStream', id: 3, flags: 1, headers: { streamtype: 'stdin' } }],
  ['8003000100000014000000050000000000006260606000000000ffff', { type: 'synStream', id: 5, flags: 0, headers: {} }],
  ['800300010000001900000007000000000000824a3356804b52862400000000ffff', { type: 'synStream', id: 7, flags: 0, headers: { x: 'a' } }],
  ['800300020000000c00000001028901000000ffff', { type: 'synReply', id: 1, flags: 0, headers: {} }],
  ['800300080000001000000001828981b2096312000000ffff', { type: 'headers', id: 1, flags: 0, headers: { a: 'b' } }],
  ['80030003000000080000000300000005', { type: 'rstStream', id: 3, status: 5 }],
  ['80030004000000140000000201000007000100000000000400000064', { type: 'settings', values: [[7, 65_536], [4, 100]] }],
  ['800300060000000400000001', { type: 'ping', id: 1 }],
  ['80030007000000080000000900000001', { type: 'goAway', id: 9, status: 1 }],
  ['80030009000000080000000500008000', { type: 'windowUpdate', id: 5, delta: 0x8000 }],
  ['000000050100000568656c6c6f', { type: 'data', id: 5, bytes: 'hello', fin: true }],
  ['0000000501000000', { type: 'data', id: 5, bytes: '', fin: true }],
]

function parse(chunks: readonly Buffer[], maxFrameBytes = 1024): { frames: Frame[]; midFrame: boolean } {
  const frames: Frame[] = []
  const parser = new FrameParser(recorder((frame) => frames.push(frame)), maxFrameBytes)
  for (const chunk of chunks) parser.push(chunk)
  return { frames, midFrame: parser.midFrame }
}

describe('FrameParser', () => {
  const bytes = Buffer.from(GO_FRAMES.map(([hex]) => hex).join(''), 'hex')
  const expected = GO_FRAMES.map(([, frame]) => frame)

  it("reads Go's frames", () => {
    assert.deepEqual(parse([bytes]), { frames: expected, midFrame: false })
  })

  it('reads them in pieces of every size, cut anywhere', () => {
    for (let size = 1; size < 40; size++) {
      const chunks: Buffer[] = []
      for (let at = 0; at < bytes.length; at += size) chunks.push(bytes.subarray(at, at + size))
      assert.deepEqual(parse(chunks), { frames: expected, midFrame: false }, `pieces of ${size}`)
    }
  })

  it('knows whether it is within a frame', () => {
    const ends = new Set<number>()
    let at = 0
    for (const [hex] of GO_FRAMES) ends.add((at += hex.length / 2))
    for (let cut = 1; cut <= bytes.length; cut++) assert.equal(parse([bytes.subarray(0, cut)]).midFrame, !ends.has(cut), `after ${cut} bytes`)
  })

  it('passes data on as slices of what it was given, without collecting it', () => {
    const chunk = Buffer.concat([dataFrame(1, 'abc'), dataFrame(3, Buffer.alloc(100)).subarray(0, 60)])
    const pieces: Array<{ piece: Buffer; last: boolean }> = []
    const parser = new FrameParser({ ...recorder(() => undefined), data: (_id, piece, last) => pieces.push({ piece, last }) }, 64)
    parser.push(chunk)
    parser.push(Buffer.alloc(48))
    assert.deepEqual(pieces.map(({ piece, last }) => [piece.length, last]), [[3, true], [52, false], [48, true]])
    assert.ok(pieces.slice(0, 2).every(({ piece }) => piece.buffer === chunk.buffer))
    // The largest frame of the format is no more to hold than the smallest.
    parser.push(Buffer.from('0000000100ffffff', 'hex'))
    parser.push(Buffer.alloc(0x1_0000))
    assert.equal(pieces.at(-1)?.piece.length, 0x1_0000)
  })

  it('ignores control frames of types that are not known', () => {
    const unknown = Buffer.from('8003000a00000003abcdef', 'hex')
    const noop = Buffer.from('8003000500000000', 'hex')
    assert.deepEqual(parse([Buffer.concat([unknown, noop, pingFrame(3)])]).frames, [{ type: 'ping', id: 3 }])
  })

  it('hands on nothing after its handler has ended', () => {
    let active = true
    const seen: number[] = []
    const parser = new FrameParser(
      {
        ...recorder(() => undefined),
        get active() {
          return active
        },
        ping(id) {
          seen.push(id)
          active = false
        },
      },
      64,
    )
    parser.push(Buffer.concat([pingFrame(1), pingFrame(3)]))
    assert.deepEqual(seen, [1])
  })

  const violations: ReadonlyArray<readonly [what: string, hex: string, message: RegExp]> = [
    ['another version', '800200060000000400000001', /version 2/],
    ['HTTP', Buffer.from('HTTP/1.1 400 Bad Request\r\n').toString('hex').replace(/^48/, 'c8'), /version/],
    ['data on stream 0', '0000000000000001', /stream 0/],
    ['a control frame beyond the bound', '8003000100000401', /SYN_STREAM frame of 1025 bytes; at most 1024/],
    ['an unknown control frame beyond the bound', '8003009900ffffff', /16777215 bytes/],
    ['a short SYN_STREAM', '8003000100000009000000010000000000', /at least 10/],
    ['a short SYN_REPLY', '8003000200000003000000', /at least 4/],
    ['a short HEADERS', '8003000800000000', /at least 4/],
    ['a short RST_STREAM', '800300030000000400000001', /instead of 8/],
    ['a long RST_STREAM', '800300030000000c000000010000000100000001', /instead of 8/],
    ['RST_STREAM of stream 0', '80030003000000080000000000000001', /stream 0/],
    ['SYN_STREAM of stream 0', '800300010000000a00000000000000000000', /stream 0/],
    ['a long PING', '80030006000000080000000100000001', /instead of 4/],
    ['a short GOAWAY', '800300070000000400000001', /instead of 8/],
    ['a short WINDOW_UPDATE', '800300090000000400000001', /instead of 8/],
    ['SETTINGS without a count', '8003000400000000', /at least 4/],
    ['SETTINGS that claim more than is there', '8003000400000004ffffffff', /claims 4294967295 settings/],
    ['SETTINGS that claim less than is there', '800300040000000c000000000000000400000064', /claims 0 settings/],
  ]
  for (const [what, hex, message] of violations) {
    it(`refuses ${what}`, () => {
      const check = (error: unknown): boolean => error instanceof SpdyError && error.code === 'SPDY_PROTOCOL' && message.test(error.message)
      const bad = Buffer.from(hex, 'hex')
      assert.throws(() => parse([Buffer.concat([pingFrame(1), bad])]), check)
      assert.throws(() => parse(Array.from(bad, (byte) => Buffer.from([byte]))), check)
    })
  }
})

describe('frame writers', () => {
  it('lay frames out as the draft does', () => {
    const hex = (frame: Buffer): string => frame.toString('hex')
    const empty = new HeaderEncoder().encode({})
    assert.equal(hex(empty), '78bbe3c6a7c2000400fbff00000000000000ffff')
    assert.equal(hex(synStreamFrame(1, 3, empty)), `800300010300001e00000001000000000000${hex(empty)}`)
    assert.equal(hex(synReplyFrame(0x7fff_ffff, 1, empty)), `80030002010000187fffffff${hex(empty)}`)
    assert.equal(hex(rstStreamFrame(3, 5)), '80030003000000080000000300000005')
    assert.equal(hex(settingsFrame([[7, 65_536], [4, 100]])), '80030004000000140000000200000007000100000000000400000064')
    assert.equal(hex(pingFrame(1)), '800300060000000400000001')
    assert.equal(hex(goAwayFrame(9, 1)), '80030007000000080000000900000001')
    assert.equal(hex(windowUpdateFrame(5, 0x8000)), '80030009000000080000000500008000')
    assert.equal(hex(dataHeader(5, 5, true)), '0000000501000005')
    assert.equal(hex(dataHeader(0x7fff_ffff, 0xff_ffff, false)), '7fffffff00ffffff')
  })
})
