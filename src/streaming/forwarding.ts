import { Socket } from 'node:net'
import type { Duplex, Readable, Writable } from 'node:stream'
import { messageOf } from '../errors/cri-error.ts'
import { pump } from './pump.ts'
import type { WorkerDeps } from './worker-session.ts'

/** As containerd does it in every case. */
const lingerMs = 1000

/** One forwarded connection's ends towards the client; a Duplex is both. */
export interface ClientEnds {
  readonly input: Readable
  readonly output: Writable
}

export interface ForwardOptions {
  readonly id: number
  readonly podSandboxId: string
  readonly port: number
  readonly client: ClientEnds
  readonly signal: AbortSignal
  /** The client cannot say that it has nothing more to send: the connection is over soon after the pod's end of it. */
  readonly endsWithPod?: boolean
}

export type Forwarded =
  | { readonly end: 'done' }
  /** It was cut off: by the pod's side, or by the client's. */
  | { readonly end: 'broken' }
  /** No connection: the message is for the user. */
  | { readonly end: 'refused'; readonly message: string }

/** Connects to the port in the pod and moves bytes both ways until both sides have ended. A half-close goes through. */
export async function forwardConnection(options: ForwardOptions, deps: WorkerDeps): Promise<Forwarded> {
  const { id, port, signal } = options
  let fd
  try {
    fd = await deps.connect(id, port, signal)
  } catch (error) {
    // The words of k8s.io/cri-streaming's portforward, which users search for.
    return { end: 'refused', message: `error forwarding port ${port} to pod ${options.podSandboxId}, uid : ${messageOf(error)}` }
  }
  const socket = new Socket({ fd, allowHalfOpen: true, readable: true, writable: true })
  deps.descriptors.release(fd)
  socket.setNoDelay(true)
  return relay(socket, options, deps)
}

async function relay(socket: Socket, { client, signal, endsWithPod = false }: ForwardOptions, deps: WorkerDeps): Promise<Forwarded> {
  const { input, output } = client
  let broken = false
  const fail = (): void => {
    broken = true
    socket.destroy()
  }
  const closed = Promise.withResolvers<void>()
  socket.on('error', () => undefined)
  socket.once('close', closed.resolve)
  let linger: NodeJS.Timeout | undefined
  if (endsWithPod) {
    socket.once('end', () => {
      linger = setTimeout(() => socket.destroy(), lingerMs)
    })
  }
  // The client's side was reset, or its connection is gone: without this the pod's side would wait for ever.
  const clientClosed = (): void => {
    if (!input.readableEnded || !output.writableFinished) fail()
  }
  input.once('close', clientClosed)
  if (output !== input as unknown) output.once('close', clientClosed)
  signal.addEventListener('abort', fail, { once: true })
  try {
    if (signal.aborted || input.destroyed || output.destroyed) fail()
    else {
      pump(input, socket, { onRead: deps.counters.adder('portforward', 'in') })
      pump(socket, output, { onRead: deps.counters.adder('portforward', 'out') })
    }
    await closed.promise
    if (!socket.readableEnded || socket.errored !== null) broken = true
    return { end: broken ? 'broken' : 'done' }
  } finally {
    clearTimeout(linger)
    signal.removeEventListener('abort', fail)
    input.removeListener('close', clientClosed)
    output.removeListener('close', clientClosed)
  }
}

/** Waits until what was ended has been handed to the connection, or is closed. */
export async function flushed(stream: Writable | Duplex): Promise<void> {
  if (stream.writableFinished || stream.destroyed) return
  const done = Promise.withResolvers<void>()
  stream.once('finish', done.resolve)
  stream.once('close', done.resolve)
  await done.promise
}
