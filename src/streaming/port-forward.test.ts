import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type Server, type Socket } from 'node:net'
import { Duplex } from 'node:stream'
import { it, type TestContext } from 'node:test'
import { WebSocket } from 'ws'
import { Linux } from '../linux/linux.ts'
import type { StreamingLimits } from './protocol.ts'
import { SpdyConnection } from './spdy/connection.ts'
import type { SpdyStream } from './spdy/stream.ts'
import { ask, collect, openDescriptors, spdy, startServer, type TestServer, until, webSocketCommand } from './support.fixture.ts'

const version = ['portforward.k8s.io']

/** A server that connects for real, and servers to connect to. */
async function forwarding(t: TestContext, limits: Partial<StreamingLimits> = {}): Promise<TestServer & { readonly listen: (onSocket: (socket: Socket) => void) => Promise<number> }> {
  const server = startServer(t, {}, { limits })
  const linux = await Linux.start({ log: { warn: () => undefined, info: () => undefined }, workers: 1 })
  t.after(() => linux.close())
  server.backend.onConnect = async (port, signal) => linux.connectLoopback(undefined, port, { signal })
  const listen = async (onSocket: (socket: Socket) => void): Promise<number> => {
    const listener: Server = createServer({ allowHalfOpen: true }, onSocket).listen(0, '127.0.0.1')
    t.after(() => listener.close())
    await once(listener, 'listening')
    const address = listener.address()
    assert.ok(address !== null && typeof address === 'object')
    return address.port
  }
  return { ...server, listen }
}

let requests = 0

/** Opens a pair of streams as client-go does. */
function forward(connection: SpdyConnection, port: number, requestId: string | undefined = String(++requests)): { readonly data: SpdyStream; readonly error: SpdyStream } {
  const headers = { port: String(port), ...(requestId === '' ? {} : { requestid: requestId }) }
  const error = connection.createStream({ ...headers, streamtype: 'error' })
  error.end()
  return { error, data: connection.createStream({ ...headers, streamtype: 'data' }) }
}

/** Answers only after the client's end of file: a half-close has to go through. */
const answer = (socket: Socket): void => {
  const pieces: Buffer[] = []
  socket.on('data', (piece: Buffer) => pieces.push(piece))
  socket.on('end', () => socket.end(`got ${Buffer.concat(pieces).toString()}`))
}

/** The tunnel's client side, which no WebSocket library opens: its name is no HTTP token. */
async function tunnel(url: string, protocol: string): Promise<{ readonly connection: SpdyConnection; readonly closeCode: Promise<number> }> {
  const headers = { Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Version': '13', 'Sec-WebSocket-Key': 'dGhlIHNhbXBsZSBub25jZQ==', 'Sec-WebSocket-Protocol': protocol }
  const upgraded = await ask(url, headers, 'GET')
  if (!('socket' in upgraded)) throw new Error(`${upgraded.status}: ${upgraded.body}`)
  assert.equal(upgraded.response.headers['sec-websocket-protocol'], protocol)
  const socket = new WebSocket(null as never, undefined, { closeTimeout: 30_000 } as object) as WebSocket & { setSocket: (socket: Duplex, head: Buffer, options: object) => void, _isServer: boolean }
  socket._isServer = false
  socket.setSocket(upgraded.socket, upgraded.head, { maxPayload: 1 << 24, allowSynchronousEvents: true })
  const bytes = new Duplex({
    read: () => undefined,
    write: (piece: Buffer, _, done) => socket.send(piece, { binary: true }, done),
    final: (done) => {
      socket.close(1000)
      done()
    },
  })
  socket.on('message', (data: Buffer) => bytes.push(data))
  const closeCode = Promise.withResolvers<number>()
  socket.on('close', (code) => {
    closeCode.resolve(code)
    bytes.push(null)
    bytes.destroy()
  })
  return { connection: new SpdyConnection(bytes, { side: 'client', onStream: (stream) => stream.reset() }), closeCode: closeCode.promise }
}

it('forwards many connections at once over SPDY and over the tunnel, both ways, with half-close', async (t) => {
  const server = await forwarding(t)
  const port = await server.listen(answer)
  await server.server.listen()
  const before = openDescriptors()
  const connections = [
    await spdy(await server.portForward(), version),
    await tunnel(await server.portForward(port), 'SPDY/3.1+portforward.k8s.io'),
    await tunnel(await server.portForward(), 'v2.portforward.k8s.io'),
  ]
  for (const client of connections) {
    const { connection } = client
    await Promise.all(Array.from({ length: 50 }, async (_, number) => {
      const { data, error } = forward(connection, port)
      data.end(`request ${number}`)
      assert.deepEqual(await Promise.all([collect(data), collect(error)]), [`got request ${number}`, ''])
    }))
    await connection.close()
    if ('closeCode' in client) assert.equal(await client.closeCode, 1000)
  }
  await until(() => openDescriptors() <= before, 'descriptors')
  const made = await server.metrics.registry.getSingleMetric('cri_shim_port_forward_connections_total')?.get()
  assert.equal(made?.values[0]?.value, 150)
})

it('carries 32 MiB both ways unchanged', async (t) => {
  const server = await forwarding(t)
  const port = await server.listen((socket) => socket.pipe(socket))
  const { connection } = await spdy(await server.portForward(), version)
  const { data } = forward(connection, port)
  const [sent, received] = [createHash('sha256'), createHash('sha256')]
  data.on('data', (piece: Buffer) => received.update(piece))
  for (let count = 0; count < 32; count++) {
    const block = randomBytes(1 << 20)
    sent.update(block)
    if (!data.write(block)) await once(data, 'drain')
  }
  data.end()
  await once(data, 'end')
  assert.equal(received.digest('hex'), sent.digest('hex'))
  await connection.close()
})

it('fails one connection, not the others, with the words of the Go server', async (t) => {
  const server = await forwarding(t)
  const port = await server.listen(answer)
  const closed = await server.listen(() => undefined)
  const { connection } = await spdy(await server.portForward(), version)
  const good = forward(connection, port)
  // Nothing listens on port 1 of a test machine.
  const refused = forward(connection, 1)
  assert.match(await collect(refused.error), /^error forwarding port 1 to pod pod, uid : .*127\.0\.0\.1.*::1/)
  const { port: badPort, ...rest } = { port: '70000', streamtype: 'data', requestid: 'x' }
  for (const bad of [{ ...rest, port: badPort }, rest, { ...rest, port: '80', streamtype: 'other' }, { ...rest, port: '0' }]) {
    await collect(connection.createStream(bad))
  }
  // A client without request ids, and one that gives a connection up.
  const old = forward(connection, port, '')
  old.data.end('from long ago')
  assert.equal(await collect(old.data), 'got from long ago')
  const dropped = forward(connection, closed)
  dropped.data.write('x')
  dropped.data.reset()
  await collect(dropped.error)
  good.data.end('still there')
  assert.equal(await collect(good.data), 'got still there')
  await connection.close()
})

it('does not wait for ever for the second stream of a pair', async (t) => {
  const server = await forwarding(t, { streamCreationMs: 50 })
  const { connection } = await spdy(await server.portForward(), version)
  const alone = ['error', 'data'].map(async (streamtype) => collect(connection.createStream({ port: '80', streamtype, requestid: `alone ${streamtype}` })))
  assert.deepEqual(await Promise.all(alone), ['request alone error timed out waiting for streams', ''])
  await connection.close()
})

it('ends what it forwards when the client is gone', async (t) => {
  const server = await forwarding(t)
  const sockets: Socket[] = []
  const port = await server.listen((socket) => {
    socket.on('error', () => undefined)
    sockets.push(socket.resume())
  })
  const { connection, socket } = await spdy(await server.portForward(), version)
  for (let count = 0; count < 10; count++) forward(connection, port).data.write('x')
  await until(() => sockets.length === 10, 'the connections')
  const ends = sockets.map((each) => once(each, 'close'))
  for (const each of sockets) each.on('end', () => each.end())
  socket.destroy()
  await Promise.all(ends)
  await until(async () => (await server.metrics.registry.getSingleMetric('cri_shim_streams_running')?.get())?.values.every(({ value }) => value === 0) === true, 'the end')
})

it('serves the first WebSocket protocols, a pair of channels for each port', async (t) => {
  const server = await forwarding(t)
  const greet = (socket: Socket): void => {
    socket.once('data', (data: Buffer) => socket.end(`hello ${data.toString()}`))
  }
  const [one, two] = [await server.listen(greet), await server.listen(greet)]
  const named = (port: number): string => Buffer.from([port & 0xff, port >> 8]).toString()
  for (const protocol of ['v4.channel.k8s.io', 'v4.base64.channel.k8s.io', 'channel.k8s.io', undefined]) {
    const byCall = protocol !== 'v4.base64.channel.k8s.io'
    const url = byCall ? await server.portForward(one, two, 1) : `${await server.portForward()}?port=${one}&port=${two},1`
    const client = await webSocketCommand(url, protocol)
    client.send(0, 'one')
    client.send(2, 'two')
    const channels = await client.channels
    assert.deepEqual(channels.slice(0, 5), [`${named(one)}hello one`, named(one), `${named(two)}hello two`, named(two), named(1)], protocol ?? 'unnamed')
    assert.equal(channels[5]?.replace(/, uid.*/s, ''), `${named(1)}error forwarding port 1 to pod pod`)
  }
  const headers = { Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Version': '13', 'Sec-WebSocket-Key': 'dGhlIHNhbXBsZSBub25jZQ==' }
  for (const query of ['', '?port=', '?port=0', '?port=80,x', '?port=70000', `?port=${Array(200).fill(80).join(',')}`]) {
    const refused = await ask(`${await server.portForward()}${query}`, headers, 'GET')
    assert.equal('status' in refused && refused.status, 400, query)
  }
})
