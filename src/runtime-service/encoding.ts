import { varint } from '../containerd/varint.ts'
import { messageCodec, criProtos } from '../generated/protos.ts'

/**
 * A record's own encoding as one entry of a List answer (field 1, length-delimited), kept under the record: records are immutable, so an
 * entry is encoded once for as long as nothing changes, and a List of thousands is little more than a copy.
 */
export class EntryEncoder<T extends object> {
  readonly #messageName: string
  readonly #toMessage: (record: T) => object
  readonly #entries = new WeakMap<T, Buffer>()

  constructor(messageName: string, toMessage: (record: T) => object) {
    this.#messageName = messageName
    this.#toMessage = toMessage
  }

  entry(record: T): Buffer {
    const known = this.#entries.get(record)
    if (known !== undefined) return known
    const body = messageCodec(criProtos(), this.#messageName).serialize(this.#toMessage(record))
    const entry = Buffer.concat([Buffer.from([0x0a]), varint(body.length), body])
    this.#entries.set(record, entry)
    return entry
  }

  /** A whole answer whose only field is the repeated field 1. */
  list(records: Iterable<T>): Buffer {
    const entries: Buffer[] = []
    for (const record of records) entries.push(this.entry(record))
    return Buffer.concat(entries)
  }

  /** The same in answers of at most `perMessage` entries, for the streaming calls: at least one, also when there is nothing. */
  *pages(records: Iterable<T>, perMessage: number): Generator<Buffer> {
    let page: Buffer[] = []
    let any = false
    for (const record of records) {
      page.push(this.entry(record))
      if (page.length < perMessage) continue
      yield Buffer.concat(page)
      any = true
      page = []
    }
    if (page.length > 0 || !any) yield Buffer.concat(page)
  }
}

/** Entries per message of a streaming call: some hundred kilobytes. */
export const pageSize = 200
