import { type FileHandle, open, readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fromNodeError } from '../linux/errno.ts'

/** What is handed to the kernel at once. */
const writeBytes = 1024 * 1024

/**
 * The data file of an ingest that containerd has opened for us, written without containerd in between. That is safe because nothing is
 * believed of it: the ingest's lock is ours while this is open, and before the commit containerd reads the whole file and compares its digest.
 */
export class IngestFile {
  readonly #file: FileHandle
  readonly #path: string
  #gathered: Uint8Array[] = []
  #gatheredBytes = 0
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
    return this.#writtenBytes + this.#gatheredBytes
  }

  /** Takes the next bytes, whose memory must stay as it is. While one piece is being written the next is gathered. */
  async write(chunk: Uint8Array): Promise<void> {
    this.#gathered.push(chunk)
    this.#gatheredBytes += chunk.length
    if (this.#gatheredBytes < writeBytes) return
    await this.#writing
    this.#begin()
  }

  async flush(): Promise<void> {
    await this.#writing
    this.#begin()
    await this.#writing
  }

  async truncate(): Promise<void> {
    await this.#writing
    this.#gathered = []
    this.#gatheredBytes = 0
    await this.#file.truncate(0).catch((error: unknown) => { throw fromNodeError(`cannot empty ${this.#path}`, error) })
    this.#writtenBytes = 0
  }

  /** What was gathered and not written is dropped: a later writer goes on from what is in the file. */
  async close(): Promise<void> {
    await this.#writing?.catch(() => undefined)
    await this.#file.close()
  }

  #begin(): void {
    if (this.#gatheredBytes === 0) return
    const [pieces, bytes] = [this.#gathered, this.#gatheredBytes]
    this.#gathered = []
    this.#gatheredBytes = 0
    const writing = this.#put(pieces, bytes)
    // Whoever comes next awaits it; a failure must not count as unhandled until then.
    writing.catch(() => undefined)
    this.#writing = writing
  }

  async #put(pieces: readonly Uint8Array[], bytes: number): Promise<void> {
    try {
      const start = this.#writtenBytes
      this.#writtenBytes += bytes
      let { bytesWritten } = await this.#file.writev(pieces, start)
      if (bytesWritten === bytes) return
      // A full disk takes a part; asked for the rest it says why.
      const rest = Buffer.concat(pieces)
      while (bytesWritten < bytes) bytesWritten += (await this.#file.write(rest, bytesWritten, bytes - bytesWritten, start + bytesWritten)).bytesWritten
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
