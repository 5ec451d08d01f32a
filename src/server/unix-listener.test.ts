import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, existsSync, lstatSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { Code } from '../errors/cri-error.ts'
import { createMetrics } from '../observability/metrics.ts'
import { Endpoint } from './endpoint.ts'
import { unixSocketPath } from './listen-address.ts'
import { socketOwner } from './socket-owner.ts'
import { LogCapture, TestClient, fixture, tableOf, temporaryDirectory } from './fixtures.ts'
import { listenOnUnixSocket } from './unix-listener.ts'

const mode = (path: string): number => lstatSync(path).mode & 0o777
const endpointAt = (path: string): Endpoint =>
  new Endpoint({ handlers: tableOf({ Version: async () => ({}) }), gate: () => undefined, log: new LogCapture().log, metrics: createMetrics() }, { listen: `unix://${path}` })

test('the address must be an absolute unix path that the kernel can take', () => {
  assert.equal(unixSocketPath('unix:///run/x/../y.sock', '--listen'), '/run/y.sock')
  const wrong: [string, RegExp][] = [
    ['/run/x.sock', /--listen: "\/run\/x.sock" is not a unix socket address; write it as unix:\/\/\//],
    ['tcp://127.0.0.1:1', /is not a unix socket address/],
    ['unix://run/x.sock', /is not absolute/],
    ['unix://', /is not absolute/],
    ['unix:///run/', /names a directory/],
    [`unix:///${'x'.repeat(107)}`, /has 108 bytes, and the kernel allows 107/],
    [`unix:///${'ü'.repeat(54)}`, /has 109 bytes/],
  ]
  for (const [address, message] of wrong) assert.throws(() => unixSocketPath(address, '--listen'), { code: Code.INVALID_ARGUMENT, message })
  assert.equal(unixSocketPath(`unix:///${'x'.repeat(106)}`, '--listen').length, 107)
})

test('socket and directory are private from the first moment, and the socket goes on close', async () => {
  using directory = temporaryDirectory()
  const path = join(directory.path, 'a/b/cri.sock')
  const before = process.umask(0)
  try {
    const server = createServer()
    let first: number | undefined
    const listen = server.listen.bind(server)
    server.listen = ((...args: Parameters<typeof listen>) => {
      const result = listen(...args)
      first = mode(path)
      return result
    }) as typeof server.listen
    await listenOnUnixSocket(server, path)
    assert.equal(first, 0o600)
    assert.equal(mode(join(directory.path, 'a/b')), 0o700)
    assert.equal(process.umask(), 0)
    server.close()
    await once(server, 'close')
    assert.equal(existsSync(path), false)
  } finally {
    process.umask(before)
  }
})

test('a directory that is there keeps its mode', async () => {
  using directory = temporaryDirectory()
  const parent = join(directory.path, 'shared')
  mkdirSync(parent)
  chmodSync(parent, 0o755)
  const endpoint = endpointAt(join(parent, 'cri.sock'))
  await endpoint.listen()
  assert.equal(mode(parent), 0o755)
  assert.equal(mode(endpoint.path), 0o600)
  await endpoint.close({ graceMs: 0 })
  assert.deepEqual(readdirSync(parent), [])
})

test('a socket that a killed process left is replaced', async () => {
  using directory = temporaryDirectory()
  const path = join(directory.path, 'cri.sock')
  const child = spawn(process.execPath, ['-e', `require('node:net').createServer().listen(${JSON.stringify(path)}, () => console.log('up'))`], { stdio: ['ignore', 'pipe', 'inherit'] })
  await once(child.stdout, 'data')
  assert.deepEqual({ ...(await socketOwner(path)), command: '' }, { pid: child.pid, command: '' })
  const refused = endpointAt(path)
  await assert.rejects(refused.listen(), { code: Code.FAILED_PRECONDITION, message: new RegExp(`${path}: process ${child.pid} \\(.+\\) listens there already`) })
  await refused.close({ graceMs: 0 })
  child.kill('SIGKILL')
  await once(child, 'exit')
  assert.ok(existsSync(path))
  const endpoint = endpointAt(path)
  await endpoint.listen()
  using client = new TestClient(path)
  await client.call('Version')
  await endpoint.close({ graceMs: 0 })
  assert.deepEqual(readdirSync(directory.path), [])
})

test('of several endpoints on one socket exactly one listens, also after a stale one and all at once', async () => {
  using directory = temporaryDirectory()
  const path = join(directory.path, 'cri.sock')
  for (let round = 0; round < 10; round++) {
    const child = spawn(process.execPath, ['-e', `require('node:net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`], { stdio: 'ignore' })
    await once(child, 'exit')
    assert.ok(existsSync(path))
    const endpoints = Array.from({ length: 5 }, () => endpointAt(path))
    try {
      const results = await Promise.allSettled(endpoints.map((endpoint) => endpoint.listen()))
      const codes = results.map((result) => (result.status === 'fulfilled' ? 'listens' : (result.reason as { code: number }).code)).sort((a, b) => String(b).localeCompare(String(a)))
      const refused = Code.FAILED_PRECONDITION
      assert.deepEqual(codes, ['listens', refused, refused, refused, refused])
      using client = new TestClient(path)
      await client.call('Version')
    } finally {
      await Promise.all(endpoints.map((endpoint) => endpoint.close({ graceMs: 0 })))
    }
    assert.deepEqual(readdirSync(directory.path), [])
  }
})

test('a file, a directory or a link at the path is refused and left alone', async () => {
  using directory = temporaryDirectory()
  writeFileSync(join(directory.path, 'file'), 'precious')
  mkdirSync(join(directory.path, 'directory'))
  symlinkSync('/nowhere', join(directory.path, 'link'))
  for (const name of ['file', 'directory', 'link']) {
    await assert.rejects(endpointAt(join(directory.path, name)).listen(), { code: Code.FAILED_PRECONDITION, message: /is not a socket; remove it if nobody needs it/ })
  }
  await assert.rejects(endpointAt(join(directory.path, 'file/cri.sock')).listen(), { code: Code.FAILED_PRECONDITION, message: /cannot listen on .*file is not a directory/ })
  assert.deepEqual(readdirSync(directory.path), ['directory', 'file', 'link'])
})

test('close without listen, and twice, is fine', async () => {
  await using f = await fixture({})
  await Promise.all([f.endpoint.close({ graceMs: 0 }), f.endpoint.close({ graceMs: 0 })])
  using directory = temporaryDirectory()
  await endpointAt(join(directory.path, 'cri.sock')).close({ graceMs: 0 })
})
