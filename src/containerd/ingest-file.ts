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
  #writing: Promise<void> | undefined

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

  get offsetBytes(): number {
    return this.#writtenBytes
  }

  /** Writes the next bytes, whose memory may be used again when this resolves. One at a time. */
  async write(chunk: Uint8Array): Promise<void> {
    const writing = this.#put(chunk)
    this.#writing = writing
    await writing
  }

  async truncate(): Promise<void> {
    await this.#file.truncate(0).catch((error: unknown) => { throw fromNodeError(`cannot empty ${this.#path}`, error) })
    this.#writtenBytes = 0
  }

  /** Waits for the write that is under way: the ingest's lock may go after this. */
  async close(): Promise<void> {
    await this.#writing?.catch(() => undefined)
    await this.#file.close()
  }

  async #put(chunk: Uint8Array): Promise<void> {
    try {
      // A full disk takes a part; asked for the rest it says why.
      for (let at = 0; at < chunk.length;) {
        const { bytesWritten } = await this.#file.write(chunk, at, chunk.length - at, this.#writtenBytes)
        at += bytesWritten
        this.#writtenBytes += bytesWritten
      }
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
