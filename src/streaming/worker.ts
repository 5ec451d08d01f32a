/** The streaming worker's entry: the listener and everything that moves bytes of exec, attach and port-forward. Started by StreamingServer, nothing is exported. */
import { isMainThread, parentPort, workerData } from 'node:worker_threads'
import { errnoOf, messageOf } from '../errors/cri-error.ts'
import { Descriptors } from '../linux/descriptors.ts'
import { CommandSession } from './command-session.ts'
import { ByteCounters } from './counters.ts'
import { ForwardSession } from './forward-session.ts'
import { HttpFront, type Redeemed, type UpgradeHandler } from './http-front.ts'
import type { Refusal } from './negotiate.ts'
import type { FromWorker, ToWorker, WorkerStart } from './protocol.ts'
import { SpdyCommandClient } from './spdy-command.ts'
import { SpdyForward } from './spdy-forward.ts'
import { WebSocketCommandClient } from './websocket-command.ts'
import { WebSocketDuplex } from './websocket-duplex.ts'
import { maxWebSocketPorts, WebSocketForward, webSocketPorts } from './websocket-forward.ts'
import type { WorkerDeps, WorkerLog, WorkerSession } from './worker-session.ts'

/** For what is said to the clients before a thread with a fault in it ends. */
const lastWordsMs = 500

if (isMainThread || parentPort === null) throw new Error('worker.ts runs as a worker thread only')
const port = parentPort
const start = workerData as WorkerStart
const sessions = new Map<number, WorkerSession>()
const redeeming = new Map<number, (answer: Redeemed | { readonly refusal: Refusal }) => void>()
const connecting = new Map<number, { readonly resolve: (fd: number) => void; readonly reject: (error: Error) => void }>()
let sequence = 0

const post = (message: FromWorker): void => port.postMessage(message)
const log: WorkerLog = (level, fields, message) => post({ type: 'log', level, fields, message })

const deps: WorkerDeps = {
  descriptors: new Descriptors(start.descriptors),
  counters: new ByteCounters(start.counters),
  limits: start.limits,
  idleTimeoutMs: start.idleTimeoutMs,
  log,
  post,
  over: (id, transport, end) => {
    sessions.delete(id)
    post({ type: 'over', id, transport, end })
  },
  connect: async (id, targetPort, signal) => {
    const seq = ++sequence
    const socket = Promise.withResolvers<number>()
    const abandon = (): void => {
      // A descriptor that comes all the same is closed by main, or when its message finds nobody here.
      if (connecting.delete(seq)) post({ type: 'abandon', seq })
      socket.reject(new Error('the client has given the connection up'))
    }
    if (signal.aborted) abandon()
    else {
      connecting.set(seq, socket)
      signal.addEventListener('abort', abandon, { once: true })
      post({ type: 'connect', id, seq, port: targetPort })
    }
    try {
      return await socket.promise
    } finally {
      signal.removeEventListener('abort', abandon)
    }
  },
}

const handler: UpgradeHandler = {
  redeem: async (kind, token) => {
    const seq = ++sequence
    const answer = Promise.withResolvers<Redeemed | { readonly refusal: Refusal }>()
    redeeming.set(seq, answer.resolve)
    post({ type: 'redeem', seq, kind, token })
    return answer.promise
  },
  refused: (id) => deps.over(id, 'none', 'refused'),
  spdy: async ({ id, session }, protocol, socket, head) => {
    if (session.kind === 'portforward') {
      sessions.set(id, new ForwardSession(id, new SpdyForward(id, session, socket, head, 'spdy', deps), deps))
      return
    }
    let client
    try {
      client = await SpdyCommandClient.accept({ socket, head, session, protocol, limits: start.limits })
    } catch (error) {
      log('info', { session: id }, `a stream did not begin: ${messageOf(error)}`)
      deps.over(id, 'spdy', 'client_gone')
      return
    }
    sessions.set(id, new CommandSession(id, session, client, deps))
  },
  checkWebSocket: ({ session }, { tunnel }, query) => {
    if (session.kind !== 'portforward' || tunnel || webSocketPorts(session, query) !== undefined) return undefined
    return { status: 400, text: `query parameter "port" is required: 1 to ${maxWebSocketPorts} ports, 1 to 65535 each` }
  },
  webSocket: async ({ id, session }, protocol, socket, query) => {
    if (session.kind !== 'portforward') {
      sessions.set(id, new CommandSession(id, session, new WebSocketCommandClient(socket, session, protocol, start.limits.keepAliveMs), deps))
      return
    }
    const client = protocol.tunnel
      ? new SpdyForward(id, session, new WebSocketDuplex(socket), Buffer.alloc(0), 'websocket', deps)
      : new WebSocketForward(id, session, webSocketPorts(session, query) ?? [], socket, protocol, deps)
    sessions.set(id, new ForwardSession(id, client, deps))
  },
}

const front = new HttpFront({ tls: start.tls, maxConnections: start.limits.maxConnections, handler, log })

function answered(seq: number, work: () => undefined | Promise<'drained' | 'timeout'>): void {
  const answer = async (): Promise<'drained' | 'timeout' | undefined> => work()
  answer().then(
    (result) => post({ type: 'done', seq, ...(result === undefined ? {} : { result }) }),
    (error: unknown) => post({ type: 'done', seq, error: messageOf(error) }),
  )
}

function settleRedeeming(seq: number, answer: Redeemed | { readonly refusal: Refusal }): void {
  redeeming.get(seq)?.(answer)
  redeeming.delete(seq)
}

/** The client is gone and with it the session; main's messages cross with that one. */
function sessionOf(id: number): WorkerSession {
  const session = sessions.get(id)
  if (session === undefined) throw new Error('the client has closed its connection')
  return session
}

function receive(message: ToWorker): void {
  switch (message.type) {
    case 'redeemed':
      settleRedeeming(message.seq, { id: message.id, session: message.session })
      break
    case 'unredeemed':
      settleRedeeming(message.seq, { refusal: { status: message.status, text: message.text } })
      break
    case 'open':
      answered(message.seq, () => {
        sessionOf(message.id).open(message.fifos)
        return undefined
      })
      break
    case 'drain':
      answered(message.seq, () => sessionOf(message.id).drained(message.timeoutMs))
      break
    case 'started':
      sessions.get(message.id)?.started()
      break
    case 'closeStdin':
      sessions.get(message.id)?.closeStdin()
      break
    case 'attach': {
      const session = sessions.get(message.id)
      if (session === undefined) message.port.close()
      else session.attach(message.port)
      break
    }
    case 'finish':
      void sessions.get(message.id)?.finish(message.result)
      break
    case 'connected': {
      const waiting = connecting.get(message.seq)
      connecting.delete(message.seq)
      if (waiting === undefined) deps.descriptors.close(message.fd)
      else waiting.resolve(message.fd)
      break
    }
    case 'refused':
      connecting.get(message.seq)?.reject(new Error(message.message))
      connecting.delete(message.seq)
      break
    case 'keyPair':
      front.setKeyPair(message.tls)
      break
    case 'endAll':
      for (const session of sessions.values()) session.end('drained', message.message)
      break
    case 'shutdown':
      front.close()
      process.exit(0)
  }
}

/** Something is wrong in this thread that belongs to no one connection: the clients are told, then main starts another thread. */
function failed(error: unknown): void {
  process.removeListener('uncaughtException', failed)
  process.on('uncaughtException', () => undefined)
  post({ type: 'fault', message: error instanceof Error ? error.stack ?? error.message : String(error) })
  front.close()
  for (const session of sessions.values()) session.end('fault', `the streaming thread failed: ${messageOf(error)}; try again`)
  setTimeout(() => process.exit(1), lastWordsMs)
}

process.on('uncaughtException', failed)
port.on('message', receive)
front.listen(start.address, start.port).then(
  (bound) => post({ type: 'listening', port: bound }),
  (error: unknown) => {
    post({ type: 'listenFailed', errno: errnoOf(error), message: messageOf(error) })
    port.close()
  },
)
