import { createHash, type Hash } from 'node:crypto'
import { type FileHandle, link, mkdir, open, readdir, readFile, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { errnoOf } from '../errors/cri-error.ts'
import { fromNodeError } from '../linux/errno.ts'

const readBytes = 1024 * 1024

/**
 * The data file of an ingest that containerd has opened for us, written without containerd in between. The ingest's lock is ours while this is open.
 * Before it becomes a blob its bytes are compared with the digest: by containerd, which reads the whole file, or as they are written here.
 */
export class IngestFile {
  readonly #file: FileHandle
  readonly #path: string
  #writtenBytes: number
  readonly #writing = new Set<Promise<void>>()
  /** Bytes were written behind a gap. */
  #hasGap = false
  readonly #algorithm: string | undefined
  #hash: Hash | undefined
  #hashedBytes = 0
  #isWhole = false

  private constructor(file: FileHandle, path: string, offsetBytes: number, algorithm: string | undefined) {
    this.#file = file
    this.#path = path
    this.#writtenBytes = offsetBytes
    this.#algorithm = algorithm
    if (algorithm !== undefined) this.#hash = createHash(algorithm)
  }

  /**
   * Finds the ingest below the directory of containerd's local content store. Undefined when it is not there with the size that containerd
   * told: the content store is another one, has another layout, or is not visible from here. Nor when it is a blob as well (see `takeLinked`). `algorithm`
   * (sha256, …): what is written is hashed by it.
   */
  static async open(contentRoot: string, namespace: string, ref: string, offsetBytes: number, algorithm?: string): Promise<IngestFile | undefined> {
    const path = await findData(join(contentRoot, 'ingest'), namespace, ref)
    if (path === undefined) return undefined
    const file = await open(path, 'r+').catch(() => undefined)
    if (file === undefined) return undefined
    const found = await file.stat().catch(() => undefined)
    if (found?.isFile() === true && found.size === offsetBytes && found.nlink === 1) return new IngestFile(file, path, offsetBytes, algorithm)
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
    this.#hashedBytes = 0
    if (this.#algorithm !== undefined) this.#hash = createHash(this.#algorithm)
  }

  /**
   * Whether the file is filled up to `sizeBytes` and has this digest (hex). If so its bytes are on the disk: a blob that is not, and has its name, would be
   * believed after a power cut. Nothing is written after this.
   */
  async isWhole(sizeBytes: number, digest: string): Promise<boolean> {
    await Promise.allSettled(this.#writing)
    if (this.#hasGap || this.#writtenBytes !== sizeBytes || await this.#digest() !== digest) return false
    try {
      await this.#file.sync()
    } catch (error) {
      throw fromNodeError(`cannot write ${this.#path} to the disk`, error)
    }
    await this.#file.chmod(0o444)
    this.#isWhole = true
    return true
  }

  /** Gives the file, once it is whole, the name `path` as well: true when it is under that name now, or one of its size was before. */
  async linkAs(path: string): Promise<boolean> {
    if (!this.#isWhole) return false
    for (let isNew = true; ; isNew = false) {
      try {
        await link(this.#path, path)
        return true
      } catch (error) {
        const errno = errnoOf(error)
        if (errno === 'EEXIST') return (await stat(path).catch(() => undefined))?.size === this.#writtenBytes
        // containerd makes the directory with its first blob.
        if (errno !== 'ENOENT' || !isNew) return false
        await mkdir(dirname(path), { mode: 0o755, recursive: true })
      }
    }
  }

  async #digest(): Promise<string | undefined> {
    const hash = this.#hash
    this.#hash = undefined
    if (hash === undefined) return undefined
    const buffer = Buffer.allocUnsafeSlow(this.#hashedBytes < this.#writtenBytes ? readBytes : 0)
    while (this.#hashedBytes < this.#writtenBytes) {
      const { bytesRead } = await this.#file.read(buffer, 0, buffer.length, this.#hashedBytes)
      if (bytesRead === 0) return undefined
      hash.update(buffer.subarray(0, bytesRead))
      this.#hashedBytes += bytesRead
    }
    return hash.digest('hex')
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
    const writing = this.#putAll(chunk, positionBytes)
    // Beside the write, which another thread does; after a gap the rest is read at the end.
    if (this.#hash !== undefined && this.#hashedBytes === positionBytes) {
      this.#hash.update(chunk)
      this.#hashedBytes += chunk.length
    }
    await writing
  }

  async #putAll(chunk: Uint8Array, positionBytes: number): Promise<void> {
    try {
      // A full disk takes a part; asked for the rest it says why.
      for (let at = 0; at < chunk.length;) at += (await this.#file.write(chunk, at, chunk.length - at, positionBytes + at)).bytesWritten
    } catch (error) {
      throw fromNodeError(`cannot write ${this.#path}`, error)
    }
  }
}

/**
 * Takes the bytes of an ingest away that are a blob's too: a crash came between the blob's link and the end of the ingest, and whoever went on with that would
 * write into the blob. Whether there were any.
 */
export async function takeLinked(contentRoot: string, namespace: string, ref: string): Promise<boolean> {
  const path = usualData(join(contentRoot, 'ingest'), namespace, ref)
  if (((await stat(path).catch(() => undefined))?.nlink ?? 1) === 1) return false
  await rm(path, { force: true })
  return true
}

/** Where containerd has an ingest: it counts per ref, and anew for each ingest, so that the number in the name is 1. */
function usualData(dir: string, namespace: string, ref: string): string {
  return join(dir, createHash('sha256').update(`${namespace}/1/${ref}`).digest('hex'), 'data')
}

/** An ingest is a directory with a file `ref` that names it, `<namespace>/<number>/<ref>`, beside `data`. */
async function findData(dir: string, namespace: string, ref: string): Promise<string | undefined> {
  const isNamed = async (data: string): Promise<boolean> => {
    const named = await readFile(join(dirname(data), 'ref'), 'utf8').catch(() => '')
    return named.startsWith(`${namespace}/`) && named.endsWith(`/${ref}`) && /^\d+$/.test(named.slice(namespace.length + 1, -ref.length - 1))
  }
  const usual = usualData(dir, namespace, ref)
  if (await isNamed(usual)) return usual
  for (const name of await readdir(dir).catch(() => [])) if (await isNamed(join(dir, name, 'data'))) return join(dir, name, 'data')
  return undefined
}
