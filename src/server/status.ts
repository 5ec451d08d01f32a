import { Code, CriError, codeName, messageOf } from '../errors/cri-error.ts'

/** How a call ended: `code` is 0 for OK, else one of Code. */
export interface RpcStatus {
  readonly code: number
  readonly details: string
}

export const okStatus: RpcStatus = { code: 0, details: 'OK' }

/** `OK`, `NOT_FOUND`, … */
export function statusName(code: number): string {
  return code === 0 ? 'OK' : codeName(code)
}

/**
 * The bound of a status message in its wire form, in bytes. A client refuses a header block that is too large (Node 64 KiB, others 8 to
 * 16 KiB) and then reports a broken connection instead of the error.
 */
const maxMessageBytes = 8192
const ellipsis = '…'

/**
 * A message that can be sent: grpc-js percent-encodes it with encodeURI, which throws on half a surrogate pair, outside of any handler.
 * A longer one is cut and ends in "…".
 */
export function sendableMessage(message: string): string {
  const text = message.slice(0, maxMessageBytes + 1).toWellFormed()
  if (message.length <= maxMessageBytes && encodeURI(text).length <= maxMessageBytes) return text
  let room = maxMessageBytes - encodeURI(ellipsis).length
  let end = 0
  for (const character of text) {
    room -= encodeURI(character).length
    if (room < 0) break
    end += character.length
  }
  return text.slice(0, end) + ellipsis
}

function isAbortError(error: unknown): boolean {
  return error instanceof Error && (error.name === 'AbortError' || ('code' in error && error.code === 'ABORT_ERR'))
}

/**
 * The status that the client gets for a thrown thing. A CriError keeps code and message; anything else is INTERNAL with its message, and
 * what caused it stays in the log. Work that stopped because of `signal` takes the code and the message of the abort.
 */
export function statusOf(error: unknown, signal: AbortSignal): RpcStatus {
  const reason: unknown = signal.aborted ? signal.reason : undefined
  const stopped = error === reason || isAbortError(error) || (error instanceof CriError && error.code === Code.CANCELLED)
  const shown = reason instanceof CriError && stopped ? reason : error
  if (shown instanceof CriError) return { code: shown.code, details: sendableMessage(shown.message) }
  const message = messageOf(shown)
  return { code: Code.INTERNAL, details: sendableMessage(message === '' ? 'internal error without a message; see the log of cri-shim' : message) }
}

/** The messages of what caused an error, nearest first, for the log. */
export function causesOf(error: unknown): string[] {
  const causes: string[] = []
  const seen = new Set<unknown>([error])
  let cause: unknown = error instanceof Error ? error.cause : undefined
  while (cause !== undefined && cause !== null && !seen.has(cause) && causes.length < 16) {
    seen.add(cause)
    causes.push(messageOf(cause))
    cause = cause instanceof Error ? cause.cause : undefined
  }
  return causes
}
