import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import http, { type IncomingMessage, type ServerResponse } from 'node:http'
import https from 'node:https'
import { type AddressInfo, connect, type Server as NetServer, type Socket } from 'node:net'
import path from 'node:path'
import type { TLSSocket } from 'node:tls'
import type { Descriptor } from './registry-client.ts'

/** What a registry does instead of answering well. */
export type Fault =
  | { readonly kind: 'status'; readonly status: number; readonly body?: string | Buffer; readonly headers?: Readonly<Record<string, string>> }
  /** The connection is reset before any answer. */
  | { readonly kind: 'reset' }
  /** The body breaks off after so many bytes: the connection is reset. */
  | { readonly kind: 'truncate'; readonly afterBytes: number }
  /** The body ends after so many bytes as if that were all (no Content-Length). */
  | { readonly kind: 'short'; readonly afterBytes: number }
  /** More comes than was announced (no Content-Length). */
  | { readonly kind: 'long' }
  /** The right length, other bytes. */
  | { readonly kind: 'wrong-bytes' }
  /** The head of the answer, some bytes, then nothing. */
  | { readonly kind: 'stall'; readonly afterBytes: number }
  /** No answer at all. */
  | { readonly kind: 'silent' }
  /** A good answer, once `until` is settled. */
  | { readonly kind: 'late'; readonly until: Promise<unknown> }
  /** The head of the answer, then ten bytes every 10 ms. */
  | { readonly kind: 'trickle' }
  | { readonly kind: 'redirect'; readonly location: string }

export interface SeenRequest {
  readonly method: string
  readonly path: string
  readonly query: URLSearchParams
  readonly headers: http.IncomingHttpHeaders
  readonly body: string
  /** Which connection it came on, counted from 1. */
  readonly connection: number
  readonly clientName: string | undefined
}

export type RegistryAuth =
  | { readonly kind: 'basic'; readonly username: string; readonly password: string }
  /** `check` says which token a token request deserves, undefined for 401. */
  | { readonly kind: 'bearer'; readonly check: (request: SeenRequest) => string | undefined; readonly expiresIn?: number; readonly noPost?: boolean; readonly noGet?: boolean; readonly realm?: string }

export interface CertificateFiles {
  readonly caFile: string
  readonly certFile: string
  readonly keyFile: string
  readonly clientCertFile: string
  readonly clientKeyFile: string
}

/** A registry on 127.0.0.1 with real sockets, and faults that a test switches on and off. */
export class FakeRegistry {
  readonly requests: SeenRequest[] = []
  readonly sockets = new Set<Socket>()
  /** Decides per request; undefined answers well. */
  fault: (request: SeenRequest) => Fault | undefined = () => undefined
  auth: RegistryAuth | undefined
  ignoreRange = false
  withoutDigestHeader = false
  contentType: string | undefined
  contentEncoding: string | undefined
  readonly #manifests = new Map<string, { readonly bytes: Buffer; readonly mediaType: string }>()
  readonly #blobs = new Map<string, Buffer>()
  readonly #server: NetServer
  readonly #scheme: string
  /** Tokens that are accepted. */
  readonly validTokens = new Set<string>()
  #connections = 0
  #numbers = new WeakMap<Socket, number>()

  private constructor(tls: CertificateFiles | undefined, askClientCertificate: boolean) {
    const listener = (request: IncomingMessage, response: ServerResponse): void => {
      this.#serve(request, response).catch((error: unknown) => response.destroy(error as Error))
    }
    this.#scheme = tls === undefined ? 'http' : 'https'
    const server = tls === undefined
      ? http.createServer(listener)
      : https.createServer({ cert: readFileSync(tls.certFile), key: readFileSync(tls.keyFile), ca: readFileSync(tls.caFile), requestCert: askClientCertificate, rejectUnauthorized: askClientCertificate }, listener)
    server.on(tls === undefined ? 'connection' : 'secureConnection', (socket: Socket) => {
      this.#connections++
      this.#numbers.set(socket, this.#connections)
      this.sockets.add(socket)
      socket.once('close', () => this.sockets.delete(socket))
      socket.on('error', () => {})
    })
    server.on('tlsClientError', () => {})
    this.#server = server
  }

  static async start(options: { readonly tls?: CertificateFiles; readonly askClientCertificate?: boolean } = {}): Promise<FakeRegistry> {
    const registry = new FakeRegistry(options.tls, options.askClientCertificate ?? false)
    await new Promise<void>((resolve) => {
      registry.#server.listen(0, '127.0.0.1', resolve)
    })
    return registry
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port
  }

  /** `127.0.0.1:PORT` */
  get host(): string {
    return `127.0.0.1:${this.port}`
  }

  get url(): string {
    return `${this.#scheme}://${this.host}`
  }

  /** Resolves when no client is connected. */
  async idle(): Promise<void> {
    while (this.sockets.size > 0) {
      await Promise.all([...this.sockets].map((socket) => new Promise((resolve) => {
        socket.once('close', resolve)
      })))
    }
  }

  get connections(): number {
    return this.#connections
  }

  /** `METHOD path` of what was asked so far. */
  get asked(): string[] {
    return this.requests.map((request) => `${request.method} ${request.path}`)
  }

  putManifest(repository: string, tag: string, bytes: Buffer, mediaType: string): Descriptor {
    const digest = sha256(bytes)
    for (const name of [tag, digest]) this.#manifests.set(`${repository}/manifests/${name}`, { bytes, mediaType })
    return { mediaType, digest, sizeBytes: bytes.length }
  }

  putBlob(repository: string, bytes: Buffer): Descriptor {
    const digest = sha256(bytes)
    this.#blobs.set(`${repository}/blobs/${digest}`, bytes)
    return { mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip', digest, sizeBytes: bytes.length }
  }

  /** Takes no connection any more, and keeps those that stand. */
  stopListening(): void {
    this.#server.close()
  }

  async close(): Promise<void> {
    for (const socket of this.sockets) socket.destroy()
    await new Promise((resolve) => {
      this.#server.close(resolve)
    })
  }

  async #serve(message: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(message.url ?? '/', this.url)
    const chunks: Buffer[] = []
    for await (const chunk of message) chunks.push(chunk as Buffer)
    const peer = this.#scheme === 'https' ? (message.socket as TLSSocket).getPeerCertificate() : undefined
    const name = peer?.subject?.CN
    const request: SeenRequest = {
      method: message.method ?? '', path: url.pathname, query: url.searchParams, headers: message.headers, body: Buffer.concat(chunks).toString(),
      connection: this.#numbers.get(message.socket) ?? 0, clientName: Array.isArray(name) ? name[0] : name,
    }
    this.requests.push(request)
    const fault = this.fault(request)
    if (fault?.kind === 'silent') return
    if (fault?.kind === 'late') await fault.until
    if (fault?.kind === 'reset') {
      message.socket.resetAndDestroy()
      return
    }
    if (fault?.kind === 'redirect') {
      response.writeHead(307, { location: fault.location, 'content-length': '0' }).end()
      return
    }
    if (fault?.kind === 'status') {
      const body = fault.body ?? ''
      response.writeHead(fault.status, { 'content-length': String(Buffer.byteLength(body)), ...fault.headers }).end(body)
      return
    }
    if (url.pathname === '/token') {
      this.#serveToken(request, response)
      return
    }
    if (!this.#allowed(request, response)) return
    this.#serveContent(request, response, fault)
  }

  #serveToken(request: SeenRequest, response: ServerResponse): void {
    const { auth } = this
    if (auth?.kind !== 'bearer' || (request.method === 'POST' && auth.noPost === true) || (request.method === 'GET' && auth.noGet === true)) {
      response.writeHead(404, { 'content-length': '0' }).end()
      return
    }
    const token = auth.check(request)
    if (token === undefined) {
      response.writeHead(401, { 'content-length': '0' }).end()
      return
    }
    this.validTokens.add(token)
    const body = JSON.stringify({ token, ...(auth.expiresIn === undefined ? {} : { expires_in: auth.expiresIn }) })
    response.writeHead(200, { 'content-type': 'application/json', 'content-length': String(body.length) }).end(body)
  }

  #allowed(request: SeenRequest, response: ServerResponse): boolean {
    const { auth } = this
    if (auth === undefined) return true
    const given = request.headers.authorization ?? ''
    const good = auth.kind === 'basic'
      ? given === `Basic ${Buffer.from(`${auth.username}:${auth.password}`).toString('base64')}`
      : given.startsWith('Bearer ') && this.validTokens.has(given.slice('Bearer '.length))
    if (good) return true
    const repository = /^\/v2\/(.*)\/(?:manifests|blobs)\//.exec(request.path)?.[1] ?? ''
    const challenge = auth.kind === 'basic'
      ? 'Basic realm="registry"'
      : `Bearer realm="${auth.realm ?? `${this.url}/token`}",service="fake",scope="repository:${repository}:pull"`
    response.writeHead(401, { 'www-authenticate': challenge, 'content-length': '0' }).end()
    return false
  }

  #serveContent(request: SeenRequest, response: ServerResponse, fault: Fault | undefined): void {
    const key = request.path.replace(/^\/v2\//, '')
    const manifest = this.#manifests.get(key)
    const content = manifest?.bytes ?? this.#blobs.get(key)
    if (content === undefined) {
      const body = '{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}'
      response.writeHead(404, { 'content-type': 'application/json', 'content-length': String(body.length) }).end(request.method === 'HEAD' ? undefined : body)
      return
    }
    const from = this.ignoreRange ? 0 : Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0)
    let body = content.subarray(from)
    if (fault?.kind === 'wrong-bytes') body = Buffer.from(body.map((byte) => byte ^ 0xff))
    if (fault?.kind === 'long') body = Buffer.concat([body, Buffer.from('more')])
    const sized = fault?.kind !== 'short' && fault?.kind !== 'long'
    response.writeHead(from > 0 ? 206 : 200, {
      'content-type': this.contentType ?? manifest?.mediaType ?? 'application/octet-stream',
      ...(this.contentEncoding === undefined ? {} : { 'content-encoding': this.contentEncoding }),
      ...(sized ? { 'content-length': String(body.length) } : {}),
      ...(this.withoutDigestHeader ? {} : { 'docker-content-digest': sha256(content) }),
      ...(from > 0 ? { 'content-range': `bytes ${from}-${content.length - 1}/${content.length}` } : {}),
    })
    if (request.method === 'HEAD') response.end()
    else if (fault?.kind === 'truncate') response.write(body.subarray(0, fault.afterBytes), () => response.socket?.resetAndDestroy())
    else if (fault?.kind === 'trickle') trickle(response, body)
    else if (fault?.kind === 'stall') response.write(body.subarray(0, fault.afterBytes))
    else if (fault?.kind === 'short') response.end(body.subarray(0, fault.afterBytes))
    else response.end(body)
  }
}

function trickle(response: ServerResponse, body: Buffer): void {
  let at = 0
  const timer = setInterval(() => response.write(body.subarray(at, (at += 10))), 10)
  response.once('close', () => clearInterval(timer))
}

/** An HTTP proxy on 127.0.0.1 that sends everything to one port. */
export class FakeProxy {
  readonly seen: string[] = []
  readonly #server: http.Server
  readonly #sockets = new Set<Socket>()

  private constructor(targetPort: number) {
    this.#server = http.createServer((request, response) => {
      this.seen.push(`${request.method} ${request.url}`)
      const url = new URL(request.url ?? '/')
      const onward = http.request({ host: '127.0.0.1', port: targetPort, path: url.pathname + url.search, method: request.method, headers: request.headers }, (answer) => {
        response.writeHead(answer.statusCode ?? 502, answer.headers)
        answer.pipe(response)
      })
      request.pipe(onward)
    })
    this.#server.on('connect', (request: IncomingMessage, socket: Socket) => {
      this.seen.push(`CONNECT ${request.url}`)
      const onward = connect(targetPort, '127.0.0.1', () => {
        socket.write('HTTP/1.1 200 Connection Established\r\n\r\n')
        socket.pipe(onward).pipe(socket)
      })
      onward.on('error', () => socket.destroy())
      socket.on('error', () => onward.destroy())
    })
    this.#server.on('connection', (socket: Socket) => {
      this.#sockets.add(socket)
      socket.once('close', () => this.#sockets.delete(socket))
    })
  }

  static async start(targetPort: number): Promise<FakeProxy> {
    const proxy = new FakeProxy(targetPort)
    await new Promise<void>((resolve) => {
      proxy.#server.listen(0, '127.0.0.1', resolve)
    })
    return proxy
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy()
    await new Promise((resolve) => {
      this.#server.close(resolve)
    })
  }
}

/** An authority of our own, a server certificate for 127.0.0.1 and registry.test, and a client certificate for `node`. */
export function makeCertificates(dir: string): CertificateFiles {
  const file = (name: string): string => path.join(dir, name)
  const openssl = (...args: string[]): void => {
    execFileSync('openssl', args, { stdio: ['ignore', 'ignore', 'pipe'] })
  }
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']
  openssl('req', '-x509', ...key, '-keyout', file('ca.key'), '-out', file('ca.crt'), '-days', '2', '-subj', '/CN=test authority')
  for (const [name, subject] of [['server', '/CN=registry.test'], ['client', '/CN=node']] as const) {
    openssl('req', '-x509', ...key, '-CA', file('ca.crt'), '-CAkey', file('ca.key'), '-keyout', file(`${name}.key`), '-out', file(`${name}.crt`), '-days', '2', '-subj', subject,
      '-addext', 'subjectAltName=IP:127.0.0.1,DNS:registry.test,DNS:localhost', '-addext', 'basicConstraints=critical,CA:FALSE')
  }
  return { caFile: file('ca.crt'), certFile: file('server.crt'), keyFile: file('server.key'), clientCertFile: file('client.crt'), clientKeyFile: file('client.key') }
}

export function sha256(bytes: Buffer): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`
}
