import { Server, ServerCredentials } from '@grpc/grpc-js'
import { type Socket, type Server as NetServer, createServer } from 'node:net'
import { unavailable } from '../errors/cri-error.ts'
import type { Logger } from '../observability/logger.ts'
import type { Tracer } from '../observability/tracing.ts'
import type { Metrics } from '../observability/metrics.ts'
import type { Audit } from './audit.ts'
import { Calls } from './calls.ts'
import type { HandlerTable, Method } from './handlers.ts'
import { introduce } from './introduction.ts'
import { unixSocketPath } from './listen-address.ts'
import { dropUnboundedTimeouts } from './long-deadlines.ts'
import { isAlwaysServed, isEndless } from './methods.ts'
import { Peers } from './peers.ts'
import { registerHandlers } from './registration.ts'
import type { Gate } from './service.ts'
import { listenOnUnixSocket } from './unix-listener.ts'

export interface EndpointDeps {
  readonly handlers: HandlerTable
  readonly gate: Gate
  readonly log: Logger
  readonly metrics: Metrics
  readonly tracer?: Tracer | undefined
  readonly audit?: Audit | undefined
}

export interface EndpointOptions {
  /** `unix:///run/cri-shim/cri-shim.sock` */
  readonly listen: string
  /** The largest request and the largest answer, in bytes. Default: 16 MiB, what a kubelet accepts. */
  readonly maxMessageBytes?: number
  /** How many RPCs one connection may have open at once; the client queues the rest. Default: 1024. */
  readonly maxConcurrentStreams?: number
}

export interface CloseOptions {
  /** How long calls may go on undisturbed, in milliseconds. */
  readonly graceMs: number
  /** How long they then have to take back what they did, with their signals aborted, in milliseconds. Default: 10,000. */
  readonly undoMs?: number
}

const defaultUndoMs = 10_000
/** How long the last answers may take to reach their clients, in milliseconds. */
const flushMs = 1000

/** Waits for `promise`, at most `ms` milliseconds. */
async function atMost(ms: number, promise: Promise<void>): Promise<boolean> {
  const timeout = Promise.withResolvers<boolean>()
  const timer = setTimeout(() => timeout.resolve(false), ms)
  try {
    return await Promise.race([promise.then(() => true), timeout.promise])
  } finally {
    clearTimeout(timer)
  }
}

/**
 * The gRPC endpoint of both CRI services on a unix socket. It accepts connections itself and hands them to grpc-js: that way the mode of the
 * socket is ours to decide, and a socket that systemd opened can be served by the same means.
 *
 * There are no keep-alive pings: the kernel reports the end of a local peer at once, and one that is only stopped (SIGSTOP, a debugger)
 * keeps its connection.
 */
export class Endpoint {
  readonly path: string
  readonly #log: Logger
  readonly #calls: Calls
  readonly #server: Server
  readonly #listener: NetServer
  readonly #sockets = new Set<Socket>()
  /** Those of them that have not called yet. */
  readonly #silent = new Set<Socket>()
  #closing: Promise<void> | undefined

  constructor(deps: EndpointDeps, options: EndpointOptions) {
    const maxMessageBytes = options.maxMessageBytes ?? 16 * 1024 * 1024
    this.path = unixSocketPath(options.listen, '--listen')
    this.#log = deps.log
    const peers = deps.audit === undefined ? undefined : new Peers(deps.audit.lookUp)
    this.#calls = new Calls({ ...deps, peerOf: peers && ((metadata) => peers.of(metadata)) })
    this.#server = new Server({
      'grpc.max_receive_message_length': maxMessageBytes,
      'grpc.max_send_message_length': maxMessageBytes,
      'grpc.max_concurrent_streams': options.maxConcurrentStreams ?? 1024,
      'grpc.enable_channelz': 0,
    })
    registerHandlers(this.#server, deps.handlers, {
      calls: this.#calls,
      maxMessageBytes,
      refusal: (method: Method) => {
        if (this.#closing !== undefined) return unavailable('cri-shim is shutting down; try again when it is back')
        return isAlwaysServed(method) ? undefined : deps.gate(method)
      },
    })
    const injector = this.#server.createConnectionInjector(ServerCredentials.createInsecure())
    dropUnboundedTimeouts(this.#server)
    peers?.follow(this.#server)
    this.#listener = createServer((socket) => {
      this.#sockets.add(socket)
      this.#silent.add(socket)
      socket.once('close', () => {
        this.#sockets.delete(socket)
        this.#silent.delete(socket)
      })
      peers?.add(socket)
      introduce(socket, (connection) => {
        this.#silent.delete(socket)
        peers?.carry(socket, connection)
        injector.injectConnection(connection)
      })
    })
  }

  /** Starts to accept connections. FAILED_PRECONDITION says what is in the way. */
  async listen(): Promise<void> {
    await listenOnUnixSocket(this.#listener, this.path)
    // Running out of descriptors makes an accept fail, not the service.
    this.#listener.on('error', (error) => this.#log.error({ err: error, path: this.path }, 'accepting a connection failed'))
  }

  /** How many RPCs run now. */
  get inFlight(): number {
    return this.#calls.size
  }

  /**
   * Accepts no more connections or calls and removes the socket; lets running calls end for `graceMs`, then aborts their signals, then, after
   * `undoMs`, leaves them behind. Resolves when every connection is closed. A second call waits for the first.
   */
  close(options: CloseOptions): Promise<void> {
    this.#closing ??= this.#close(options)
    return this.#closing
  }

  async #close({ graceMs, undoMs = defaultUndoMs }: CloseOptions): Promise<void> {
    const reason = unavailable('cri-shim is shutting down; try again when it is back')
    const accepting = Promise.withResolvers<void>()
    if (this.#listener.listening) this.#listener.close(() => accepting.resolve())
    else accepting.resolve()
    for (const socket of this.#silent) socket.destroy()
    const shutDown = Promise.withResolvers<void>()
    this.#server.tryShutdown(() => shutDown.resolve())

    this.#calls.abort(reason, (call) => isEndless(call.method))
    if (!(await atMost(graceMs, this.#calls.idle()))) {
      this.#log.warn({ calls: this.#calls.describe(), graceMs }, 'calls still run at shutdown and are aborted')
      this.#calls.abort(reason)
      if (!(await atMost(undoMs, this.#calls.idle()))) {
        this.#log.error({ calls: this.#calls.describe(), undoMs }, 'calls do not end although they were aborted; leaving them behind')
      }
    }
    await atMost(flushMs, Promise.all([shutDown.promise, accepting.promise]).then(() => undefined))
    for (const socket of this.#sockets) socket.destroy()
    this.#server.forceShutdown()
    await accepting.promise
  }
}
