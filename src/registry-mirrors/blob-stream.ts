import type { IncomingMessage } from 'node:http'
import { pause } from '../concurrency/deadline.ts'
import { Code, CriError } from '../errors/cri-error.ts'
import type { Logger } from '../observability/logger.ts'
import { BodyReader } from './body-reader.ts'
import { allFailed, type FailedHost, failureOfError, HostFailure } from './failures.ts'
import type { RegistryHost } from './registry-host.ts'

/** A host that has begun to send a blob. */
export interface OpenedBody {
  readonly host: RegistryHost
  readonly response: IncomingMessage
  /** Bytes in front of the position that was asked for: the host does not know Range. */
  readonly skipBytes: number
}

export interface BlobStreamOptions {
  /** Begins the error: `cannot fetch …`. */
  readonly what: string
  /** In order of preference, not empty. */
  readonly hosts: readonly RegistryHost[]
  /** Asks the given hosts in turn for the bytes from a position on. */
  readonly open: (positionBytes: number, order: readonly RegistryHost[]) => Promise<OpenedBody>
  /** Where the bytes that are wanted end. */
  readonly sizeBytes: number
  /** The blob goes on after that, and a host that does not know ranges sends it. */
  readonly isPart: boolean
  readonly offsetBytes: number
  readonly signal: AbortSignal
  readonly log: Logger
  readonly stallTimeoutMs: number
  readonly retryDelayMs: number
  /** Told of every byte that arrives, those that are skipped included. */
  readonly onReceived: (host: RegistryHost, bytes: number) => void
  /** A body came to its end. */
  readonly onDelivered: (host: RegistryHost) => void
  readonly onBrokenOff: (host: RegistryHost, failure: HostFailure) => void
}

/** Read ahead of whoever takes the bytes. */
const readAheadBytes = 1024 * 1024
/** What a connection must bring to count as progress. */
const progressBytes = 1024 * 1024
/** Continuations in a row that brought less than that: every host once, and this many more. */
const moreFruitless = 4
/** Continuations of one blob in all. */
const maxContinuations = 100

interface Source {
  readonly host: RegistryHost
  readonly reader: BodyReader
  skipBytes: number
  broughtBytes: number
}

/** The bytes of one blob, in pieces that are each good until the next is asked for, continued on the next host or on the same one when a connection breaks. */
export class BlobStream implements AsyncIterable<Buffer> {
  readonly offsetBytes: number
  readonly #options: BlobStreamOptions
  readonly #served: string[] = []
  readonly #failed: FailedHost[] = []
  #source: Source | undefined
  #host = ''
  #positionBytes: number
  #continuations = 0
  #fruitless = 0
  #taken = false
  #acceptsRanges = false
  #closed = false

  constructor(options: BlobStreamOptions) {
    this.#options = options
    this.offsetBytes = options.offsetBytes
    this.#positionBytes = options.offsetBytes
  }

  /** Whether the first host says that it knows ranges. */
  get acceptsRanges(): boolean {
    return this.#acceptsRanges
  }

  get stream(): AsyncIterable<Buffer> {
    return this
  }

  /** The host that serves now, or served last. */
  get host(): string {
    return this.#host
  }

  /** The URLs of the hosts that served so far. */
  get hosts(): readonly string[] {
    return this.#served
  }

  /** Finds the first host. */
  async start(): Promise<void> {
    // Nothing is left to ask for, and a range that begins at the end is refused by every server.
    if (this.#remaining === 0) {
      this.#host = this.#options.hosts[0]?.host ?? ''
      return
    }
    const response = await this.#openFrom(this.#options.hosts)
    this.#acceptsRanges = response.statusCode === 206 || response.headers['accept-ranges'] === 'bytes'
  }

  close(): void {
    this.#closed = true
    this.#drop()
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer, void, undefined> {
    if (this.#taken) throw new Error('a blob stream can be read only once')
    this.#taken = true
    try {
      while (this.#remaining > 0) {
        const piece = await this.#next()
        if (piece !== undefined) yield piece
      }
    } finally {
      this.close()
    }
  }

  get #remaining(): number {
    return this.#options.sizeBytes - this.#positionBytes
  }

  /** The next bytes; undefined when the connection broke and another one takes its place. */
  async #next(): Promise<Buffer | undefined> {
    const source = this.#source
    if (this.#closed || source === undefined) throw new CriError(Code.CANCELLED, `${this.#options.what}: the download was closed`)
    try {
      const piece = await source.reader.next()
      this.#options.signal.throwIfAborted()
      if (piece === undefined) throw new HostFailure('content', `sent ${this.#remaining} bytes too few`, { transient: true })
      return this.#advance(source, piece)
    } catch (error) {
      this.#options.signal.throwIfAborted()
      await this.#continueAfter(source, error)
      return undefined
    }
  }

  #advance(source: Source, piece: Buffer): Buffer | undefined {
    this.#options.onReceived(source.host, piece.length)
    const skipped = Math.min(source.skipBytes, piece.length)
    source.skipBytes -= skipped
    const wanted = piece.subarray(skipped, skipped + this.#remaining)
    if (!this.#options.isPart && piece.length - skipped > this.#remaining) throw new HostFailure('content', 'sent more bytes than the manifest says')
    if (skipped === piece.length) return undefined
    this.#positionBytes += wanted.length
    source.broughtBytes += wanted.length
    if (source.broughtBytes >= progressBytes) this.#fruitless = 0
    if (this.#remaining === 0) this.#options.onDelivered(source.host)
    return wanted
  }

  async #continueAfter(source: Source, error: unknown): Promise<void> {
    const { hosts, what, log, signal, retryDelayMs } = this.#options
    const failure = failureOfError(error)
    this.#failed.push({ host: source.host, failure })
    this.#options.onBrokenOff(source.host, failure)
    this.#drop()
    this.#continuations++
    this.#fruitless++
    if (this.#fruitless > hosts.length + moreFruitless || this.#continuations > maxContinuations) throw allFailed(what, this.#failed)
    log.info({ registryHost: source.host.host, positionBytes: this.#positionBytes, sizeBytes: this.#options.sizeBytes, why: failure.message }, 'continuing an interrupted download')
    // Not before every host had its turn: a broken one must not eat the next one's time.
    const rounds = this.#fruitless - Math.max(hosts.length, 1)
    if (rounds > 0) await pause(retryDelayMs * 2 ** (rounds - 1), signal)
    // The others first, then the one that broke.
    const at = hosts.indexOf(source.host)
    await this.#openFrom([...hosts.slice(at + 1), ...hosts.slice(0, at + 1)])
  }

  async #openFrom(order: readonly RegistryHost[]): Promise<IncomingMessage> {
    const { host, response, skipBytes } = await this.#options.open(this.#positionBytes, order)
    this.#source = { host, reader: new BodyReader(response, readAheadBytes, this.#options.stallTimeoutMs), skipBytes, broughtBytes: 0 }
    this.#host = host.host
    if (this.#served.at(-1) !== host.url) this.#served.push(host.url)
    if (this.#closed) this.#drop()
    return response
  }

  #drop(): void {
    this.#source?.reader.close()
    this.#source = undefined
  }
}
