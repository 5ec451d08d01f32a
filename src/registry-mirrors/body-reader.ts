import type { IncomingMessage } from 'node:http'
import { HostFailure } from './failures.ts'
import { pieceBytes, type Tap, tapBody } from './socket-reads.ts'

const drainTimeoutMs = 1000
/** What must arrive within a stall window: about 1 KB/s with the usual 30 s. A host that sends less is as good as silent. */
const minWindowBytes = 32 * 1024

/** Handing a piece on costs a turn of the event loop and a write: not for less than this, unless no more comes within the time below. */
const worthwhileBytes = 256 * 1024
const lingerMs = 20

/**
 * Reads a response's body: while one piece is being written, the next ones are collected, up to `boundBytes` and what one read brings. Nothing is
 * lost when the connection breaks: what had arrived is handed out before the error.
 */
export class BodyReader {
  readonly #response: IncomingMessage
  readonly #tap: Tap
  readonly #boundBytes: number
  readonly #stallTimeoutMs: number
  readonly #worthwhileBytes: number
  /** Full, in order; then what is being filled. */
  readonly #full: Buffer[] = []
  #filling: Buffer | undefined
  #filledBytes = 0
  #handedOut: Buffer | undefined
  #collected = 0
  #isStopped = false
  #closed = false
  #ended = false
  #error: Error | undefined
  #wake: (() => void) | undefined
  /** The stall window: how long somebody waited in it, and what came. */
  #waitedMs = 0
  #windowBytes = 0

  /** `stallTimeoutMs`: within this time of somebody waiting for it, 32 KiB must arrive (or the end). */
  constructor(response: IncomingMessage, boundBytes: number, stallTimeoutMs: number) {
    this.#response = response
    this.#boundBytes = boundBytes
    this.#stallTimeoutMs = stallTimeoutMs
    this.#worthwhileBytes = Math.min(worthwhileBytes, boundBytes)
    response.on('error', (error: Error) => this.#fail(error))
    response.once('close', () => this.#fail(new HostFailure('unreachable', 'connection broken off', { transient: true })))
    this.#tap = tapBody(response, {
      take: (bytes) => this.#take(bytes),
      end: () => {
        this.#ended = true
        this.#wake?.()
      },
    })
    this.#tap.start()
  }

  /** The next bytes, good until the next call; undefined at the end. */
  async next(): Promise<Buffer | undefined> {
    if (this.#handedOut !== undefined) this.#tap.pieces.give(this.#handedOut)
    this.#handedOut = undefined
    while (this.#collected < this.#worthwhileBytes && !this.#ended && this.#error === undefined) {
      if (await this.#more() && this.#collected > 0) break
    }
    const memory = this.#full.shift() ?? this.#filling
    if (memory !== undefined) {
      const bytes = memory === this.#filling ? this.#filledBytes : memory.length
      if (memory === this.#filling) this.#filling = undefined
      this.#handedOut = memory
      this.#collected -= bytes
      if (this.#isStopped && this.#collected < this.#boundBytes) {
        this.#isStopped = false
        this.#tap.open()
      }
      return memory.subarray(0, bytes)
    }
    if (this.#error !== undefined) throw this.#error
    return undefined
  }

  #take(chunk: Buffer): void {
    if (this.#closed) return
    for (let at = 0; at < chunk.length;) {
      if (this.#filling === undefined) {
        this.#filling = this.#tap.pieces.take()
        this.#filledBytes = 0
      }
      const count = chunk.copy(this.#filling, this.#filledBytes, at)
      at += count
      this.#filledBytes += count
      if (this.#filledBytes < pieceBytes) continue
      this.#full.push(this.#filling)
      this.#filling = undefined
    }
    this.#collected += chunk.length
    this.#windowBytes += chunk.length
    if (this.#collected >= this.#boundBytes && !this.#isStopped) {
      this.#isStopped = true
      this.#tap.close()
    }
    this.#wake?.()
  }

  /** Ends the connection unless the body was read to its end; what `next` gave last is good no more. Idempotent. */
  close(): void {
    if (!this.#ended) this.#response.destroy()
    this.#closed = true
    // Not what was handed out: it may be on its way to the disk.
    for (const memory of this.#full.splice(0)) this.#tap.pieces.give(memory)
    if (this.#filling !== undefined) this.#tap.pieces.give(this.#filling)
    this.#filling = this.#handedOut = undefined
  }

  /** Waits until there is something worthwhile; true when no more came for a while. The time in which nobody waits (the bytes are being written) is not the host's. */
  async #more(): Promise<boolean> {
    if (this.#windowBytes >= minWindowBytes) this.#newWindow()
    const began = performance.now()
    const lingered = await new Promise<boolean>((resolve) => {
      let linger: NodeJS.Timeout | undefined
      const timer = setTimeout(() => {
        this.#fail(new HostFailure('unreachable', this.#stalled(), { transient: true, timedOut: true, connected: true }))
        this.#response.destroy()
      }, Math.max(0, this.#stallTimeoutMs - this.#waitedMs))
      const over = (lingered: boolean): void => {
        clearTimeout(timer)
        clearTimeout(linger)
        this.#wake = undefined
        resolve(lingered)
      }
      this.#wake = () => {
        if (this.#ended || this.#error !== undefined || this.#collected >= this.#worthwhileBytes) over(false)
        else if (this.#collected > 0) linger ??= setTimeout(() => over(true), lingerMs)
      }
      this.#wake()
    })
    this.#waitedMs += performance.now() - began
    return lingered
  }

  #newWindow(): void {
    this.#waitedMs = 0
    this.#windowBytes = 0
  }

  #stalled(): string {
    const seconds = this.#stallTimeoutMs / 1000
    return this.#windowBytes === 0 ? `nothing arrived for ${seconds} s` : `only ${this.#windowBytes} bytes arrived in ${seconds} s`
  }

  #fail(error: Error): void {
    if (this.#ended) return
    this.#error ??= error
    this.#wake?.()
  }
}

/** A whole body of at most `maxBytes`. Throws a HostFailure of kind `content` when there is more. */
export async function readBody(response: IncomingMessage, maxBytes: number, stallTimeoutMs: number): Promise<Buffer> {
  const tooLarge = (): HostFailure => new HostFailure('content', `its answer is larger than ${maxBytes} bytes`)
  if (Number(response.headers['content-length'] ?? 0) > maxBytes) {
    response.on('error', () => {})
    response.destroy()
    throw tooLarge()
  }
  const reader = new BodyReader(response, Math.min(maxBytes + 1, 64 * 1024), stallTimeoutMs)
  const pieces: Buffer[] = []
  let size = 0
  try {
    for (let piece = await reader.next(); piece !== undefined; piece = await reader.next()) {
      pieces.push(Buffer.from(piece))
      size += piece.length
      if (size > maxBytes) throw tooLarge()
    }
    return Buffer.concat(pieces, size)
  } finally {
    reader.close()
  }
}

/**
 * Lets go of a body that nobody reads: a short one is drained so that the connection can be used again. Resolves when that is so, or
 * when the connection was ended instead.
 */
export async function discardBody(response: IncomingMessage): Promise<void> {
  const over = Promise.withResolvers<void>()
  response.on('error', over.resolve)
  response.once('end', over.resolve)
  response.once('close', over.resolve)
  const length = response.headers['content-length']
  const worthIt = isHead(response) || (length !== undefined && Number(length) <= 64 * 1024)
  if (!worthIt || response.destroyed) {
    response.destroy()
    return
  }
  const timer = setTimeout(() => response.destroy(), drainTimeoutMs)
  response.resume()
  await over.promise
  clearTimeout(timer)
}

/** A HEAD's answer names the length of a body that it does not have. Node keeps the request at an answer, though its types do not say so. */
function isHead(response: IncomingMessage & { readonly req?: { readonly method?: string } }): boolean {
  return response.req?.method === 'HEAD'
}
