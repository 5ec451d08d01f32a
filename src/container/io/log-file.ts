import { constants, fstatSync, readSync, writeSync } from 'node:fs'
import { errnoOf, messageOf } from '../../errors/cri-error.ts'
import type { Counters } from './counters.ts'
import type { Descriptors } from '../../linux/descriptors.ts'
import { openFailure } from './failures.ts'
import type { WorkerLog } from './worker-log.ts'

const { O_APPEND, O_CREAT, O_NOFOLLOW, O_NONBLOCK, O_RDWR } = constants
const newline = 10

/** Errors that go away by themselves once somebody makes room: the open file stays the right one. */
const noRoom = new Set(['ENOSPC', 'EDQUOT', 'EFBIG', 'ENOMEM'])
const retryOpenMs = 1000

export interface LogFileDeps {
  readonly descriptors: Descriptors
  readonly counters: Counters
  readonly log: WorkerLog
  /** `fs.writeSync`, replaced where a test needs a disk that fails. */
  readonly write?: (fd: number, bytes: Buffer, offset: number, length: number) => number
}

/**
 * One container's log file. Writes are synchronous and go to the page cache; entries are written whole. A disk error never
 * stops the container: entries that cannot be written are dropped and counted, the first error is logged, and an entry that was
 * written in part is completed before the next one, so that no entry is ever glued to half of another.
 */
export class LogFile {
  readonly #id: string
  readonly #path: string
  readonly #deps: LogFileDeps
  readonly #write: (fd: number, bytes: Buffer, offset: number, length: number) => number
  #fd: number | undefined
  #closed = false
  /** The rest of an entry whose beginning is in the file. */
  #remainder: Buffer | undefined
  #retryAt = 0
  #failing = false
  #failureLogged = false
  #recoveryLogged = false
  #droppedBytes = 0

  /**
   * Opens the file for appending, makes it (mode 0640) if need be, and never follows a symlink in the last place. With `recover`
   * a failure is logged and counted, and opening is tried again while the container writes.
   */
  constructor(id: string, path: string, recover: boolean, deps: LogFileDeps) {
    this.#id = id
    this.#path = path
    this.#deps = deps
    this.#write = deps.write ?? writeSync
    try {
      this.#adopt(this.#open())
    } catch (error) {
      if (!recover) throw openFailure(`the log file ${path} of container ${id}`, error, path)
      this.#failed(error)
    }
  }

  /** Appends whole entries: `length` bytes, the last of them a newline. Never throws for what the disk does. */
  append(bytes: Buffer, length: number): void {
    const fd = this.#fd ?? this.#openAgain()
    if (fd === undefined || !this.#completeEntry(fd)) {
      this.#drop(length)
      return
    }
    const written = this.#writeAll(fd, bytes, length)
    if (written === length) {
      if (this.#failing) this.#recovered()
      return
    }
    const inEntry = written > 0 && bytes[written - 1] !== newline
    const entryEnd = inEntry ? bytes.indexOf(newline, written) + 1 : written
    if (inEntry) this.#remainder = Buffer.from(bytes.subarray(written, entryEnd))
    this.#drop(length - entryEnd)
  }

  /**
   * Opens the path anew and goes on there (the old file has been renamed). `before` runs when the new file is open and the old
   * one still in place. Throws, and goes on with the old file, when the new one cannot be opened.
   */
  reopen(before: () => void): void {
    let next
    try {
      next = this.#open()
    } catch (error) {
      throw openFailure(`the log file ${this.#path} of container ${this.#id} again`, error, this.#path)
    }
    before()
    this.#closeFile()
    this.#adopt(next)
    this.#failing = false
    this.#failureLogged = false
    this.#recoveryLogged = false
    this.#droppedBytes = 0
  }

  close(): void {
    this.#closed = true
    this.#closeFile()
  }

  #closeFile(): void {
    if (this.#fd !== undefined) {
      this.#completeEntry(this.#fd)
      if (this.#fd !== undefined) this.#deps.descriptors.close(this.#fd)
      this.#fd = undefined
    }
    if (this.#remainder !== undefined) this.#drop(this.#remainder.length)
    this.#remainder = undefined
  }

  /** O_NONBLOCK: a FIFO in the place of the file must not hold up every other container. */
  #open(): number {
    const fd = this.#deps.descriptors.open(this.#path, O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0o640)
    try {
      if (!fstatSync(fd).isFile()) throw new Error('it is not a regular file')
      return fd
    } catch (error) {
      this.#deps.descriptors.close(fd)
      throw error
    }
  }

  /** Goes on with a file whose last entry may be cut off: by a disk error, or because this service was killed in a write. */
  #adopt(fd: number): void {
    this.#fd = fd
    const { size } = fstatSync(fd)
    const last = Buffer.alloc(1)
    const torn = size > 0 && readSync(fd, last, 0, 1, size - 1) === 1 && last[0] !== newline
    if (!torn) {
      this.#drop(this.#remainder?.length ?? 0)
      this.#remainder = undefined
    } else {
      this.#remainder ??= Buffer.of(newline)
    }
  }

  #openAgain(): number | undefined {
    if (this.#closed || Date.now() < this.#retryAt) return undefined
    try {
      this.#adopt(this.#open())
      return this.#fd
    } catch (error) {
      this.#failed(error)
      return undefined
    }
  }

  /** Whether the file ends with a whole entry now. */
  #completeEntry(fd: number): boolean {
    const rest = this.#remainder
    if (rest === undefined) return true
    const written = this.#writeAll(fd, rest, rest.length)
    this.#remainder = written === rest.length ? undefined : rest.subarray(written)
    return this.#remainder === undefined
  }

  /** How many bytes could be written. */
  #writeAll(fd: number, bytes: Buffer, length: number): number {
    let written = 0
    try {
      while (written < length) written += this.#write(fd, bytes, written, length - written)
    } catch (error) {
      this.#failed(error)
      if (!noRoom.has(errnoOf(error) ?? '')) this.#abandon(fd)
    }
    this.#deps.counters.add('bytesWritten', written)
    return written
  }

  /** The open file is of no use any more (EIO, ESTALE): the path may lead to a better one. */
  #abandon(fd: number): void {
    this.#fd = undefined
    try {
      this.#deps.descriptors.close(fd)
    } catch (error) {
      this.#failed(error)
    }
  }

  #failed(error: unknown): void {
    this.#failing = true
    this.#retryAt = Date.now() + retryOpenMs
    this.#deps.counters.add('diskErrors', 1)
    if (this.#failureLogged) return
    this.#failureLogged = true
    this.#deps.log('error', { container: this.#id, path: this.#path, errno: errnoOf(error) },
      `cannot write the log of container ${this.#id}: ${messageOf(error)}; the container goes on and its output is lost until this works again`)
  }

  #recovered(): void {
    this.#failing = false
    if (this.#recoveryLogged) return
    this.#recoveryLogged = true
    this.#deps.log('info', { container: this.#id, path: this.#path, droppedBytes: this.#droppedBytes },
      `writing the log of container ${this.#id} works again, ${this.#droppedBytes} bytes are lost`)
  }

  #drop(length: number): void {
    if (length === 0) return
    this.#droppedBytes += length
    this.#deps.counters.add('droppedBytes', length)
  }
}
