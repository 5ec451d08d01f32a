import assert from 'node:assert/strict'
import { Duplex } from 'node:stream'
import { describe, it } from 'node:test'
import * as fc from 'fast-check'
import { SpdyConnection } from './connection.ts'
import type { SpdyStream } from './connection.ts'
import { SpdyError } from './errors.ts'
import { dataFrame, recorder } from './fixtures.ts'
import type { Frame } from './fixtures.ts'
import { goAwayFrame, pingFrame, rstStreamFrame, settingsFrame, synReplyFrame, synStreamFrame, windowUpdateFrame } from './frames.ts'
import { HeaderEncoder } from './header-block.ts'
import { FrameParser } from './parser.ts'
import { DEFAULT_WINDOW_BYTES } from './protocol.ts'

/** The same cases every time, so that a change is what makes a test fail; `FUZZ_SEED=$RANDOM` finds others. */
fc.configureGlobal({ seed: Number(process.env['FUZZ_SEED'] ?? 1) })

const LIMITS = { maxFrameBytes: 2048, maxHeaderBytes: 2048, maxStreams: 8, maxBufferedBytes: 2 * DEFAULT_WINDOW_BYTES, initialWindowBytes: DEFAULT_WINDOW_BYTES, maxQueuedFrames: 64 }
/** What a piece in a list costs besides its bytes, at most one piece for each 9 bytes of a chunk. */
const PIECE_COST = 256

/** What a peer may send; a frame whose header block depends on those before it is encoded when the sequence is. */
type Step = { readonly kind: 'bytes'; readonly bytes: Buffer } | { readonly kind: 'headers'; readonly frame: 'synStream' | 'synReply' | 'headers'; readonly id: number; readonly flags: number; readonly headers: Record<string, string> }

const streamId = fc.oneof({ weight: 8, arbitrary: fc.integer({ min: 0, max: 12 }) }, { weight: 1, arbitrary: fc.constantFrom(0x7fff_ffff, 0x7fff_fffe) })
const number32 = fc.oneof(fc.integer({ min: 0, max: 0xffff_ffff }), fc.constantFrom(0, 1, 4, 7, 65_536, 0x7fff_ffff, 0x8000_0000))
const payload = fc.oneof(fc.uint8Array({ maxLength: 40 }), fc.integer({ min: 0, max: 70_000 }).map((length) => new Uint8Array(length))).map((bytes) => Buffer.from(bytes))
const name = fc.constantFrom('streamtype', 'port', 'requestid', 'a', 'A')
const value = fc.oneof({ weight: 20, arbitrary: fc.constantFrom('', 'stdin', 'stdout', '80', 'x'.repeat(500)) }, { weight: 1, arbitrary: fc.constant('y'.repeat(3000)) })
const headers = fc.dictionary(name, value, { maxKeys: 3 })

const opened: fc.Arbitrary<Step> = fc.record({ kind: fc.constant('headers' as const), frame: fc.constant('synStream' as const), id: fc.constantFrom(1, 3, 5, 7, 9, 11), flags: fc.integer({ min: 0, max: 3 }), headers })
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 5, arbitrary: opened },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('headers' as const), frame: fc.constantFrom('synStream' as const, 'synReply' as const, 'headers' as const), id: streamId.filter((id) => id > 0), flags: fc.integer({ min: 0, max: 255 }), headers }) },
  {
    weight: 12,
    arbitrary: fc
      .oneof(
        { weight: 5, arbitrary: fc.tuple(streamId, payload, fc.boolean()).map(([id, bytes, fin]) => dataFrame(id, bytes, fin)) },
        fc.tuple(streamId, number32).map(([id, status]) => rstStreamFrame(id, status)),
        fc.array(fc.tuple(fc.integer({ min: 0, max: 9 }), number32), { maxLength: 4 }).map(settingsFrame),
        number32.map(pingFrame),
        fc.tuple(streamId, number32).map(([id, status]) => goAwayFrame(id, status)),
        fc.tuple(streamId, number32).map(([id, delta]) => windowUpdateFrame(id, delta)),
      )
      .map((bytes) => ({ kind: 'bytes' as const, bytes })),
  },
  { weight: 1, arbitrary: fc.uint8Array({ maxLength: 60 }).map((bytes) => ({ kind: 'bytes' as const, bytes: Buffer.from(bytes) })) },
)

function encode(steps: readonly Step[]): Buffer {
  const encoder = new HeaderEncoder()
  const builders = {
    synStream: synStreamFrame,
    synReply: synReplyFrame,
    headers: (id: number, flags: number, block: Buffer): Buffer => {
      const frame = synReplyFrame(id, flags, block)
      frame[3] = 8
      return frame
    },
  }
  return Buffer.concat(steps.map((step) => (step.kind === 'bytes' ? step.bytes : builders[step.frame](step.id, step.flags, encoder.encode(step.headers)))))
}

type Mutation = { readonly at: number; readonly how: 'flip' | 'set' | 'delete' | 'insert' | 'repeat'; readonly value: number; readonly length: number }
const mutation: fc.Arbitrary<Mutation> = fc.record({
  // The first bytes decide more than those in the middle of a long payload.
  at: fc.oneof(fc.nat({ max: 200 }), fc.nat({ max: 100_000 })),
  how: fc.constantFrom('flip', 'set', 'delete', 'insert', 'repeat'),
  value: fc.nat({ max: 255 }),
  length: fc.integer({ min: 1, max: 40 }),
})

function mutate(bytes: Buffer, mutations: readonly Mutation[]): Buffer {
  let mutated = Buffer.from(bytes)
  for (const { at: anywhere, how, value, length } of mutations) {
    if (mutated.length === 0) break
    const at = anywhere % mutated.length
    if (how === 'flip') mutated[at] = (mutated[at] as number) ^ (1 << value % 8)
    else if (how === 'set') mutated[at] = value
    else if (how === 'delete') mutated = Buffer.concat([mutated.subarray(0, at), mutated.subarray(at + length)])
    else if (how === 'insert') mutated = Buffer.concat([mutated.subarray(0, at), Buffer.alloc(length, value), mutated.subarray(at)])
    else mutated = Buffer.concat([mutated.subarray(0, at + length), mutated.subarray(at)])
  }
  return mutated
}

function cut(bytes: Buffer, sizes: readonly number[]): Buffer[] {
  const chunks: Buffer[] = []
  // Single bytes at the start, where they matter; large input is not cut into thousands of pieces.
  for (let at = 0, i = 0; at < bytes.length; i++) {
    const size = Math.max(sizes[i % sizes.length] as number, i < 100 ? 1 : Math.ceil(bytes.length / 30))
    chunks.push(bytes.subarray(at, at + size))
    at += size
  }
  return chunks
}
const sizes = fc.array(fc.oneof(fc.integer({ min: 1, max: 20 }), fc.integer({ min: 1000, max: 65_536 })), { minLength: 1, maxLength: 6 })

const CONSUMERS: Record<string, (stream: SpdyStream) => void> = {
  read: (stream) => void stream.resume(),
  echo: (stream) => {
    stream.reply()
    stream.pipe(stream)
  },
  ignore: () => undefined,
  talk: (stream) => {
    stream.reply({ ok: 'yes' })
    stream.end(Buffer.alloc(100_000))
  },
  reset: (stream) => stream.reset(),
  'reset on data': (stream) => void stream.on('data', () => stream.reset()),
}

interface World {
  readonly side: 'server' | 'client'
  /** Whether the peer reads what it is sent. */
  readonly reads: boolean
  readonly consumer: string
  readonly sizes: readonly number[]
}
const world: fc.Arbitrary<World> = fc.record({ side: fc.constantFrom('server', 'server', 'client'), reads: fc.boolean(), consumer: fc.constantFrom(...Object.keys(CONSUMERS)), sizes })
const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

/** Plays the peer's bytes to a connection, and checks after each chunk that it holds no more than it may, and at the end that nothing is left. */
async function play(bytes: Buffer, { side, reads, consumer, sizes }: World): Promise<void> {
  const transport = new Duplex({
    read: () => undefined,
    write: (_chunk, _encoding, done) => {
      if (reads) done()
    },
  })
  const streams: SpdyStream[] = []
  const attach = (stream: SpdyStream): void => {
    streams.push(stream)
    CONSUMERS[consumer]?.(stream)
  }
  const connection = new SpdyConnection(transport, { side, limits: LIMITS, onStream: attach })
  if (side === 'client') {
    for (const headers of [{ a: 'b' }, {}]) {
      const stream = connection.createStream(headers)
      streams.push(stream)
      stream.resume()
      stream.end('x'.repeat(100_000))
    }
  }
  const pings = Array.from({ length: 2 }, () => connection.ping().catch(() => undefined))
  await tick()
  for (const chunk of cut(bytes, sizes)) {
    transport.push(chunk)
    await tick()
    const pieces = Math.ceil(chunk.length / 9) + 1
    assert.ok(connection.bufferedBytes >= 0)
    assert.ok(connection.bufferedBytes <= LIMITS.maxBufferedBytes + DEFAULT_WINDOW_BYTES + chunk.length + pieces * PIECE_COST, `${connection.bufferedBytes} bytes are held`)
    assert.ok(connection.streams <= LIMITS.maxStreams + 2)
    assert.ok(transport.writableLength <= (LIMITS.maxQueuedFrames + chunk.length / 8) * 40 + LIMITS.maxStreams * 2 * DEFAULT_WINDOW_BYTES, `${transport.writableLength} bytes wait`)
  }
  transport.push(null)
  await tick()
  await tick()
  // A connection whose consumer does not read does not see the end either; one whose peer does not read cannot flush.
  if (connection.streams > 0 || !reads) connection.destroy()
  const error = await connection.closed
  assert.ok(error === undefined || error instanceof SpdyError, String(error))
  await Promise.all(pings)
  await tick()
  assert.equal(connection.streams, 0)
  assert.equal(transport.destroyed, true)
  for (const stream of streams) {
    // What the peer had finished may still be read.
    stream.resume()
    await tick()
    stream.destroy()
    await tick()
    assert.equal(stream.closed, true)
  }
  assert.equal(connection.bufferedBytes, 0)
}

describe('any bytes of a peer', () => {
  it('are frames or a violation to the parser, however they are cut', () => {
    const outcome = (chunks: readonly Buffer[]): { frames: Frame[]; error: string | undefined } => {
      const frames: Frame[] = []
      try {
        const parser = new FrameParser(
          recorder((frame) => frames.push(frame)),
          LIMITS.maxFrameBytes,
        )
        for (const chunk of chunks) parser.push(chunk)
      } catch (error) {
        assert.ok(error instanceof SpdyError && error.code === 'SPDY_PROTOCOL', String(error))
        return { frames, error: error.message }
      }
      return { frames, error: undefined }
    }
    fc.assert(
      fc.property(fc.array(step, { maxLength: 12 }), fc.array(mutation, { maxLength: 4 }), sizes, (steps, mutations, sizes) => {
        const bytes = mutate(encode(steps), mutations)
        assert.deepEqual(outcome(cut(bytes, sizes)), outcome([bytes]))
      }),
      { numRuns: 500 },
    )
  })

  it('end a connection in order or with an error, within its bounds: noise', async () => {
    await fc.assert(fc.asyncProperty(fc.uint8Array({ maxLength: 3000 }), world, (bytes, world) => play(Buffer.from(bytes), world)), { numRuns: 200 })
  })

  it('end a connection in order or with an error, within its bounds: frames in any order', async () => {
    await fc.assert(fc.asyncProperty(fc.array(step, { maxLength: 40 }), world, (steps, world) => play(encode(steps), world)), { numRuns: 400 })
  })

  it('end a connection in order or with an error, within its bounds: damaged frames', async () => {
    const damaged = fc.tuple(fc.array(step, { minLength: 1, maxLength: 30 }), fc.array(mutation, { minLength: 1, maxLength: 5 })).map(([steps, mutations]) => mutate(encode(steps), mutations))
    await fc.assert(fc.asyncProperty(damaged, world, play), { numRuns: 400 })
  })

  it('end a connection in order or with an error, within its bounds: a flood of one kind', async () => {
    const flood = fc.tuple(step, fc.integer({ min: 100, max: 3000 })).map(([step, count]) => {
      const steps = Array.from({ length: step.kind === 'bytes' && step.bytes.length > 100 ? 20 : count }, (_, i) => (step.kind === 'headers' && step.frame === 'synStream' ? { ...step, id: 2 * i + 1 } : step))
      return encode([{ kind: 'headers', frame: 'synStream', id: 1, flags: 0, headers: {} }, ...steps])
    })
    await fc.assert(
      fc.asyncProperty(flood, world, (bytes, world) => play(bytes, { ...world, sizes: [20_000, 60_000] })),
      { numRuns: 60 },
    )
  })
})
