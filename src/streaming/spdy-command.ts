import type { Duplex, Readable, Writable } from 'node:stream'
import { messageOf } from '../errors/cri-error.ts'
import type { CommandClient } from './command-client.ts'
import type { CommandProtocol } from './negotiate.ts'
import type { StreamingLimits } from './protocol.ts'
import type { RemoteStatus } from './remote-status.ts'
import { SpdyConnection } from './spdy/connection.ts'
import type { SpdyStream } from './spdy/stream.ts'
import type { AttachSession, ExecSession } from './types.ts'

/** Five are needed; a client that opens many more is none of ours. */
const maxStreams = 16

export interface SpdyCommandOptions {
  /** Upgraded, with what was read of it too early. */
  readonly socket: Duplex
  readonly head: Buffer
  readonly session: ExecSession | AttachSession
  readonly protocol: CommandProtocol
  readonly limits: StreamingLimits
}

type StreamType = 'error' | 'stdin' | 'stdout' | 'stderr' | 'resize'

/** An exec's or attach's client over SPDY/3.1: one SPDY stream for each of its streams, named by the header `streamType`. */
export class SpdyCommandClient implements CommandClient {
  readonly transport = 'spdy'
  readonly closed: Promise<void>
  readonly #connection: SpdyConnection
  readonly #protocol: CommandProtocol
  readonly #expected: ReadonlySet<StreamType>
  readonly #streams = new Map<StreamType, SpdyStream>()
  readonly #complete = Promise.withResolvers<void>()
  readonly #socket: Duplex

  private constructor({ socket, head, session, protocol, limits }: SpdyCommandOptions) {
    this.#socket = socket
    this.#protocol = protocol
    const wanted: readonly (readonly [StreamType, boolean])[] = [
      ['error', true], ['stdin', session.stdin], ['stdout', session.stdout], ['stderr', session.stderr], ['resize', session.tty && protocol.resize],
    ]
    this.#expected = new Set(wanted.filter(([, is]) => is).map(([type]) => type))
    this.#connection = new SpdyConnection(socket, {
      side: 'server', limits: { maxStreams }, head, pausedPingMs: limits.keepAliveMs, onStream: (stream) => this.#accept(stream),
    })
    this.closed = this.#connection.closed.then(() => undefined)
  }

  /**
   * Takes over a connection that was upgraded and waits until the client has opened the streams that the session has. Rejects when
   * it does not in time, or goes away; the connection is closed then.
   */
  static async accept(options: SpdyCommandOptions): Promise<SpdyCommandClient> {
    const client = new SpdyCommandClient(options)
    const timeoutMs = options.limits.streamCreationMs
    const failed = Promise.withResolvers<never>()
    const timer = setTimeout(() => {
      const missing = [...client.#expected].filter((type) => !client.#streams.has(type)).join(', ')
      failed.reject(new Error(`the client has not opened its streams within ${timeoutMs / 1000} s: missing ${missing}`))
    }, timeoutMs)
    void client.#connection.closed.then((error) => failed.reject(error ?? new Error('the client went away before it had opened its streams')))
    try {
      await Promise.race([client.#complete.promise, failed.promise])
      return client
    } catch (error) {
      client.#refuse(messageOf(error))
      throw error
    } finally {
      clearTimeout(timer)
    }
  }

  get lastActivityMs(): number {
    return this.#connection.lastActivityMs
  }

  get stdin(): Readable | undefined {
    return this.#streams.get('stdin')
  }

  get stdout(): Writable | undefined {
    return this.#streams.get('stdout')
  }

  get stderr(): Writable | undefined {
    return this.#streams.get('stderr')
  }

  onResize(listener: (bytes: Uint8Array) => void): void {
    this.#streams.get('resize')?.on('data', listener)
  }

  async finish(status: RemoteStatus): Promise<void> {
    const text = this.#protocol.jsonStatus ? status.json : status.text
    const error = this.#streams.get('error')
    if (error !== undefined && error.writable) {
      const sent = Promise.withResolvers<void>()
      error.once('close', sent.resolve)
      if (text === '') error.end(sent.resolve)
      else error.end(text, sent.resolve)
      await sent.promise
    }
    for (const stream of this.#streams.values()) {
      stream.resume()
      if (stream.writable) stream.end()
    }
    await written(this.#socket)
    await this.#connection.close()
  }

  destroy(): void {
    this.#connection.destroy()
  }

  #accept(stream: SpdyStream): void {
    const type = stream.headers['streamtype'] as StreamType
    stream.reply()
    if (!this.#expected.has(type) || this.#streams.has(type)) {
      // As the Go server does: it is there, and nobody looks at it.
      stream.resume()
      return
    }
    this.#streams.set(type, stream)
    if (type !== 'stdin' && type !== 'resize') stream.resume()
    if (this.#streams.size === this.#expected.size) this.#complete.resolve()
  }

  /** The client learns why over the error stream if it has opened that one. */
  #refuse(message: string): void {
    const error = this.#streams.get('error')
    if (error === undefined || !error.writable) {
      this.destroy()
      return
    }
    error.end(message)
    this.#connection.close().catch(() => this.destroy())
  }
}

/** Resolves when everything written so far has been handed to the kernel, or the connection is closed: what is left then is sent even after the close. */
async function written(socket: Duplex): Promise<void> {
  if (socket.writableLength === 0 || !socket.writable) return
  const done = Promise.withResolvers<void>()
  socket.once('close', done.resolve)
  socket.write('', () => done.resolve())
  await done.promise
}
