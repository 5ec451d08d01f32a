import type { Agent, IncomingMessage } from 'node:http'
import type { OnReadOpts } from 'node:net'
import type { Duplex } from 'node:stream'

/** One read of the kernel's: fewer and larger ones cost less. TLS has records of 16 KiB whatever this is. */
const readBytes = 256 * 1024

/** Memory that a body's reader gathers bytes in. */
export const pieceBytes = 512 * 1024
/** As much as is kept for the next reader, and for how long after the last one. */
const maxPieces = 16
const keepMs = 5_000

/** From this on a body is worth a connection of its own: what is read past Node's HTTP parser ends with the connection. Greeting anew costs more over TLS. */
const directFromBytes = { plain: 1024 * 1024, tls: 4 * 1024 * 1024 } as const

const reading = Symbol('reading')

/** Of a socket that is read into the common memory. */
interface Reading {
  /** Takes what arrives instead of Node's HTTP parser. */
  direct: ((piece: Buffer) => void) | undefined
  held: boolean
  readonly pieces: Pieces
}

interface ReadSocket extends Duplex {
  [reading]?: Reading
}

export interface BodyReceiver {
  /** Takes the next bytes, whose memory is used again afterwards. */
  take(bytes: Buffer): void
  end(): void
}

/** Where a body comes from. */
export interface Tap {
  /** From now on its bytes come. */
  start(): void
  /** Stops them, and lets them come again. */
  close(): void
  open(): void
  /** Memory of `pieceBytes`, which is given back when it is not needed any more. */
  readonly pieces: Pick<Pieces, 'take' | 'give'>
}

/** Memory that goes from one body's reader to the next: new memory is what makes the collector work. */
class Pieces {
  #free: Buffer[] = []
  #timer: NodeJS.Timeout | undefined

  take(): Buffer {
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(pieceBytes)
  }

  give(piece: Buffer): void {
    if (this.#free.length < maxPieces) this.#free.push(piece)
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined
      this.#free = []
    }, keepMs).unref()
    this.#timer.refresh()
  }
}

/**
 * Reads all sockets into one piece of memory, and large bodies from there past Node's HTTP parser. Node would allocate 64 KiB for each read and as much
 * again for the parser's copy; that memory is outside of the heap, and to have it back the collector marks the whole heap again and again: more than
 * half of a pull's CPU time.
 */
export class SocketReads {
  #memory: Buffer | undefined
  readonly #pieces = new Pieces()

  /** From here on the sockets of an agent are read so. */
  through(agent: Agent): void {
    const create = agent.createConnection.bind(agent)
    agent.createConnection = (options, callback) => {
      const state: Reading = { direct: undefined, held: false, pieces: this.#pieces }
      // Assigned before anything can be read.
      let socket: ReadSocket | null | undefined
      const read: typeof options & { readonly onread: OnReadOpts } = { ...options, onread: this.#onread(state, () => socket) }
      socket = create(read, callback)
      if (socket === null || socket === undefined) return socket
      socket[reading] = state
      const made = socket
      // Node's HTTP client lets a socket go on whenever it sees room in a body: it sees nothing of what goes past it.
      const resume = made.resume.bind(made)
      made.resume = () => (state.held && !made.destroyed ? made : resume())
      return socket
    }
  }

  #onread(state: Reading, socket: () => Duplex | null | undefined): OnReadOpts {
    return {
      buffer: (this.#memory ??= Buffer.allocUnsafeSlow(readBytes)),
      callback: (bytes, memory) => {
        const piece = memory.subarray(0, bytes) as Buffer
        if (state.direct !== undefined) state.direct(piece)
        // Node leaves this to whoever reads by `onread`; its HTTP client listens for it, and its parser copies what it keeps.
        else socket()?.emit('data', piece)
        return !state.held
      },
    }
  }
}

/**
 * Hands a body to `to`: a large one of a known length as it is read, after which its connection is at its end, any other through Node's HTTP parser.
 * Failures are events of the response.
 */
export function tapBody(response: IncomingMessage, to: BodyReceiver): Tap {
  const { socket }: { readonly socket: ReadSocket } = response
  const state = socket[reading]
  const length = Number(response.headers['content-length'] ?? 0)
  if (state === undefined || response.complete || response.headers['transfer-encoding'] !== undefined || length < directFromBytes['encrypted' in socket ? 'tls' : 'plain']) {
    const start = (): void => {
      response.on('data', (bytes: Buffer) => to.take(bytes))
      response.once('end', () => to.end())
    }
    return { start, close: () => void response.pause(), open: () => void response.resume(), pieces: state?.pieces ?? new Pieces() }
  }
  let left = length
  const take = (bytes: Buffer): void => {
    const body = bytes.length > left ? bytes.subarray(0, left) : bytes
    left -= body.length
    to.take(body)
    if (left > 0) return
    state.direct = undefined
    to.end()
    // Its parser still waits for the body.
    response.destroy()
  }
  return {
    pieces: state.pieces,
    start: () => {
      // What came with the answer's head.
      for (let bytes: unknown = response.read(); bytes instanceof Buffer; bytes = response.read()) take(bytes)
      if (left > 0 && !response.destroyed) state.direct = take
    },
    close: () => { state.held = true },
    open: () => {
      if (!state.held) return
      state.held = false
      socket.resume()
    },
  }
}
