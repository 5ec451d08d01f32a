import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { test } from 'node:test'
import { Code } from '../errors/cri-error.ts'
import { DatagramReceiver } from '../linux/fixture-datagrams.ts'
import { type LogLine, TestClient, temporaryDirectory } from '../server/fixtures.ts'

const program = join(import.meta.dirname, 'fixture-process.ts')

/** A process that serves in a directory of its own. It is killed when the scope is left, whatever happened. */
class ServeProcess implements AsyncDisposable {
  readonly #directory = temporaryDirectory()
  readonly socket = join(this.#directory.path, 'run/cri.sock')
  readonly lines: LogLine[] = []
  readonly child: ChildProcess
  readonly exited: Promise<unknown[]>
  stderr = ''
  #changed = Promise.withResolvers<void>()

  constructor(options: { readonly mode?: string; readonly env?: NodeJS.ProcessEnv } = {}) {
    const { path } = this.#directory
    const args = ['serve', '--config', '/dev/null', '--listen', `unix://${this.socket}`, '--root', `${path}/root`, '--state', `${path}/state`, '--metrics-address', '']
    this.child = spawn(process.execPath, [program, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, NOTIFY_SOCKET: '', TEST_SERVICE: options.mode, ...options.env },
    })
    const { stdout, stderr } = this.child
    assert.ok(stdout !== null && stderr !== null)
    const log = createInterface(stdout).on('line', (line) => {
      this.lines.push(JSON.parse(line) as LogLine)
      this.#notify()
    })
    stderr.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text
      this.#notify()
    })
    // 'close', not 'exit': everything that it wrote has been read, to the last line.
    this.exited = Promise.all([once(this.child, 'close'), once(log, 'close')]).then(([status]) => status).finally(() => this.#notify())
  }

  #notify(): void {
    this.#changed.resolve()
    this.#changed = Promise.withResolvers()
  }

  /** The first log line, or any value, that `find` gives. Fails when the process ends without it. */
  async until<T>(find: () => T | undefined): Promise<T> {
    for (;;) {
      const found = find()
      if (found !== undefined) return found
      if (this.child.exitCode !== null || this.child.signalCode !== null) {
        await this.exited
        assert.fail(`the process ended (${this.child.exitCode ?? this.child.signalCode}): ${this.stderr}${JSON.stringify(this.lines)}`)
      }
      await this.#changed.promise
    }
  }

  async logged(message: RegExp): Promise<LogLine> {
    return this.until(() => this.lines.find(({ msg }) => message.test(msg)))
  }

  async said(text: string): Promise<void> {
    await this.until(() => (this.stderr.includes(text) ? true : undefined))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) this.child.kill('SIGKILL')
    await this.exited
    this.#directory[Symbol.dispose]()
  }
}

test('serve listens, says with what, serves, and stops in order at SIGTERM', async () => {
  await using process = new ServeProcess()
  const first = await process.logged(/listens/)
  for (const key of ['version', 'node', 'cri', 'pid', 'listen', 'containerd', 'root', 'state', 'config', 'logLevel']) assert.ok(first[key] !== undefined, key)
  assert.equal(first['listen'], `unix://${process.socket}`)
  await process.logged(/is ready/)
  using client = new TestClient(process.socket)
  assert.equal((await client.call('Version')).version, '0.1.0')
  process.child.kill('SIGTERM')
  assert.deepEqual(await process.exited, [0, null])
  assert.match(process.stderr, /service closed/)
  assert.equal(process.lines.at(-1)?.msg, 'cri-shim stopped')
  assert.equal(existsSync(process.socket), false)
})

test('a service that cannot start yet answers already, and can be stopped', async () => {
  await using process = new ServeProcess({ mode: 'wait' })
  await process.logged(/listens/)
  using client = new TestClient(process.socket)
  assert.equal((await client.call('Version')).version, '0.1.0')
  const failure = await client.failure('ListImages')
  assert.deepEqual([failure.code, failure.details], [Code.UNAVAILABLE, 'still starting'])
  process.child.kill('SIGINT')
  assert.deepEqual(await process.exited, [0, null])
  assert.match(process.stderr, /service closed/)
})

test('a start that fails says why, closes what was open and exits with 1', async () => {
  await using process = new ServeProcess({ mode: 'fail' })
  assert.deepEqual(await process.exited, [1, null])
  assert.match(process.stderr, /service closed\ncri-shim: cannot start\n {2}caused by: the reason\n$/)
  assert.equal(existsSync(process.socket), false)
})

test('a second service on the same socket does not start and leaves the first alone', async () => {
  await using process = new ServeProcess()
  await process.logged(/is ready/)
  const second = spawn(globalThis.process.execPath, [program, 'serve', '--config', '/dev/null', '--listen', `unix://${process.socket}`, '--metrics-address', ''], { stdio: ['ignore', 'ignore', 'pipe'] })
  const text = Buffer.concat(await second.stderr.toArray()).toString()
  assert.match(text, new RegExp(`process ${process.child.pid} \\(.*\\) listens there already`))
  using client = new TestClient(process.socket)
  await client.call('Version')
})

test('a failing close is logged and the exit code says so', async () => {
  await using process = new ServeProcess({ mode: 'fail-close' })
  await process.logged(/is ready/)
  process.child.kill('SIGTERM')
  assert.deepEqual(await process.exited, [1, null])
  assert.equal((await process.logged(/closing the service failed/)).level, 'error')
})

test('a second signal ends the process at once', async () => {
  await using process = new ServeProcess({ mode: 'hang' })
  await process.logged(/is ready/)
  using client = new TestClient(process.socket)
  const failure = client.failure('StopContainer')
  await process.said('stop container')
  process.child.kill('SIGTERM')
  await process.logged(/^stopping/)
  process.child.kill('SIGTERM')
  assert.deepEqual(await process.exited, [1, null])
  assert.doesNotMatch(process.stderr, /service closed/)
  await failure
})

test('SIGUSR1 changes the level of every logger, also of those that are there already; SIGHUP does no harm', async () => {
  await using process = new ServeProcess()
  await process.logged(/is ready/)
  using client = new TestClient(process.socket)
  await client.call('ListImages')
  process.child.kill('SIGHUP')
  await process.logged(/SIGHUP/)
  assert.equal(process.lines.some(({ level }) => level === 'debug'), false)
  process.child.kill('SIGUSR1')
  const changed = await process.logged(/log level changed/)
  assert.deepEqual([changed['from'], changed['to']], ['info', 'debug'])
  await client.call('ListImages')
  assert.equal((await process.logged(/a line of a component/)).level, 'debug')
  assert.equal((await process.logged(/call done/))['method'], 'ListImages')
})

test('a rejection that nobody caught is logged with its stack and the service goes on', async () => {
  await using process = new ServeProcess({ mode: 'reject' })
  await process.logged(/is ready/)
  using client = new TestClient(process.socket)
  await client.call('StopContainer')
  const line = await process.logged(/a promise was rejected/)
  assert.match(JSON.stringify(line['err']), /nobody caught this.*fixture-process\.ts/)
  await client.call('Version')
})

test('an exception that nobody expected is logged with its stack and ends the process', async () => {
  await using process = new ServeProcess({ mode: 'throw' })
  await process.logged(/is ready/)
  using client = new TestClient(process.socket)
  await client.call('StopContainer').catch(() => undefined)
  assert.deepEqual(await process.exited, [1, null])
  const line = await process.logged(/unexpected exception/)
  assert.equal(line.level, 'fatal')
  assert.match(JSON.stringify(line['err']), /nobody expected this.*fixture-process\.ts/)
})

test('systemd is told when the service is ready, that it is alive, and that it stops', async () => {
  using directory = temporaryDirectory()
  const name = join(directory.path, 'notify.sock')
  using manager = new DatagramReceiver(name)
  // WATCHDOG_PID names the process that is meant; a child cannot know its own in advance, and systemd may leave it out.
  await using process = new ServeProcess({ env: { NOTIFY_SOCKET: name, WATCHDOG_USEC: '200000' } })
  assert.equal(await manager.next(), 'STATUS=starting')
  assert.equal(await manager.next(), `READY=1\nSTATUS=serving on unix://${process.socket}`)
  assert.equal(await manager.next(), 'WATCHDOG=1')
  assert.equal(await manager.next(), 'WATCHDOG=1')
  process.child.kill('SIGTERM')
  let message = await manager.next()
  while (message === 'WATCHDOG=1') message = await manager.next()
  assert.equal(message, 'STOPPING=1\nSTATUS=stopping; pods go on')
  assert.deepEqual(await process.exited, [0, null])
})

test('what the metrics address is wrong with is said before anything listens', async () => {
  const occupied = createServer().listen(0, '127.0.0.1')
  await once(occupied, 'listening')
  const address = occupied.address()
  assert.ok(typeof address === 'object' && address !== null)
  using directory = temporaryDirectory()
  const child = spawn(globalThis.process.execPath, [program, 'serve', '--config', '/dev/null', '--listen', `unix://${directory.path}/x.sock`, '--metrics-address', `127.0.0.1:${address.port}`], { stdio: ['ignore', 'ignore', 'pipe'] })
  const text = Buffer.concat(await child.stderr.toArray()).toString()
  assert.match(text, /--metrics-address: cannot listen on 127.0.0.1:\d+/)
  assert.equal(existsSync(`${directory.path}/x.sock`), false)
  occupied.close()
})
