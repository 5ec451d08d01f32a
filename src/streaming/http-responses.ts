import { STATUS_CODES, type IncomingMessage, type ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import type { Refusal } from './negotiate.ts'
import type { StreamKind } from './types.ts'

/** How long a client that was refused may take to go. */
const lingerMs = 5_000

function headersOf(refusal: Refusal, body: string): [string, string][] {
  return [
    ['Content-Type', 'text/plain; charset=utf-8'],
    ['X-Content-Type-Options', 'nosniff'],
    ['Content-Length', String(Buffer.byteLength(body))],
    ['Connection', 'close'],
    ...refusal.headers?.map(([name, value]): [string, string] => [name, value]) ?? [],
  ]
}

/** Answers a request that asked for no upgrade. */
export function refuse(response: ServerResponse, refusal: Refusal): void {
  const body = `${refusal.text}\n`
  response.writeHead(refusal.status, headersOf(refusal, body).flat())
  response.end(body)
}

/** Answers on a socket that the HTTP parser has let go. */
export function refuseOn(socket: Duplex, refusal: Refusal): void {
  const body = `${refusal.text}\n`
  const headers = headersOf(refusal, body).map(([name, value]) => `${name}: ${value}\r\n`).join('')
  const timer = setTimeout(() => socket.destroy(), lingerMs)
  socket.once('close', () => clearTimeout(timer))
  socket.resume()
  socket.end(`HTTP/1.1 ${refusal.status} ${STATUS_CODES[refusal.status] ?? ''}\r\n${headers}\r\n${body}`)
}

const pathPattern = /^\/(exec|attach|portforward)\/([\w-]{1,128})$/

/** What the request is for; undefined: nothing that is here. */
export function targetOf(request: IncomingMessage): { readonly kind: StreamKind; readonly token: string; readonly query: URLSearchParams } | undefined {
  const [path = '', query = ''] = (request.url ?? '').split('?', 2)
  const [, kind, token] = pathPattern.exec(path) ?? []
  if (kind === undefined || token === undefined) return undefined
  return { kind: kind as StreamKind, token, query: new URLSearchParams(query) }
}
