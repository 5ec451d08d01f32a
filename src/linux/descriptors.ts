import { closeSync, openSync } from 'node:fs'

/** Descriptors with a higher number are opened all the same, only not found again after a crash. */
const highest = 1 << 20

/**
 * Opens and closes descriptors and remembers in shared memory which are open, so that the main thread can close what a crashed
 * worker left behind. Node's own `trackUnmanagedFds` cannot be used for this: it does not see that a socket has closed the descriptor
 * it was given, and would at the worker's end close whatever has that number by then.
 */
export class Descriptors {
  readonly memory: SharedArrayBuffer
  readonly #bits: Int32Array

  constructor(memory: SharedArrayBuffer = new SharedArrayBuffer(highest / 8)) {
    this.memory = memory
    this.#bits = new Int32Array(memory)
  }

  open(path: string, flags: number, mode?: number): number {
    const fd = openSync(path, flags, mode)
    this.adopt(fd)
    return fd
  }

  /** Remembers a descriptor that somebody else has opened and handed over. */
  adopt(fd: number): void {
    if (fd < highest) Atomics.or(this.#bits, fd >>> 5, 1 << (fd & 31))
  }

  /** Its new owner (a socket) closes it from now on. */
  release(fd: number): void {
    if (fd < highest) Atomics.and(this.#bits, fd >>> 5, ~(1 << (fd & 31)))
  }

  /** Forgotten before it is closed: the number may belong to another thread a moment later. */
  close(fd: number): void {
    this.release(fd)
    closeSync(fd)
  }

  /** Closes what is still open; for the main thread once the worker is gone. Returns how many there were. */
  closeAll(): number {
    let closed = 0
    for (let word = 0; word < this.#bits.length; word++) {
      let bits = Atomics.exchange(this.#bits, word, 0)
      while (bits !== 0) {
        const bit = 31 - Math.clz32(bits)
        bits &= ~(1 << bit)
        closeSync(word * 32 + bit)
        closed++
      }
    }
    return closed
  }
}
