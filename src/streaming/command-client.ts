import type { Readable, Writable } from 'node:stream'
import type { RemoteStatus } from './remote-status.ts'
import type { Transport } from './protocol.ts'

/** The client's side of an exec or attach, whatever the transport. */
export interface CommandClient {
  readonly transport: Transport
  /** What the client types; ends at its half-close. Undefined, as the others: not asked for. */
  readonly stdin: Readable | undefined
  /** `finish` of an output means that everything has been handed to the connection. */
  readonly stdout: Writable | undefined
  readonly stderr: Writable | undefined
  /** Bytes of the resize stream. One listener; what came before is replayed. */
  onResize(listener: (bytes: Uint8Array) => void): void
  /**
   * The outputs are ended: sends the status as the last thing and closes the connection. Resolves when it is closed; the caller bounds the time.
   * What the client still sends is thrown away meanwhile.
   */
  finish(status: RemoteStatus): Promise<void>
  /** Closes the connection at once. */
  destroy(): void
  /** Resolves when the connection is closed, whoever closed it. */
  readonly closed: Promise<void>
  /** When something last went either way, in milliseconds of performance.now(). */
  readonly lastActivityMs: number
}
