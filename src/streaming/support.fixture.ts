/** A streaming server with real processes behind real FIFOs, and clients for both transports, for the tests of this folder. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { type IncomingMessage, request as httpRequest } from 'node:http'
import { request as httpsRequest } from 'node:https'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Duplex, Readable } from 'node:stream'
import type { TestContext } from 'node:test'
import { pino } from 'pino'
import { WebSocket } from 'ws'
import { pause } from '../concurrency/deadline.ts'
import type { StreamingSettings } from '../config/settings.ts'
import { unavailable } from '../errors/cri-error.ts'
import { makeFifosAt } from '../linux/fifos.ts'
import { Background } from '../observability/background.ts'
import { createMetrics, type Metrics } from '../observability/metrics.ts'
import { StreamingServer, type StreamingServerOptions } from './server.ts'
import { SpdyConnection } from './spdy/connection.ts'
import type { SpdyStream } from './spdy/stream.ts'
import type { AttachSession, ExecSession, PortForwardSession, StreamingBackend, StreamIo, StreamResult, TerminalSize } from './types.ts'

/** Runs the command of an exec as a child with FIFOs for its standard streams, as a runtime shim would. */
export class ProcessBackend implements StreamingBackend {
  readonly dir = mkdtempSync(join(tmpdir(), 'cri-shim-streaming-'))
  readonly children = new Set<ChildProcess>()
  readonly aborted: unknown[] = []
  readonly sizes: TerminalSize[] = []
  /** Replaces `attach` and `connect`. */
  onAttach: ((session: AttachSession, io: StreamIo) => Promise<StreamResult>) | undefined
  onConnect: ((port: number, signal: AbortSignal) => Promise<number>) | undefined
  onExec: ((session: ExecSession, io: StreamIo) => Promise<StreamResult>) | undefined
  #count = 0

  fifo(name: string): string {
    const path = join(this.dir, `${++this.#count}-${name}`)
    makeFifosAt(this.dir, [path])
    return path
  }

  async exec(session: ExecSession, io: StreamIo): Promise<StreamResult> {
    if (this.onExec !== undefined) return this.onExec(session, io)
    return this.run(session, io)
  }

  async run(session: ExecSession, io: StreamIo): Promise<StreamResult> {
    io.onResize((size) => this.sizes.push(size))
    const fifos = {
      stdin: session.stdin ? this.fifo('in') : undefined,
      stdout: this.fifo('out'),
      stderr: session.tty ? undefined : this.fifo('err'),
    }
    await io.openFifos(fifos)
    const script = 'exec <"${1:-/dev/null}" >"$2" 2>"${3:-/dev/stdout}"; shift 3; echo >&3; exec 3>&-; exec "$@"'
    const child = spawn('/bin/sh', ['-c', script, 'sh', fifos.stdin ?? '', fifos.stdout, fifos.stderr ?? '', ...session.command], { stdio: ['ignore', 'ignore', 'inherit', 'pipe'] })
    this.children.add(child)
    const exited = once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>
    const abort = (): void => {
      this.aborted.push(io.signal.reason)
      child.kill('SIGKILL')
    }
    if (io.signal.aborted) abort()
    else io.signal.addEventListener('abort', abort, { once: true })
    const ready = child.stdio[3]
    if (ready === null || ready === undefined) throw new Error('no pipe')
    await Promise.race([once(ready, 'data'), exited])
    io.started()
    const [code, signal] = await exited
    this.children.delete(child)
    await io.drained(10_000)
    return signal === null ? { exitCode: code ?? 255 } : { exitCode: 137 }
  }

  async attach(session: AttachSession, io: StreamIo): Promise<StreamResult> {
    if (this.onAttach === undefined) throw unavailable('no attach in this test')
    return this.onAttach(session, io)
  }

  async connect(_session: PortForwardSession, port: number, signal: AbortSignal): Promise<number> {
    if (this.onConnect === undefined) throw unavailable(`failed to connect to localhost:${port}: connection refused`)
    return this.onConnect(port, signal)
  }

  [Symbol.dispose](): void {
    for (const child of this.children) child.kill('SIGKILL')
    rmSync(this.dir, { recursive: true, force: true })
  }
}

export interface TestServer {
  readonly server: StreamingServer
  readonly backend: ProcessBackend
  readonly metrics: Metrics
  readonly lines: { readonly level: number; readonly msg: string }[]
  readonly exec: (command: readonly string[], given?: Partial<ExecSession>) => Promise<string>
  readonly attach: (given?: Partial<AttachSession>) => Promise<string>
  readonly portForward: (...ports: number[]) => Promise<string>
}

export const plainSettings: StreamingSettings = { address: '127.0.0.1', port: 0, idleTimeoutMs: 0, enableTls: false, certFile: '', keyFile: '' }

/** A server that is closed at the end of the test, with everything behind it. */
export function startServer(t: TestContext, settings: Partial<StreamingSettings> = {}, options: Partial<StreamingServerOptions> = {}): TestServer {
  const backend = new ProcessBackend()
  const lines: TestServer['lines'] = []
  const log = pino({ base: null, level: 'debug' }, { write: (line: string) => void lines.push(JSON.parse(line) as TestServer['lines'][number]) })
  const metrics = createMetrics()
  const background = new Background(log, metrics)
  const server = StreamingServer.create({ settings: { ...plainSettings, ...settings }, log, metrics, background, backend, ...options })
  t.after(async () => {
    await server.close(0)
    backend[Symbol.dispose]()
    await background.drain()
  })
  return {
    server, backend, metrics, lines,
    exec: async (command, given) => server.url({ kind: 'exec', containerId: 'c', command, tty: false, stdin: true, stdout: true, stderr: given?.tty !== true, ...given }),
    attach: async (given) => server.url({ kind: 'attach', containerId: 'c', tty: false, stdin: true, stdout: true, stderr: given?.tty !== true, ...given }),
    portForward: async (...ports) => server.url({ kind: 'portforward', podSandboxId: 'pod', ports }),
  }
}

export interface Upgraded {
  readonly response: IncomingMessage
  readonly socket: Duplex
  readonly head: Buffer
}

export interface Answered {
  readonly status: number | undefined
  readonly headers: IncomingMessage['headers']
  readonly body: string
}

/** A request as it is; an upgrade if the server agrees. */
export async function ask(url: string, headers: Record<string, string | readonly string[]>, method = 'POST', ca?: string): Promise<Upgraded | Answered> {
  const done = Promise.withResolvers<Upgraded | Answered>()
  const options = { method, headers: headers as Record<string, string | string[]>, agent: false, ...(ca === undefined ? {} : { ca }) } as const
  const request = url.startsWith('https:') ? httpsRequest(url, options) : httpRequest(url, options)
  request.on('upgrade', (response, socket, head) => done.resolve({ response, socket, head }))
  request.on('response', (response) => {
    let body = ''
    response.setEncoding('utf8').on('data', (piece: string) => {
      body += piece
    })
    response.on('end', () => done.resolve({ status: response.statusCode, headers: response.headers, body }))
  })
  request.on('error', done.reject)
  request.end()
  return done.promise
}

const spdyHeaders = { Connection: 'Upgrade', Upgrade: 'SPDY/3.1' }

/** An upgraded SPDY connection. `protocols` undefined: none offered. */
export async function spdy(url: string, protocols: readonly string[] | undefined, ca?: string): Promise<{ readonly connection: SpdyConnection; readonly version: string | undefined; readonly socket: Duplex }> {
  const upgraded = await ask(url, { ...spdyHeaders, ...(protocols === undefined ? {} : { 'X-Stream-Protocol-Version': protocols }) }, 'POST', ca)
  if (!('socket' in upgraded)) throw new Error(`${upgraded.status}: ${upgraded.body}`)
  const connection = new SpdyConnection(upgraded.socket, { side: 'client', head: upgraded.head, onStream: (stream) => stream.reset() })
  return { connection, version: upgraded.response.headers['x-stream-protocol-version'] as string | undefined, socket: upgraded.socket }
}

/** Everything that comes on a stream, until its end or close. */
export async function collect(stream: Readable): Promise<string> {
  const pieces: Buffer[] = []
  const done = Promise.withResolvers<void>()
  stream.on('data', (piece: Buffer) => pieces.push(piece))
  stream.once('end', done.resolve)
  stream.once('close', done.resolve)
  await done.promise
  return Buffer.concat(pieces).toString()
}

export interface CommandStreams {
  readonly connection: SpdyConnection
  readonly socket: Duplex
  readonly version: string | undefined
  readonly error: SpdyStream
  readonly stdin: SpdyStream | undefined
  readonly stdout: SpdyStream | undefined
  readonly stderr: SpdyStream | undefined
  readonly resize: SpdyStream | undefined
}

export interface Wanted {
  readonly stdin?: boolean
  readonly stdout?: boolean
  readonly stderr?: boolean
  readonly resize?: boolean
}

/** Opens the streams of an exec or attach in the order in which client-go does. */
export async function spdyCommand(url: string, protocols: readonly string[] | undefined, wanted: Wanted = {}, ca?: string): Promise<CommandStreams> {
  const { connection, version, socket } = await spdy(url, protocols, ca)
  const open = (streamType: string, is: boolean): SpdyStream | undefined => is ? connection.createStream({ streamtype: streamType }) : undefined
  const error = connection.createStream({ streamtype: 'error' })
  // client-go sends nothing there and says so at once.
  error.end()
  const { stdin = true, stdout = true, stderr = true, resize = false } = wanted
  return {
    connection, version, socket, error, stdin: open('stdin', stdin), stdout: open('stdout', stdout), stderr: open('stderr', stderr), resize: open('resize', resize),
  }
}

export interface SocketCommand {
  readonly socket: WebSocket
  /** What came on each channel, until the close. */
  readonly channels: Promise<string[]>
  /** Resolves with the channel of the first message. */
  readonly first: Promise<number>
  readonly closeCode: Promise<number>
  readonly send: (channel: number, data: string | Buffer) => void
}

/** A WebSocket client of the channel protocols. */
export async function webSocketCommand(url: string, protocol: string | undefined, options: { readonly ca?: string } = {}): Promise<SocketCommand> {
  const base64 = protocol?.includes('base64') ?? false
  const socket = new WebSocket(url.replace(/^http/, 'ws'), protocol === undefined ? [] : [protocol], options)
  const channels: string[] = []
  const pieces: Buffer[][] = []
  const first = Promise.withResolvers<number>()
  socket.on('message', (data: Buffer, isBinary) => {
    if (isBinary === base64) throw new Error('a message of the wrong type')
    const channel = base64 ? Number(String.fromCharCode(data[0] ?? 0)) : data[0] ?? 0
    first.resolve(channel)
    ;(pieces[channel] ??= []).push(base64 ? Buffer.from(data.toString('latin1', 1), 'base64') : data.subarray(1))
  })
  const closed = once(socket, 'close') as Promise<[number]>
  await Promise.race([once(socket, 'open'), closed.then(([code]) => {
    throw new Error(`closed with ${code}`)
  })])
  if (socket.protocol !== (protocol ?? '')) throw new Error(`negotiated ${socket.protocol}`)
  return {
    socket,
    first: first.promise,
    closeCode: closed.then(([code]) => code),
    channels: closed.then(() => {
      for (const [channel, list] of pieces.entries()) channels[channel] = Buffer.concat(list ?? []).toString()
      return Array.from({ length: Math.max(5, channels.length) }, (_, channel) => channels[channel] ?? '')
    }),
    send: (channel, data) => {
      const bytes = Buffer.from(data)
      if (base64) socket.send(`${channel}${bytes.toString('base64')}`)
      else socket.send(Buffer.concat([Buffer.of(channel), bytes]))
    },
  }
}

/** Waits for what has no event. */
export async function until(condition: () => boolean | Promise<boolean>, what: string): Promise<void> {
  const deadline = performance.now() + 60_000
  while (!await condition()) {
    if (performance.now() > deadline) throw new Error(`waited in vain: ${what}`)
    await pause(5)
  }
}

export function openDescriptors(): number {
  return readdirSync('/proc/self/fd').length
}

/** A TCP connection that sends bytes as they are. */
export async function raw(url: string): Promise<Socket> {
  const { hostname, port } = new URL(url)
  const socket = connect({ host: hostname, port: Number(port) })
  await once(socket, 'connect')
  return socket
}
