import { nameIn, RstStatus } from './protocol.ts'

export type SpdyErrorCode =
  /** The peer broke the protocol, or one of our limits. Ends the connection. */
  | 'SPDY_PROTOCOL'
  /** Something in this process failed while a frame was handled. Ends the connection. */
  | 'SPDY_INTERNAL'
  /** The peer (or we) reset the stream. */
  | 'SPDY_STREAM_RESET'
  /** The connection ended under the stream. */
  | 'SPDY_CLOSED'
  /** No new stream: the connection is draining, or the peer's limit is reached. */
  | 'SPDY_REFUSED'

/** What ended a SPDY connection or stream. `status` is the RST_STREAM code for SPDY_STREAM_RESET and the stream errors of a peer. */
export class SpdyError extends Error {
  override readonly name = 'SpdyError'
  readonly code: SpdyErrorCode
  readonly status: number | undefined

  constructor(code: SpdyErrorCode, message: string, options: { readonly status?: number; readonly cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.status = options.status
  }
}

/** A violation that ends the whole connection. */
export function violation(message: string): SpdyError {
  return new SpdyError('SPDY_PROTOCOL', `SPDY peer broke the protocol: ${message}`)
}

export function streamReset(id: number, status: number, by: 'peer' | 'us', why?: string): SpdyError {
  const name = nameIn(RstStatus, status)
  const who = by === 'peer' ? `the peer reset SPDY stream ${id}` : `SPDY stream ${id} was reset`
  return new SpdyError('SPDY_STREAM_RESET', `${who}: ${name}${why === undefined ? '' : `, ${why}`}`, { status })
}
