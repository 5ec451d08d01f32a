import { content_WriteAction } from '../generated/containerd.ts'
import { varint } from './varint.ts'

/** Content.Write costs a fixed amount of work per message: small reads are gathered to this size. */
export const messageBytes = 1024 * 1024

/** A WriteContentRequest with action WRITE, encoded in place. */
export interface EncodedWrite {
  readonly message: Buffer
  /** Where its data ends in the blob; when containerd has answered up to there the memory may be used again. */
  readonly endBytes: number
}

/**
 * Makes the messages of one ingest. Data is copied once, from where it was read into the message that carries it; the memory of a message
 * that has been answered is used for a later one. (Going through an object and protobufjs costs three copies more, and an amount of garbage
 * that keeps the collector busy for longer than everything else takes.)
 */
export class WriteMessages {
  readonly #ref: Buffer
  readonly #headBytes: number
  readonly #dataBytes: number
  #current: Buffer | undefined
  #filled = 0
  readonly #unanswered: { readonly memory: Buffer; readonly endBytes: number }[] = []
  readonly #free: Buffer[] = []

  /** `sizeBytes`: of the whole blob. */
  constructor(ref: string, sizeBytes: number) {
    const text = Buffer.from(ref)
    this.#ref = Buffer.concat([Buffer.from([0x12]), varint(text.length), text])
    // action, ref, offset (at most 8 bytes of varint), the data's tag and length (5 bytes)
    this.#headBytes = 2 + this.#ref.length + 9 + 6
    // Never full with a small one: it goes with the commit.
    this.#dataBytes = Math.min(messageBytes, sizeBytes + 1)
  }

  /** Bytes that wait for a message of their own. */
  get filledBytes(): number {
    return this.#filled
  }

  /** Takes as much of `chunk` as the message has room for, and says how much that was. */
  take(chunk: Uint8Array): number {
    const memory = (this.#current ??= this.#free.pop() ?? Buffer.allocUnsafeSlow(this.#headBytes + this.#dataBytes))
    const count = Math.min(chunk.length, this.#dataBytes - this.#filled)
    memory.set(count === chunk.length ? chunk : chunk.subarray(0, count), this.#headBytes + this.#filled)
    this.#filled += count
    return count
  }

  get isFull(): boolean {
    return this.#filled === this.#dataBytes
  }

  /** The message with what was taken, to be written at `offsetBytes` of the blob. */
  finish(offsetBytes: number): EncodedWrite {
    const memory = this.#current ?? Buffer.allocUnsafeSlow(this.#headBytes)
    const head = Buffer.concat([Buffer.from([0x08, content_WriteAction.WRITE]), this.#ref, Buffer.from([0x28]), varint(offsetBytes), Buffer.from([0x32]), varint(this.#filled)])
    const start = this.#headBytes - head.length
    head.copy(memory, start)
    const message = memory.subarray(start, this.#headBytes + this.#filled)
    const endBytes = offsetBytes + this.#filled
    this.#unanswered.push({ memory, endBytes })
    this.#current = undefined
    this.#filled = 0
    return { message, endBytes }
  }

  /** containerd has everything up to `offsetBytes`. */
  answered(offsetBytes: number): void {
    for (let first = this.#unanswered[0]; first !== undefined && first.endBytes <= offsetBytes; first = this.#unanswered[0]) {
      this.#unanswered.shift()
      this.#free.push(first.memory)
    }
  }

  /** What was taken, when it is no more than `maxBytes`: it needs no message of its own then. */
  rest(maxBytes: number): Buffer | undefined {
    if (this.#filled > maxBytes) return undefined
    const rest = this.#current?.subarray(this.#headBytes, this.#headBytes + this.#filled) ?? Buffer.alloc(0)
    this.#current = undefined
    this.#filled = 0
    return rest
  }

  /** Throws away what was taken. */
  clear(): void {
    this.#filled = 0
  }
}
