import type { Server } from '@grpc/grpc-js'
import { EventEmitter } from 'node:events'
import type { ServerHttp2Session } from 'node:http2'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'

/** Who calls: the process at the other end of the connection. */
export interface Peer {
  readonly pid: number
  readonly uid: number
  readonly gid: number
  /** The name of the process (its comm) when it connected; empty when it is not to be seen. */
  readonly process: string
}

/** The metadata that names a connection to the handlers. What a client sends under this name is replaced. */
const header = 'cri-shim-connection'
const mark = Symbol('connection')

/** A stream that is no socket is wrapped in one by Node's HTTP/2, and is its `stream`. */
function markOf(socket: object): unknown {
  const stream: unknown = Reflect.get(socket, 'stream')
  return Reflect.get(socket, mark) ?? (typeof stream === 'object' && stream !== null ? Reflect.get(stream, mark) : undefined)
}

/** Says for each call who is at the other end. grpc-js tells its handlers nothing of a unix connection: a number goes with each call as metadata. */
export class Peers {
  readonly #lookUp: (fd: number) => Promise<Peer>
  readonly #peers = new Map<string, Promise<Peer | undefined>>()
  #count = 0

  /** `lookUp` reads the credentials at once: the descriptor's number may be another connection's later. */
  constructor(lookUp: (fd: number) => Promise<Peer>) {
    this.#lookUp = lookUp
  }

  /** Before the connection is handed to grpc-js. */
  add(socket: Socket): void {
    const handle: unknown = Reflect.get(socket, '_handle')
    const fd: unknown = typeof handle === 'object' && handle !== null ? Reflect.get(handle, 'fd') : undefined
    if (typeof fd !== 'number' || fd < 0) return
    const id = String(++this.#count)
    Reflect.set(socket, mark, id)
    this.#peers.set(id, this.#lookUp(fd).catch(() => undefined))
    socket.once('close', () => this.#peers.delete(id))
  }

  /** The connection goes on through another stream. */
  carry(socket: Socket, connection: Duplex): void {
    Reflect.set(connection, mark, Reflect.get(socket, mark))
  }

  /** Marks the calls of a server's connections; see dropUnboundedTimeouts() for the means. */
  follow(server: Server): void {
    const http2Servers: unknown = Reflect.get(server, 'http2Servers')
    if (!(http2Servers instanceof Map)) throw new TypeError('this version of grpc-js keeps its HTTP/2 servers elsewhere')
    for (const http2Server of http2Servers.keys()) {
      if (!(http2Server instanceof EventEmitter)) continue
      http2Server.prependListener('stream', (stream: { readonly session?: ServerHttp2Session | undefined }, headers: Record<string, string | string[] | undefined>) => {
        const id = stream.session === undefined ? undefined : markOf(stream.session.socket)
        delete headers[header]
        if (typeof id === 'string') headers[header] = id
      })
    }
  }

  /** To be taken while the call runs. */
  of(metadata: { get(name: string): readonly (string | Buffer)[] }): Promise<Peer | undefined> {
    return this.#peers.get(String(metadata.get(header)[0] ?? '')) ?? Promise.resolve(undefined)
  }
}
