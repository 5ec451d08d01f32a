import { type IncomingMessage, type Server, type ServerResponse, createServer } from 'node:http'
import { isIP } from 'node:net'
import { collectDefaultMetrics } from 'prom-client'
import { errnoOf, failedPrecondition, invalidArgument, messageOf } from '../errors/cri-error.ts'
import type { Logger } from '../observability/logger.ts'
import type { Metrics } from '../observability/metrics.ts'
import { unixSocketPath } from './listen-address.ts'
import { listenOnUnixSocket } from './unix-listener.ts'

export interface MetricsEndpointDeps {
  readonly log: Logger
  readonly metrics: Metrics
  /** What is wrong with the service, for /healthz; undefined if nothing is. Default: that it is asked is enough. */
  readonly problem?: (() => Promise<string | undefined>) | undefined
  /** Why the service is not ready, for /readyz; undefined if it is. */
  readonly notReady: () => string | undefined
  /** More to be had as JSON, by path: `/pulls`. */
  readonly listings?: Readonly<Record<string, () => unknown>> | undefined
}

export interface MetricsEndpoint {
  /** Where it listens: `127.0.0.1:9091` (with the real port if 0 was asked for), `unix:///…`. */
  readonly address: string
  close(): Promise<void>
}

interface TcpAddress {
  readonly host: string
  readonly port: number
}

const setting = '--metrics-address'

/** `127.0.0.1:9091`, `[::1]:9091`, `localhost:9091`. INVALID_ARGUMENT says how it is written. */
export function tcpAddress(address: string): TcpAddress {
  const [, bracketed, plain, digits] = /^(?:\[([^\]]*)\]|([^:[\]]*)):(\d{1,5})$/.exec(address) ?? []
  const host = bracketed ?? plain ?? ''
  const port = Number(digits)
  const valid = digits !== undefined && port <= 65_535 && (bracketed === undefined ? host !== '' && /^[\w.-]+$/.test(host) : isIP(host) === 6)
  if (!valid) throw invalidArgument(`${setting}: "${address}" is not an address; write HOST:PORT (127.0.0.1:9091, [::1]:9091), unix:///PATH, or "" for none`)
  return { host, port }
}

function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'))
}

function listenOnTcp(server: Server, { host, port }: TcpAddress): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen({ host, port }, () => {
      server.removeListener('error', reject)
      resolve()
    })
  })
}

async function answer(deps: MetricsEndpointDeps, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const reply = (status: number, body: string, type = 'text/plain; charset=utf-8'): void => {
    response.writeHead(status, { 'content-type': type, 'content-length': Buffer.byteLength(body) }).end(request.method === 'HEAD' ? undefined : body)
  }
  if (request.method !== 'GET' && request.method !== 'HEAD') {
    response.setHeader('allow', 'GET, HEAD')
    reply(405, 'only GET and HEAD\n')
    return
  }
  switch (request.url?.split('?', 1)[0]) {
    case '/metrics':
      reply(200, await deps.metrics.registry.metrics(), deps.metrics.registry.contentType)
      return
    case '/healthz': {
      const problem = await deps.problem?.()
      reply(problem === undefined ? 200 : 503, `${problem ?? 'ok'}\n`)
      return
    }
    case '/readyz': {
      const reason = deps.notReady()
      reply(reason === undefined ? 200 : 503, `${reason ?? 'ok'}\n`)
      return
    }
    default: {
      const listings = deps.listings ?? {}
      const path = request.url?.split('?', 1)[0] ?? ''
      const listing = Object.hasOwn(listings, path) ? listings[path] : undefined
      if (listing === undefined) reply(404, `there are ${['/metrics', '/healthz', ...Object.keys(listings)].join(', ')} and /readyz\n`)
      else reply(200, `${JSON.stringify(listing(), null, 2)}\n`, 'application/json')
    }
  }
}

/**
 * Serves /metrics (Prometheus text), the listings that it is given (JSON), /healthz (200 as long as the event loop turns and containerd answers) and /readyz (503 with the reason while the service is not
 * ready) on `HOST:PORT` or `unix:///PATH`. An empty address is none: undefined. Metrics of the process itself and the event-loop delay are
 * added to the registry.
 *
 * INVALID_ARGUMENT for an address that is none, FAILED_PRECONDITION for one that cannot be listened on.
 */
export async function startMetricsEndpoint(address: string, deps: MetricsEndpointDeps): Promise<MetricsEndpoint | undefined> {
  if (address === '') return undefined
  const server = createServer({ requestTimeout: 10_000, headersTimeout: 10_000, keepAliveTimeout: 75_000 }, (request, response) => {
    answer(deps, request, response).catch((error: unknown) => {
      deps.log.error({ err: error, url: request.url }, 'answering a request for metrics failed')
      response.destroy()
    })
  })
  server.maxConnections = 64

  let listening: string
  if (address.startsWith('unix:')) {
    const path = unixSocketPath(address, setting)
    await listenOnUnixSocket(server, path, setting)
    listening = `unix://${path}`
  } else {
    const tcp = tcpAddress(address)
    if (!isLoopback(tcp.host)) deps.log.warn({ address }, 'the metrics endpoint asks nobody who they are, and this address is not a loopback address')
    try {
      await listenOnTcp(server, tcp)
    } catch (error) {
      const remedy = errnoOf(error) === 'EADDRINUSE' ? `; something listens there already, choose another port with ${setting}, or "" for no metrics` : ''
      throw failedPrecondition(`${setting}: cannot listen on ${address}: ${messageOf(error)}${remedy}`, { cause: error })
    }
    const bound = server.address()
    const port = typeof bound === 'object' && bound !== null ? bound.port : tcp.port
    listening = tcp.host.includes(':') ? `[${tcp.host}]:${port}` : `${tcp.host}:${port}`
  }
  server.on('error', (error) => deps.log.error({ err: error, address: listening }, 'accepting a connection for metrics failed'))
  if (deps.metrics.registry.getSingleMetric('process_cpu_user_seconds_total') === undefined) collectDefaultMetrics({ register: deps.metrics.registry })

  return {
    address: listening,
    async close(): Promise<void> {
      const closed = Promise.withResolvers<void>()
      server.close(() => closed.resolve())
      server.closeAllConnections()
      await closed.promise
    },
  }
}
