import type { Readable, Writable } from 'node:stream'
import type { WebSocket } from 'ws'
import type { CommandClient } from './command-client.ts'
import type { WebSocketProtocol } from './negotiate.ts'
import type { RemoteStatus } from './remote-status.ts'
import type { AttachSession, ExecSession } from './types.ts'
import { WebSocketChannels } from './websocket-channels.ts'

const [stdinChannel, stdoutChannel, stderrChannel, errorChannel, resizeChannel] = [0, 1, 2, 3, 4]

/** An exec's or attach's client over a WebSocket: one channel for each of its streams. */
export class WebSocketCommandClient implements CommandClient {
  readonly transport = 'websocket'
  readonly closed: Promise<void>
  readonly stdin: Readable | undefined
  readonly stdout: Writable | undefined
  readonly stderr: Writable | undefined
  readonly #channels: WebSocketChannels
  readonly #protocol: WebSocketProtocol

  constructor(socket: WebSocket, session: ExecSession | AttachSession, protocol: WebSocketProtocol, keepAliveMs: number) {
    this.#protocol = protocol
    const kinds = [{ read: session.stdin }, { write: session.stdout }, { write: session.stderr }, { write: true }, { read: true }]
    this.#channels = new WebSocketChannels(socket, protocol, kinds, keepAliveMs)
    const { channels } = this.#channels
    this.stdin = channels[stdinChannel]?.input
    this.stdout = channels[stdoutChannel]?.output
    this.stderr = channels[stderrChannel]?.output
    this.closed = this.#channels.closed
    // Nothing, on the first channel that we write: by this the client knows that it is connected.
    this.#channels.send(session.stdout ? stdoutChannel : session.stderr ? stderrChannel : errorChannel, Buffer.alloc(0))
  }

  get lastActivityMs(): number {
    return this.#channels.lastActivityMs
  }

  onResize(listener: (bytes: Uint8Array) => void): void {
    this.#channels.channels[resizeChannel]?.input?.on('data', listener)
  }

  async finish(status: RemoteStatus): Promise<void> {
    const text = this.#protocol.jsonStatus ? status.json : status.text
    if (text !== '') this.#channels.send(errorChannel, Buffer.from(text))
    await this.#channels.close()
  }

  destroy(): void {
    this.#channels.destroy()
  }
}
