import type { Duplex } from 'node:stream'
import { flushed, forwardConnection } from './forwarding.ts'
import type { Transport } from './protocol.ts'
import { SpdyConnection } from './spdy/connection.ts'
import type { SpdyStream } from './spdy/stream.ts'
import type { PortForwardSession } from './types.ts'
import type { WorkerDeps } from './worker-session.ts'

/** Two for each connection. */
const maxStreams = 4096

/** A port's connection before both of its streams are there. */
interface Pair {
  readonly timer: NodeJS.Timeout
  data?: SpdyStream
  error?: SpdyStream
}

/**
 * portforward.k8s.io: for each connection the client opens an error stream and a data stream, both with the port and the same
 * requestID. The error stream carries text, or nothing when all was well.
 */
export class SpdyForward {
  readonly closed: Promise<void>
  readonly transport: Transport
  readonly #id: number
  readonly #session: PortForwardSession
  readonly #deps: WorkerDeps
  readonly #connection: SpdyConnection
  readonly #pairs = new Map<string, Pair>()
  readonly #gone = new AbortController()

  constructor(id: number, session: PortForwardSession, socket: Duplex, head: Buffer, transport: Transport, deps: WorkerDeps) {
    this.#id = id
    this.#session = session
    this.transport = transport
    this.#deps = deps
    const pausedPingMs = deps.limits.keepAliveMs
    this.#connection = new SpdyConnection(socket, { side: 'server', limits: { maxStreams }, head, pausedPingMs, onStream: (stream) => this.#accept(stream) })
    this.closed = this.#connection.closed.then(() => {
      for (const { timer } of this.#pairs.values()) clearTimeout(timer)
      this.#pairs.clear()
      this.#gone.abort()
    })
  }

  get lastActivityMs(): number {
    return this.#connection.lastActivityMs
  }

  /** Ends every forwarded connection and the client's. */
  async close(): Promise<void> {
    this.#gone.abort()
    await this.#connection.close()
  }

  destroy(): void {
    this.#connection.destroy()
  }

  #accept(stream: SpdyStream): void {
    const { headers } = stream
    const type = headers['streamtype']
    const port = Number(headers['port'])
    if ((type !== 'data' && type !== 'error') || !/^\d{1,5}$/.test(headers['port'] ?? '') || port < 1 || port > 65_535) {
      this.#deps.log('debug', { session: this.#id, type, port: headers['port'] }, 'a port-forward stream without a valid type and port was refused')
      stream.reset()
      return
    }
    stream.reply()
    const requestId = requestIdOf(stream, type)
    const pair = this.#pairs.get(requestId) ?? this.#newPair(requestId)
    if (pair[type] !== undefined) {
      pair.error?.write(`error processing stream for request ${requestId}: ${type} stream already assigned`)
      stream.reset()
      return
    }
    pair[type] = stream
    if (type === 'error') stream.resume()
    const { data, error } = pair
    if (data === undefined || error === undefined) return
    clearTimeout(pair.timer)
    this.#pairs.delete(requestId)
    void this.#forward(data, error, port)
  }

  #newPair(requestId: string): Pair {
    const timer = setTimeout(() => {
      this.#pairs.delete(requestId)
      pair.data?.reset()
      pair.error?.end(`request ${requestId} timed out waiting for streams`)
    }, this.#deps.limits.streamCreationMs)
    const pair: Pair = { timer }
    this.#pairs.set(requestId, pair)
    return pair
  }

  /** Never rejects. */
  async #forward(data: SpdyStream, error: SpdyStream, port: number): Promise<void> {
    // A client that gives a connection up while it is being made resets its data stream.
    const stop = new AbortController()
    const abort = (): void => stop.abort()
    data.once('close', abort)
    this.#gone.signal.addEventListener('abort', abort, { once: true })
    if (data.destroyed || this.#gone.signal.aborted) abort()
    try {
      const client = { input: data, output: data }
      const forwarded = await forwardConnection({ id: this.#id, podSandboxId: this.#session.podSandboxId, port, client, signal: stop.signal }, this.#deps)
      if (forwarded.end === 'done') {
        await flushed(data)
        error.end()
        return
      }
      if (forwarded.end === 'refused') error.end(forwarded.message)
      else error.end()
      data.reset()
    } catch (fault) {
      this.#deps.log('error', { session: this.#id, port, err: String(fault) }, 'forwarding a connection failed by a fault of this service')
      data.reset()
      error.reset()
    } finally {
      this.#gone.signal.removeEventListener('abort', abort)
    }
  }
}

/** Clients from before there were ids open the error stream first, then its data stream with the next odd number. */
function requestIdOf(stream: SpdyStream, type: 'data' | 'error'): string {
  return stream.headers['requestid'] ?? String(type === 'error' ? stream.id : stream.id - 2)
}
