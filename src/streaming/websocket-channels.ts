import { Readable, Writable } from 'node:stream'
import type { RawData, WebSocket } from 'ws'
import type { WebSocketProtocol } from './negotiate.ts'

const closeSignal = 255
const digitZero = 0x30
/** Waits in one channel before the connection is read no further: a size that arrives behind some input should not wait for the process. */
const inputHighWaterMark = 512 * 1024
const outputHighWaterMark = 64 * 1024

/** `read`: the client sends on it; `write`: we do. */
export interface ChannelKind {
  readonly read?: boolean
  readonly write?: boolean
}

export interface Channel {
  /** Undefined, as the other: the channel does not go that way. */
  readonly input: Readable | undefined
  readonly output: Writable | undefined
}

/**
 * Byte streams over one WebSocket as k8s.io/streaming's wsstream has them: the first byte of a message names the channel (or, in the base64 protocols,
 * the first character, and the rest is base64). Messages for channels that nobody reads are thrown away.
 */
export class WebSocketChannels {
  readonly channels: readonly Channel[]
  /** Resolves when the connection is closed, whoever closed it; every channel is closed then. */
  readonly closed: Promise<void>
  readonly #socket: WebSocket
  readonly #protocol: WebSocketProtocol
  readonly #keepAlive: NodeJS.Timeout
  #lastActivityMs = performance.now()
  readonly #full = new Set<Channel>()
  /** Closed by the client: nothing more may come on them. */
  readonly #ended = new Set<Channel>()

  /** `keepAliveMs`: how often a connection that is not read at the moment is given a sign of life, which also finds out whether it is there. */
  constructor(socket: WebSocket, protocol: WebSocketProtocol, kinds: readonly ChannelKind[], keepAliveMs: number) {
    this.#socket = socket
    this.#protocol = protocol
    const channels: Channel[] = []
    for (const [number, { read = false, write = false }] of kinds.entries()) {
      const channel: Channel = { input: read ? this.#input(() => channel) : undefined, output: write ? this.#output(number) : undefined }
      channels.push(channel)
    }
    this.channels = channels
    const closed = Promise.withResolvers<void>()
    this.closed = closed.promise
    // Its 'close' follows.
    socket.on('error', () => undefined)
    socket.on('message', (data) => this.#receive(data))
    socket.once('close', () => {
      clearInterval(this.#keepAlive)
      for (const { input, output } of channels) {
        input?.destroy()
        output?.destroy()
      }
      closed.resolve()
    })
    // While input waits no ping is read, and so none answered: client-go gives up after a minute without a pong.
    this.#keepAlive = setInterval(() => {
      if (socket.isPaused && socket.readyState === socket.OPEN) socket.pong()
    }, keepAliveMs)
  }

  /** When a message last went either way, in milliseconds of performance.now(). */
  get lastActivityMs(): number {
    return this.#lastActivityMs
  }

  /** Sends one message; `done` once the connection has taken it. */
  send(channel: number, bytes: Buffer, done: (error?: Error | null) => void = () => undefined): void {
    this.#lastActivityMs = performance.now()
    if (this.#protocol.base64) {
      this.#socket.send(String.fromCharCode(digitZero + channel) + bytes.toString('base64'), { binary: false }, done)
      return
    }
    const message = Buffer.allocUnsafe(bytes.length + 1)
    message[0] = channel
    bytes.copy(message, 1)
    this.#socket.send(message, { binary: true }, done)
  }

  /** Sends the close and waits for the client's. What it still sends is thrown away. */
  async close(): Promise<void> {
    for (const { input } of this.channels) input?.resume()
    this.#socket.resume()
    this.#socket.close(1000)
    await this.closed
  }

  destroy(): void {
    this.#socket.terminate()
  }

  #receive(data: RawData): void {
    this.#lastActivityMs = performance.now()
    // The binary type is left at `nodebuffer`: one message is one buffer.
    const message = data as Buffer
    const first = message[0]
    if (first === undefined) return
    if (this.#protocol.halfClose && first === closeSignal) {
      const target = message.length === 2 ? this.channels[message[1] ?? closeSignal] : undefined
      if (target === undefined) this.#socket.close(1002, 'a close names one channel')
      else this.#endInput(target)
      return
    }
    const channel = this.channels[this.#protocol.base64 ? first - digitZero : first]
    const input = channel?.input
    if (channel === undefined || input === undefined || input.destroyed || this.#ended.has(channel)) return
    const bytes = this.#protocol.base64 ? Buffer.from(message.toString('latin1', 1), 'base64') : message.subarray(1)
    if (bytes.length > 0 && !input.push(bytes)) {
      this.#full.add(channel)
      this.#socket.pause()
    }
  }

  #endInput(channel: Channel): void {
    if (channel.input === undefined || channel.input.destroyed || this.#ended.has(channel)) return
    this.#ended.add(channel)
    channel.input.push(null)
  }

  #input(channel: () => Channel): Readable {
    return new Readable({
      highWaterMark: inputHighWaterMark,
      read: () => {
        this.#full.delete(channel())
        if (this.#full.size === 0 && this.#socket.isPaused) this.#socket.resume()
      },
    })
  }

  #output(number: number): Writable {
    const output = new Writable({
      highWaterMark: outputHighWaterMark,
      write: (bytes: Buffer, _encoding, callback) => this.send(number, bytes, callback),
    })
    // The connection is closing or broken: its 'close' tells everybody.
    output.on('error', () => undefined)
    return output
  }
}
