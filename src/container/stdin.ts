import { closeSync, constants, openSync } from 'node:fs'

/**
 * The write ends of containers' standard inputs. A container with `stdin: true` that nobody is attached to waits for input; it would see
 * the end of it if no one held the FIFO open for writing.
 */
export class StdinHolders {
  readonly #held = new Map<string, number>()

  /** Opened for reading and writing, which never blocks and needs no peer. */
  hold(id: string, path: string): void {
    if (path === '' || this.#held.has(id)) return
    this.#held.set(id, openSync(path, constants.O_RDWR | constants.O_NONBLOCK))
  }

  release(id: string): void {
    const fd = this.#held.get(id)
    if (fd === undefined) return
    this.#held.delete(id)
    closeSync(fd)
  }

  close(): void {
    for (const id of this.#held.keys()) this.release(id)
  }
}
