import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import https from 'node:https'
import type { AddressInfo, Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { BodyReader } from './body-reader.ts'
import { type CertificateFiles, makeCertificates } from './fake-registry.test-helper.ts'
import { HostFailure } from './failures.ts'
import { SocketReads } from './socket-reads.ts'

const MiB = 1024 * 1024

/** Bytes of which no two stretches are alike, so that a piece of memory that is used too early or twice is seen. */
function numbered(sizeBytes: number): Buffer {
  const words = new Uint32Array(sizeBytes / 4)
  for (let at = 0; at < words.length; at++) words[at] = Math.imul(at + 1, 2654435761)
  return Buffer.from(words.buffer)
}
const digest = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

const dir = mkdtempSync(join(tmpdir(), 'cri-shim-reads-'))
after(() => rmSync(dir, { recursive: true }))
let certificates: CertificateFiles | undefined

async function setup(protocol: 'http' | 'https', answer: (request: IncomingMessage, response: ServerResponse) => void): Promise<{ readonly get: (path?: string) => Promise<IncomingMessage>; readonly connections: () => number; [Symbol.asyncDispose](): Promise<void> }> {
  const tls = protocol === 'https' ? (certificates ??= makeCertificates(dir)) : undefined
  const server = tls === undefined ? http.createServer(answer) : https.createServer({ cert: readFileSync(tls.certFile), key: readFileSync(tls.keyFile) }, answer)
  let connections = 0
  server.on('connection', () => { connections += 1 })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const agent = tls === undefined ? new http.Agent({ keepAlive: true }) : new https.Agent({ keepAlive: true, ca: readFileSync(tls.caFile) })
  new SocketReads().through(agent)
  return {
    get: async (path = '/') => {
      const request = (tls === undefined ? http : https).get({ agent, port: (server.address() as AddressInfo).port, host: '127.0.0.1', path })
      const [response] = (await once(request, 'response')) as [IncomingMessage]
      request.on('error', () => undefined)
      return response
    },
    connections: () => connections,
    async [Symbol.asyncDispose]() {
      agent.destroy()
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}

async function read(response: IncomingMessage, each: (bytes: Buffer) => Promise<void> | void = () => undefined): Promise<Buffer> {
  const reader = new BodyReader(response, MiB, 30_000)
  const pieces: Buffer[] = []
  try {
    for (let piece = await reader.next(); piece !== undefined; piece = await reader.next()) {
      await each(piece)
      pieces.push(Buffer.from(piece))
    }
  } finally {
    reader.close()
  }
  return Buffer.concat(pieces)
}

for (const protocol of ['http', 'https'] as const) {
  for (const [what, sizeBytes, chunked] of [['small', MiB / 2, false], ['middling', 3 * MiB, false], ['large', 20 * MiB, false], ['large one of unknown length', 20 * MiB, true], ['empty', 0, false]] as const) {
    test(`${protocol}: a ${what} body arrives as it was sent, many at a time, also where the reader is slow`, async () => {
      const sent = numbered(sizeBytes)
      await using registry = await setup(protocol, (_, response) => {
        if (!chunked) response.setHeader('content-length', sent.length)
        response.end(sent)
      })
      const expected = digest(sent)
      const slow = async (): Promise<void> => { await new Promise((resolve) => { setImmediate(resolve) }) }
      const got = await Promise.all([0, 1, 2].map(async (index) => read(await registry.get(), index === 0 ? undefined : slow)))
      for (const body of got) assert.equal(digest(body), expected)
    })
  }

  test(`${protocol}: a reader that takes nothing stops the sender, whose bytes come when it goes on`, async () => {
    const sent = numbered(64 * MiB)
    const sender = Promise.withResolvers<Socket>()
    await using registry = await setup(protocol, (request, response) => {
      sender.resolve(request.socket)
      response.setHeader('content-length', sent.length)
      response.end(sent)
    })
    const response = await registry.get()
    const reader = new BodyReader(response, MiB, 30_000)
    const first = Buffer.from(await reader.next() ?? '')
    // Until the sender's side is full and stays so.
    const socket = await sender.promise
    for (let before = -1; before !== socket.bytesWritten - socket.writableLength;) {
      before = socket.bytesWritten - socket.writableLength
      for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => { setImmediate(resolve) })
    }
    assert.ok(socket.writableLength > 0, 'the sender still has bytes to send')
    const rest: Buffer[] = [first]
    for (let piece = await reader.next(); piece !== undefined; piece = await reader.next()) rest.push(Buffer.from(piece))
    reader.close()
    assert.equal(digest(Buffer.concat(rest)), digest(sent))
  })

  test(`${protocol}: what had arrived of a large body comes before the failure`, async () => {
    const sent = numbered(20 * MiB)
    await using registry = await setup(protocol, (request, response) => {
      response.setHeader('content-length', sent.length)
      response.write(sent.subarray(0, 10 * MiB), () => request.socket.end())
    })
    const pieces: Buffer[] = []
    await assert.rejects(read(await registry.get(), (piece) => void pieces.push(Buffer.from(piece))), (error) => error instanceof HostFailure || (error instanceof Error && 'code' in error && error.code === 'ECONNRESET'))
    assert.equal(digest(Buffer.concat(pieces)), digest(sent.subarray(0, 10 * MiB)))
  })

  test(`${protocol}: a connection is used again after a small body, and not after a large one`, async () => {
    // Over TLS a new connection costs more: what is small is larger.
    const [small, large] = [numbered(protocol === 'https' ? 3 * MiB : MiB / 2), numbered(9 * MiB)]
    await using registry = await setup(protocol, (request, response) => {
      const body = request.url === '/large' ? large : small
      response.setHeader('content-length', body.length)
      response.end(body)
    })
    for (const path of ['/small', '/small', '/large', '/small']) {
      const response = await registry.get(path)
      const closed = once(response, 'close')
      assert.equal(digest(await read(response)), digest(path === '/large' ? large : small), path)
      await closed
    }
    assert.equal(registry.connections(), 2)
  })
}
