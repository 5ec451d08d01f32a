import type { IncomingHttpHeaders } from 'node:http'
import { Code, CriError, errnoOf, messageOf } from '../errors/cri-error.ts'
import { REGISTRY_UNAVAILABLE } from '../errors/registry-unavailable.ts'
import type { RegistryHost } from './registry-host.ts'

/**
 * Why one host did not serve a request. `missing`: 404. `unauthenticated`, `denied`: 401, 403. `limited`: 429. `unreachable`: no answer.
 * `server`: any other status. `content`: an answer that is not what was asked for. `config`: cannot be asked as configured.
 */
export type FailureKind = 'missing' | 'unauthenticated' | 'denied' | 'limited' | 'unreachable' | 'server' | 'content' | 'config'

export interface FailureOptions {
  /** Asking the same host again may help. */
  readonly transient?: boolean
  /** The host asks to wait this long. */
  readonly retryAfterMs?: number
  /** It took a deadline to find out. */
  readonly timedOut?: boolean
  /** The host's own connection stood, or it had answered and sent on to another one: what failed may be about this image alone. */
  readonly connected?: boolean
  /** Somebody was there, and what could not be agreed on is TLS. */
  readonly reached?: boolean
  readonly cause?: unknown
}

/** One host's failure. The message holds no URL query, credential or token; the host's name is added by whoever reports it. */
export class HostFailure extends Error {
  override readonly name = 'HostFailure'
  readonly kind: FailureKind
  readonly transient: boolean
  readonly retryAfterMs: number | undefined
  readonly timedOut: boolean
  readonly connected: boolean
  readonly reached: boolean

  constructor(kind: FailureKind, message: string, options: FailureOptions = {}) {
    super(clip(message, maxMessage), options.cause === undefined ? undefined : { cause: options.cause })
    this.kind = kind
    this.transient = options.transient ?? false
    this.retryAfterMs = options.retryAfterMs
    // A failure that is about another one (a token service's) took as long and came as far as that.
    const about = options.cause instanceof HostFailure ? options.cause : undefined
    this.timedOut = options.timedOut ?? about?.timedOut ?? false
    this.connected = options.connected ?? about?.connected ?? false
    this.reached = options.reached ?? about?.reached ?? false
  }

  /** The same in other words. */
  with(message: string, { connected = this.connected }: Pick<FailureOptions, 'connected'> = {}): HostFailure {
    const { kind, transient, retryAfterMs } = this
    return new HostFailure(kind, message, { transient, connected, cause: this, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) })
  }
}

/** Whoever answers chose a part of the words. */
const maxMessage = 600

export interface FailedHost {
  readonly host: RegistryHost
  readonly failure: HostFailure
}

const codeOfKind: Readonly<Record<FailureKind, Code>> = {
  missing: Code.NOT_FOUND,
  unauthenticated: Code.UNAUTHENTICATED,
  denied: Code.PERMISSION_DENIED,
  limited: Code.RESOURCE_EXHAUSTED,
  unreachable: Code.UNAVAILABLE,
  server: Code.UNAVAILABLE,
  content: Code.DATA_LOSS,
  config: Code.FAILED_PRECONDITION,
}

/**
 * The one error for a request that no host served: every host with its own reason, short enough for an event of the API server (1 KiB,
 * of which the kubelet takes some). The registry's own word on whether the image is there and may be read outweighs what mirrors say; a
 * host that could not be asked means UNAVAILABLE, since it might have the image.
 */
export function allFailed(what: string, failed: readonly FailedHost[]): CriError {
  const kind = decisiveKind(failed)
  const remedy = kind === 'unauthenticated' || kind === 'denied' ? ' (check the imagePullSecrets of the pod)' : ''
  const nobody = failed.every(({ failure }) => failure.kind === 'unreachable' && !failure.reached)
  const reason = nobody ? REGISTRY_UNAVAILABLE : kind.toUpperCase()
  return new CriError(codeOfKind[kind], `${clip(what, maxSubject)}: ${reasonsOf(failed)}${remedy}`, { reason, cause: failed.at(-1)?.failure })
}

/** Longer names than anybody gives to images. */
const maxSubject = 260
const maxReasons = 600
const maxListed = 12

/** `host: reason; host: reason`. Every host keeps its place; the more there are, the shorter each reason. */
function reasonsOf(failed: readonly FailedHost[]): string {
  const hosts = new Map<string, { readonly reasons: Map<string, number>; readonly name: string }>()
  for (const { host, failure } of failed) {
    const sameName = failed.some((other) => other.host.host === host.host && other.host.apiRoot !== host.apiRoot)
    const name = clip(sameName ? `${host.host}${host.apiRoot}` : host.host, 80)
    const entry = hosts.get(name) ?? { name, reasons: new Map<string, number>() }
    hosts.set(name, entry)
    entry.reasons.set(failure.message, (entry.reasons.get(failure.message) ?? 0) + 1)
  }
  const lines = [...hosts.values()].map(({ name, reasons }) => ({ name, text: [...reasons].map(([reason, times]) => (times > 1 ? `${reason} (${times} times)` : reason)).join(', then ') }))
  const shown = lines.slice(0, maxListed)
  const room = maxReasons - shown.reduce((sum, { name }) => sum + name.length + 4, 0)
  const limit = fairLimit(shown.map(({ text }) => text.length), room)
  const more = lines.length - shown.length
  return shown.map(({ name, text }) => `${name}: ${clip(text, limit)}`).join('; ') + (more > 0 ? `; and ${more} more` : '')
}

/** The longest that each may be so that all together fit: short ones leave their rest to the others. */
function fairLimit(lengths: readonly number[], room: number): number {
  let left = room
  const sorted = [...lengths].sort((a, b) => a - b)
  for (const [index, length] of sorted.entries()) {
    const share = Math.floor(left / (sorted.length - index))
    if (length > share) return Math.max(share, 24)
    left -= length
  }
  return room
}

function clip(text: string, maxLength: number): string {
  return text.length > maxLength ? `${text.slice(0, maxLength - 1)}…` : text
}

/** What it takes a registry to say. */
const answers: ReadonlySet<FailureKind> = new Set(['missing', 'unauthenticated', 'denied', 'limited'])

function decisiveKind(failed: readonly FailedHost[]): FailureKind {
  const own = failed.findLast(({ host, failure }) => host.ownRegistry && answers.has(failure.kind))?.failure.kind
  if (own !== undefined) return own
  const kinds = failed.map(({ failure }) => failure.kind)
  const order: readonly FailureKind[] = ['denied', 'unauthenticated', 'limited', 'unreachable', 'server', 'content', 'config']
  return order.find((kind) => kinds.includes(kind)) ?? 'missing'
}

/** The failure that a status says, with what the registry wrote about it. `headers`: for Retry-After. */
export function failureOfStatus(status: number, detail: string, headers: IncomingHttpHeaders): HostFailure {
  const text = `${status} ${statusText[status] ?? 'unexpected answer'}${detail === '' ? '' : ` (${detail})`}`
  if (status === 404) return new HostFailure('missing', text)
  if (status === 401) return new HostFailure('unauthenticated', text)
  if (status === 403) return new HostFailure('denied', text)
  const retryAfterMs = retryAfter(headers)
  const wait = retryAfterMs === undefined ? {} : { retryAfterMs }
  if (status === 429) return new HostFailure('limited', text, { transient: true, ...wait })
  return new HostFailure('server', text, { transient: [408, 500, 502, 503, 504].includes(status), ...wait })
}

/** For ever, as far as anybody waits; the longest that a timer can be set for. */
const maxRetryAfterMs = 2 ** 31 - 1

/** Milliseconds that Retry-After asks for: seconds or a date (RFC 9110, section 10.2.3), the date by the host's own clock where it tells it. */
export function retryAfter(headers: IncomingHttpHeaders, now = Date.now()): number | undefined {
  const value = headers['retry-after']?.trim() ?? ''
  if (/^\d+$/.test(value)) return Math.min(Number(value) * 1000, maxRetryAfterMs)
  // Date.parse takes almost anything: a date begins with the day's name.
  const at = /^[A-Z][a-z]{2,8},? /.test(value) ? Date.parse(value) : Number.NaN
  if (Number.isNaN(at)) return undefined
  const theirs = Date.parse(headers.date ?? '')
  return Math.min(Math.max(0, at - (Number.isNaN(theirs) ? now : theirs)), maxRetryAfterMs)
}

/** The failure of a request that got no answer, or whose answer broke off. For those of TLS, see tlsFailure. */
export function failureOfError(error: unknown): HostFailure {
  if (error instanceof HostFailure) return error
  const errno = errnoOf(error) ?? innerErrno(error)
  const known = errno === undefined ? undefined : unreachable[errno]
  if (known !== undefined) return new HostFailure('unreachable', known.text, { transient: known.transient, timedOut: known.timedOut ?? false, cause: error })
  if (errno === 'HPE_HEADER_OVERFLOW') return new HostFailure('server', 'the head of its answer is too large', { cause: error })
  if (errno?.startsWith('HPE_') === true) return new HostFailure('unreachable', `it does not answer in HTTP (${errno})`, { cause: error })
  // An image may be named after 1.2.b.3, which is no host name for a URL. Without its cause, which holds the URL.
  if (errno === 'ERR_INVALID_URL') return new HostFailure('config', 'it is not a host name')
  // Those of a hosts.toml were looked at when it was read.
  if (errno === 'ERR_INVALID_HTTP_TOKEN' || errno === 'ERR_INVALID_CHAR') {
    const name = /\["(.*)"\]$/s.exec(messageOf(error))?.[1] ?? ''
    return new HostFailure('config', `header "${safeText(name, 60)}" of registry.headers is not one that HTTP allows`)
  }
  if (errno === 'ERR_PROXY_TUNNEL') return tunnelFailure(error)
  // Without its cause, which holds the proxy's URL with its password.
  if (errno === 'ERR_PROXY_INVALID_CONFIG') return new HostFailure('config', 'the HTTP proxy of the service is no address that can be used')
  return new HostFailure('unreachable', errno ?? safeText(messageOf(error)), { cause: error })
}

/** What a proxy answered to CONNECT. */
function tunnelFailure(error: unknown): HostFailure {
  const status = error instanceof Error && 'statusCode' in error && Number.isInteger(error.statusCode) ? Number(error.statusCode) : undefined
  if (status === 407) return new HostFailure('unreachable', 'it wants a user name and password (407)', { cause: error })
  if (status !== undefined) return new HostFailure('unreachable', `it refused the connection (${status} ${statusText[status] ?? 'unexpected answer'})`, { transient: status >= 500, cause: error })
  return new HostFailure('unreachable', 'it gave no connection', { cause: error })
}

/** Text that somebody else wrote, fit for an error: one line, short, URLs without user, query and fragment, nothing that looks like a token. */
export function safeText(text: string, maxLength = 160): string {
  const clean = text
    // eslint-disable-next-line no-control-regex
    .slice(0, 2000).replace(/[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+/g, ' ')
    .replace(/\/\/[^/\s]*@/g, '//')
    .replace(/\?[^\s"']+/g, '')
    .replace(/(https?:\/\/[^\s"'#]*)#[^\s"']*/gi, '$1')
    .replace(/\b(bearer|basic) +[\w.~+/=-]{8,}/gi, '$1 …')
    .replace(/\b([\w-]*(?:token|secret|password|passwd|signature|credential|api[-_]?key|sig))("?\s*[=:]\s*"?)[^\s"'&,;]+/gi, '$1$2…')
    .replace(/\beyJ[\w-]{8,}(?:\.[\w-]*)*/g, '…')
    .trim()
  return clean.length > maxLength ? `${clean.slice(0, maxLength)}…` : clean
}

function innerErrno(error: unknown): string | undefined {
  if (!(error instanceof AggregateError)) return undefined
  return error.errors.map(errnoOf).find((errno) => errno !== undefined)
}

const unreachable: Readonly<Record<string, { readonly text: string; readonly transient: boolean; readonly timedOut?: boolean } | undefined>> = {
  ECONNREFUSED: { text: 'connection refused', transient: false },
  ENOTFOUND: { text: 'host name not found', transient: false },
  EAI_AGAIN: { text: 'host name not found now (DNS does not answer)', transient: true, timedOut: true },
  EHOSTUNREACH: { text: 'no route to host', transient: false, timedOut: true },
  ENETUNREACH: { text: 'network unreachable', transient: false },
  ETIMEDOUT: { text: 'connection timed out', transient: true, timedOut: true },
  ECONNRESET: { text: 'connection reset', transient: true },
  ECONNABORTED: { text: 'connection broken off', transient: true },
  EPIPE: { text: 'connection reset', transient: true },
}

const statusText: Readonly<Record<number, string | undefined>> = {
  400: 'bad request', 401: 'unauthorized', 403: 'forbidden', 404: 'not found', 405: 'method not allowed', 406: 'not acceptable',
  407: 'the HTTP proxy wants credentials', 408: 'request timeout', 410: 'gone', 414: 'URI too long',
  416: 'range not satisfiable', 429: 'too many requests', 431: 'request header fields too large', 451: 'unavailable for legal reasons', 500: 'internal server error', 501: 'not implemented', 502: 'bad gateway', 503: 'service unavailable', 504: 'gateway timeout',
}
