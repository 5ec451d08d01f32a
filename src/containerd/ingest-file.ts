import { type FileHandle, open, readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fromNodeError } from '../linux/errno.ts'

/**
 * The data file of an ingest that containerd has opened for us, written without containerd in between. That is safe because nothing is
 * believed of it: the ingest's lock is ours while this is open, and before the commit containerd reads the whole file and compares its digest.
 */
export class IngestFile {
  readonly #file: FileHandle
  readonly #path: string
  #writtenBytes: number
  readonly #writing = new Set<Promise<void>>()
  /** Bytes were written behind a gap. */
  #hasGap = false

  private constructor(file: FileHandle, path: string, offsetBytes: number) {
    this.#file = file
    this.#path = path
    this.#writtenBytes = offsetBytes
  }

  /**
   * Finds the ingest below the directory of containerd's local content store. Undefined when it is not there with the size that containerd
   * told: the content store is another one, has another layout, or is not visible from here.
   */
  static async open(contentRoot: string, namespace: string, ref: string, offsetBytes: number): Promise<IngestFile | undefined> {
    const path = await findData(join(contentRoot, 'ingest'), namespace, ref)
    if (path === undefined) return undefined
    const file = await open(path, 'r+').catch(() => undefined)
    if (file === undefined) return undefined
    const stat = await file.stat().catch(() => undefined)
    if (stat?.isFile() === true && stat.size === offsetBytes) return new IngestFile(file, path, offsetBytes)
    await file.close()
    return undefined
  }

  /** Up to where it is filled without a gap. */
  get offsetBytes(): number {
    return this.#writtenBytes
  }

  /** Writes the next bytes, whose memory may be used again when this resolves. One at a time. */
  async write(chunk: Uint8Array): Promise<void> {
    await this.#tracked(async () => {
      await this.#put(chunk, this.#writtenBytes)
      this.#writtenBytes += chunk.length
    })
  }

  /** Writes bytes further on, beside what `write` does. They count when `filledTo` says so. */
  async writeAt(chunk: Uint8Array, positionBytes: number): Promise<void> {
    this.#hasGap = true
    await this.#tracked(async () => this.#put(chunk, positionBytes))
  }

  /** There is no gap up to here. */
  filledTo(positionBytes: number): void {
    this.#writtenBytes = positionBytes
    this.#hasGap = false
  }

  async truncate(): Promise<void> {
    await this.#cut(0)
    this.#writtenBytes = 0
  }

  /** Waits for the writes that are under way: the ingest's lock may go after this. Whoever goes on with it believes in its size, so it ends where a gap begins. */
  async close(): Promise<void> {
    await Promise.allSettled(this.#writing)
    try {
      if (this.#hasGap) await this.#cut(this.#writtenBytes)
    } finally {
      await this.#file.close()
    }
  }

  async #tracked(work: () => Promise<void>): Promise<void> {
    const writing = work()
    this.#writing.add(writing)
    try {
      await writing
    } finally {
      this.#writing.delete(writing)
    }
  }

  async #cut(sizeBytes: number): Promise<void> {
    await this.#file.truncate(sizeBytes).catch((error: unknown) => { throw fromNodeError(`cannot shorten ${this.#path}`, error) })
  }

  async #put(chunk: Uint8Array, positionBytes: number): Promise<void> {
    try {
      // A full disk takes a part; asked for the rest it says why.
      for (let at = 0; at < chunk.length;) at += (await this.#file.write(chunk, at, chunk.length - at, positionBytes + at)).bytesWritten
    } catch (error) {
      throw fromNodeError(`cannot write ${this.#path}`, error)
    }
  }
}

/** An ingest is a directory with a file `ref` that names it, `<namespace>/<number>/<ref>`, beside `data`. */
async function findData(dir: string, namespace: string, ref: string): Promise<string | undefined> {
  const suffix = `/${ref}`
  for (const name of await readdir(dir).catch(() => [])) {
    const named = await readFile(join(dir, name, 'ref'), 'utf8').catch(() => '')
    if (named.startsWith(`${namespace}/`) && named.endsWith(suffix) && /^\d+$/.test(named.slice(namespace.length + 1, -suffix.length))) return join(dir, name, 'data')
  }
  return undefined
}
