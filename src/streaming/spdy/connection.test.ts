import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { Duplex } from 'node:stream'
import { describe, it } from 'node:test'
import { SpdyConnection, SpdyError } from './connection.ts'
import type { SpdyStream } from './connection.ts'
import { connectionPair, dataFrame, hex, RawPeer, serverWithRawPeer, socketPair } from './fixtures.ts'
import { pingFrame, synStreamFrame } from './frames.ts'
import { DEFAULT_LIMITS } from './limits.ts'
import { FLAG_FIN, FLAG_UNIDIRECTIONAL, GoAwayStatus, RstStatus, SettingsId } from './protocol.ts'

const WINDOW = 65_536
const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

/** The error a stream ends with. */
async function failure(stream: SpdyStream): Promise<SpdyError> {
  if (!stream.closed) await new Promise((resolve) => stream.once('close', resolve))
  assert.ok(stream.errored instanceof SpdyError, `stream ${stream.id} ended without an error`)
  return stream.errored
}

/** All that comes until the peer's FIN. (`for await` and node:stream/consumers would destroy the stream then, and its other side with it.) */
function buffer(stream: SpdyStream): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const pieces: Buffer[] = []
    stream.on('data', (piece: Buffer) => pieces.push(piece))
    stream.once('end', () => resolve(Buffer.concat(pieces)))
    stream.once('error', reject)
  })
}

async function text(stream: SpdyStream): Promise<string> {
  return (await buffer(stream)).toString()
}

/** Sends what came back once the peer has ended. */
function echo(stream: SpdyStream): void {
  stream.reply()
  stream.pipe(stream)
}

describe('streams', () => {
  it('carry data both ways at once, however it is cut', async (t) => {
    const { client, server } = await connectionPair(t, echo)
    const sizes = [1, 1000, 1024, 1025, 65_535, 65_536, 65_537, 300_000, 3_000_000]
    await Promise.all(
      sizes.map(async (size) => {
        const stream = client.createStream({ size: String(size) })
        const bytes = randomBytes(size)
        for (let at = 0, step = 1; at < size; at += step, step = step * 2 + 1) stream.write(bytes.subarray(at, at + step))
        stream.end()
        assert.equal(sha256(await buffer(stream)), sha256(bytes), `${size} bytes`)
      }),
    )
    await client.ping()
    assert.equal(client.streams, 0)
    assert.equal(server.streams, 0)
    assert.equal(server.bufferedBytes, 0)
    assert.equal(client.bufferedBytes, 0)
  })

  it('are opened with headers and answered with headers', async (t) => {
    const { peer, nextStream } = await serverWithRawPeer(t)
    peer.open(1, { StreamType: 'stdin', port: '80' })
    const stream = await nextStream()
    assert.equal(stream.id, 1)
    assert.deepEqual({ ...stream.headers }, { streamtype: 'stdin', port: '80' })
    stream.reply({ Answer: 'yes' })
    // Only once.
    stream.reply({ answer: 'no' })
    stream.end('x')
    assert.deepEqual(await peer.frame('synReply'), { type: 'synReply', id: 1, flags: 0, headers: { answer: 'yes' } })
    await peer.frame('data', ({ fin }) => fin)
    assert.equal(peer.frames.filter(({ type }) => type === 'synReply').length, 1)
  })

  it('are answered by themselves before the first data', async (t) => {
    const { peer, nextStream } = await serverWithRawPeer(t)
    peer.open(1)
    peer.open(3)
    const first = await nextStream()
    const second = await nextStream()
    first.write('x')
    second.end()
    await peer.frame('data', ({ id }) => id === 1)
    assert.deepEqual(
      peer.frames.filter(({ type }) => type === 'synReply' || type === 'data'),
      [
        { type: 'synReply', id: 1, flags: 0, headers: {} },
        { type: 'data', id: 1, bytes: 'x', fin: false },
        { type: 'synReply', id: 3, flags: FLAG_FIN, headers: {} },
      ].sort((a, b) => a.id - b.id),
    )
  })

  it('send nothing before the peer has replied', async (t) => {
    const [near, far] = await socketPair(t)
    const peer = new RawPeer(far)
    const client = new SpdyConnection(near, { side: 'client', onStream: () => undefined })
    t.after(() => client.destroy())
    const stream = client.createStream({ a: 'b' })
    stream.write('early')
    const opened = await peer.frame('synStream')
    assert.deepEqual(opened, { type: 'synStream', id: 1, flags: 0, headers: { a: 'b' } })
    peer.send(pingFrame(2))
    await peer.frame('ping', ({ id }) => id === 2)
    assert.equal(peer.frames.some(({ type }) => type === 'data'), false)
    const replied = once(stream, 'reply')
    peer.reply(1, { c: 'd' })
    assert.deepEqual({ ...((await replied)[0] as object) }, { c: 'd' })
    assert.equal((await peer.frame('data')).bytes, 'early')
  })

  it('end each side on its own', async (t) => {
    const { connection, peer, nextStream } = await serverWithRawPeer(t)
    peer.open(1)
    const stream = await nextStream()
    stream.end('bye')
    assert.deepEqual(await peer.frame('data'), { type: 'data', id: 1, bytes: 'bye', fin: false })
    assert.deepEqual(await peer.frame('data', ({ fin }) => fin), { type: 'data', id: 1, bytes: '', fin: true })
    peer.data(1, 'still ')
    await once(stream, 'readable')
    assert.equal(stream.remoteClosed, false)
    peer.data(1, 'talking', true)
    assert.equal(await text(stream), 'still talking')
    assert.equal(stream.remoteClosed, true)

    peer.open(3)
    const other = await nextStream()
    peer.data(3, 'first', true)
    assert.equal(await text(other), 'first')
    assert.equal(other.writable, true)
    other.write('late')
    assert.equal((await peer.frame('data', ({ id }) => id === 3)).bytes, 'late')
    other.end()
    await once(other, 'close')
    assert.equal(connection.streams, 0)
    assert.equal(peer.frames.some(({ type }) => type === 'rstStream'), false)
  })

  it('can be born half closed', async (t) => {
    const { connection, peer, nextStream } = await serverWithRawPeer(t)
    peer.open(1, {}, FLAG_FIN)
    const talker = await nextStream()
    assert.equal(await text(talker), '')
    talker.end('answer')
    assert.equal((await peer.frame('data')).bytes, 'answer')
    peer.open(3, {}, FLAG_UNIDIRECTIONAL)
    const listener = await nextStream()
    assert.equal(listener.writableEnded, true)
    peer.data(3, 'told', true)
    assert.equal(await text(listener), 'told')
    peer.open(5, {}, FLAG_FIN | FLAG_UNIDIRECTIONAL)
    const stillborn = await nextStream()
    assert.equal(await text(stillborn), '')
    await peer.settled()
    assert.equal(connection.streams, 0)
    assert.equal(peer.frames.some((frame) => frame.type === 'synReply' && frame.id !== 1), false)
  })

  it('can be created, and answered, half closed', async (t) => {
    const got = Promise.withResolvers<string>()
    const { client, server } = await connectionPair(t, (stream) => {
      void text(stream).then(got.resolve)
      stream.reply({}, { fin: true })
    })
    const stream = client.createStream({}, { fin: true })
    assert.equal(await text(stream), '')
    assert.equal(await got.promise, '')
    await client.ping()
    assert.deepEqual([client.streams, server.streams], [0, 0])
  })

  it('are reset by the peer: what waited is dropped, the writer fails, nothing is answered', async (t) => {
    const { connection, peer, nextStream } = await serverWithRawPeer(t)
    peer.open(1)
    const stream = await nextStream()
    peer.data(1, 'never read')
    peer.reset(1, RstStatus.CANCEL)
    const error = await failure(stream)
    assert.equal(error.code, 'SPDY_STREAM_RESET')
    assert.equal(error.status, RstStatus.CANCEL)
    assert.match(error.message, /the peer reset SPDY stream 1: CANCEL/)
    assert.deepEqual([connection.streams, connection.bufferedBytes, stream.remoteClosed], [0, 0, true])
    // Frames that were on their way.
    peer.data(1, 'late')
    peer.windowUpdate(1, 5)
    peer.reset(1, RstStatus.CANCEL)
    await peer.settled()
    assert.equal(peer.frames.some(({ type }) => type === 'rstStream' || type === 'goAway'), false)
  })

  it('are reset by us: by reset(), and by destroy() before both ends', async (t) => {
    const { connection, peer, nextStream } = await serverWithRawPeer(t)
    peer.open(1)
    ;(await nextStream()).reset(RstStatus.REFUSED_STREAM)
    assert.equal((await peer.frame('rstStream')).status, RstStatus.REFUSED_STREAM)
    peer.open(3)
    const stream = await nextStream()
    stream.on('data', () => stream.destroy())
    peer.data(3, 'x')
    assert.equal((await peer.frame('rstStream', ({ id }) => id === 3)).status, RstStatus.CANCEL)
    peer.data(3, 'on its way')
    await peer.settled()
    assert.equal(connection.streams, 0)
    assert.equal(peer.frames.filter(({ type }) => type === 'rstStream').length, 2)
  })

  it('deliver HEADERS', async (t) => {
    const { peer, nextStream } = await serverWithRawPeer(t)
    peer.open(1)
    const stream = await nextStream()
    const event = once(stream, 'headers')
    const block = hex('000e00f1ff', '00000001', '0000000161', '0000000162', '000000ffff')
    const frame = synStreamFrame(1, FLAG_FIN, block)
    peer.send(Buffer.concat([Buffer.from('8003000801', 'hex'), Buffer.from([0, 0, 4 + block.length]), Buffer.from('00000001', 'hex'), frame.subarray(18)]))
    assert.deepEqual({ ...((await event)[0] as object) }, { a: 'b' })
    assert.equal(await text(stream), '')
  })
})

describe('flow control', () => {
  it('never sends more than the windows of a peer that does flow control', async (t) => {
    const { peer, nextStream } = await serverWithRawPeer(t)
    peer.settings([SettingsId.INITIAL_WINDOW_SIZE, 1000])
    peer.open(1)
    const stream = await nextStream()
    const sent = (): number => peer.frames.reduce((sum, frame) => sum + (frame.type === 'data' && frame.id === 1 ? frame.bytes.length : 0), 0)
    stream.end(Buffer.alloc(200_000))
    await peer.frame('data')
    await peer.settled()
    assert.equal(sent(), 1000)
    peer.windowUpdate(1, 500)
    await peer.settled()
    assert.equal(sent(), 1500)
    // The other way round: the window shrinks below zero, and opens again.
    peer.settings([SettingsId.INITIAL_WINDOW_SIZE, 0])
    peer.windowUpdate(1, 900)
    await peer.settled()
    assert.equal(sent(), 1500)
    peer.windowUpdate(1, 101)
    await peer.settled()
    assert.equal(sent(), 1501)
    // The connection's window is the narrower one now.
    peer.windowUpdate(1, 1_000_000)
    await peer.settled()
    assert.equal(sent(), WINDOW)
    peer.windowUpdate(0, 10)
    await peer.settled()
    assert.equal(sent(), WINDOW + 10)
    peer.windowUpdate(0, 1_000_000)
    await peer.frame('data', ({ fin }) => fin)
    assert.equal(sent(), 200_000)
  })

  it('lets the streams of a narrow connection window take turns', async (t) => {
    const { peer, nextStream } = await serverWithRawPeer(t)
    peer.settings([SettingsId.INITIAL_WINDOW_SIZE, 1 << 20])
    for (const id of [1, 3, 5]) peer.open(id)
    for (let i = 0; i < 3; i++) (await nextStream()).end(Buffer.alloc(150_000))
    await peer.settled()
    for (let i = 0; i < 30 && !peer.frames.some((frame) => frame.type === 'data' && frame.fin); i++) {
      peer.windowUpdate(0, WINDOW)
      await peer.settled()
    }
    const order = peer.frames.flatMap((frame) => (frame.type === 'data' && frame.bytes.length > 0 ? [frame.id] : []))
    assert.deepEqual(new Set(order.slice(1, 4)), new Set([1, 3, 5]))
  })

  it('sends on to a peer that has never heard of windows', async (t) => {
    const { peer, nextStream } = await serverWithRawPeer(t)
    peer.open(1)
    const stream = await nextStream()
    stream.end(Buffer.alloc(1_000_000))
    // The one question, as the first window is used up.
    const { id } = await peer.frame('ping')
    assert.equal(id % 2, 0)
    const asked = peer.frames.reduce((sum, frame) => sum + (frame.type === 'data' ? frame.bytes.length : 0), 0)
    assert.equal(asked, WINDOW)
    peer.send(pingFrame(id))
    await peer.frame('data', ({ fin }) => fin)
    assert.equal(peer.frames.filter(({ type }) => type === 'ping').length, 1)
  })

  it('sends on to a peer that does not even answer the question', async (t) => {
    const { peer, nextStream } = await serverWithRawPeer(t)
    peer.open(1)
    ;(await nextStream()).end(Buffer.alloc(1_000_000))
    await peer.frame('data', ({ fin }) => fin)
  })

  it('waits for a peer that opens its windows only when it has consumed', async (t) => {
    const { peer, nextStream } = await serverWithRawPeer(t)
    peer.open(1)
    const stream = await nextStream()
    stream.end(Buffer.alloc(3 * WINDOW))
    const sent = (): number => peer.frames.reduce((sum, frame) => sum + (frame.type === 'data' ? frame.bytes.length : 0), 0)
    for (let window = 1; window <= 3; window++) {
      if (window === 1) {
        const { id } = await peer.frame('ping')
        assert.equal(sent(), WINDOW)
        peer.windowUpdate(0, WINDOW)
        peer.windowUpdate(1, WINDOW)
        peer.send(pingFrame(id))
      } else {
        await peer.settled(window * 2 + 1)
        assert.equal(sent(), Math.min(3, window) * WINDOW)
        peer.windowUpdate(0, WINDOW)
        peer.windowUpdate(1, WINDOW)
      }
    }
    await peer.frame('data', ({ fin }) => fin)
  })

  it('opens our windows as consumers read, not before', async (t) => {
    const { peer, nextStream } = await serverWithRawPeer(t, { limits: { initialWindowBytes: WINDOW, maxBufferedBytes: 4 * WINDOW } })
    assert.deepEqual((await peer.frame('settings')).values, [[SettingsId.INITIAL_WINDOW_SIZE, WINDOW]])
    assert.deepEqual(await peer.frame('windowUpdate'), { type: 'windowUpdate', id: 0, delta: 2 * WINDOW })
    peer.settings()
    peer.open(1)
    const stream = await nextStream()
    peer.data(1, Buffer.alloc(40_000))
    await peer.settled(79)
    assert.equal(peer.frames.filter(({ type }) => type === 'windowUpdate').length, 1)
    stream.resume()
    assert.deepEqual(await peer.frame('windowUpdate', ({ id }) => id === 1), { type: 'windowUpdate', id: 1, delta: 40_000 })
    // Dropped data is the connection's window again.
    peer.open(3)
    const dropped = await nextStream()
    peer.data(3, Buffer.alloc(WINDOW))
    peer.data(1, Buffer.alloc(30_000))
    await peer.settled(81)
    dropped.reset()
    const update = await peer.frame('windowUpdate', ({ id, delta }) => id === 0 && delta !== 2 * WINDOW)
    assert.equal(update.delta, 40_000 + 30_000 + WINDOW)
  })

  it('resets a stream whose window is overrun by a peer that does flow control', async (t) => {
    const { connection, peer, nextStream } = await serverWithRawPeer(t, { limits: { initialWindowBytes: WINDOW } })
    peer.settings()
    peer.open(1)
    const stream = await nextStream()
    peer.data(1, Buffer.alloc(WINDOW))
    peer.data(1, 'x')
    assert.equal((await peer.frame('rstStream')).status, RstStatus.FLOW_CONTROL_ERROR)
    assert.equal((await failure(stream)).status, RstStatus.FLOW_CONTROL_ERROR)
    await peer.settled()
    assert.equal(connection.streams, 0)
  })

  it('ends the connection whose window is overrun by a peer that does flow control', async (t) => {
    const { connection, peer, nextStream } = await serverWithRawPeer(t, { limits: { initialWindowBytes: 1 << 20, maxBufferedBytes: 2 * WINDOW } })
    peer.settings()
    peer.open(1)
    await nextStream()
    peer.data(1, Buffer.alloc(1.5 * WINDOW))
    peer.data(1, 'x')
    assert.equal((await peer.frame('goAway')).status, GoAwayStatus.PROTOCOL_ERROR)
    assert.match((await connection.closed)?.message ?? '', /window of the connection/)
  })

  it('stops telling windows to a peer that overruns them and has shown no flow control, and loses nothing', async (t) => {
    const { connection, peer, nextStream } = await serverWithRawPeer(t, { limits: { initialWindowBytes: WINDOW, maxBufferedBytes: 2 * WINDOW } })
    peer.open(1)
    const stream = await nextStream()
    const bytes = randomBytes(40 * WINDOW)
    for (let at = 0; at < bytes.length; at += WINDOW) peer.data(1, bytes.subarray(at, at + WINDOW), at + WINDOW >= bytes.length)
    while (connection.bufferedBytes <= 2 * WINDOW) await new Promise((resolve) => setImmediate(resolve))
    assert.equal(sha256(await buffer(stream)), sha256(bytes))
    await peer.settled()
    assert.ok(peer.frames.filter(({ type }) => type === 'windowUpdate').length <= 1)
  })

  it('holds no more than the bound when a consumer does not read; the transport waits', async (t) => {
    const limit = 1 << 20
    const { connection, peer, nextStream } = await serverWithRawPeer(t, { limits: { maxBufferedBytes: limit } })
    peer.open(1)
    peer.open(3)
    const slow = await nextStream()
    const other = await nextStream()
    const bytes = randomBytes(24 << 20)
    let unsent = true
    for (let at = 0; at < bytes.length; at += 1 << 20) peer.data(1, bytes.subarray(at, at + (1 << 20)))
    peer.socket.write(Buffer.alloc(0), () => (unsent = false))
    peer.data(3, 'behind it', true)
    await once(slow, 'readable')
    // As far as it goes without a reader.
    for (let last = -1; last !== connection.bufferedBytes || connection.bufferedBytes < limit; await new Promise((resolve) => setImmediate(resolve))) last = connection.bufferedBytes
    assert.ok(connection.bufferedBytes <= limit + 2 * WINDOW, `${connection.bufferedBytes} bytes are held`)
    assert.equal(unsent, true)
    peer.data(1, '', true)
    assert.equal(sha256(await buffer(slow)), sha256(bytes))
    assert.equal(await text(other), 'behind it')
    assert.equal(connection.bufferedBytes, 0)
  })

  it('finds a peer that is gone while nothing is read', async (t) => {
    const { connection, peer, nextStream } = await serverWithRawPeer(t, { limits: { maxBufferedBytes: 2 * WINDOW }, pausedPingMs: 20 })
    peer.open(1)
    const stream = await nextStream()
    peer.data(1, Buffer.alloc(8 << 20))
    const before = connection.lastActivityMs
    await peer.frame('ping')
    assert.ok(connection.bufferedBytes > 2 * WINDOW)
    assert.ok(connection.lastActivityMs >= before)
    peer.socket.destroy()
    assert.match((await connection.closed)?.message ?? '', /ECONNRESET|EPIPE/)
    assert.equal((await failure(stream)).code, 'SPDY_CLOSED')
    assert.equal(connection.bufferedBytes, 0)
  })

  it('ends in order even while nothing is read', { timeout: 30_000 }, async (t) => {
    const { connection, peer, nextStream } = await serverWithRawPeer(t, { limits: { maxBufferedBytes: 2 * WINDOW }, pausedPingMs: 20 })
    peer.open(1)
    await nextStream()
    peer.data(1, Buffer.alloc(8 << 20))
    await peer.frame('ping')
    const closing = connection.close(120_000)
    assert.equal((await peer.frame('goAway')).status, GoAwayStatus.OK)
    await closing
  })

  it('counts what small pieces cost, not their bytes alone', async (t) => {
    const limit = 1 << 20
    const { connection, peer, nextStream } = await serverWithRawPeer(t, { limits: { maxBufferedBytes: limit } })
    peer.open(1)
    const stream = await nextStream()
    const frame = Buffer.from('000000010000000141', 'hex')
    const frames = 100_000
    peer.send(Buffer.concat(Array.from({ length: frames }, () => frame)))
    await once(stream, 'readable')
    for (let last = -1; last !== connection.bufferedBytes || connection.bufferedBytes < limit; await new Promise((resolve) => setImmediate(resolve))) last = connection.bufferedBytes
    assert.ok(connection.bufferedBytes <= limit + (WINDOW / frame.length) * 300, `${connection.bufferedBytes} bytes are held`)
    peer.data(1, '', true)
    assert.equal((await buffer(stream)).length, frames)
  })

  it('keeps no large buffer for a small piece that waits, and copies no large piece', async () => {
    const transport = new Duplex({ read: () => undefined, write: (_chunk, _encoding, done) => done() })
    const streams: SpdyStream[] = []
    const connection = new SpdyConnection(transport, { side: 'server', onStream: (stream) => streams.push(stream) })
    const frames = [synStreamFrame(1, 0, hex('78bbe3c6a7c2', '000400fbff00000000', '000000ffff')), dataFrame(1, 'small'), dataFrame(1, Buffer.alloc(60_000, 'large'))]
    const chunk = Buffer.concat(frames)
    transport.push(chunk)
    const read = async (): Promise<Buffer> => {
      for (;;) {
        const piece = streams[0]?.read() as Buffer | null | undefined
        if (piece !== null && piece !== undefined) return piece
        await new Promise((resolve) => setImmediate(resolve))
      }
    }
    const small = await read()
    assert.equal(small.toString(), 'small')
    assert.notEqual(small.buffer, chunk.buffer)
    const large = await read()
    assert.equal(large.length, 60_000)
    assert.equal(large.buffer, chunk.buffer)
    connection.destroy()
    await connection.closed
  })

  it('gives the peers of a slow reader their backpressure', async (t) => {
    const streams: SpdyStream[] = []
    const { client } = await connectionPair(t, (stream) => streams.push(stream) && stream.reply())
    const stream = client.createStream({})
    await once(stream, 'reply')
    let accepted = 0
    const write = (): void => {
      while (accepted < 200 << 20) {
        accepted += WINDOW
        if (!stream.write(Buffer.alloc(WINDOW))) return
      }
    }
    stream.on('drain', write)
    write()
    for (let last = -1; last !== accepted; await client.ping()) last = accepted
    assert.ok(accepted <= DEFAULT_LIMITS.initialWindowBytes + 4 * WINDOW, `${accepted} bytes were accepted`)
    // Another stream is not held up.
    const other = client.createStream({})
    await once(other, 'reply')
    other.end('quick')
    assert.equal(await text(streams[1] as SpdyStream), 'quick')
  })
})

describe('a violation', () => {
  const cases: ReadonlyArray<readonly [what: string, act: (peer: RawPeer) => void, message: RegExp]> = [
    ['a frame that cannot be', (peer) => peer.send(Buffer.from('8003000300000000', 'hex')), /RST_STREAM frame of 0 bytes/],
    ['a header block that is not one', (peer) => peer.send(synStreamFrame(1, 0, Buffer.from('rubbish'))), /zlib/],
    ['a stream with our kind of id', (peer) => peer.open(2), /id 2, which is ours/],
    ['stream ids that go back', (peer) => (peer.open(5), peer.open(3)), /id 3 after 5/],
    ['a reply to its own stream', (peer) => (peer.open(1), peer.reply(1)), /opened itself/],
    ['an initial window beyond the format', (peer) => peer.settings([SettingsId.INITIAL_WINDOW_SIZE, 0x8000_0000]), /initial window of 2147483648/],
    ['a window that grows too large by SETTINGS', (peer) => (peer.open(1), peer.windowUpdate(1, 0x7fff_0000 - WINDOW), peer.settings([SettingsId.INITIAL_WINDOW_SIZE, 0x7fff_ffff])), /stream 1 grows beyond/],
    ['a connection window that grows too large', (peer) => peer.windowUpdate(0, 0x7fff_ffff), /connection grows beyond/],
    ['a connection window update by nothing', (peer) => peer.windowUpdate(0, 0), /by 0/],
  ]
  for (const [what, act, message] of cases) {
    it(`ends the connection: ${what}`, async (t) => {
      const { connection, peer, streams } = await serverWithRawPeer(t)
      act(peer)
      assert.equal((await peer.frame('goAway')).status, GoAwayStatus.PROTOCOL_ERROR)
      const error = await connection.closed
      assert.ok(error instanceof SpdyError)
      assert.equal(error.code, 'SPDY_PROTOCOL')
      assert.match(error.message, message)
      for (const stream of streams) assert.equal((await failure(stream)).code, 'SPDY_PROTOCOL')
      assert.throws(() => connection.createStream({}), error)
      await assert.rejects(connection.ping(), error)
    })
  }

  const streamCases: ReadonlyArray<readonly [what: string, act: (peer: RawPeer) => void, status: number]> = [
    ['opened twice', (peer) => peer.open(1), RstStatus.PROTOCOL_ERROR],
    ['a window update by nothing', (peer) => peer.windowUpdate(1, 0), RstStatus.PROTOCOL_ERROR],
    ['a window beyond the format', (peer) => peer.windowUpdate(1, 0x7fff_ffff), RstStatus.FLOW_CONTROL_ERROR],
    ['data after its end', (peer) => (peer.data(1, '', true), peer.data(1, 'x')), RstStatus.STREAM_ALREADY_CLOSED],
  ]
  for (const [what, act, status] of streamCases) {
    it(`ends the stream alone: ${what}`, async (t) => {
      const { connection, peer, nextStream } = await serverWithRawPeer(t)
      peer.open(1)
      const stream = await nextStream()
      act(peer)
      assert.equal((await peer.frame('rstStream')).status, status)
      assert.equal((await failure(stream)).status, status)
      peer.open(3)
      ;(await nextStream()).end('goes on')
      assert.equal((await peer.frame('data', ({ id }) => id === 3)).bytes, 'goes on')
      assert.equal(connection.streams, 1)
    })
  }

  it('of a client is found by its server, and of a server by its client', async (t) => {
    const [near, far] = await socketPair(t)
    const client = new SpdyConnection(near, { side: 'client', onStream: () => undefined })
    t.after(() => client.destroy())
    const peer = new RawPeer(far)
    const early = client.createStream({})
    await peer.frame('synStream')
    peer.data(1, 'before the reply')
    assert.equal((await peer.frame('rstStream', ({ id }) => id === 1)).status, RstStatus.PROTOCOL_ERROR)
    assert.equal((await failure(early)).status, RstStatus.PROTOCOL_ERROR)
    const twice = client.createStream({})
    peer.reply(3)
    peer.reply(3)
    assert.equal((await failure(twice)).status, RstStatus.STREAM_IN_USE)
    peer.data(8, 'to nobody')
    assert.equal((await peer.frame('rstStream', ({ id }) => id === 8)).status, RstStatus.INVALID_STREAM)
    peer.open(1)
    assert.match((await client.closed)?.message ?? '', /id 1, which is ours/)
  })

  it('in a consumer of ours ends the connection too, not the process', async (t) => {
    const { connection, peer } = await serverWithRawPeer(t, {
      onStream: () => {
        throw new Error('boom')
      },
    })
    peer.open(1)
    assert.equal((await peer.frame('goAway')).status, GoAwayStatus.INTERNAL_ERROR)
    const error = await connection.closed
    assert.ok(error instanceof SpdyError && error.code === 'SPDY_INTERNAL' && error.cause instanceof Error && error.cause.message === 'boom')
  })
})

describe('bounds', () => {
  it('refuse the stream too many, and take one again when one has ended', async (t) => {
    const { connection, peer, nextStream } = await serverWithRawPeer(t, { limits: { maxStreams: 2 } })
    for (const id of [1, 3, 5]) peer.open(id)
    assert.deepEqual(await peer.frame('rstStream'), { type: 'rstStream', id: 5, status: RstStatus.REFUSED_STREAM })
    assert.equal(connection.streams, 2)
    ;(await nextStream()).end()
    peer.data(1, '', true)
    peer.open(7)
    await nextStream()
    assert.equal((await nextStream()).id, 7)
    assert.equal(connection.streams, 2)
  })

  it('reset a stream with faulty headers, and hold the rest', async (t) => {
    const { peer, nextStream } = await serverWithRawPeer(t)
    const block = hex('78bbe3c6a7c2', '000e00f1ff', '00000001', '0000000141', '0000000162', '000000ffff')
    peer.send(synStreamFrame(1, 0, block))
    assert.equal((await peer.frame('rstStream')).status, RstStatus.PROTOCOL_ERROR)
    peer.send(synStreamFrame(3, 0, block.subarray(6).fill(0x61, 13, 14)))
    assert.deepEqual({ ...(await nextStream()).headers }, { a: 'b' })
  })

  it('hold for answers that a peer asks for and does not read', async () => {
    // A transport that takes nothing more after the first bytes.
    const transport = new Duplex({ read: () => undefined, write: () => undefined, writableHighWaterMark: 1024 })
    const connection = new SpdyConnection(transport, { side: 'server', onStream: () => undefined, limits: { maxQueuedFrames: 500 } })
    await new Promise((resolve) => setImmediate(resolve))
    const pings = Buffer.concat(Array.from({ length: 100 }, () => pingFrame(1)))
    for (let i = 0; i < 100; i++) {
      transport.push(pings)
      await new Promise((resolve) => setImmediate(resolve))
    }
    assert.ok(transport.writableLength < 20_000, `${transport.writableLength} bytes wait`)
    const error = await connection.closed
    assert.match(error?.message ?? '', /does not read the answers/)
  })

  it('hold for SETTINGS frames', async (t) => {
    const { connection, peer } = await serverWithRawPeer(t)
    for (let i = 0; i < 1001; i++) peer.settings([SettingsId.INITIAL_WINDOW_SIZE, 1000 + (i % 2)])
    assert.match((await connection.closed)?.message ?? '', /SETTINGS/)
  })

  it('hold for our own pings', async (t) => {
    const { connection } = await serverWithRawPeer(t)
    const pings = Array.from({ length: 64 }, () => connection.ping())
    await assert.rejects(connection.ping(), /unanswered/)
    connection.destroy()
    for (const ping of pings) await assert.rejects(ping, { code: 'SPDY_CLOSED' })
  })

  it('hold for the streams we open, as the peer asks', async (t) => {
    const { connection, peer } = await serverWithRawPeer(t)
    peer.settings([SettingsId.MAX_CONCURRENT_STREAMS, 1])
    await peer.settled()
    const stream = connection.createStream({})
    assert.equal(stream.id, 2)
    assert.throws(() => connection.createStream({}), (error) => error instanceof SpdyError && error.code === 'SPDY_REFUSED')
    stream.reset()
    assert.equal(connection.createStream({}).id, 4)
  })

  it('are checked when they are given', async (t) => {
    const [near] = await socketPair(t)
    for (const limits of [{ initialWindowBytes: 1000 }, { maxBufferedBytes: 2 ** 31 }, { maxStreams: 0 }, { maxFrameBytes: Number.NaN }]) {
      assert.throws(() => new SpdyConnection(near, { side: 'server', onStream: () => undefined, limits }), RangeError)
    }
  })
})

describe('the end of a connection', () => {
  it('pings are answered, with an even hand', async (t) => {
    const { client, server } = await connectionPair(t, () => undefined)
    await Promise.all([client.ping(), client.ping(), server.ping()])
    const before = client.lastActivityMs
    await server.ping()
    assert.ok(client.lastActivityMs >= before)
  })

  it('close() flushes what was ended, then says so', async (t) => {
    const { connection, peer, nextStream } = await serverWithRawPeer(t)
    peer.open(1)
    peer.open(3)
    const ended = await nextStream()
    const open = await nextStream()
    const bytes = randomBytes(5_000_000)
    ended.end(bytes)
    const closing = connection.close()
    peer.open(5)
    const { status, id } = await peer.frame('goAway')
    assert.deepEqual([status, id], [GoAwayStatus.OK, 5])
    const sent = Buffer.from(peer.frames.map((frame) => (frame.type === 'data' ? frame.bytes : '')).join(''), 'latin1')
    assert.equal(sha256(sent), sha256(bytes))
    assert.equal((await peer.frame('rstStream')).status, RstStatus.REFUSED_STREAM)
    assert.equal(peer.frames.at(-1)?.type, 'goAway')
    await peer.ended
    await closing
    assert.equal(await connection.closed, undefined)
    assert.equal((await failure(open)).code, 'SPDY_CLOSED')
  })

  it('close() does not wait for ever for a peer that reads nothing', async (t) => {
    const [near, far] = await socketPair(t)
    near.pause()
    const connection = new SpdyConnection(far, { side: 'server', onStream: () => undefined })
    const raw = new RawPeer(near)
    raw.socket.pause()
    raw.open(1)
    const stream = connection.createStream({})
    stream.end(Buffer.alloc(50_000_000))
    await connection.close(50)
    assert.equal(stream.destroyed, true)
  })

  it('goAway() lets open streams end first, since Go stops reading at GOAWAY', async (t) => {
    const { connection, peer, nextStream } = await serverWithRawPeer(t)
    peer.open(1)
    const stream = await nextStream()
    connection.goAway()
    peer.open(3)
    assert.equal((await peer.frame('rstStream')).status, RstStatus.REFUSED_STREAM)
    assert.throws(() => connection.createStream({}), /going away/)
    stream.end('done')
    peer.data(1, '', true)
    assert.equal((await peer.frame('goAway')).status, GoAwayStatus.OK)
    assert.equal((await peer.frame('data', ({ id, fin }) => id === 1 && fin)).fin, true)
    assert.equal(peer.frames.at(-1)?.type, 'goAway')
  })

  it("the peer's GOAWAY lets its streams end, refuses ours that it has not seen, and ends the connection", async (t) => {
    const { connection, peer, nextStream } = await serverWithRawPeer(t)
    peer.open(1)
    const theirs = await nextStream()
    const ours = connection.createStream({})
    peer.goAway(0)
    assert.equal((await failure(ours)).status, RstStatus.REFUSED_STREAM)
    assert.throws(() => connection.createStream({}), /going away/)
    peer.data(1, 'last words', true)
    assert.equal(await text(theirs), 'last words')
    theirs.end('heard')
    await peer.frame('data', ({ id, fin }) => id === 1 && fin)
    await peer.ended
    assert.equal(await connection.closed, undefined)
  })

  it('a peer that vanishes ends its streams; what it had finished can still be read', async (t) => {
    const { connection, peer, nextStream } = await serverWithRawPeer(t)
    peer.open(1)
    peer.open(3)
    const cut = await nextStream()
    const finished = await nextStream()
    peer.data(1, 'half')
    peer.data(3, 'whole', true)
    await peer.settled()
    peer.socket.end()
    assert.equal(await connection.closed, undefined)
    assert.equal((await failure(cut)).code, 'SPDY_CLOSED')
    assert.equal(await text(finished), 'whole')
    finished.write('too late')
    assert.equal((await failure(finished)).code, 'SPDY_CLOSED')
    assert.equal(connection.bufferedBytes, 0)
  })

  it('a cut within a frame, a reset and a destroyed transport are told apart from an orderly end', async (t) => {
    const first = await serverWithRawPeer(t)
    first.peer.send(pingFrame(1).subarray(0, 9))
    first.peer.socket.end()
    assert.match((await first.connection.closed)?.message ?? '', /within a frame/)
    const second = await serverWithRawPeer(t)
    await second.peer.settled()
    second.peer.socket.resetAndDestroy()
    assert.match((await second.connection.closed)?.message ?? '', /ECONNRESET/)
    const [near, far] = await socketPair(t)
    const third = new SpdyConnection(far, { side: 'server', onStream: () => undefined })
    far.destroy()
    assert.match((await third.closed)?.message ?? '', /was closed/)
    near.destroy()
    await once(near, 'close')
    const fourth = new SpdyConnection(near, { side: 'client', onStream: () => undefined })
    assert.ok((await fourth.closed) instanceof Error)
  })

  it('destroy() gives its reason to everyone, once', async (t) => {
    const { connection, nextStream, peer } = await serverWithRawPeer(t)
    peer.open(1)
    const stream = await nextStream()
    const ping = connection.ping()
    const reason = new Error('the idle timeout has passed')
    connection.destroy(reason)
    connection.destroy(new Error('another'))
    await assert.rejects(ping, /idle timeout/)
    assert.equal(await connection.closed, reason)
    assert.match((await failure(stream)).message, /idle timeout/)
    await connection.close()
  })

  it('bytes that came with the upgrade are read first', async (t) => {
    const [near, far] = await socketPair(t)
    const ids: number[] = []
    const second = Promise.withResolvers<void>()
    const block = hex('78bbe3c6a7c2', '000400fbff00000000', '000000ffff')
    const frames = Buffer.concat([synStreamFrame(1, 0, block), synStreamFrame(3, 0, block.subarray(6))])
    const connection = new SpdyConnection(far, {
      side: 'server',
      head: frames.subarray(0, 50),
      onStream: (stream) => {
        ids.push(stream.id)
        if (stream.id === 3) second.resolve()
      },
    })
    t.after(() => connection.destroy())
    near.write(frames.subarray(50))
    await second.promise
    assert.deepEqual(ids, [1, 3])
  })
})
