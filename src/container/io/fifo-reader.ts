import { constants, fstatSync } from 'node:fs'
import { Socket } from 'node:net'
import { messageOf } from '../../errors/cri-error.ts'
import type { Descriptors } from '../../linux/descriptors.ts'
import { openFailure } from './failures.ts'

const { O_NONBLOCK, O_RDONLY, O_WRONLY } = constants

/** Of one read buffer each: a millisecond's work with ordinary lines, some more with empty ones, which grow fortyfold in the log. */
const readsPerTurn = 4

/**
 * Takes what a container writes. Called in the turn in which it was read; the memory is used again afterwards, so a sink that
 * keeps anything copies it, and one that is slow (a network client) must bound what it keeps.
 */
export interface ByteSink {
  chunk(bytes: Buffer): void
  /** The stream is at its end; called once. */
  end(): void
}

export interface FifoReaderDeps {
  readonly descriptors: Descriptors
  /** One read buffer for the whole worker: what is read is used up before anything else is read. */
  readonly readBuffer: Buffer
  /** After `end` of every sink; an error when reading failed. */
  readonly onEnd: (error: Error | undefined) => void
  /** A sink has thrown and is not called again. */
  readonly onSinkFailure: (error: unknown) => void
}

/**
 * Reads one FIFO to its end and hands each piece to the sinks. A writing end of our own keeps the end of file away until
 * `release()`. However fast it is written: after a few reads the others have their turn (libuv alone would make 32 in a row).
 */
export class FifoReader {
  readonly #deps: FifoReaderDeps
  readonly #sinks: Set<ByteSink>
  readonly #socket: Socket
  readonly #closed: Promise<void>
  #keepAlive: number | undefined
  #ended = false
  #reads = 0

  /** Opens the FIFO; throws a CriError. */
  constructor(path: string, sinks: Iterable<ByteSink>, deps: FifoReaderDeps) {
    this.#deps = deps
    this.#sinks = new Set(sinks)
    const { descriptors } = deps
    let fd
    try {
      fd = descriptors.open(path, O_RDONLY | O_NONBLOCK)
      if (!fstatSync(fd).isFIFO()) throw new Error('it is not a FIFO')
      // Also when the writers are known to be gone: without a writer since it was opened, the kernel reports no end of file.
      this.#keepAlive = descriptors.open(path, O_WRONLY | O_NONBLOCK)
      this.#socket = new Socket({
        fd,
        readable: true,
        writable: false,
        onread: { buffer: deps.readBuffer, callback: (length) => this.#read(length) },
      })
      descriptors.release(fd)
    } catch (error) {
      if (fd !== undefined) descriptors.close(fd)
      this.release()
      throw openFailure(`the FIFO ${path}`, error, path)
    }
    const closed = Promise.withResolvers<void>()
    this.#closed = closed.promise
    this.#socket.once('end', () => this.#end(undefined))
    this.#socket.once('error', (error) => this.#end(error))
    this.#socket.once('close', () => {
      this.#end(undefined)
      closed.resolve()
    })
  }

  get ended(): boolean {
    return this.#ended
  }

  /** Gets every piece from the next one on; its `end` at once when the stream is at its end already. */
  addSink(sink: ByteSink): void {
    if (this.#ended) this.#guarded(sink, () => sink.end())
    else this.#sinks.add(sink)
  }

  /** Without an `end`. */
  removeSink(sink: ByteSink): void {
    this.#sinks.delete(sink)
  }

  /** Lets the end of file come: the process has the FIFO open by now, or never will. */
  release(): void {
    if (this.#keepAlive === undefined) return
    this.#deps.descriptors.close(this.#keepAlive)
    this.#keepAlive = undefined
  }

  /** Stops reading without an `end` to the sinks; what is unread stays in the kernel. Resolves when the descriptors are closed. */
  async close(): Promise<void> {
    this.#ended = true
    this.release()
    this.#socket.destroy()
    await this.#closed
  }

  #read(length: number): boolean {
    const bytes = this.#deps.readBuffer.subarray(0, length)
    for (const sink of this.#sinks) this.#guarded(sink, () => sink.chunk(bytes))
    if (++this.#reads < readsPerTurn) return true
    this.#reads = 0
    setImmediate(() => {
      if (!this.#ended) this.#socket.resume()
    })
    return false
  }

  #end(error: Error | undefined): void {
    if (this.#ended) return
    this.#ended = true
    this.release()
    for (const sink of this.#sinks) this.#guarded(sink, () => sink.end())
    this.#deps.onEnd(error === undefined ? undefined : new Error(`reading failed: ${messageOf(error)}`, { cause: error }))
  }

  /** A mistake in one container's sink must not take the pumps of all others down. */
  #guarded(sink: ByteSink, work: () => void): void {
    try {
      work()
    } catch (error) {
      this.#sinks.delete(sink)
      this.#deps.onSinkFailure(error)
    }
  }
}
