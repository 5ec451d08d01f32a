import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { describe, it } from 'node:test'
import { ask, collect, type CommandStreams, spdy, spdyCommand, startServer, until, webSocketCommand } from './support.fixture.ts'

const spdyVersions = ['v4.channel.k8s.io', 'v3.channel.k8s.io', 'v2.channel.k8s.io', 'channel.k8s.io']
const socketVersions = ['v5.channel.k8s.io', 'v4.channel.k8s.io', 'v4.base64.channel.k8s.io', 'channel.k8s.io', 'base64.channel.k8s.io']

/** What the streams bring until their end. */
async function outcome(streams: CommandStreams): Promise<{ readonly stdout: string; readonly stderr: string; readonly error: string }> {
  const [stdout, stderr, error] = await Promise.all([streams.stdout, streams.stderr, streams.error].map(async (stream) => stream === undefined ? '' : collect(stream)))
  await streams.connection.close()
  return { stdout: stdout ?? '', stderr: stderr ?? '', error: error ?? '' }
}

const causes = (status: string): string => (JSON.parse(status) as { details: { causes: { message: string }[] } }).details.causes.map(({ message }) => message).join()

describe('over SPDY', () => {
  it('speaks every version, with input, its end, two outputs and the exit code', async (t) => {
    const { exec } = startServer(t)
    for (const version of [...spdyVersions, undefined]) {
      const streams = await spdyCommand(await exec(['sh', '-c', 'cat; echo wrong >&2; exit 7']), version === undefined ? undefined : ['v9.channel.k8s.io', version])
      assert.equal(streams.version, version)
      streams.stdin?.end('some input')
      const { stdout, stderr, error } = await outcome(streams)
      assert.deepEqual([stdout, stderr], ['some input', 'wrong\n'], `version ${version}`)
      if (version === 'v4.channel.k8s.io') assert.equal(causes(error), '7')
      else assert.match(error, /^command terminated with non-zero exit code: .*\[sh -c cat; echo wrong >&2; exit 7\], exit code 7$/)
    }
    const success = await spdyCommand(await exec(['true']), ['v4.channel.k8s.io'])
    assert.deepEqual(JSON.parse((await outcome(success)).error), { metadata: {}, status: 'Success' })
    const old = await spdyCommand(await exec(['true']), ['v3.channel.k8s.io'])
    assert.equal((await outcome(old)).error, '')
  })

  it('sends nothing of a failure to begin but the error', async (t) => {
    const { exec, backend } = startServer(t)
    backend.onExec = async () => ({ error: 'there is no such command' })
    const streams = await spdyCommand(await exec(['nothing']), spdyVersions)
    const { error, stdout } = await outcome(streams)
    assert.equal(stdout, '')
    assert.equal((JSON.parse(error) as { message: string }).message, 'Internal error occurred: error executing command in container: there is no such command')
    backend.onExec = () => Promise.reject(new TypeError('a bug'))
    assert.match((await outcome(await spdyCommand(await exec(['nothing']), ['v2.channel.k8s.io']))).error, /a bug/)
  })

  it('has a resize stream with a terminal, from the first size on, and no stderr', async (t) => {
    const { exec, backend } = startServer(t)
    const streams = await spdyCommand(await exec(['cat'], { tty: true }), spdyVersions, { stderr: false, resize: true })
    streams.resize?.write('{"Width":80,"Height":24}\n')
    await until(() => backend.sizes.length > 0, 'the first size')
    streams.resize?.write('{"Width":100,"Height":3')
    streams.resize?.write('0}\n')
    await until(() => backend.sizes.length > 1, 'the second size')
    assert.deepEqual(backend.sizes, [{ width: 80, height: 24 }, { width: 100, height: 30 }])
    streams.stdin?.end('typed')
    assert.equal((await outcome(streams)).stdout, 'typed')
    const old = await spdyCommand(await exec(['echo', 'merged'], { tty: true }), ['v2.channel.k8s.io'], { stderr: false })
    assert.equal((await outcome(old)).stdout, 'merged\n')
  })

  it('drops what a command does not read and still tells how it ended', async (t) => {
    const { exec } = startServer(t)
    const streams = await spdyCommand(await exec(['sh', '-c', 'head -c 5; exec <&-; echo done >&2; exit 3']), spdyVersions)
    streams.stdin?.on('error', () => undefined)
    const block = Buffer.alloc(64 * 1024, 'x')
    const { stdin } = streams
    const feed = (): void => {
      for (;;) if (stdin?.writable !== true || !stdin.write(block)) return
    }
    stdin?.on('drain', feed)
    feed()
    const { stdout, stderr, error } = await outcome(streams)
    assert.deepEqual([stdout, stderr, causes(error)], ['xxxxx', 'done\n', '3'])
  })

  it('brings 32 MiB there and back unchanged', async (t) => {
    const { exec } = startServer(t)
    const streams = await spdyCommand(await exec(['cat']), spdyVersions, { stderr: true })
    const [sent, received] = [createHash('sha256'), createHash('sha256')]
    let bytes = 0
    streams.stdout?.on('data', (piece: Buffer) => {
      bytes += piece.length
      received.update(piece)
    })
    for (let count = 0; count < 32; count++) {
      const block = randomBytes(1 << 20)
      sent.update(block)
      if (streams.stdin?.write(block) === false) await once(streams.stdin, 'drain')
    }
    streams.stdin?.end()
    const status = await collect(streams.error)
    assert.equal(bytes, 32 << 20)
    assert.equal(received.digest('hex'), sent.digest('hex'))
    assert.match(status, /Success/)
    await streams.connection.close()
  })

  it('refuses as the Go server does what it cannot negotiate', async (t) => {
    const { exec } = startServer(t)
    const headers = { Connection: 'Upgrade', Upgrade: 'SPDY/3.1' }
    const unknown = await ask(await exec(['true']), { ...headers, 'X-Stream-Protocol-Version': 'v9.channel.k8s.io' })
    assert.ok('status' in unknown)
    assert.equal(unknown.status, 403)
    assert.equal(unknown.headers['x-accepted-stream-protocol-versions'], spdyVersions.join(', '))
    assert.match(unknown.body, /unable to negotiate protocol: client supports \[v9\.channel\.k8s\.io\]/)
    for (const [upgrade, method, status] of [['h2c', 'POST', 400], ['SPDY/3.1', 'PUT', 405]] as const) {
      const refused = await ask(await exec(['true']), { Connection: 'Upgrade', Upgrade: upgrade, 'X-Stream-Protocol-Version': spdyVersions }, method)
      assert.equal('status' in refused && refused.status, status, upgrade)
    }
    const plain = await ask(await exec(['true']), {}, 'GET')
    assert.ok('status' in plain)
    assert.deepEqual([plain.status, /unable to upgrade/.test(plain.body)], [400, true])
  })

  it('gives up a client that does not open its streams, and says so', async (t) => {
    const { exec, backend } = startServer(t, {}, { limits: { streamCreationMs: 50 } })
    backend.onExec = async () => assert.fail('it must not run')
    const { connection } = await spdy(await exec(['true']), spdyVersions)
    const error = connection.createStream({ streamtype: 'error' })
    assert.match(await collect(error), /not opened its streams within 0\.05 s: missing stdin, stdout, stderr/)
    await connection.closed
  })
})

describe('over WebSocket', () => {
  it('speaks every version, binary and base64, with the exit code', async (t) => {
    const { exec } = startServer(t)
    for (const version of [...socketVersions, undefined]) {
      const client = await webSocketCommand(await exec(['sh', '-c', 'read line; echo "got $line"; echo wrong >&2; exit 7']), version)
      client.send(0, 'a li')
      client.send(0, 'ne\n')
      assert.equal(await client.first, 1, 'it says that it is connected')
      const [, stdout, stderr, error] = await client.channels
      assert.deepEqual([stdout, stderr], ['got a line\n', 'wrong\n'], `version ${version}`)
      if (version !== undefined && /^v[45]/.test(version)) assert.equal(causes(error ?? ''), '7')
      else assert.match(error ?? '', /^command terminated with non-zero exit code: .*exit code 7$/)
      assert.equal(await client.closeCode, 1000)
    }
    const success = await webSocketCommand(await exec(['true']), 'v5.channel.k8s.io')
    assert.equal((await success.channels)[3], '{"metadata":{},"status":"Success"}')
  })

  it('ends the input in version 5, which others cannot', async (t) => {
    const { exec } = startServer(t)
    const client = await webSocketCommand(await exec(['cat']), 'v5.channel.k8s.io')
    client.send(0, 'everything')
    client.socket.send(Buffer.of(255, 0))
    // Again, and after it: both mean nothing.
    client.socket.send(Buffer.of(255, 0))
    client.send(0, 'late')
    const [, stdout, , error] = await client.channels
    assert.deepEqual([stdout, error], ['everything', '{"metadata":{},"status":"Success"}'])
    const wrong = await webSocketCommand(await exec(['cat']), 'v5.channel.k8s.io')
    wrong.socket.send(Buffer.of(255, 9))
    assert.equal(await wrong.closeCode, 1002)
    const older = await webSocketCommand(await exec(['head', '-c', '4']), 'v4.channel.k8s.io')
    older.socket.send(Buffer.of(255, 0))
    older.send(9, 'nobody is there')
    older.send(0, 'four')
    assert.equal((await older.channels)[1], 'four')
  })

  it('resizes', async (t) => {
    const { exec, backend } = startServer(t)
    const client = await webSocketCommand(await exec(['cat'], { tty: true }), 'v5.channel.k8s.io')
    client.send(4, '{"Width":120,"Height":40}')
    await until(() => backend.sizes.length > 0, 'the size')
    assert.deepEqual(backend.sizes, [{ width: 120, height: 40 }])
    client.socket.send(Buffer.of(255, 0))
    await client.channels
  })

  it('brings 16 MiB there and back unchanged, and holds a client up whose process does not read', async (t) => {
    const { exec } = startServer(t, {}, { limits: { keepAliveMs: 20 } })
    const client = await webSocketCommand(await exec(['sh', '-c', 'read go; cat']), 'v5.channel.k8s.io')
    const hash = createHash('sha256')
    client.send(0, 'go\n')
    for (let count = 0; count < 64; count++) {
      const block = randomBytes(256 * 1024)
      hash.update(block)
      client.send(0, block)
    }
    client.socket.send(Buffer.of(255, 0))
    const received = createHash('sha256')
    client.socket.on('message', (data: Buffer) => {
      if (data[0] === 1) received.update(data.subarray(1))
    })
    assert.match((await client.channels)[3] ?? '', /Success/)
    assert.equal(received.digest('hex'), hash.digest('hex'))

    const blocked = await webSocketCommand(await exec(['sleep', '1000']), 'v5.channel.k8s.io')
    const pongs = once(blocked.socket, 'pong')
    const block = Buffer.alloc(1 << 20)
    for (let count = 0; count < 16; count++) blocked.send(0, block)
    await pongs
    assert.ok(blocked.socket.bufferedAmount > 0, 'the server reads no further')
    blocked.socket.terminate()
  })

  it('refuses what it does not know, and what is no handshake', async (t) => {
    const { exec } = startServer(t)
    const headers = { Connection: 'keep-alive, Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Version': '13', 'Sec-WebSocket-Key': 'dGhlIHNhbXBsZSBub25jZQ==' }
    const unknown = await ask(await exec(['true']), { ...headers, 'Sec-WebSocket-Protocol': 'v9.channel.k8s.io' }, 'GET')
    assert.ok('status' in unknown)
    assert.equal(unknown.status, 403)
    assert.match(unknown.body, /requested protocol\(s\) are not supported: \[v9\.channel\.k8s\.io\]; supports \[channel\.k8s\.io .*v5\.channel\.k8s\.io\]/)
    const post = await ask(await exec(['true']), headers, 'POST')
    assert.equal('status' in post && post.status, 405)
    const keyless = await ask(await exec(['true']), { ...headers, 'Sec-WebSocket-Key': 'x' }, 'GET')
    assert.equal('status' in keyless && keyless.status, 400)
  })
})
