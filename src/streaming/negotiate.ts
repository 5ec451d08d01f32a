import type { IncomingMessage } from 'node:http'
import type { StreamKind } from './types.ts'

/** How an exec or attach reports its end, and whether a terminal's size can be sent. */
export interface CommandProtocol {
  readonly name: string
  readonly jsonStatus: boolean
  readonly resize: boolean
}

const oldest = 'channel.k8s.io'
const spdyCommandProtocols: readonly CommandProtocol[] = [
  { name: `v4.${oldest}`, jsonStatus: true, resize: true },
  { name: `v3.${oldest}`, jsonStatus: false, resize: true },
  { name: `v2.${oldest}`, jsonStatus: false, resize: false },
  { name: oldest, jsonStatus: false, resize: false },
]
const spdyPortForward = 'portforward.k8s.io'

export interface WebSocketProtocol {
  /** Empty: the client named none. */
  readonly name: string
  /** Messages are text: a digit for the channel, the rest in base64. */
  readonly base64: boolean
  readonly jsonStatus: boolean
  /** Channel 255 closes one channel. */
  readonly halfClose: boolean
  /** Every message is a piece of a SPDY connection. */
  readonly tunnel: boolean
}

const webSocket = (name: string, given: Partial<WebSocketProtocol> = {}): WebSocketProtocol => {
  return { name, base64: false, jsonStatus: false, halfClose: false, tunnel: false, ...given }
}
const webSocketCommandProtocols = [
  webSocket(''),
  webSocket(oldest),
  webSocket(`base64.${oldest}`, { base64: true }),
  webSocket(`v4.${oldest}`, { jsonStatus: true }),
  webSocket(`v4.base64.${oldest}`, { base64: true, jsonStatus: true }),
  webSocket(`v5.${oldest}`, { jsonStatus: true, halfClose: true }),
]
const webSocketPortForwardProtocols = [
  webSocket(''),
  webSocket(oldest),
  webSocket(`base64.${oldest}`, { base64: true }),
  webSocket(`v4.${oldest}`),
  webSocket(`v4.base64.${oldest}`, { base64: true }),
  // What client-go asks for, and the name that the protocol had at first.
  webSocket(`SPDY/3.1+${spdyPortForward}`, { tunnel: true }),
  webSocket(`v2.${spdyPortForward}`, { tunnel: true }),
]

/** A request that is answered instead of upgraded. */
export interface Refusal {
  readonly status: number
  readonly text: string
  readonly headers?: readonly (readonly [string, string])[]
}

/** The values of a header that may come several times and have commas in it. */
function listed(request: IncomingMessage, header: string): string[] | undefined {
  return request.headersDistinct[header]?.flatMap((value) => value.split(',')).map((value) => value.trim()).filter((value) => value !== '')
}

/** Whether the request asks for WebSocket; everything else is taken for SPDY. */
export function isWebSocketRequest(request: IncomingMessage): boolean {
  return request.headers.upgrade?.toLowerCase() === 'websocket' && hasUpgrade(request)
}

function hasUpgrade(request: IncomingMessage): boolean {
  return request.headers.connection?.toLowerCase().includes('upgrade') ?? false
}

/**
 * What to speak over SPDY/3.1: the first that the client names and we know. A client that names none is of the time before there
 * were versions. The order of the checks, the codes and the texts are those of k8s.io/streaming's httpstream.
 */
export function negotiateSpdy(kind: StreamKind, request: IncomingMessage): { readonly protocol: CommandProtocol; readonly echo: boolean } | { readonly refusal: Refusal } {
  const known: readonly CommandProtocol[] = kind === 'portforward' ? [{ name: spdyPortForward, jsonStatus: false, resize: false }] : spdyCommandProtocols
  const offered = listed(request, 'x-stream-protocol-version')
  let protocol: CommandProtocol | undefined
  if (offered === undefined) {
    protocol = known.at(-1)
  } else if (offered.length === 0) {
    return { refusal: { status: 400, text: 'unable to upgrade: header X-Stream-Protocol-Version is empty' } }
  } else {
    for (const name of offered) protocol ??= known.find((each) => each.name === name)
  }
  if (protocol === undefined) {
    const accepted = known.map(({ name }) => name)
    const text = `unable to upgrade: unable to negotiate protocol: client supports [${offered?.join(' ')}], server accepts [${accepted.join(' ')}]`
    return { refusal: { status: 403, text, headers: accepted.map((name) => ['X-Accepted-Stream-Protocol-Versions', name] as const) } }
  }
  if (!hasUpgrade(request) || !(request.headers.upgrade?.toLowerCase().includes('spdy/3.1') ?? false)) {
    return { refusal: { status: 400, text: 'unable to upgrade: missing upgrade headers in request: "Connection: Upgrade" and "Upgrade: SPDY/3.1" (or websocket) are needed' } }
  }
  return { protocol, echo: offered !== undefined }
}

/** What to speak over a WebSocket: the first subprotocol that the client names and we know, the unnamed one if it names none. */
export function negotiateWebSocket(kind: StreamKind, request: IncomingMessage): { readonly protocol: WebSocketProtocol } | { readonly refusal: Refusal } {
  if (request.method !== 'GET') return { refusal: { status: 405, text: 'a WebSocket is opened with GET', headers: [['Allow', 'GET']] } }
  const known = kind === 'portforward' ? webSocketPortForwardProtocols : webSocketCommandProtocols
  const offered = listed(request, 'sec-websocket-protocol') ?? []
  for (const name of offered.length === 0 ? [''] : offered) {
    const protocol = known.find((each) => each.name === name)
    if (protocol !== undefined) return { protocol }
  }
  const accepted = known.map(({ name }) => name).filter((name) => name !== '')
  return { refusal: { status: 403, text: `requested protocol(s) are not supported: [${offered.join(' ')}]; supports [${accepted.join(' ')}]` } }
}
