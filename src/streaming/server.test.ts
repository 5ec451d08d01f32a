import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { TLSSocket } from 'node:tls'
import { Code, CriError } from '../errors/cri-error.ts'
import { isLoopback, urlHost } from './address.ts'
import { selfSigned } from './self-signed.ts'
import { ask, collect, openDescriptors, raw, spdyCommand, startServer, type TestServer, until, webSocketCommand } from './support.fixture.ts'

const versions = ['v4.channel.k8s.io']
const headers = { Connection: 'Upgrade', Upgrade: 'SPDY/3.1', 'X-Stream-Protocol-Version': versions }

async function statusOf(url: string, method = 'POST'): Promise<readonly [number | undefined, string]> {
  const answer = await ask(url, headers, method)
  if ('socket' in answer) {
    answer.socket.destroy()
    return [101, '']
  }
  return [answer.status, answer.body]
}

async function figure(server: TestServer, name: string, labels: Readonly<Record<string, string>>): Promise<number> {
  const metric = await server.metrics.registry.getSingleMetric(name)?.get()
  const values = metric?.values.filter((each) => Object.entries(labels).every(([key, label]) => each.labels[key] === label))
  return (values ?? []).reduce((sum, { value }) => sum + value, 0)
}

describe('tokens', () => {
  it('are good once, for their own kind of stream; what else is asked for is not there', async (t) => {
    const { exec } = startServer(t)
    const url = await exec(['true'])
    assert.match(url, /^http:\/\/127\.0\.0\.1:\d+\/exec\/[\w-]{22}$/)
    const streams = await spdyCommand(url, versions)
    assert.match(await collect(streams.error), /Success/)
    for (const method of ['POST', 'GET']) {
      const [status, body] = await statusOf(url, method)
      assert.equal(status, 404)
      assert.match(body, /not valid: it is good for one use within one minute, and was used, has expired or was never given out/)
    }
    const other = await exec(['true'])
    assert.equal((await statusOf(other.replace('/exec/', '/attach/')))[0], 404)
    assert.equal((await statusOf(other))[0], 404, 'tried as something else it is used up')
    for (const path of ['/', '/exec', '/exec/', '/exec/a/b', '/exec/..%2f', '/metrics']) {
      assert.equal((await statusOf(new URL(path, url).href))[0], 404, path)
    }
    const plain = await ask(url, {}, 'GET')
    assert.equal('status' in plain && plain.status, 404)
  })

  it('are limited in number', async (t) => {
    const { exec } = startServer(t)
    await Promise.all(Array.from({ length: 1000 }, () => exec(['true'])))
    await assert.rejects(exec(['true']), (error) => error instanceof CriError && error.code === Code.RESOURCE_EXHAUSTED)
  })
})

describe('the listener', () => {
  it('writes addresses as URLs want them', () => {
    assert.equal(urlHost('', 1), '127.0.0.1:1')
    assert.equal(urlHost('::1', 10), '[::1]:10')
    assert.equal(urlHost('::', 10), '[::1]:10')
    assert.equal(urlHost('0.0.0.0', 10), '127.0.0.1:10')
    assert.equal(urlHost('10.0.0.1', 10), '10.0.0.1:10')
    assert.deepEqual(['', 'localhost', '127.1.2.3', '::1', '::ffff:127.0.0.1'].map(isLoopback), [true, true, true, true, true])
    assert.deepEqual(['0.0.0.0', '::', '10.0.0.1', '127.example', 'fe80::1'].map(isLoopback), [false, false, false, false, false])
  })

  it('works on ::1', async (t) => {
    const { exec } = startServer(t, { address: '::1' })
    const streams = await spdyCommand(await exec(['echo', 'six']), versions)
    assert.equal(await collect(streams.stdout ?? assert.fail()), 'six\n')
  })

  it('warns of an address that others reach without TLS', async (t) => {
    assert.match(startServer(t, { address: '0.0.0.0' }).lines[0]?.msg ?? '', /served without TLS on 0\.0\.0\.0.*enable_tls_streaming/)
    assert.equal(startServer(t).lines.length, 0)
    assert.equal(startServer(t, { address: '0.0.0.0', enableTls: true }).lines.length, 0)
  })

  it('says which port is taken, and tries again at the next call', async (t) => {
    const taken = createServer().listen(0, '127.0.0.1')
    await once(taken, 'listening')
    const address = taken.address()
    assert.ok(address !== null && typeof address === 'object')
    const { server, exec } = startServer(t, { port: address.port })
    const expected = (error: unknown): boolean => error instanceof CriError && error.code === Code.UNAVAILABLE && error.message.includes(`127.0.0.1:${address.port}`) && error.message.includes('EADDRINUSE')
    await assert.rejects(server.listen(), expected)
    await assert.rejects(exec(['true']), expected)
    taken.close()
    await once(taken, 'close')
    assert.ok((await exec(['true'])).includes(`:${address.port}/`))
  })

  it('refuses what is no HTTP, and headers without end', async (t) => {
    const { exec } = startServer(t)
    const url = await exec(['true'])
    const garbage = await raw(url)
    garbage.write('\u0000\u0001 nonsense\r\n\r\n')
    assert.match(await collect(garbage), /^HTTP\/1\.1 400 /)
    const endless = await raw(url)
    endless.on('error', () => undefined)
    endless.write(`GET /exec/x HTTP/1.1\r\nHost: x\r\nX: ${'x'.repeat(40_000)}`)
    assert.match(await collect(endless), /^HTTP\/1\.1 400 |^$/)
    assert.equal((await statusOf(url))[0], 101)
  })
})

describe('TLS', () => {
  it('is served with a certificate of its own over both transports', async (t) => {
    const { exec } = startServer(t, { enableTls: true })
    const url = await exec(['cat'])
    assert.match(url, /^https:/)
    await assert.rejects(ask(url, headers), /self-signed/)
    const socket = await raw(url)
    const plain = collect(socket)
    socket.write('GET / HTTP/1.1\r\n\r\n')
    assert.doesNotMatch(await plain, /HTTP/)
  })

  it('uses the files that are given, over both transports, and follows their change', async (t) => {
    const dir = mkdtempSync(join(tmpdir(), 'cri-shim-tls-'))
    t.after(() => rmSync(dir, { recursive: true }))
    const [certFile, keyFile] = [join(dir, 'cert'), join(dir, 'key')]
    const pair = await selfSigned('streaming', ['127.0.0.1'], 1_000_000)
    writeFileSync(certFile, pair.cert)
    writeFileSync(keyFile, pair.key)
    const { exec } = startServer(t, { enableTls: true, certFile, keyFile })
    const streams = await spdyCommand(await exec(['cat']), versions, {}, pair.cert)
    assert.ok(streams.socket instanceof TLSSocket)
    streams.stdin?.end('secret')
    assert.equal(await collect(streams.stdout ?? assert.fail()), 'secret')
    const client = await webSocketCommand(await exec(['echo', 'too']), 'v5.channel.k8s.io', { ca: pair.cert })
    assert.equal((await client.channels)[1], 'too\n')
    const broken = startServer(t, { enableTls: true, certFile: join(dir, 'none'), keyFile })
    await assert.rejects(broken.exec(['true']), /key pair cannot be used/)
  })
})

describe('the end of a stream', () => {
  it('comes to the command of a client that vanishes, over both transports', async (t) => {
    const server = startServer(t)
    const streams = await spdyCommand(await server.exec(['cat']), versions)
    streams.stdin?.write('x')
    await once(streams.stdout ?? assert.fail(), 'data')
    streams.socket.destroy()
    await until(() => server.backend.aborted.length === 1, 'the abort')
    const client = await webSocketCommand(await server.exec(['cat']), 'v5.channel.k8s.io')
    client.socket.terminate()
    await until(() => server.backend.aborted.length === 2, 'the second abort')
    for (const reason of server.backend.aborted) assert.ok(reason instanceof CriError && reason.code === Code.CANCELLED && reason.reason === 'client_gone')
    await until(() => server.backend.children.size === 0, 'the processes')
    // One whose process does not read, so that the connection is not read either.
    const blocked = startServer(t, {}, { limits: { keepAliveMs: 20 } })
    for (const transport of ['spdy', 'websocket'] as const) {
      blocked.backend.aborted.length = 0
      const url = await blocked.exec(['sleep', '1000'])
      const block = Buffer.alloc(1 << 20)
      if (transport === 'spdy') {
        const { stdin, socket, stdout } = await spdyCommand(url, versions)
        stdout?.resume()
        for (let count = 0; count < 16; count++) stdin?.write(block)
        await until(() => blocked.backend.children.size === 1, 'the start')
        socket.destroy()
      } else {
        const { socket, send } = await webSocketCommand(url, 'v5.channel.k8s.io')
        for (let count = 0; count < 16; count++) send(0, block)
        await until(() => blocked.backend.children.size === 1, 'the start')
        socket.terminate()
      }
      await until(() => blocked.backend.aborted.length === 1, `the abort over ${transport}`)
      await until(() => blocked.backend.children.size === 0, 'the process')
    }
  })

  it('comes when nothing goes either way for too long, and the client learns why', async (t) => {
    const server = startServer(t, { idleTimeoutMs: 300 })
    const streams = await spdyCommand(await server.exec(['cat']), versions)
    for (let count = 0; count < 4; count++) {
      await new Promise((resolve) => setTimeout(resolve, 100))
      streams.stdin?.write('x')
    }
    assert.equal(server.backend.aborted.length, 0)
    streams.stdout?.resume()
    assert.match(await collect(streams.error), /nothing went either way for 0\.3 s.*stream_idle_timeout/)
    const [reason] = server.backend.aborted
    assert.ok(reason instanceof CriError && reason.reason === 'idle')
    const client = await webSocketCommand(await server.exec(['cat']), 'v5.channel.k8s.io')
    assert.match((await client.channels)[3] ?? '', /stream_idle_timeout/)
  })

  it('waits for output that is still under way, and not for what holds the output open', async (t) => {
    const { exec, backend } = startServer(t)
    backend.onExec = async (session, io) => backend.run(session, {
      signal: io.signal,
      stdinClosed: io.stdinClosed,
      onResize: (listener) => io.onResize(listener),
      openFifos: async (fifos) => io.openFifos(fifos),
      started: () => io.started(),
      closeStdin: () => io.closeStdin(),
      attachOutput: (port) => io.attachOutput(port),
      drained: async () => {
        const how = await io.drained(200)
        assert.equal(how, 'timeout')
        return how
      },
    })
    const streams = await spdyCommand(await exec(['sh', '-c', 'sleep 1000 2>&- & echo $!']), versions)
    const left = Number(await collect(streams.stdout ?? assert.fail()))
    assert.ok(left > 1)
    process.kill(left, 'SIGKILL')
    assert.match(await collect(streams.error), /Success/)
  })
})

describe('shutdown', () => {
  it('lets streams end within the time, refuses new ones, then ends what is left', async (t) => {
    const server = startServer(t)
    const [finishing, waiting] = [await spdyCommand(await server.exec(['cat']), versions), await spdyCommand(await server.exec(['cat']), versions)]
    const socket = await webSocketCommand(await server.exec(['cat']), 'v5.channel.k8s.io')
    await until(() => server.backend.children.size === 3, 'the start')
    const late = await server.exec(['true'])
    let closed = false
    const closing = server.server.close(1500).then(() => {
      closed = true
    })
    await assert.rejects(server.exec(['true']), (error) => error instanceof CriError && error.code === Code.UNAVAILABLE && /shutting down/.test(error.message))
    const [status, body] = await statusOf(late)
    assert.equal(status, 503)
    assert.match(body, /shutting down and opens no new streams/)
    finishing.stdin?.end('to the end')
    assert.equal(await collect(finishing.stdout ?? assert.fail()), 'to the end')
    assert.match(await collect(finishing.error), /Success/)
    assert.equal(closed, false)
    waiting.stdout?.resume()
    assert.match(await collect(waiting.error), /the service on the node is shutting down/)
    assert.match((await socket.channels)[3] ?? '', /shutting down/)
    await closing
    assert.deepEqual(server.backend.aborted.map((reason) => reason instanceof CriError && reason.code), [Code.UNAVAILABLE, Code.UNAVAILABLE])
    await assert.rejects(raw(late), /ECONNREFUSED/)
    await server.server.close(0)
  })

  it('is at once when nothing was ever started', async (t) => {
    await startServer(t).server.close(60_000)
  })
})

describe('a crash of the worker', () => {
  it('ends the streams, and the next worker takes the port and the tokens', async (t) => {
    const server = startServer(t, {}, { entry: new URL('./crashing-worker.fixture.ts', import.meta.url) })
    const running = await spdyCommand(await server.exec(['cat']), versions)
    await until(() => server.backend.children.size === 1, 'the start')
    const unused = await server.exec(['echo', 'afterwards'])
    const before = openDescriptors()
    const crash = await server.exec(['true'], { containerId: 'crash' })
    ask(crash, headers).then((answer) => 'socket' in answer && answer.socket.on('error', () => undefined), () => undefined)
    running.stdout?.resume()
    assert.match(await collect(running.error), /the streaming thread failed: deliberate fault; try again/)
    await until(() => server.lines.some(({ msg }) => msg.includes('starting a new one on the same port')), 'the restart')
    await until(() => server.lines.filter(({ msg }) => msg.includes('server listens')).length === 2, 'the new listener')
    const again = await spdyCommand(unused, versions)
    assert.equal(await collect(again.stdout ?? assert.fail()), 'afterwards\n')
    const [reason] = server.backend.aborted
    assert.ok(reason instanceof CriError && reason.code === Code.INTERNAL)
    await until(() => server.backend.children.size === 0, 'the processes')
    assert.equal(await figure(server, 'cri_shim_streaming_crashes_total', {}), 1)
    assert.equal(await figure(server, 'cri_shim_streams_total', { kind: 'exec', end: 'fault' }), 2)
    again.socket.destroy()
    await until(() => openDescriptors() <= before, 'descriptors')
  })
})

describe('many', () => {
  it('sessions at once come and go and leave nothing open', async (t) => {
    const server = startServer(t)
    await server.server.listen()
    // The first of everything, so that what is loaded late is there.
    assert.match(await collect((await spdyCommand(await server.exec(['true']), versions)).error), /Success/)
    await until(() => server.backend.children.size === 0, 'the process')
    const before = openDescriptors()
    const one = async (number: number): Promise<void> => {
      const url = await server.exec(['cat'])
      const text = `input of ${number}`
      if (number % 2 === 0) {
        const streams = await spdyCommand(url, versions)
        const error = collect(streams.error)
        streams.stdin?.end(text)
        assert.equal(await collect(streams.stdout ?? assert.fail()), text)
        assert.match(await error, /Success/)
        await streams.connection.close()
      } else {
        const client = await webSocketCommand(url, 'v5.channel.k8s.io')
        client.send(0, text)
        client.socket.send(Buffer.of(255, 0))
        const [, stdout, , error] = await client.channels
        assert.deepEqual([stdout, error], [text, '{"metadata":{},"status":"Success"}'])
      }
    }
    await Promise.all(Array.from({ length: 200 }, (_, number) => one(number)))
    await until(() => openDescriptors() <= before, 'descriptors')
    await until(async () => await figure(server, 'cri_shim_streams_running', { kind: 'exec' }) === 0, 'the last session')
    assert.equal(await figure(server, 'cri_shim_streams_total', { kind: 'exec', transport: 'websocket', end: 'success' }), 100)
    assert.ok(await figure(server, 'cri_shim_stream_bytes_total', { kind: 'exec', direction: 'in' }) >= 200 * 'input of 1'.length)
  })
})
