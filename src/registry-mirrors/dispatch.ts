import type { X509Certificate } from 'node:crypto'
import http, { type IncomingMessage, type OutgoingHttpHeaders } from 'node:http'
import https from 'node:https'
import { connect, isIP, type Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'
import { errnoOf } from '../errors/cri-error.ts'
import { HostFailure } from './failures.ts'
import { hostName } from './host-url.ts'

/** For who has another host to ask. */
export interface ConnectLead {
  readonly ms: number
  /** Called when nothing shows within that time that somebody is at the other end. The request goes on. */
  readonly overran: () => void
}

export interface Dispatch {
  readonly agent: http.Agent
  readonly method: string
  readonly headers: OutgoingHttpHeaders
  readonly body: string | undefined
  readonly signal: AbortSignal
  readonly connectLead: ConnectLead | undefined
  /** Bounds connecting, TLS included. */
  readonly dialTimeoutMs: number
  /** Bounds the wait for the answer's head after that. */
  readonly headerTimeoutMs: number
  /** Is told what there is to know, for who has to say why it failed. */
  readonly seen: Seen
}

/** What an attempt came to know of the other side. */
export interface Seen {
  /** Of a new connection, whether it is found to be trusted or not. */
  certificate?: X509Certificate
  /** The connection stood, TLS included. */
  connected?: boolean
}

/** Proxies add policies and cookies; Node's own limit is 16 KiB. */
const maxHeadBytes = 256 * 1024

/** The reason, as its cause: the request went out over a kept connection that was gone. */
export class StaleConnection extends Error {}

/** Sends one request. Resolves with the head of its answer; rejects with what Node says, a StaleConnection, or a HostFailure for a time-out. */
export async function dispatch(url: URL, how: Dispatch): Promise<IncomingMessage> {
  const { agent, method, headers, body, signal, connectLead, dialTimeoutMs, headerTimeoutMs, seen } = how
  return new Promise<IncomingMessage>((resolve, reject) => {
    const module = url.protocol === 'https:' ? https : http
    const request = module.request(url, { agent, method, headers, signal, maxHeaderSize: maxHeadBytes })
    let timer: NodeJS.Timeout
    // Node tells nothing of the end of a request that has no socket yet, and through a proxy it has none for long.
    const fail = (error: Error): void => {
      over()
      request.destroy(error)
      reject(error)
    }
    const waitFor = (ms: number, what: (time: string) => string, isConnected: boolean): void => {
      clearTimeout(timer)
      timer = setTimeout(() => fail(new HostFailure('unreachable', what(`within ${ms / 1000} s`), { transient: true, timedOut: true, connected: isConnected })), ms)
    }
    const aborted = (): void => fail(signal.reason as Error)
    signal.addEventListener('abort', aborted, { once: true })
    let step: Step = 'connect'
    const lead = connectLead === undefined ? undefined : setTimeout(connectLead.overran, connectLead.ms)
    let stopLooking: (() => void) | undefined
    const connected = (): void => {
      seen.connected = true
      clearTimeout(lead)
      waitFor(headerTimeoutMs, (time) => `no answer ${time}`, true)
    }
    const over = (): void => {
      clearTimeout(timer)
      clearTimeout(lead)
      signal.removeEventListener('abort', aborted)
      stopLooking?.()
    }
    waitFor(dialTimeoutMs, (time) => notConnected[step](time), false)
    request.once('socket', (socket) => {
      if (!request.reusedSocket && isConnecting(socket)) {
        // A certificate that is not trusted ends the socket at once, and with it what there is to know of it.
        if (url.protocol === 'https:') socket.prependOnceListener('secure', () => lookAt(socket as TLSSocket, seen))
        socket.once(url.protocol === 'https:' ? 'secureConnect' : 'connect', connected)
        step = stepOf(socket, url)
        socket.once('lookup', () => { step = 'connect' })
        socket.once('connect', () => { step = 'tls' })
        return
      }
      connected()
      if (request.reusedSocket && connectLead !== undefined) stopLooking = unlessAlive(socket, connectLead)
    })
    request.once('response', (response) => {
      over()
      resolve(response)
    })
    // Stays for the life of the request: an error after the response belongs to the body, whose reader sees it.
    request.on('error', (error) => {
      over()
      const errno = errnoOf(error)
      const stale = request.reusedSocket && !signal.aborted && (errno === 'ECONNRESET' || errno === 'EPIPE')
      reject(stale ? new StaleConnection('stale connection', { cause: error }) : error)
    })
    // Nobody asked for one; Node ends such a request without an error.
    request.once('upgrade', (_response, socket) => {
      over()
      socket.destroy()
      reject(new HostFailure('server', '101 switches to another protocol, which was not asked for'))
    })
    // Whatever else Node ends in silence must not be waited for: the timers have no request to end any more.
    request.once('close', () => {
      over()
      reject(new HostFailure('unreachable', 'connection broken off', { transient: true }))
    })
    request.end(body)
  })
}

type Step = 'lookup' | 'connect' | 'tls'

const notConnected: Readonly<Record<Step, (time: string) => string>> = {
  lookup: (time) => `its host name was not found ${time}: DNS is slow or does not answer`,
  connect: (time) => `no connection ${time}`,
  tls: (time) => `it was reached, and TLS was not set up ${time}: it hangs, or large packets are lost on the way (MTU)`,
}

function stepOf(socket: Socket, url: URL): Step {
  if (!socket.connecting) return 'tls'
  return isIP(hostName(url.host)) === 0 ? 'lookup' : 'connect'
}

/** Through a proxy the socket arrives when its tunnel stands. `secureConnecting` is not in Node's documentation, hence the doubt. */
function isConnecting(socket: Socket & { readonly secureConnecting?: boolean }): boolean {
  return socket.connecting || socket.secureConnecting === true
}

function lookAt(socket: TLSSocket, seen: Seen): void {
  const certificate = socket.getPeerX509Certificate()
  if (certificate !== undefined) seen.certificate = certificate
}

/**
 * What is sent over a kept connection to a machine that has vanished is lost without a word. So when half of the lead has passed without an answer,
 * its other half is there to open another connection to the same address, which is closed at once. The function returned ends that.
 */
function unlessAlive({ remoteAddress, remotePort }: Socket, { ms, overran }: ConnectLead): () => void {
  if (remoteAddress === undefined || remotePort === undefined) return () => undefined
  let trial: Socket | undefined
  const stop = (): void => {
    clearTimeout(timer)
    trial?.destroy()
  }
  const failed = (): void => {
    stop()
    overran()
  }
  let timer = setTimeout(() => {
    const made = connect({ host: remoteAddress, port: remotePort }).once('connect', stop).on('error', failed)
    trial = made
    timer = setTimeout(() => {
      // After a pause of this process its timers come before what has happened meanwhile.
      setImmediate(() => { if (made.connecting) failed() })
    }, ms / 2)
  }, ms / 2)
  return stop
}
