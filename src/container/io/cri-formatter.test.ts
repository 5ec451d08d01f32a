import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Counters } from './counters.ts'
import { CriFormatter, hardLineLimitBytes } from './cri-formatter.ts'
import { EntryClock, WallClock } from './entry-clock.ts'
import { type Entry, joined, parseEntries } from './support.fixture.ts'

/** Formats `input` in pieces of `pieceBytes`, then the end of the stream. */
function format(input: string, limit: number, options: { pieceBytes?: number, stream?: 'stdout' | 'stderr', outputBytes?: number } = {}): Entry[] {
  const { pieceBytes = 64 * 1024, stream = 'stdout', outputBytes = 4096 } = options
  const bytes = Buffer.from(input, 'latin1')
  const written: Buffer[] = []
  const formatter = new CriFormatter(stream, limit, {
    clock: new EntryClock(new WallClock()),
    output: { bytes: Buffer.alloc(outputBytes) },
    counters: new Counters(),
    write: (out, length) => {
      assert.equal(out[length - 1], 10, 'only whole entries are written')
      written.push(Buffer.from(out.subarray(0, length)))
    },
  })
  for (let at = 0; at < bytes.length; at += pieceBytes) formatter.chunk(Buffer.from(bytes.subarray(at, at + pieceBytes)))
  formatter.finish()
  return parseEntries(Buffer.concat(written).toString('latin1'))
}

/** The definition, in the plainest words: lines, cut at the limit. */
function expected(input: string, limit: number): string[] {
  const lines = input.split('\n')
  const rest = lines.pop() ?? ''
  const cut = (line: string, lastTag: string): string[] => {
    const parts = []
    let from = 0
    const step = limit > 0 ? limit : Infinity
    for (; line.length - from > step; from += step) parts.push(`P ${line.slice(from, from + step)}`)
    return [...parts, `${lastTag} ${line.slice(from)}`]
  }
  return [...lines.flatMap((line) => cut(line.endsWith('\r') ? line.slice(0, -1) : line, 'F')), ...(rest === '' ? [] : cut(rest, 'P'))]
}

const a = (count: number): string => 'a'.repeat(count)
const buffer = 4096
const long = buffer * 4

const table: readonly { readonly name: string, readonly input: string, readonly limit: number, readonly entries: readonly string[], readonly stream?: 'stderr' }[] = [
  { name: 'nothing', input: '', limit: long, entries: [] },
  { name: 'whole lines', input: 'test stdout log 1\ntest stdout log 2\n', limit: long, entries: ['F test stdout log 1', 'F test stdout log 2'] },
  { name: 'stderr', input: 'one\ntwo\n', limit: long, entries: ['F one', 'F two'], stream: 'stderr' },
  { name: 'an end without newline', input: 'one\ntwo', limit: long, entries: ['F one', 'P two'] },
  { name: 'empty lines', input: '\n\n\r\na\n\n', limit: long, entries: ['F ', 'F ', 'F ', 'F a', 'F '] },
  { name: 'as long as the buffer', input: `${a(buffer)}\n${a(buffer)}\n`, limit: long, entries: [`F ${a(buffer)}`, `F ${a(buffer)}`] },
  { name: 'longer than the buffer', input: `${a(buffer * 2 + 10)}\n`, limit: long, entries: [`F ${a(buffer * 2 + 10)}`] },
  { name: 'as long as the limit', input: `${a(long)}\n${a(long)}\n`, limit: long, entries: [`F ${a(long)}`, `F ${a(long)}`] },
  { name: 'one more than the limit', input: `${a(long + 1)}\n${a(long + 1)}\n`, limit: long, entries: [`P ${a(long)}`, 'F a', `P ${a(long)}`, 'F a'] },
  {
    name: 'twice the limit, and one more',
    input: `${a(long * 2)}\n${a(long * 2 + 1)}\n`,
    limit: long,
    entries: [`P ${a(long)}`, `F ${a(long)}`, `P ${a(long)}`, `P ${a(long)}`, 'F a'],
  },
  {
    name: 'a limit that divides nothing',
    input: `${a(buffer * 2 + 10)}\n`,
    limit: buffer * 3 / 2,
    entries: [`P ${a(buffer * 3 / 2)}`, `F ${a(buffer / 2 + 10)}`],
  },
  { name: 'limit 0 is none', input: `${a(buffer * 10 + 10)}\n`, limit: 0, entries: [`F ${a(buffer * 10 + 10)}`] },
  { name: 'limit -1 is none', input: `${a(buffer * 10 + 10)}\n`, limit: -1, entries: [`F ${a(buffer * 10 + 10)}`] },
  { name: '\\r\\n across the buffer', input: `${a(buffer - 1)}\r\n${a(buffer - 1)}\r\n`, limit: -1, entries: [`F ${a(buffer - 1)}`, `F ${a(buffer - 1)}`] },
  { name: '\\r\\n right at the limit', input: `${a(8)}\r\n${a(9)}\r\n`, limit: 8, entries: [`F ${a(8)}`, `P ${a(8)}`, 'F a'] },
  { name: '\\r inside, and at the end of the stream', input: `a\rb\r\r\n${a(8)}\r`, limit: 8, entries: ['F a\rb\r', `P ${a(8)}`, 'P \r'] },
  { name: 'exactly the limit without newline', input: a(16), limit: 8, entries: [`P ${a(8)}`, `P ${a(8)}`] },
]

describe('CriFormatter', () => {
  for (const { name, input, limit, entries, stream = 'stdout' } of table) {
    test(name, () => {
      for (const pieceBytes of [64 * 1024, 1000, 7, 1]) {
        const got = format(input, limit, { pieceBytes, stream })
        assert.deepEqual(got.map(({ tag, content }) => `${tag} ${content}`), entries, `in pieces of ${pieceBytes}`)
        assert.ok(got.every((entry) => entry.stream === stream))
      }
    })
  }

  test('any input in any pieces gives the same entries', () => {
    let seed = 1
    const random = (below: number): number => {
      seed = (seed * 48271) % 0x7fffffff
      return seed % below
    }
    for (let round = 0; round < 3000; round++) {
      const input = Array.from({ length: random(60) }, () => ['\n', '\r', '\r\n', 'x', 'yz', '\xff'][random(6)]).join('')
      const limit = random(8) - 1
      const pieceBytes = 1 + random(9)
      const got = format(input, limit, { pieceBytes, outputBytes: 64 })
      assert.deepEqual(got.map(({ tag, content }) => `${tag} ${content}`), expected(input, limit), JSON.stringify({ input, limit, pieceBytes }))
    }
  })

  test('stamps rise with every entry and are the time of now', () => {
    const before = new Date().toISOString()
    const entries = format('\n'.repeat(5000), long, { pieceBytes: 100 })
    const stamps = entries.map(({ stamp }) => stamp)
    assert.equal(stamps.length, 5000)
    for (let i = 1; i < stamps.length; i++) assert.ok(String(stamps[i]) > String(stamps[i - 1]), `${stamps[i - 1]} then ${stamps[i]}`)
    assert.ok(String(stamps[0]) >= before.slice(0, -4) && String(stamps.at(-1)).slice(0, 23) <= new Date().toISOString(), `${before} ${stamps[0]}`)
  })

  test('a line without end is cut all the same, and its memory given back', () => {
    const formatter = new CriFormatter('stdout', -1, {
      clock: new EntryClock(new WallClock()),
      output: { bytes: Buffer.alloc(4096) },
      counters: new Counters(),
      write: (out, length) => lengths.push(length - 41 * Number(out[length - 1] === 10)),
    })
    const lengths: number[] = []
    const piece = Buffer.alloc(1024 * 1024, 'x')
    for (let i = 0; i < 20; i++) formatter.chunk(piece)
    assert.deepEqual(lengths, [hardLineLimitBytes])
    assert.equal(formatter.pendingBytes, 20 * piece.length - hardLineLimitBytes)
    formatter.chunk(Buffer.from('\n'))
    assert.deepEqual(lengths, [hardLineLimitBytes, 20 * piece.length - hardLineLimitBytes])
    assert.equal(formatter.pendingBytes, 0)
  })

  test('what was written in pieces reads as it was written', () => {
    const input = Array.from({ length: 2000 }, (_, i) => `${i} ${'z'.repeat(i % 50)}\n`).join('')
    assert.equal(joined(format(input, 16, { pieceBytes: 333 })), input)
  })
})

describe('EntryClock', () => {
  const at = (wall: WallClock, seconds: number, nanos: number): void => {
    wall.read = () => {
      wall.seconds = seconds
      wall.nanos = nanos
    }
  }

  test('goes on by a nanosecond while the system clock stands or is set back a little, over the second too', () => {
    const wall = new WallClock()
    const clock = new EntryClock(wall)
    at(wall, 100, 999_999_998)
    clock.refresh()
    assert.deepEqual([clock.seconds, clock.nanos], [100, 999_999_998])
    clock.refresh()
    assert.deepEqual([clock.seconds, clock.nanos], [100, 999_999_999])
    at(wall, 95, 5)
    clock.refresh()
    assert.deepEqual([clock.seconds, clock.nanos], [101, 0])
    at(wall, 101, 7)
    clock.refresh()
    assert.deepEqual([clock.seconds, clock.nanos], [101, 7])
  })

  test('follows a clock that was set back by more', () => {
    const wall = new WallClock()
    const clock = new EntryClock(wall)
    at(wall, 5000, 0)
    clock.refresh()
    at(wall, 1000, 3)
    clock.refresh()
    assert.deepEqual([clock.seconds, clock.nanos], [1000, 3])
  })

  test('reads the time of now', () => {
    const wall = new WallClock()
    for (let i = 0; i < 1000; i++) {
      const before = Date.now()
      wall.read()
      const ms = wall.seconds * 1000 + wall.nanos / 1e6
      assert.ok(ms >= before - 2 && ms <= Date.now() + 2, `${before} ${ms}`)
      assert.ok(wall.nanos >= 0 && wall.nanos < 1e9)
    }
  })
})
