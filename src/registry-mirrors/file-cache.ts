import { readFile, stat } from 'node:fs/promises'
import { errnoOf } from '../errors/cri-error.ts'
import { keepNewest } from './newest.ts'

interface Entry<T> {
  readonly version: string
  readonly value: T
}

/**
 * What was made of a file's bytes, kept until the file changes (its modification or change time, size or inode). A file that cannot be
 * made sense of is read again each time.
 */
export class FileCache<T> {
  readonly #entries = new Map<string, Entry<T>>()
  readonly #make: (bytes: Buffer, path: string) => T
  readonly #maxEntries: number

  constructor(make: (bytes: Buffer, path: string) => T, maxEntries = 512) {
    this.#make = make
    this.#maxEntries = maxEntries
  }

  /** Undefined when there is no such file. Throws what reading it threw, or what `make` threw. */
  async get(path: string): Promise<T | undefined> {
    let version: string
    let bytes: Buffer
    try {
      const info = await stat(path, { bigint: true })
      version = `${info.dev}:${info.ino}:${info.size}:${info.mtimeNs}:${info.ctimeNs}`
      const known = this.#entries.get(path)
      if (known?.version === version) return known.value
      bytes = await readFile(path)
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error
      this.#entries.delete(path)
      return undefined
    }
    this.#entries.delete(path)
    const value = this.#make(bytes, path)
    keepNewest(this.#entries, path, { version, value }, this.#maxEntries)
    return value
  }
}
