import { Client, Metadata, credentials } from '@grpc/grpc-js'
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type ClientHttp2Session, connect } from 'node:http2'
import { type Socket, connect as connectSocket } from 'node:net'
import { test } from 'node:test'
import { criProtos, serviceDefinition } from '../generated/protos.ts'
import { fixture } from './fixtures.ts'

const version = { version: '0.1.0', runtime_name: 'containerd', runtime_version: '2.1.0', runtime_api_version: 'v1' }
const service = serviceDefinition(criProtos(), 'runtime.v1.RuntimeService')

// What kubelets up to 1.28 send.
for (const authority of ['/run/cri-shim/cri-shim.sock', '/run/with a space/cri.sock', '%2Frun%2Fcri-shim.sock', 'localhost', '/']) {
  test(`a client whose authority is ${authority} is served, also when its headers are no longer in the table`, async () => {
    await using f = await fixture({ Version: async () => version, ListContainers: async () => ({ containers: [{ id: 'x'.repeat(300_000) }] }), ExecSync: async (_ctx, request) => ({ stdout: Buffer.from(request.container_id) }) })
    using client = clientOf(f.endpoint.path, authority)
    for (let i = 0; i < 100; i++) {
      const metadata = new Metadata()
      metadata.set(`x-${i}`, String(i).repeat(200))
      assert.deepEqual(await client.call('Version', {}, metadata), version)
    }
    const large = 'y'.repeat(1_000_000)
    assert.equal((await client.call('ExecSync', { container_id: large }) as { stdout: Buffer }).stdout.toString(), large)
    assert.equal((await client.call('ListContainers', {}) as { containers: readonly { id: string }[] }).containers[0]?.id.length, 300_000)
    await Promise.all(Array.from({ length: 50 }, async () => client.call('Version', {})))
  })
}

function clientOf(path: string, authority: string): Disposable & { call(method: string, request: object, metadata?: Metadata): Promise<unknown> } {
  const client = new Client(`unix://${path}`, credentials.createInsecure(), { 'grpc.default_authority': authority })
  return {
    call: (method, request, metadata = new Metadata()) => new Promise((resolve, reject) => {
      const rpc = service[method]
      if (rpc === undefined) throw new TypeError(method)
      client.makeUnaryRequest(rpc.path, rpc.requestSerialize, rpc.responseDeserialize, request, metadata, (error, answer) => error === null ? resolve(answer) : reject(error))
    }),
    [Symbol.dispose]: () => client.close(),
  }
}

test('headers that go on in a second frame, with padding and a priority, are mended too', async () => {
  await using f = await fixture({ Version: async () => version })
  const socket = connectSocket(f.endpoint.path)
  const frames = framesOf(socket)
  const literal = (name: number | string, value: string): Buffer => Buffer.concat([typeof name === 'number' ? Buffer.from([name]) : text(name), text(value)])
  const text = (value: string): Buffer => Buffer.concat([Buffer.from([value.length]), Buffer.from(value)])
  const block = Buffer.concat([
    Buffer.from([0x3f, 0xe1, 0x1f]), // the size of the table: 4096
    Buffer.from([0x83, 0x86]), // POST, http
    literal(0x44, '/runtime.v1.RuntimeService/Version'), literal(0x41, '/run/"cri".sock'), literal(0x0f, '').subarray(0, 1), Buffer.from([0x10]), text('application/grpc'), // content-type is 31
    Buffer.from([0x10]), literal('te', 'trailers'),
  ])
  const [one, two] = [block.subarray(0, 45), block.subarray(45)]
  socket.write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')
  socket.write(frame(4, 0, 0))
  // As grpc-go does: no call before the server has said its settings.
  assert.deepEqual(await frames.next(4, 0), Buffer.alloc(0))
  socket.write(Buffer.concat([frame(6, 0, 0, Buffer.from('12345678')), frame(4, 1, 0)]))
  assert.equal((await frames.next(6, 1)).toString(), '12345678')
  const padded = Buffer.concat([Buffer.from([3]), Buffer.from([0, 0, 0, 0, 15]), one, Buffer.alloc(3)])
  const all = Buffer.concat([frame(1, 0x28, 1, padded), frame(9, 4, 1, two), frame(0, 1, 1, Buffer.alloc(5))])
  for (const byte of all) socket.write(Buffer.from([byte]))
  assert.match((await frames.next(0, 0)).toString(), /containerd/)
  // Nothing that was not asked for: the server would end a connection that acknowledges settings it never sent.
  socket.write(Buffer.concat([frame(4, 1, 0), frame(6, 0, 0, Buffer.from('87654321'))]))
  assert.equal((await frames.next(6, 1)).toString(), '87654321')
  socket.destroy()
})

test('a client that acknowledges late is served', async () => {
  await using f = await fixture({ Version: async () => version })
  const session: ClientHttp2Session = connect('http://localhost', { createConnection: () => connectSocket(f.endpoint.path) })
  const call = session.request({ ':method': 'POST', ':path': '/runtime.v1.RuntimeService/Version', ':authority': '/a/b', 'content-type': 'application/grpc', te: 'trailers' })
  call.end(Buffer.alloc(5))
  const trailers = once(call, 'trailers') as Promise<[Record<string, string>]>
  call.resume()
  assert.equal((await trailers)[0]['grpc-status'], '0')
  session.close()
})

function frame(type: number, flags: number, streamId: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(9)
  head.writeUIntBE(payload.length, 0, 3)
  head.set([type, flags], 3)
  head.writeUInt32BE(streamId, 5)
  return Buffer.concat([head, payload])
}

/** Reads frames and gives out the payload of the next one of a type with these flags. */
function framesOf(socket: Socket): { next(type: number, flags: number): Promise<Buffer> } {
  let bytes = Buffer.alloc(0)
  let more = Promise.withResolvers<void>()
  socket.on('data', (chunk: Buffer) => {
    bytes = Buffer.concat([bytes, chunk])
    more.resolve()
    more = Promise.withResolvers()
  })
  socket.on('close', () => {
    more.promise.catch(() => undefined) // nobody may wait
    more.reject(new Error('the connection was closed'))
  })
  return {
    next: async (type, flags) => {
      for (;;) {
        const end = bytes.length < 9 ? Infinity : 9 + bytes.readUIntBE(0, 3)
        if (end > bytes.length) {
          await more.promise
          continue
        }
        const [head, payload] = [bytes.subarray(0, 9), bytes.subarray(9, end)]
        bytes = bytes.subarray(end)
        if (head[3] === type && head[4] === flags) return Buffer.from(payload)
      }
    },
  }
}
