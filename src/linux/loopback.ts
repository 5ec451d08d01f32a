import { Socket } from 'node:net'
import { Code, CriError, deadlineExceeded } from '../errors/cri-error.ts'
import { fromNodeError } from './errno.ts'
import { check, K, libc } from './libc.ts'
import type { SocketFamily } from './ops/sockets.ts'

export interface LoopbackConnect {
  /** An unconnected socket of the namespace; it is closed here, or becomes the result. */
  readonly openSocket: (family: SocketFamily) => Promise<number>
  readonly port: number
  /** For both addresses together, in milliseconds. */
  readonly timeoutMs: number
  readonly signal: AbortSignal | undefined
}

const addresses = [['IPv4', '127.0.0.1'], ['IPv6', '::1']] as const

/** @see Linux.connectLoopback */
export async function connectLoopback(options: LoopbackConnect): Promise<number> {
  const { openSocket, port, timeoutMs, signal } = options
  const timer = new AbortController()
  const what = `connect to port ${port} on 127.0.0.1 or ::1`
  const timeout = setTimeout(() => timer.abort(deadlineExceeded(`${what}: no answer for ${timeoutMs / 1000} s: a firewall in the namespace drops it, or its backlog is full`, { reason: 'ETIMEDOUT' })), timeoutMs)
  const both = signal === undefined ? timer.signal : AbortSignal.any([signal, timer.signal])
  let refused: CriError | undefined
  try {
    for (const [family, address] of addresses) {
      both.throwIfAborted()
      try {
        return await connected(await openSocket(family), port, address, both)
      } catch (error) {
        if (both.aborted) throw error
        const failure = fromNodeError(`connect to port ${port} on ${address}`, error)
        // A host without IPv6 has no such socket or no such address; what IPv4 said counts then.
        if (!['ECONNREFUSED', 'EAFNOSUPPORT', 'EADDRNOTAVAIL', 'ENETUNREACH'].includes(failure.reason)) throw failure
        refused ??= failure
      }
    }
  } finally {
    clearTimeout(timeout)
  }
  throw new CriError(Code.UNAVAILABLE, `${what}: nothing listens there`, { reason: refused?.reason ?? 'ECONNREFUSED', cause: refused })
}

/** Connects `fd` with Node's own event loop and takes the descriptor out of it again; closes it when that fails or `signal` aborts. */
async function connected(fd: number, port: number, address: string, signal: AbortSignal): Promise<number> {
  let socket: Socket
  try {
    // Node reads at once unless told otherwise, and what a server says first is for the owner of the descriptor.
    socket = new Socket({ fd, manualStart: true } as ConstructorParameters<typeof Socket>[0])
    socket.pause()
  } catch (error) {
    libc.close(fd)
    throw error
  }
  const done = Promise.withResolvers<number>()
  const onAbort = (): void => done.reject(signal.reason)
  signal.addEventListener('abort', onAbort, { once: true })
  socket.once('error', done.reject)
  socket.once('connect', () => {
    if (signal.aborted) return
    try {
      done.resolve(check('duplicate a socket', libc.fcntl(fd, K.F_DUPFD_CLOEXEC, 0)))
    } catch (error) {
      done.reject(error)
    }
  })
  if (signal.aborted) onAbort()
  else socket.connect(port, address)
  try {
    const own = await done.promise
    // Between the connection and here: whoever gave up does not come for it.
    if (signal.aborted) {
      libc.close(own)
      throw signal.reason
    }
    return own
  } finally {
    signal.removeEventListener('abort', onAbort)
    // The connection lives on in the duplicate.
    socket.on('error', () => undefined)
    socket.destroy()
  }
}
