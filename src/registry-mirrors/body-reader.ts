import type { IncomingMessage } from 'node:http'
import { HostFailure } from './failures.ts'

const drainTimeoutMs = 1000
/** What must arrive within a stall window: about 1 KB/s with the usual 30 s. A host that sends less is as good as silent. */
const minWindowBytes = 32 * 1024

/**
 * Reads a response's body: while one piece is being written, the next ones are collected, up to `boundBytes`. Nothing is lost when the
 * connection breaks: what had arrived is handed out before the error.
 */
export class BodyReader {
  readonly #response: IncomingMessage
  readonly #boundBytes: number
  readonly #stallTimeoutMs: number
  readonly #chunks: Buffer[] = []
  #collected = 0
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
    response.on('data', (chunk: Buffer) => {
      this.#chunks.push(chunk)
      this.#collected += chunk.length
      this.#windowBytes += chunk.length
      if (this.#collected >= boundBytes) response.pause()
      this.#wake?.()
    })
    response.once('end', () => {
      this.#ended = true
      this.#wake?.()
    })
    response.on('error', (error: Error) => this.#fail(error))
    response.once('close', () => {
      if (!this.#ended) this.#fail(new HostFailure('unreachable', 'connection broken off', { transient: true }))
    })
  }

  /** The next bytes as they came off the connection, undefined at the end. */
  async next(): Promise<Buffer | undefined> {
    while (this.#collected === 0 && !this.#ended && this.#error === undefined) await this.#more()
    const chunk = this.#chunks.shift()
    if (chunk !== undefined) {
      this.#collected -= chunk.length
      if (this.#collected < this.#boundBytes && this.#response.isPaused()) this.#response.resume()
      return chunk
    }
    if (this.#error !== undefined) throw this.#error
    return undefined
  }

  /** Ends the connection unless the body was read to its end. */
  close(): void {
    if (!this.#ended) this.#response.destroy()
  }

  /** The time in which nobody waits (the bytes are being written) is not the host's. */
  async #more(): Promise<void> {
    if (this.#windowBytes >= minWindowBytes) this.#newWindow()
    const began = performance.now()
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => {
        this.#fail(new HostFailure('unreachable', this.#stalled(), { transient: true, timedOut: true }))
        this.#response.destroy()
      }, this.#stallTimeoutMs - this.#waitedMs)
      this.#wake = () => {
        if (this.#ended || this.#error !== undefined || this.#collected > 0) {
          clearTimeout(timer)
          this.#wake = undefined
          resolve()
        }
      }
    })
    this.#waitedMs += performance.now() - began
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
      pieces.push(piece)
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
