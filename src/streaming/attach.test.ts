import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createReadStream } from 'node:fs'
import { it } from 'node:test'
import { MessageChannel, type MessagePort } from 'node:worker_threads'
import { collect, spdyCommand, startServer, until, webSocketCommand } from './support.fixture.ts'
import type { AttachOutputAck, AttachOutputMessage, StreamIo, StreamResult } from './types.ts'

const versions = ['v4.channel.k8s.io']

/** An attach whose output the test makes: the other end of the port, and the end of it. */
function attachable(): { readonly ports: MessagePort[]; readonly acked: number[]; readonly ios: StreamIo[]; readonly run: (_: unknown, io: StreamIo) => Promise<StreamResult>; readonly over: PromiseWithResolvers<void> } {
  const [ports, acked, ios]: [MessagePort[], number[], StreamIo[]] = [[], [], []]
  const over = Promise.withResolvers<void>()
  return {
    ports, acked, ios, over,
    run: async (_, io) => {
      const { port1, port2 } = new MessageChannel()
      const index = ports.push(port1) - 1
      ios.push(io)
      acked[index] = 0
      port1.on('message', (message: AttachOutputAck) => {
        acked[index] = (acked[index] ?? 0) + message.acked
      })
      io.attachOutput(port2)
      const gone = Promise.withResolvers<void>()
      io.signal.addEventListener('abort', () => gone.resolve(), { once: true })
      await Promise.race([over.promise, gone.promise])
      if (!io.signal.aborted) await io.drained(10_000)
      return { exitCode: 0 }
    },
  }
}

const say = (port: MessagePort | undefined, message: AttachOutputMessage): void => port?.postMessage(message)
const output = (stream: 1 | 2, text: string): AttachOutputMessage => ({ stream, bytes: new TextEncoder().encode(text) })

it('brings output from another thread to several clients, acknowledges it, and says what was left out', async (t) => {
  const server = startServer(t)
  const made = attachable()
  server.backend.onAttach = made.run
  const streams = await spdyCommand(await server.attach({ stdin: false }), versions, { stdin: false })
  await until(() => made.ports.length === 1, 'the first client')
  const client = await webSocketCommand(await server.attach({ stdin: false, stderr: false }), 'v5.channel.k8s.io')
  await until(() => made.ports.length === 2, 'the second client')
  const [stdout, stderr, error] = [streams.stdout, streams.stderr, streams.error].map((stream) => collect(stream ?? assert.fail()))
  for (const port of made.ports) {
    say(port, output(1, 'out'))
    say(port, output(2, 'err'))
    say(port, { skipped: 12_345 })
  }
  await until(() => made.acked.every((bytes) => bytes === 6), 'the acknowledgements')
  for (const port of made.ports) say(port, { end: true })
  made.over.resolve()
  assert.equal(await stdout, 'out')
  assert.match(await stderr ?? '', /^err\r\n\[12345 bytes of output were left out .*\]\r\n$/)
  assert.match(await error ?? '', /Success/)
  const channels = await client.channels
  assert.match(channels[1] ?? '', /^out\r\n\[12345 bytes of output were left out/)
  assert.equal(channels[2], '')
  for (const port of made.ports) port.close()
})

it('acknowledges to a slow client only what its connection has taken', async (t) => {
  const server = startServer(t)
  const made = attachable()
  server.backend.onAttach = made.run
  const streams = await spdyCommand(await server.attach({ stdin: false }), versions, { stdin: false })
  await until(() => made.ports.length === 1, 'the client')
  // Nobody reads stdout on the client's side: its window fills up.
  const [piece, pieces] = [new Uint8Array(256 * 1024), 64]
  for (let count = 0; count < pieces; count++) say(made.ports[0], { stream: 1, bytes: piece })
  await until(() => (made.acked[0] ?? 0) > 0, 'the first acknowledgement')
  assert.ok((made.acked[0] ?? 0) < pieces * piece.length)
  let bytes = 0
  streams.stdout?.on('data', (data: Buffer) => {
    bytes += data.length
  })
  await until(() => bytes === pieces * piece.length, 'everything')
  await until(() => made.acked[0] === bytes, 'the last acknowledgement')
  made.ports[0]?.close()
  made.over.resolve()
  await once(streams.stdout ?? assert.fail(), 'end')
})

it('closes the port when the client detaches, and input goes to a FIFO until the client or the backend ends it', async (t) => {
  const server = startServer(t)
  const made = attachable()
  const inputs: Promise<string>[] = []
  let closed = 0
  server.backend.onAttach = async (session, io) => {
    const stdin = server.backend.fifo('in')
    await io.openFifos({ stdin })
    // Opened before the stand-in for the container's process is given up.
    const reader = createReadStream(stdin)
    await once(reader, 'open')
    inputs.push(collect(reader))
    io.started()
    void io.stdinClosed.then(() => {
      closed++
    })
    return made.run(session, io)
  }
  const streams = await spdyCommand(await server.attach(), versions)
  streams.stdin?.write('to the ')
  await until(() => inputs.length === 1, 'the start')
  streams.stdin?.end('container')
  assert.equal(await inputs[0], 'to the container')
  await until(() => closed === 1, 'the end of the input')
  await until(() => made.ports.length === 1, 'the output')
  const detached = once(made.ports[0] ?? assert.fail(), 'close')
  streams.socket.destroy()
  await detached
  const other = await webSocketCommand(await server.attach(), 'v5.channel.k8s.io')
  await until(() => made.ports.length === 2, 'the second client')
  made.ios[1]?.closeStdin()
  assert.equal(await inputs[1], '')
  other.send(0, 'nobody reads it')
  other.socket.terminate()
  await until(() => made.ios.every((io) => io.signal.aborted), 'the end')
  assert.equal(closed, 1, 'a client that is merely gone has not closed its input')
  for (const port of made.ports) port.close()
})
