import type { Readable, Writable } from 'node:stream'

export interface PumpHooks {
  /** Bytes that were read. */
  readonly onRead: (bytes: number) => void
  /** A piece has been taken by the other side. */
  readonly onWritten?: () => void
}

/**
 * Moves everything from one stream to the other as fast as the slower one, and ends it. Once the target is closed or broken what comes is
 * thrown away: the source must not stand still because of it. Errors are the owner's business. Returns a function that throws away from then on.
 */
export function pump(from: Readable, to: Writable, hooks: PumpHooks): () => void {
  let open = true
  const { onRead, onWritten } = hooks
  const discard = (): void => {
    open = false
    from.resume()
  }
  from.on('data', (piece: Buffer) => {
    onRead(piece.length)
    if (open && !to.write(piece, onWritten)) from.pause()
  })
  from.once('end', () => {
    if (open) to.end()
    open = false
  })
  to.on('drain', () => from.resume())
  to.once('error', discard)
  to.once('close', discard)
  if (to.destroyed || to.writableEnded) discard()
  return discard
}
