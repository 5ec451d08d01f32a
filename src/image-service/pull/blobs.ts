import type { BoundedQueue } from '../../concurrency/bounded-queue.ts'
import { join } from '../../concurrency/join.ts'
import { KeyedMutex } from '../../concurrency/keyed-mutex.ts'
import type { ContentService } from '../../containerd/content.ts'
import type { ContentWriter } from '../../containerd/content-writer.ts'
import { Code, CriError } from '../../errors/cri-error.ts'
import type { Ctx } from '../../observability/context.ts'
import type { PullAuth } from '../../registry-mirrors/credentials.ts'
import type { ImageRef } from '../../registry-mirrors/image-ref.ts'
import type { Descriptor, OpenedBlob, RegistryClient } from '../../registry-mirrors/registry-client.ts'
import type { Precedence, Turn } from './precedence.ts'
import type { PullTracker } from './progress.ts'
import { Suspects } from './suspects.ts'

/** One pull as its parts see it. */
export interface PullSource {
  readonly ref: ImageRef
  readonly auth: PullAuth
  readonly lease: string
  readonly tracker: PullTracker
  /** Of the layers of this pull. */
  readonly precedence: Precedence
  /** Bytes have arrived: the pull is alive. */
  readonly progress: (bytes: number) => void
  /** Runs what waits for bytes and for nothing else. */
  readonly watch: <T>(transfer: () => Promise<T>) => Promise<T>
  /** A host has served something, for the line in the log. */
  readonly served: (host: string) => void
}

/** A large blob that is wanted. */
export interface WantedBlob {
  readonly descriptor: Descriptor
  readonly labels: Readonly<Record<string, string>>
  /** Who goes first: the lowest. */
  readonly rank: number
  /** Told as soon as the blob is there; there may be something left to clear away. Default: nobody. */
  readonly stored?: () => void
}

/** Large blobs come in several ranges side by side, from hosts that say that they know ranges. */
export interface RangeSettings {
  /** Of one blob; 1: as a whole. */
  readonly parts: number
  /** What is missing of a blob must be so much. */
  readonly fromBytes: number
}

export interface BlobFetcherOptions {
  readonly content: ContentService
  readonly registry: RegistryClient
  /** Bounds the transfers of all pulls together; each range is one. */
  readonly transfers: BoundedQueue
  readonly ranges: RangeSettings
}

/** A download that turned out wrong is tried again from other hosts; three wrong ones in a row are no accident. */
const maxAttempts = 3

/** Brings blobs into containerd's content store: each once, however many pulls want it, and from where an interrupted one stopped. */
export class BlobFetcher {
  readonly #content: ContentService
  readonly #registry: RegistryClient
  readonly #transfers: BoundedQueue
  readonly #ranges: RangeSettings
  readonly #mutex = new KeyedMutex()
  /** By digest of what is wanted: by how many, and what aborts when there is more than one. */
  readonly #wanted = new Map<string, { count: number; readonly urgent: AbortController }>()

  constructor(options: BlobFetcherOptions) {
    this.#content = options.content
    this.#registry = options.registry
    this.#transfers = options.transfers
    this.#ranges = options.ranges
  }

  /** Stores small bytes that are at hand (a manifest, verified by the caller) with their labels. */
  async store(ctx: Ctx, source: PullSource, descriptor: Descriptor, bytes: Buffer, labels: Readonly<Record<string, string>>): Promise<void> {
    await this.#mutex.run(descriptor.digest, async () => {
      const writer = await this.#content.openWriter(ctx, { ref: ingestRef(descriptor), digest: descriptor.digest, sizeBytes: bytes.length, lease: source.lease })
      if (writer !== undefined) {
        try {
          if (writer.offsetBytes > 0) await writer.truncate()
          await writer.write(bytes)
          await writer.commit(labels)
          return
        } finally {
          await writer.close()
        }
      }
      await this.#content.setLabels(ctx, descriptor.digest, labels)
    }, ctx.signal)
  }

  /** A large blob, streamed; when it is there already only its labels are completed. */
  async fetch(ctx: Ctx, source: PullSource, blob: WantedBlob): Promise<void> {
    const { descriptor } = blob
    const { digest } = descriptor
    const wanted = this.#wanted.get(digest) ?? { count: 0, urgent: new AbortController() }
    this.#wanted.set(digest, wanted)
    wanted.count += 1
    // It may be the lowest layer of this pull, and one of the highest of that which brings it.
    if (wanted.count > 1) wanted.urgent.abort()
    try {
      await this.#mutex.run(digest, () => this.#fetch(ctx, source, blob, wanted.urgent.signal), ctx.signal)
    } finally {
      wanted.count -= 1
      if (wanted.count === 0) this.#wanted.delete(digest)
    }
  }

  async #fetch(ctx: Ctx, source: PullSource, blob: WantedBlob, urgent: AbortSignal): Promise<void> {
    const { descriptor } = blob
    const suspects = new Suspects()
    for (let attempt = 1; ; attempt++) {
      try {
        await this.#download(ctx, source, blob, { avoid: suspects.avoid, urgent })
        return
      } catch (error) {
        if (!(error instanceof WrongBytes)) throw error
        ctx.log.warn({ digest: descriptor.digest, hosts: error.hosts, attempt }, 'a layer arrived with wrong bytes: thrown away')
        suspects.wrong(error.hosts, error.brokenOff)
        await this.#content.abort(ctx, ingestRef(descriptor), source.lease)
        if (attempt >= maxAttempts) throw new CriError(Code.DATA_LOSS, `${descriptor.digest} of ${source.ref.name} arrived with wrong bytes ${attempt} times (from ${error.hosts.join(', ')})`, { reason: 'CONTENT', cause: error })
      }
    }
  }

  async #download(ctx: Ctx, source: PullSource, blob: WantedBlob, how: Attempt): Promise<void> {
    const { descriptor, labels, rank, stored } = blob
    const writer = await this.#content.openWriter(ctx, { ref: ingestRef(descriptor), digest: descriptor.digest, sizeBytes: descriptor.sizeBytes, lease: source.lease })
    if (writer === undefined) {
      await this.#content.setLabels(ctx, descriptor.digest, labels)
      source.tracker.layer(descriptor.digest, 'downloaded')
      stored?.()
      return
    }
    source.tracker.layer(descriptor.digest, 'downloading')
    try {
      if (writer.offsetBytes > descriptor.sizeBytes) await writer.truncate()
      let served: Served = { hosts: ['an earlier download'], brokenOff: [] }
      if (writer.offsetBytes < descriptor.sizeBytes) {
        if (writer.offsetBytes > 0) ctx.log.info({ digest: descriptor.digest, offsetBytes: writer.offsetBytes, sizeBytes: descriptor.sizeBytes }, 'going on with an interrupted download')
        // What an earlier one left may be what is wrong: a crash leaves gaps, a power cut zeros.
        const isWhole = writer.offsetBytes === 0
        const sent = await this.#transfer(ctx, source, blob, writer, how)
        if (isWhole) served = sent
      }
      try {
        // More bytes on their way to the disk would keep it.
        using turn = source.precedence.enter(rank)
        turn.works()
        await writer.commit(labels)
        source.tracker.layer(descriptor.digest, 'downloaded')
        stored?.()
      } catch (error) {
        if (error instanceof CriError && error.code === Code.FAILED_PRECONDITION) throw new WrongBytes(served, error)
        throw error
      }
    } finally {
      await writer.close()
    }
  }

  /** Brings what is missing. */
  async #transfer(ctx: Ctx, source: PullSource, { descriptor, rank }: WantedBlob, writer: ContentWriter, { avoid, urgent }: Attempt): Promise<Served> {
    let storedBytes = writer.offsetBytes
    const { digest, sizeBytes } = descriptor
    const [served, brokenOff] = [new Set<string>(), new Set<string>()]
    const servedBy = (hosts: readonly string[]): void => {
      for (const host of hosts) served.add(host)
      for (const host of hosts.slice(0, -1)) brokenOff.add(host)
    }
    const stored = (bytes: number): void => {
      storedBytes += bytes
      source.tracker.stored(digest, storedBytes)
    }
    stored(0)
    const open = async (signal: AbortSignal, from: number, to: number): Promise<OpenedBlob> => {
      const blob = await this.#registry.openBlob(source.ref, descriptor, {
        offsetBytes: from, endBytes: to, auth: source.auth, signal, log: ctx.log, avoid,
        onReceived: (bytes, host) => {
          source.progress(bytes)
          source.tracker.received(digest, bytes, host)
        },
        passedOver: (host, why) => source.tracker.passedOver(host, why),
      })
      source.served(blob.host)
      return blob
    }
    const from = storedBytes
    /** What is read in one go, of which the first may come to be all. */
    const parts: Part[] = []
    const opened = Promise.withResolvers<void>()
    /** Its place among the transfers lasts as long as bytes are awaited, and the watchdog looks at it only then. */
    const inTurn = async (signal: AbortSignal, place: number, work: (turn: Turn) => Promise<void>): Promise<void> => {
      using turn = source.precedence.enter(rank + place, urgent)
      await turn.begin(signal)
      await this.#transfers.add(() => source.watch(() => work(turn)), { signal })
    }
    const first = async (signal: AbortSignal): Promise<void> => {
      try {
        await inTurn(signal, 0, async (turn) => {
          const blob = await open(signal, from, sizeBytes)
          const [own, ...others] = this.#parts(from, sizeBytes, blob.acceptsRanges && writer.isDirect)
          parts.push(...others)
          opened.resolve()
          // What nobody has begun to read when it comes is not asked for again.
          let reached = 0
          const more = (): number | undefined => {
            const next = parts[reached]
            if (next === undefined || next.isTaken) return undefined
            next.isTaken = true
            reached += 1
            return next.end
          }
          await read(blob, { from, to: own.end, more, turn, signal, write: async (bytes) => writer.write(bytes), stored })
          servedBy(blob.hosts)
        })
      } finally {
        opened.resolve()
      }
    }
    const further = Array.from({ length: this.#ranges.parts - 1 }, (_, index) => async (signal: AbortSignal): Promise<void> => {
      await opened.promise
      const part = parts[index]
      if (part === undefined) return
      await inTurn(signal, (index + 1) / this.#ranges.parts, async (turn) => {
        if (part.isTaken) return
        part.isTaken = true
        const blob = await open(signal, part.begin, part.end)
        await read(blob, { from: part.begin, to: part.end, turn, signal, write: async (bytes, at) => writer.writeAt(bytes, at), stored })
        servedBy(blob.hosts)
      })
    })
    await join<void[]>(ctx.signal, [first, ...further])
    writer.filledTo(sizeBytes)
    return { hosts: [...served], brokenOff: [...brokenOff] }
  }

  /** One when more are not worth it. */
  #parts(from: number, to: number, possible: boolean): [Part, ...Part[]] {
    const { parts: count, fromBytes } = this.#ranges
    if (!possible || to - from < fromBytes) return [{ begin: from, end: to, isTaken: true }]
    const endOf = (index: number): number => from + Math.ceil((to - from) * index / count)
    const others = Array.from({ length: count - 1 }, (_, index) => ({ begin: endOf(index + 1), end: endOf(index + 2), isTaken: false }))
    return [{ begin: from, end: endOf(1), isTaken: true }, ...others]
  }
}

/** URLs of hosts. */
interface Served {
  readonly hosts: readonly string[]
  /** Those of them that did not send all that they were asked for. */
  readonly brokenOff: readonly string[]
}

interface Attempt {
  /** URLs of hosts that sent wrong bytes. */
  readonly avoid: readonly string[]
  /** Aborts when another pull waits for the blob. */
  readonly urgent: AbortSignal
}

interface Part {
  readonly begin: number
  readonly end: number
  /** Somebody reads it. */
  isTaken: boolean
}

interface Reading {
  readonly from: number
  /** The host may not know of it. */
  readonly to: number
  /** Asked when bytes come from beyond that: how far they are wanted now. Default: no further. */
  readonly more?: () => number | undefined
  readonly turn: Turn
  readonly signal: AbortSignal
  readonly write: (bytes: Buffer, at: number) => Promise<void>
  readonly stored: (bytes: number) => void
}

async function read(blob: OpenedBlob, { from, to, more, turn, signal, write, stored }: Reading): Promise<void> {
  let [at, end] = [from, to]
  try {
    for await (const chunk of blob.stream) {
      turn.works()
      while (at + chunk.length >= end) {
        const further = more?.()
        if (further === undefined) break
        end = further
      }
      const bytes = chunk.subarray(0, end - at)
      await write(bytes, at)
      at += bytes.length
      stored(bytes.length)
      if (at === end) break
      turn.waits()
      await turn.come(signal)
    }
  } finally {
    blob.close()
  }
}

class WrongBytes extends Error {
  readonly hosts: readonly string[]
  readonly brokenOff: readonly string[]

  constructor({ hosts, brokenOff }: Served, cause: unknown) {
    super('wrong bytes', { cause })
    this.hosts = hosts
    this.brokenOff = brokenOff
  }
}

/** The names that containerd's own client gives its ingests, so that either goes on with what the other began. */
function ingestRef(descriptor: Descriptor): string {
  const type = descriptor.mediaType
  const kind = /image\.index|manifest\.list/.test(type) ? 'index' : /manifest/.test(type) ? 'manifest' : /config|container\.image/.test(type) ? 'config' : 'layer'
  return `${kind}-${descriptor.digest}`
}
