import { once } from 'node:events'
import net from 'node:net'
import type { AddressInfo } from 'node:net'
import type { TestContext } from 'node:test'
import { SpdyConnection } from './connection.ts'
import type { SpdyConnectionOptions, SpdyStream } from './connection.ts'
import { goAwayFrame, pingFrame, rstStreamFrame, settingsFrame, synReplyFrame, synStreamFrame, windowUpdateFrame } from './frames.ts'
import { HeaderDecoder, HeaderEncoder } from './header-block.ts'
import type { SpdyHeaders } from './header-block.ts'
import { FrameParser } from './parser.ts'
import type { FrameHandler } from './parser.ts'

/** Two ends of a TCP connection over loopback, destroyed with the test. */
export async function socketPair(t: TestContext): Promise<[net.Socket, net.Socket]> {
  const listener = net.createServer({ allowHalfOpen: true, noDelay: true })
  listener.listen(0, '127.0.0.1')
  await once(listener, 'listening')
  const accepted = once(listener, 'connection') as Promise<[net.Socket]>
  const near = net.connect({ port: (listener.address() as AddressInfo).port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true })
  const [far] = await accepted
  listener.close()
  t.after(() => {
    near.destroy()
    far.destroy()
  })
  return [near, far]
}

interface WithHeaders {
  readonly id: number
  readonly flags: number
  readonly headers: SpdyHeaders
}

export type Frame =
  | { readonly type: 'data'; readonly id: number; readonly bytes: string; readonly fin: boolean }
  | ({ readonly type: 'synStream' } & WithHeaders)
  | ({ readonly type: 'synReply' } & WithHeaders)
  | ({ readonly type: 'headers' } & WithHeaders)
  | { readonly type: 'rstStream'; readonly id: number; readonly status: number }
  | { readonly type: 'goAway'; readonly id: number; readonly status: number }
  | { readonly type: 'settings'; readonly values: ReadonlyArray<readonly [id: number, value: number]> }
  | { readonly type: 'ping'; readonly id: number }
  | { readonly type: 'windowUpdate'; readonly id: number; readonly delta: number }

/** A handler that keeps what it is given. DATA of one frame is one entry. */
export function recorder(onFrame: (frame: Frame) => void): FrameHandler {
  const decoder = new HeaderDecoder(1 << 20)
  let pieces: Buffer[] = []
  return {
    active: true,
    data(id, piece, last, fin) {
      pieces.push(piece)
      if (!last) return
      onFrame({ type: 'data', id, bytes: Buffer.concat(pieces).toString('latin1'), fin })
      pieces = []
    },
    synStream: (id, flags, block) => onFrame({ type: 'synStream', id, flags, headers: { ...decoder.decode(block).headers } }),
    synReply: (id, flags, block) => onFrame({ type: 'synReply', id, flags, headers: { ...decoder.decode(block).headers } }),
    headers: (id, flags, block) => onFrame({ type: 'headers', id, flags, headers: { ...decoder.decode(block).headers } }),
    rstStream: (id, status) => onFrame({ type: 'rstStream', id, status }),
    settings: (values) => onFrame({ type: 'settings', values }),
    ping: (id) => onFrame({ type: 'ping', id }),
    goAway: (id, status) => onFrame({ type: 'goAway', id, status }),
    windowUpdate: (id, delta) => onFrame({ type: 'windowUpdate', id, delta }),
  }
}

/** A peer made of single frames: sends what a test says, right or wrong, and keeps every frame it gets. Like Go's, it has no flow control of its own. */
export class RawPeer {
  readonly socket: net.Socket
  readonly frames: Frame[] = []
  readonly #encoder = new HeaderEncoder()
  readonly #ended: Promise<unknown>
  #wake: () => void = () => undefined

  constructor(socket: net.Socket) {
    this.socket = socket
    const parser = new FrameParser(
      recorder((frame) => {
        this.frames.push(frame)
        this.#wake()
      }),
      1 << 20,
    )
    socket.on('data', (chunk: Buffer) => parser.push(chunk))
    socket.on('error', () => undefined)
    socket.on('end', () => socket.end())
    this.#ended = new Promise((resolve) => {
      socket.once('end', resolve)
      socket.once('close', resolve)
    })
  }

  /** The first frame, from `from` on, that matches; waits for it. */
  async frame<T extends Frame['type']>(type: T, matches: (frame: Extract<Frame, { type: T }>) => boolean = () => true): Promise<Extract<Frame, { type: T }>> {
    for (let seen = 0; ; seen++) {
      while (seen >= this.frames.length) {
        const { promise, resolve } = Promise.withResolvers<void>()
        this.#wake = resolve
        const over = await Promise.race([promise.then(() => false), this.#ended.then(() => true)])
        if (over && seen >= this.frames.length) throw new Error(`the connection ended without a ${type} frame; there were ${JSON.stringify(this.frames).slice(0, 500)}`)
      }
      const frame = this.frames[seen] as Frame
      if (frame.type === type && matches(frame as Extract<Frame, { type: T }>)) return frame as Extract<Frame, { type: T }>
    }
  }

  /** Waits until the other side has handled all that was sent. The side under test must be the server. */
  async settled(id = 77): Promise<void> {
    const before = this.frames.length
    this.send(pingFrame(id))
    await this.frame('ping', (frame) => frame.id === id && this.frames.indexOf(frame) >= before)
  }

  /** Settles when the other side has closed. */
  get ended(): Promise<unknown> {
    return this.#ended
  }

  send(...frames: readonly Buffer[]): void {
    this.socket.write(Buffer.concat(frames))
  }
  open(id: number, headers: SpdyHeaders = {}, flags = 0): void {
    this.send(synStreamFrame(id, flags, this.#encoder.encode(headers)))
  }
  reply(id: number, headers: SpdyHeaders = {}, flags = 0): void {
    this.send(synReplyFrame(id, flags, this.#encoder.encode(headers)))
  }
  data(id: number, bytes: string | Buffer, fin = false): void {
    this.send(dataFrame(id, bytes, fin))
  }
  reset(id: number, status: number): void {
    this.send(rstStreamFrame(id, status))
  }
  settings(...values: ReadonlyArray<readonly [id: number, value: number]>): void {
    this.send(settingsFrame(values))
  }
  windowUpdate(id: number, delta: number): void {
    this.send(windowUpdateFrame(id, delta))
  }
  goAway(id: number): void {
    this.send(goAwayFrame(id, 0))
  }
}

export function dataFrame(id: number, bytes: string | Buffer, fin = false): Buffer {
  const payload = Buffer.from(bytes as string, 'latin1')
  const header = Buffer.alloc(8)
  header.writeUInt32BE(id, 0)
  header.writeUInt32BE(payload.length, 4)
  header[4] = fin ? 1 : 0
  return Buffer.concat([header, payload])
}

/** A server connection with a raw peer at the other end, and the streams it was given. */
export async function serverWithRawPeer(t: TestContext, options: Partial<SpdyConnectionOptions> = {}): Promise<{ connection: SpdyConnection; peer: RawPeer; streams: SpdyStream[]; nextStream: () => Promise<SpdyStream> }> {
  const [near, far] = await socketPair(t)
  const streams: SpdyStream[] = []
  const waiting: Array<(stream: SpdyStream) => void> = []
  let taken = 0
  const connection = new SpdyConnection(far, {
    side: 'server',
    onStream: (stream) => {
      streams.push(stream)
      if (waiting.length > 0) taken++
      waiting.shift()?.(stream)
    },
    ...options,
  })
  t.after(() => connection.destroy())
  const nextStream = (): Promise<SpdyStream> => {
    const stream = streams[taken]
    if (stream !== undefined) {
      taken++
      return Promise.resolve(stream)
    }
    return new Promise((resolve) => waiting.push(resolve))
  }
  return { connection, peer: new RawPeer(near), streams, nextStream }
}

/** Two connections of ours, facing each other. */
export async function connectionPair(
  t: TestContext,
  onStream: (stream: SpdyStream) => void,
  options: { readonly client?: Partial<SpdyConnectionOptions>; readonly server?: Partial<SpdyConnectionOptions> } = {},
): Promise<{ client: SpdyConnection; server: SpdyConnection }> {
  const [near, far] = await socketPair(t)
  const server = new SpdyConnection(far, { side: 'server', onStream, ...options.server })
  const client = new SpdyConnection(near, { side: 'client', onStream: (stream) => stream.reset(), ...options.client })
  t.after(() => {
    client.destroy()
    server.destroy()
  })
  return { client, server }
}

/** Bytes from their parts in hexadecimal. */
export function hex(...parts: readonly string[]): Buffer {
  return Buffer.from(parts.join(''), 'hex')
}
