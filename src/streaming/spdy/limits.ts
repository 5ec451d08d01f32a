import { DEFAULT_WINDOW_BYTES, MAX_WINDOW_BYTES } from './protocol.ts'

/** What one connection may cost. A peer that goes beyond ends its own connection, except for maxStreams, where only the new stream is refused. */
export interface SpdyLimits {
  /** The longest control frame (without its 8 byte header). DATA frames are handed on piece by piece and never held whole, so the format's 16 MiB holds for them. */
  readonly maxFrameBytes: number
  /** A header block after decompression. */
  readonly maxHeaderBytes: number
  /** Streams that the peer may have open at once. */
  readonly maxStreams: number
  /**
   * Received bytes that wait for their consumers, all streams together; from 128 KiB on. At the bound nothing more is read from the transport until half of it is
   * consumed. Three quarters of it are the connection's receive window.
   */
  readonly maxBufferedBytes: number
  /** The receive window of each stream, from 64 KiB on. */
  readonly initialWindowBytes: number
  /** Control frames to the peer (answers to PING and SYN_STREAM, resets, window updates) that wait because it does not read them. Default: 4096, or four for each stream. */
  readonly maxQueuedFrames: number
}

export const DEFAULT_LIMITS: SpdyLimits = {
  maxFrameBytes: 64 * 1024,
  maxHeaderBytes: 64 * 1024,
  maxStreams: 1024,
  maxBufferedBytes: 2 * 1024 * 1024,
  initialWindowBytes: 512 * 1024,
  maxQueuedFrames: 4 * 1024,
}

/** The defaults with what is given in their place. Throws RangeError for a bound that no connection could live with. */
export function resolveLimits(given: Partial<SpdyLimits> = {}): SpdyLimits {
  const perStream = 4 * (given.maxStreams ?? 0)
  const limits = { ...DEFAULT_LIMITS, maxQueuedFrames: Math.max(DEFAULT_LIMITS.maxQueuedFrames, perStream), ...given }
  const check = (name: keyof SpdyLimits, min: number, max: number): void => {
    const value = limits[name]
    if (!Number.isSafeInteger(value) || value < min || value > max) throw new RangeError(`SPDY limit ${name} is ${value}; it must be ${min} to ${max}`)
  }
  check('maxFrameBytes', 64, 0xff_ffff)
  check('maxHeaderBytes', 64, 0xff_ffff)
  check('maxStreams', 1, 0xff_ffff)
  check('maxBufferedBytes', 2 * DEFAULT_WINDOW_BYTES, MAX_WINDOW_BYTES)
  check('initialWindowBytes', DEFAULT_WINDOW_BYTES, MAX_WINDOW_BYTES)
  check('maxQueuedFrames', 1, MAX_WINDOW_BYTES)
  return limits
}
