import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { createServer as createTlsServer, type Server as TlsServer } from 'node:https'
import { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { WebSocketServer, type WebSocket } from 'ws'
import { messageOf } from '../errors/cri-error.ts'
import { refuse, refuseOn, targetOf } from './http-responses.ts'
import { isWebSocketRequest, type CommandProtocol, negotiateSpdy, negotiateWebSocket, type Refusal, type WebSocketProtocol } from './negotiate.ts'
import type { KeyPair } from './protocol.ts'
import type { WorkerLog } from './worker-session.ts'
import type { StreamKind, StreamSession } from './types.ts'

/** What golang.org/x/net/websocket takes by default: a client may send a whole file as one message. */
const maxMessageBytes = 32 * 1024 * 1024
const maxHeaderBytes = 16 * 1024
const headersTimeoutMs = 10_000
/** A dead peer is found after about two minutes: nine probes follow, with the kernel's default of 75 s between them, unless set otherwise. */
const tcpKeepAliveMs = 30_000

export interface Redeemed {
  readonly id: number
  readonly session: StreamSession
}

/** What becomes of an upgraded connection. */
export interface UpgradeHandler {
  /** The session that the token stands for, or the answer to give. */
  redeem(kind: StreamKind, token: string): Promise<Redeemed | { readonly refusal: Refusal }>
  /** A redeemed token whose request was refused all the same. */
  refused(id: number): void
  spdy(redeemed: Redeemed, protocol: CommandProtocol, socket: Duplex, head: Buffer): Promise<void>
  webSocket(redeemed: Redeemed, protocol: WebSocketProtocol, socket: WebSocket, query: URLSearchParams): Promise<void>
  /** Answered before the upgrade. */
  checkWebSocket(redeemed: Redeemed, protocol: WebSocketProtocol, query: URLSearchParams): Refusal | undefined
}

export interface HttpFrontOptions {
  readonly tls: KeyPair | undefined
  readonly maxConnections: number
  readonly handler: UpgradeHandler
  readonly log: WorkerLog
}

/** The HTTP(S) listener: finds the session by its token, chooses the protocol and upgrades. */
export class HttpFront {
  readonly #handler: UpgradeHandler
  readonly #log: WorkerLog
  readonly #server: Server | TlsServer
  readonly #webSockets: WebSocketServer
  readonly #chosen = new WeakMap<IncomingMessage, string>()

  constructor({ tls, maxConnections, handler, log }: HttpFrontOptions) {
    this.#handler = handler
    this.#log = log
    const options = {
      maxHeaderSize: maxHeaderBytes,
      headersTimeout: headersTimeoutMs,
      requestTimeout: 2 * headersTimeoutMs,
      keepAliveTimeout: headersTimeoutMs,
      connectionsCheckingInterval: headersTimeoutMs,
      keepAlive: true,
      keepAliveInitialDelay: tcpKeepAliveMs,
      noDelay: true,
    }
    this.#server = tls === undefined ? createServer(options) : createTlsServer({ ...options, ...tls, minVersion: 'TLSv1.2', handshakeTimeout: headersTimeoutMs })
    this.#server.maxConnections = maxConnections
    this.#server.maxHeadersCount = 100
    this.#webSockets = new WebSocketServer({
      noServer: true, perMessageDeflate: false, maxPayload: maxMessageBytes, clientTracking: false, skipUTF8Validation: true,
    })
    // Names such as SPDY/3.1+portforward.k8s.io are in use, though no HTTP token has a slash: ws would refuse them, so it does not see them.
    this.#webSockets.on('headers', (headers, request) => {
      const name = this.#chosen.get(request)
      if (name !== undefined && name !== '') headers.push(`Sec-WebSocket-Protocol: ${name}`)
    })
    this.#server.on('request', (request, response) => this.#guard(this.#answer(request, response), () => response.destroy()))
    this.#server.on('upgrade', (request, socket, head) => {
      socket.on('error', () => undefined)
      this.#guard(this.#upgrade(request, socket, head), () => socket.destroy())
    })
    this.#server.on('clientError', (error, socket) => {
      if (!socket.writable || error.message.includes('ECONNRESET')) socket.destroy()
      else refuseOn(socket, { status: 400, text: 'this is no HTTP request that can be understood' })
    })
  }

  /** Resolves with the port; rejects as `listen` does. */
  async listen(address: string, port: number): Promise<number> {
    const server = this.#server
    const listening = Promise.withResolvers<void>()
    server.once('error', listening.reject)
    server.listen({ host: address, port }, listening.resolve)
    await listening.promise
    server.removeListener('error', listening.reject)
    server.on('error', (error) => this.#log('error', {}, `the streaming server's listener: ${messageOf(error)}`))
    const bound = server.address()
    return typeof bound === 'object' && bound !== null ? bound.port : port
  }

  /** For connections from now on. */
  setKeyPair(tls: KeyPair): void {
    if ('setSecureContext' in this.#server) this.#server.setSecureContext({ ...tls, minVersion: 'TLSv1.2' })
  }

  /** No new connections; those that were not upgraded are closed. */
  close(): void {
    this.#server.close()
    this.#server.closeAllConnections()
  }

  /** A bug in one request's handling ends that request only. */
  #guard(work: Promise<void>, end: () => void): void {
    work.catch((error: unknown) => {
      this.#log('error', { err: String(error) }, `a streaming request failed by a fault of this service: ${messageOf(error)}`)
      end()
    })
  }

  async #find(request: IncomingMessage): Promise<Redeemed & { readonly query: URLSearchParams } | { readonly refusal: Refusal }> {
    const target = targetOf(request)
    if (target === undefined) return { refusal: { status: 404, text: '404 page not found' } }
    if (request.method !== 'GET' && request.method !== 'POST') {
      return { refusal: { status: 405, text: 'streams are opened with GET or POST', headers: [['Allow', 'GET, POST']] } }
    }
    const found = await this.#handler.redeem(target.kind, target.token)
    return 'refusal' in found ? found : { ...found, query: target.query }
  }

  /** A request without an upgrade gets an error in any case; its token is used up all the same. */
  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    request.resume()
    const found = await this.#find(request)
    if ('refusal' in found) return refuse(response, found.refusal)
    this.#handler.refused(found.id)
    const negotiated = negotiateSpdy(found.session.kind, request)
    refuse(response, 'refusal' in negotiated ? negotiated.refusal : { status: 400, text: 'unable to upgrade: the request asks for no upgrade' })
  }

  async #upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    if (socket instanceof Socket) {
      socket.setNoDelay(true)
      socket.setTimeout(0)
    }
    const found = await this.#find(request)
    if ('refusal' in found) return refuseOn(socket, found.refusal)
    if (socket.destroyed) return this.#handler.refused(found.id)
    const { query, ...redeemed } = found
    if (isWebSocketRequest(request)) return this.#upgradeWebSocket(redeemed, query, request, socket, head)
    const negotiated = negotiateSpdy(redeemed.session.kind, request)
    if ('refusal' in negotiated) return this.#refuseRedeemed(redeemed, socket, negotiated.refusal)
    const { protocol, echo } = negotiated
    const version = echo ? `X-Stream-Protocol-Version: ${protocol.name}\r\n` : ''
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n${version}\r\n`)
    await this.#handler.spdy(redeemed, protocol, socket, head)
  }

  async #upgradeWebSocket(redeemed: Redeemed, query: URLSearchParams, request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    const negotiated = negotiateWebSocket(redeemed.session.kind, request)
    if ('refusal' in negotiated) return this.#refuseRedeemed(redeemed, socket, negotiated.refusal)
    const { protocol } = negotiated
    const refusal = this.#handler.checkWebSocket(redeemed, protocol, query)
    if (refusal !== undefined) return this.#refuseRedeemed(redeemed, socket, refusal)
    this.#chosen.set(request, protocol.name)
    delete request.headers['sec-websocket-protocol']
    let upgraded: WebSocket | undefined
    // It answers by itself what is no proper handshake; otherwise the callback is called before it returns.
    this.#webSockets.handleUpgrade(request, socket, head, (webSocket) => {
      upgraded = webSocket
    })
    if (upgraded === undefined) this.#handler.refused(redeemed.id)
    else await this.#handler.webSocket(redeemed, protocol, upgraded, query)
  }

  #refuseRedeemed({ id }: Redeemed, socket: Duplex, refusal: Refusal): void {
    this.#handler.refused(id)
    refuseOn(socket, refusal)
  }
}
