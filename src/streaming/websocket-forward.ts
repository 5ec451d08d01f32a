import type { WebSocket } from 'ws'
import { flushed, forwardConnection } from './forwarding.ts'
import type { WebSocketProtocol } from './negotiate.ts'
import type { PortForwardSession } from './types.ts'
import { WebSocketChannels } from './websocket-channels.ts'
import type { WorkerDeps } from './worker-session.ts'

/** Channels are one byte, two for each port. */
export const maxWebSocketPorts = 127

/** The ports of a WebSocket port-forward: those of the call, or, if it had none, of the URL's query (`port=80&port=81,82`). Undefined: there is something wrong with them. */
export function webSocketPorts(session: PortForwardSession, query: URLSearchParams): readonly number[] | undefined {
  const texts = session.ports.length > 0 ? session.ports.map(String) : query.getAll('port').flatMap((value) => value.split(','))
  const ports = texts.map((text) => /^\d{1,5}$/.test(text) ? Number(text) : 0)
  if (ports.length === 0 || ports.length > maxWebSocketPorts || ports.some((port) => port < 1 || port > 65_535)) return undefined
  return ports
}

/**
 * The first port-forward over WebSocket: one connection for each port, all from the beginning, on the channels 2n (data) and 2n+1 (error text).
 * Each channel begins with its port, two bytes, the lower one first. The client cannot end one direction, only everything.
 */
export class WebSocketForward {
  readonly transport = 'websocket'
  readonly closed: Promise<void>
  readonly #id: number
  readonly #podSandboxId: string
  readonly #deps: WorkerDeps
  readonly #channels: WebSocketChannels
  readonly #gone = new AbortController()

  constructor(id: number, session: PortForwardSession, ports: readonly number[], socket: WebSocket, protocol: WebSocketProtocol, deps: WorkerDeps) {
    this.#id = id
    this.#podSandboxId = session.podSandboxId
    this.#deps = deps
    this.#channels = new WebSocketChannels(socket, protocol, ports.flatMap(() => [{ read: true, write: true }, { write: true }]), deps.limits.keepAliveMs)
    this.closed = this.#channels.closed.then(() => this.#gone.abort())
    void this.#run(ports)
  }

  get lastActivityMs(): number {
    return this.#channels.lastActivityMs
  }

  async close(): Promise<void> {
    this.#gone.abort()
    await this.#channels.close()
  }

  destroy(): void {
    this.#channels.destroy()
  }

  /** Never rejects. */
  async #run(ports: readonly number[]): Promise<void> {
    for (const [index, port] of ports.entries()) {
      const name = Buffer.from([port & 0xff, port >> 8])
      this.#channels.channels[2 * index]?.output?.write(name)
      this.#channels.channels[2 * index + 1]?.output?.write(name)
    }
    const ends = await Promise.allSettled(ports.map((port, index) => this.#forward(port, index)))
    for (const end of ends) {
      if (end.status === 'rejected') this.#deps.log('error', { session: this.#id, err: String(end.reason) }, 'forwarding a connection failed by a fault of this service')
    }
    await this.#channels.close()
  }

  async #forward(port: number, index: number): Promise<void> {
    const data = this.#channels.channels[2 * index]
    const error = this.#channels.channels[2 * index + 1]?.output
    if (data?.input === undefined || data.output === undefined || error === undefined) throw new Error(`port ${port} has no channels`)
    const client = { input: data.input, output: data.output }
    const options = { id: this.#id, podSandboxId: this.#podSandboxId, port, client, signal: this.#gone.signal, endsWithPod: true }
    const forwarded = await forwardConnection(options, this.#deps)
    data.input.resume()
    if (forwarded.end === 'refused') error.end(forwarded.message)
    else {
      if (!data.output.writableEnded) data.output.end()
      await flushed(data.output)
      error.end()
    }
    await flushed(error)
  }
}
