import { constants, fstatSync } from 'node:fs'
import { Socket } from 'node:net'
import { failedPrecondition, messageOf } from '../errors/cri-error.ts'
import type { Descriptors } from '../linux/descriptors.ts'

const { O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY } = constants

function openFifo(descriptors: Descriptors, path: string, flags: number): number {
  const fd = descriptors.open(path, flags | O_NONBLOCK)
  if (fstatSync(fd).isFIFO()) return fd
  descriptors.close(fd)
  throw new Error('it is not a FIFO')
}

/** A FIFO's end as a socket of the event loop, and a descriptor that stands in for the process until it has the FIFO open itself. */
abstract class FifoEnd {
  readonly socket: Socket
  readonly #descriptors: Descriptors
  readonly #released = Promise.withResolvers<void>()
  #keepAlive: number | undefined

  protected constructor(path: string, descriptors: Descriptors, mine: 'read' | 'write') {
    this.#descriptors = descriptors
    let fd
    try {
      if (mine === 'read') {
        fd = openFifo(descriptors, path, O_RDONLY)
        this.#keepAlive = openFifo(descriptors, path, O_WRONLY)
      } else {
        // For both: neither blocks nor fails without a peer. It is what keeps the input until the process reads it.
        this.#keepAlive = openFifo(descriptors, path, O_RDWR)
        fd = openFifo(descriptors, path, O_WRONLY)
      }
      this.socket = new Socket({ fd, readable: mine === 'read', writable: mine === 'write' })
      descriptors.release(fd)
    } catch (error) {
      if (fd !== undefined) descriptors.close(fd)
      this.release()
      throw failedPrecondition(`cannot open the FIFO ${path}: ${messageOf(error)}`, { reason: 'FIFO', cause: error })
    }
  }

  /** Resolves after `release()`: only then may a writing end be closed without a loss of what the process has not read yet. */
  get released(): Promise<void> {
    return this.#released.promise
  }

  /** The process has the FIFO open by now, or never will. */
  release(): void {
    this.#released.resolve()
    if (this.#keepAlive === undefined) return
    this.#descriptors.close(this.#keepAlive)
    this.#keepAlive = undefined
  }

  /** Closes both descriptors now. */
  destroy(): void {
    this.release()
    this.socket.destroy()
  }
}

/** The reading end of a process's output. End of file comes only after `release()`. */
export class FifoSource extends FifoEnd {
  /** Throws a CriError. */
  constructor(path: string, descriptors: Descriptors) {
    super(path, descriptors, 'read')
  }
}

/** The writing end of a process's input. What is written before the process reads waits in the FIFO. */
export class FifoSink extends FifoEnd {
  /** Throws a CriError. */
  constructor(path: string, descriptors: Descriptors) {
    super(path, descriptors, 'write')
  }
}
