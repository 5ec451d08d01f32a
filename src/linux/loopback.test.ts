import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, readdirSync, readlinkSync, writeFileSync } from 'node:fs'
import { createServer, Socket } from 'node:net'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { failing, fixture } from './testing/fixture.ts'

const openFds = (): number => readdirSync('/proc/self/fd').length

/** Speaks first, then sends back what it gets and closes its half after the client's. */
const echo = `const server = require('node:net').createServer({ allowHalfOpen: true }, (socket) => { socket.write('hello '); socket.pipe(socket) })`

/** A program in a network namespace; resolves with what it prints first. */
async function inside(t: TestContext, netns: string, script: string): Promise<string> {
  const child = spawn('nsenter', [`--net=${netns}`, process.execPath, '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.after(() => child.kill('SIGKILL'))
  const [line] = await once(child.stdout, 'data') as [Buffer]
  return String(line).trim()
}

/** Wraps a descriptor as its owner does: writes, closes its half, reads to the end. */
async function conversation(fd: number, text: string): Promise<string> {
  const socket = new Socket({ fd, allowHalfOpen: true })
  const pieces: Buffer[] = []
  socket.on('data', (piece: Buffer) => pieces.push(piece))
  socket.end(text)
  await once(socket, 'end')
  socket.destroy()
  return Buffer.concat(pieces).toString()
}

test('connects inside a network namespace on 127.0.0.1, on ::1 when that refuses, and loses nothing of what the server says first', async (t) => {
  const { linux, dir } = await fixture(t, { workers: 1 })
  const netns = join(dir, 'netns')
  await linux.createNetns(netns)
  const before = readlinkSync('/proc/self/ns/net')
  const four = Number(await inside(t, netns, `${echo}; server.listen(0, '127.0.0.1', () => console.log(server.address().port))`))
  const six = Number(await inside(t, netns, `${echo}; server.listen(0, '::1', () => console.log(server.address().port))`))
  for (const port of [four, six]) assert.equal(await conversation(await linux.connectLoopback(netns, port), 'and back'), 'hello and back')
  await assert.rejects(linux.connectLoopback(undefined, four), failing('ECONNREFUSED', `${four}`, '127.0.0.1', '::1', 'nothing listens there'))
  for (const tid of readdirSync('/proc/self/task')) assert.equal(readlinkSync(`/proc/self/task/${tid}/ns/net`), before)
})

test('without a namespace it connects on the host', async (t) => {
  const { linux } = await fixture(t, { workers: 1 })
  const server = createServer((socket) => socket.pipe(socket)).listen(0, '127.0.0.1')
  t.after(() => server.close())
  await once(server, 'listening')
  const address = server.address()
  assert.ok(address !== null && typeof address === 'object')
  assert.equal(await conversation(await linux.connectLoopback(undefined, address.port), 'here'), 'here')
})

test('what is no network namespace is refused', async (t) => {
  const { linux, dir } = await fixture(t, { workers: 1 })
  await assert.rejects(linux.connectLoopback(join(dir, 'none'), 80), failing('ENOENT', 'none'))
  const file = join(dir, 'file')
  writeFileSync(file, '')
  await assert.rejects(linux.connectLoopback(file, 80), failing('FAILED_PRECONDITION', file))
})

test('a server that does not answer: the deadline names the port, an abort its reason, and no descriptor stays', async (t) => {
  const { linux, dir } = await fixture(t, { workers: 1 })
  const netns = join(dir, 'netns')
  await linux.createNetns(netns)
  // Once the queue of connections nobody accepts is full, the kernel answers no more.
  const port = Number(await inside(t, netns, `const s = require('node:net').createServer(); s.listen(0, '127.0.0.1', 1, () => { require('node:fs').writeSync(1, s.address().port + '\\n'); Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0) })`))
  const before = openFds()
  const queued: number[] = []
  await assert.rejects(async () => {
    for (let count = 0; count < 16; count++) queued.push(await linux.connectLoopback(netns, port, { timeoutMs: 500 }))
  }, failing('ETIMEDOUT', `port ${port}`))
  const abort = new AbortController()
  const pending = linux.connectLoopback(netns, port, { signal: abort.signal })
  abort.abort(new Error('the client is gone'))
  await assert.rejects(pending, /the client is gone/)
  for (const fd of queued) closeSync(fd)
  assert.equal(openFds(), before)
})

test('two hundred connections at once, half of them refused, leave no descriptor', async (t) => {
  const { linux, dir } = await fixture(t, { workers: 1 })
  const netns = join(dir, 'netns')
  await linux.createNetns(netns)
  const port = Number(await inside(t, netns, `${echo}; server.listen(0, '127.0.0.1', () => console.log(server.address().port))`))
  const before = openFds()
  const outcomes = await Promise.allSettled(Array.from({ length: 200 }, (_, index) => linux.connectLoopback(netns, index % 2 === 0 ? port : 1)))
  const fds = outcomes.flatMap((outcome) => (outcome.status === 'fulfilled' ? [outcome.value] : []))
  assert.equal(fds.length, 100)
  assert.deepEqual(await Promise.all(fds.map((fd, index) => conversation(fd, `${index}`))), fds.map((_, index) => `hello ${index}`))
  assert.equal(openFds(), before)
})
