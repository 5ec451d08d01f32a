import http, { type IncomingMessage, type OutgoingHttpHeaders } from 'node:http'
import https from 'node:https'
import { errnoOf } from '../errors/cri-error.ts'
import type { Logger } from '../observability/logger.ts'
import { discardBody } from './body-reader.ts'
import { type ConnectLead, dispatch, type Seen, StaleConnection } from './dispatch.ts'
import { failureOfError, HostFailure, safeText } from './failures.ts'
import { HostNames } from './host-names.ts'
import { isLoopback, portOf } from './host-url.ts'
import { keepNewest } from './newest.ts'
import { proxyFor, proxyName, proxyProblem } from './proxy.ts'
import { type Headers, type HostTls, type RegistryHost, requestHeaders } from './registry-host.ts'
import { SocketReads } from './socket-reads.ts'
import { isNotTls, tlsFailure } from './tls-failures.ts'
import { TlsLoader } from './tls-material.ts'

export interface TransportOptions {
  readonly userAgent: string
  /** Sent to every registry. */
  readonly headers: Headers
  /** Proxy variables and SSL_CERT_FILE. */
  readonly env: Readonly<Record<string, string | undefined>>
  /** Bounds the wait for an answer's head, after the connection stands. */
  readonly headerTimeoutMs: number
}

export interface OutgoingRequest {
  readonly method: 'GET' | 'HEAD' | 'POST'
  /** Absolute; its scheme is replaced for a host whose protocol is not decided. */
  readonly url: URL
  /** Plain request headers (Accept, Range). */
  readonly headers?: Readonly<Record<string, string>>
  readonly authorization?: string | undefined
  /** The Authorization for a redirect's target of another origin. Default: none. */
  readonly authorizationAt?: (url: URL) => string | undefined
  /** For a host that nobody configured: the headers and client certificates of the settings are not for it. */
  readonly foreign?: boolean
  readonly body?: string
  /** The answer is believed, not verified by digest: it must not come over plain HTTP when the question went over TLS. */
  readonly believed?: boolean
  readonly connectLead?: ConnectLead | undefined
  readonly signal: AbortSignal
  readonly log: Logger
}

export interface Answer {
  readonly response: IncomingMessage
  /** Where it came from. */
  readonly url: URL
  /** Whether that is another origin than the one asked: its 401 is not the registry's. */
  readonly redirected: boolean
  /** What was sent there. */
  readonly authorization: string | undefined
}

const maxRedirects = 5
const maxAgents = 64
const rememberPlainMs = 60_000
const maxPlain = 256
const idleSocketMs = 30_000

/**
 * Sends requests to registry hosts: connections kept alive per TLS settings and proxy, redirects followed without credentials to other
 * origins, HTTP where the configuration says so. Failures are HostFailures; an aborted signal's reason is thrown as it is.
 */
export class Transport {
  readonly #options: TransportOptions
  readonly #tls: TlsLoader
  readonly #agents = new Map<string, http.Agent>()
  readonly #reads = new SocketReads()
  readonly #names = new HostNames()
  /** Hosts that turned out not to speak TLS, until when (by the clock that nobody sets) that is believed. */
  readonly #plain = new Map<string, number>()
  #closed = false

  constructor(options: TransportOptions) {
    this.#options = options
    this.#tls = new TlsLoader(options.env)
  }

  /** Resolves with the head of an answer that is no redirect, whatever its status. The caller reads or discards the body. */
  async send(host: RegistryHost, request: OutgoingRequest): Promise<Answer> {
    const first = this.#withProtocol(host, request.url)
    let url = first
    for (let redirects = 0; ; redirects++) {
      const sameOrigin = isSameOrigin(first, url)
      const authorization = sameOrigin ? request.authorization : request.authorizationAt?.(url)
      const at = url
      const response = await this.#sendOnce(host, url, sameOrigin && request.foreign !== true, { ...request, authorization }).catch((error: unknown) => {
        throw error instanceof HostFailure && !sameOrigin ? atTarget(at, error) : error
      })
      const next = request.method === 'POST' ? undefined : await redirectTarget(response, url)
      if (next === undefined) return { response, url, redirected: !sameOrigin, authorization }
      await discardBody(response)
      if (redirects === maxRedirects) throw new HostFailure('server', `more than ${maxRedirects} redirects`)
      if (request.believed === true && url.protocol === 'https:' && next.protocol === 'http:') {
        throw new HostFailure('server', `redirects to plain HTTP (${safeText(next.host, 80)}), where a tag cannot be trusted`)
      }
      url = next
    }
  }

  /** Ends every connection. Requests under way fail. */
  close(): void {
    this.#closed = true
    for (const agent of this.#agents.values()) agent.destroy()
    this.#agents.clear()
  }

  #withProtocol(host: RegistryHost, url: URL): URL {
    const copy = new URL(url)
    // Undecided only for the host itself, not for a token service elsewhere.
    if (host.protocol === 'https-or-http' && url.host === new URL(host.url).host) {
      const plain = (this.#plain.get(host.host) ?? 0) > performance.now()
      copy.protocol = plain ? 'http:' : 'https:'
    }
    return copy
  }

  /** `own`: it is the configured host, and its headers and client certificates may go there. */
  async #sendOnce(host: RegistryHost, url: URL, own: boolean, request: OutgoingRequest): Promise<IncomingMessage> {
    const seen: Seen = {}
    try {
      return await this.#exchangeFresh(host, url, own, request, seen)
    } catch (error) {
      request.signal.throwIfAborted()
      if (url.protocol === 'https:' && host.protocol === 'https-or-http' && own && speaksNoTls(error, host)) {
        // Names of this machine are as many as images may have.
        keepNewest(this.#plain, host.host, performance.now() + rememberPlainMs, maxPlain)
        url.protocol = 'http:'
        request.log.debug({ registryHost: host.host }, 'the registry does not speak TLS: using plain HTTP')
        return this.#sendOnce(host, url, own, request)
      }
      if (url.protocol === 'http:' && host.protocol === 'https-or-http') this.#plain.delete(host.host)
      throw await tlsFailure(error, { url, host, own, seen }) ?? this.#throughProxy(failureOfError(error), url, seen)
    }
  }

  /** Until it is connected, what fails is the way to the proxy, or what the proxy says. */
  #throughProxy(failure: HostFailure, url: URL, seen: Seen): HostFailure {
    const proxy = seen.connected === true || failure.kind !== 'unreachable' ? undefined : proxyFor(url, this.#options.env)
    return proxy === undefined ? failure : failure.with(`by the HTTP proxy ${safeText(proxyName(proxy), 80)}: ${failure.message}`)
  }

  /** A kept connection may have been closed by the other side just now: that says nothing about the host, so ask again. */
  async #exchangeFresh(host: RegistryHost, url: URL, own: boolean, request: OutgoingRequest, seen: Seen): Promise<IncomingMessage> {
    for (let stale = 0; ; stale++) {
      try {
        return await this.#exchange(host, url, own, request, seen)
      } catch (error) {
        if (!(error instanceof StaleConnection)) throw error
        if (stale >= 3 || request.signal.aborted) throw error.cause
      }
    }
  }

  async #exchange(host: RegistryHost, url: URL, own: boolean, request: OutgoingRequest, seen: Seen): Promise<IncomingMessage> {
    request.signal.throwIfAborted()
    const agent = await this.#agentFor(url, tlsAt(host.tls, url), own)
    request.signal.throwIfAborted()
    const secret: OutgoingHttpHeaders = { ...(own ? merged(this.#options.headers, host.headers) : {}), ...authorizationOf(request) }
    const headers = { 'user-agent': this.#options.userAgent, ...secret, 'accept-encoding': 'identity', ...request.headers }
    const started = performance.now()
    const { method, body, signal, connectLead } = request
    const response = await dispatch(url, {
      agent, method, headers, body, signal, connectLead, dialTimeoutMs: host.dialTimeoutMs, headerTimeoutMs: this.#options.headerTimeoutMs, seen,
    })
    request.log.debug(
      { registryHost: url.host, method: request.method, path: url.pathname, status: response.statusCode, ms: Math.round(performance.now() - started) },
      'registry request',
    )
    return response
  }

  async #agentFor(url: URL, tls: HostTls, own: boolean): Promise<http.Agent> {
    const proxy = proxyFor(url, this.#options.env)
    const secure = url.protocol === 'https:'
    // A client certificate is a credential: it goes to the host that it was configured for.
    const material = secure ? await this.#tls.load(tls, own) : undefined
    if (this.#closed) throw new HostFailure('unreachable', 'the service is shutting down')
    const key = `${material?.id ?? 'http'} ${proxy ?? ''}`
    const known = this.#agents.get(key)
    if (known !== undefined) {
      this.#agents.delete(key)
      this.#agents.set(key, known)
      return known
    }
    const options = { keepAlive: true, maxFreeSockets: 16, timeout: idleSocketMs, autoSelectFamilyAttemptTimeout: 2000, lookup: this.#names.lookup, ...proxyOptions(proxy) }
    const agent = material === undefined
      ? new http.Agent(options)
      : new https.Agent({ ...options, secureContext: material.secureContext, rejectUnauthorized: !material.skipVerify })
    // A tunnel's socket is read by Node first, for the proxy's answer.
    if (proxy === undefined) this.#reads.through(agent)
    this.#agents.set(key, agent)
    this.#evictAgents()
    return agent
  }

  /** Settings that are not used any more (rotated certificates) give up their idle connections. */
  #evictAgents(): void {
    for (const [key, agent] of this.#agents) {
      if (this.#agents.size <= maxAgents) return
      if (Object.keys(agent.sockets).length > 0 || Object.keys(agent.requests).length > 0) continue
      agent.destroy()
      this.#agents.delete(key)
    }
  }
}

/** What holds at a URL of the TLS settings of the host that led there. */
export function tlsAt(tls: HostTls, url: URL): HostTls {
  return tls.hereAlone === true && !isLoopback(url.host) ? { ...tls, skipVerify: false } : tls
}

/** The same host in TLS is no other one: that is where registries send those who ask them in plain HTTP. */
function isSameOrigin(first: URL, url: URL): boolean {
  if (url.host === first.host && url.protocol === first.protocol) return true
  return first.protocol === 'http:' && url.protocol === 'https:' && url.hostname === first.hostname && first.port === '' && url.port === ''
}

async function redirectTarget(response: IncomingMessage, from: URL): Promise<URL | undefined> {
  const location = response.headers.location
  if (location === undefined || ![301, 302, 303, 307, 308].includes(response.statusCode ?? 0)) return undefined
  let target: URL
  try {
    target = new URL(location, from)
  } catch {
    // Without its cause, which holds the whole text and with it what signs it.
    await discardBody(response)
    throw new HostFailure('server', 'redirects to something that is no URL')
  }
  if (target.protocol !== 'https:' && target.protocol !== 'http:') {
    await discardBody(response)
    throw new HostFailure('server', `redirects to a ${safeText(target.protocol, 20)} address`)
  }
  target.username = ''
  target.password = ''
  return target
}

/** What went wrong at the target of a redirect, by the name of that: without its path and query, which may be signed. */
export function atTarget(url: URL, failure: HostFailure): HostFailure {
  return failure.with(`redirects to ${safeText(url.host, 80)}: ${failure.message}`, { connected: true })
}

/** HTTPS was tried on a host that is allowed plain HTTP: does the failure say that it has no TLS? */
function speaksNoTls(error: unknown, host: RegistryHost): boolean {
  if (isNotTls(error)) return true
  // Nothing listens on 443, and no port was named: it may be on 80.
  return portOf(host.host) === undefined && isLoopback(host.host) && errnoOf(error) === 'ECONNREFUSED'
}

function authorizationOf(request: OutgoingRequest): OutgoingHttpHeaders {
  return request.authorization === undefined ? {} : { authorization: request.authorization }
}

/**
 * Both tables under lower-case names; a name that is in both sends both values, as containerd does, except Authorization and User-Agent.
 * What a request says of itself is not for settings to change.
 */
function merged(global: Headers, host: Headers): Record<string, string[] | string> {
  const all: Record<string, string[]> = {}
  for (const [name, values] of [...Object.entries(global), ...Object.entries(host)]) {
    const key = name.toLowerCase()
    if (requestHeaders.has(key)) continue
    all[key] = key === 'authorization' || key === 'user-agent' ? [...values] : [...(all[key] ?? []), ...values]
  }
  return Object.fromEntries(Object.entries(all).map(([key, values]) => [key, values.length === 1 ? (values[0] ?? '') : values]))
}

function proxyOptions(proxy: string | undefined): { readonly proxyEnv?: Record<string, string> } {
  if (proxy === undefined) return {}
  const problem = proxyProblem(proxy)
  if (problem !== undefined) throw new HostFailure('config', problem)
  // Which requests are exempt is decided already.
  return { proxyEnv: { HTTP_PROXY: proxy, HTTPS_PROXY: proxy } }
}
