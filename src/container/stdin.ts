import { closeSync, constants, openSync } from 'node:fs'
import { errnoOf } from '../errors/cri-error.ts'

interface Stdin {
  readonly path: string
  /** Undefined once the input has been ended. */
  fd: number | undefined
  /** Those who write to it, to be told of its end. */
  readonly writers: Set<() => void>
}

/**
 * The write ends of containers' standard inputs. A container with `stdin: true` that nobody is attached to waits for input; it would see
 * the end of it if no one held the FIFO open for writing.
 */
export class StdinHolders {
  readonly #held = new Map<string, Stdin>()

  /** Before the task is made. Opened for reading and writing, which never blocks and needs no peer. */
  hold(id: string, path: string): void {
    if (path === '' || this.#held.has(id)) return
    this.#held.set(id, { path, fd: openSync(path, constants.O_RDWR | constants.O_NONBLOCK), writers: new Set() })
  }

  /** The task has the FIFO open: from now on we do not count as a reader, so that whoever writes to a container that has closed its input hears of it. */
  made(id: string): void {
    const held = this.#held.get(id)
    if (held?.fd === undefined) return
    const before = held.fd
    held.fd = openWriting(held.path)
    closeSync(before)
  }

  /** Of a container that runs already. One that has no reader any more was ended before. */
  resume(id: string, path: string): void {
    if (path === '' || this.#held.has(id)) return
    this.#held.set(id, { path, fd: openWriting(path), writers: new Set() })
  }

  /** The FIFO to write input to; undefined when the container takes none, or none any more. */
  path(id: string): string | undefined {
    const held = this.#held.get(id)
    return held?.fd === undefined ? undefined : held.path
  }

  /** `onEnd` is called when the input is ended by somebody else; not after the function returned was called. */
  write(id: string, onEnd: () => void): () => void {
    const writers = this.#held.get(id)?.writers
    writers?.add(onEnd)
    return () => void writers?.delete(onEnd)
  }

  /** Our end is closed, and all writers are told to close theirs. */
  end(id: string): void {
    const held = this.#held.get(id)
    if (held?.fd === undefined) return
    closeSync(held.fd)
    held.fd = undefined
    for (const onEnd of held.writers) onEnd()
    held.writers.clear()
  }

  /** The container has ended. */
  release(id: string): void {
    const held = this.#held.get(id)
    this.#held.delete(id)
    if (held?.fd !== undefined) closeSync(held.fd)
  }

  close(): void {
    for (const id of this.#held.keys()) this.release(id)
  }
}

/** Undefined when nobody reads: the shim does as long as the container takes input. */
function openWriting(path: string): number | undefined {
  try {
    return openSync(path, constants.O_WRONLY | constants.O_NONBLOCK)
  } catch (error) {
    if (errnoOf(error) === 'ENXIO') return undefined
    throw error
  }
}
