import { randomUUID } from 'node:crypto'
import { type Dir, lstatSync, opendirSync, type Stats } from 'node:fs'
import { posix } from 'node:path'
import { failedPrecondition } from '../../errors/cri-error.ts'
import { errnoError, naming } from '../errno.ts'
import { check, cString, K, lastErrno, libc, openat2, openPath, restarting, withFd } from '../libc.ts'
import { absolute, type OpContext } from './context.ts'
import { notTopLevel } from './files.ts'
import { mountsUnder } from './mounts.ts'

/** A name as the file system has it: it need not be UTF-8. */
type Name = Uint8Array

/** Deeper directories are brought up before they are emptied, so that a pod's bottomless tree does not use up our descriptors. */
const maxDepth = 64

const show = (name: Name): string => JSON.stringify(Buffer.from(name).toString())

/** @see Linux.removeTree */
export function removeTree(context: OpContext, path: string): void {
  const target = notTopLevel(path)
  const mounts = mountsUnder(context, target)
  const [mount] = mounts
  if (mount !== undefined) throw mountInside(target, mount.mountPoint)
  const parentPath = posix.dirname(target)
  const parent = restarting(() => libc.open(cString(parentPath), K.O_PATH | K.O_DIRECTORY | K.O_CLOEXEC, 0))
  if (parent === -1) {
    const name = lastErrno()
    if (name === 'ENOENT' || name === 'ENOTDIR') return
    throw errnoError(`open ${parentPath}`, name)
  }
  withFd(parent, () => removeEntry({ context, target, top: -1, hoisted: 0 }, parent, Buffer.from(posix.basename(target)), 0))
}

interface Removal {
  readonly context: OpContext
  readonly target: string
  /** The directory that deep ones are moved up into. */
  top: number
  hoisted: number
}

function mountInside(target: string, mountPoint: string): Error {
  return failedPrecondition(`${target} is not removed: ${mountPoint} is a mount point; unmount it first`, { reason: 'EBUSY' })
}

function removeEntry(removal: Removal, parent: number, name: Name, depth: number): void {
  const { context, target } = removal
  context.throwIfCancelled()
  if (libc.unlinkat(parent, cString(name), 0) !== -1) return
  const reason = lastErrno()
  if (reason === 'ENOENT') return
  // EISDIR is Linux, EPERM POSIX (and an immutable file).
  if (reason !== 'EISDIR' && reason !== 'EPERM') throw reason === 'EBUSY' ? mountInside(target, show(name)) : errnoError(`remove ${show(name)} in ${target}`, reason)
  if (libc.unlinkat(parent, cString(name), K.AT_REMOVEDIR) !== -1) return
  const dirReason = lastErrno()
  if (dirReason === 'ENOENT') return
  if (dirReason === 'EBUSY') throw mountInside(target, show(name))
  if (dirReason !== 'ENOTEMPTY' && dirReason !== 'EEXIST') throw errnoError(`remove ${show(name)} in ${target}`, dirReason === 'ENOTDIR' ? reason : dirReason)
  if (depth >= maxDepth) {
    removal.hoisted += 1
    const up = Buffer.from(`.removing-${randomUUID()}`)
    check(`move ${show(name)} up in ${target}`, libc.renameat(parent, cString(name), removal.top, cString(up)))
    return
  }
  const fd = openat2(parent, name, K.O_RDONLY | K.O_DIRECTORY | K.O_NOFOLLOW, K.RESOLVE_NO_XDEV | K.RESOLVE_NO_SYMLINKS)
  if (fd === -1) {
    const openReason = lastErrno()
    if (openReason === 'EXDEV') throw mountInside(target, show(name))
    throw errnoError(`open ${show(name)} in ${target}`, openReason)
  }
  withFd(fd, () => {
    if (depth === 0) removal.top = fd
    // Whoever still writes into the directory, or what was moved up into it, makes another round necessary; that is bounded.
    for (let round = 0; ; round += 1) {
      const hoistedBefore = removal.hoisted
      forEachEntry(fd, target, (entry) => removeEntry(removal, fd, entry, depth + 1))
      if (libc.unlinkat(parent, cString(name), K.AT_REMOVEDIR) !== -1) return
      const again = lastErrno()
      if (again === 'ENOENT') return
      const movedUp = depth === 0 && removal.hoisted !== hoistedBefore
      if (again !== 'ENOTEMPTY' || (round >= 16 && !movedUp)) throw errnoError(`remove ${show(name)} in ${target}`, again)
    }
  })
}

/** Streams the names in an open directory; a directory of millions of files does not become one list. */
export function forEachEntry(fd: number, target: string, action: (name: Name) => void): void {
  // The types know only names that are text.
  const options = { encoding: 'buffer' as BufferEncoding, bufferSize: 256 }
  const dir: Dir = naming(`read a directory in ${target}`, () => opendirSync(`/proc/thread-self/fd/${fd}`, options))
  try {
    for (let entry = dir.readSync(); entry !== null; entry = dir.readSync()) action(entry.name as unknown as Name)
  } finally {
    dir.closeSync()
  }
}

export interface DiskUsageOptions {
  /** The walk ends after so many entries and the answer says `complete: false`. Default: 1,000,000. */
  readonly maxEntries?: number | undefined
}

export interface DiskUsage {
  /** What is allocated on the disk, a file with several links counted once. */
  readonly usedBytes: number
  readonly inodesUsed: number
  /** Whether the walk saw everything: no limit reached, nothing deeper than 256 directories, no other mount. */
  readonly complete: boolean
}

/** @see Linux.diskUsage */
export function diskUsage(context: OpContext, path: string, options: DiskUsageOptions = {}): DiskUsage {
  const target = absolute(path)
  const limit = options.maxEntries ?? 1_000_000
  const linked = new Set<string>()
  let usedBytes = 0
  let inodesUsed = 0
  let complete = true
  const count = (stat: Stats): void => {
    if (stat.nlink > 1 && !stat.isDirectory()) {
      const key = `${stat.dev}:${stat.ino}`
      if (linked.has(key)) return
      linked.add(key)
    }
    usedBytes += stat.blocks * 512
    inodesUsed += 1
  }
  const walk = (fd: number, depth: number): void => {
    const here = Buffer.from(`/proc/thread-self/fd/${fd}/`)
    forEachEntry(fd, target, (name) => {
      context.throwIfCancelled()
      if (inodesUsed >= limit) {
        complete = false
        return
      }
      const stat = lstatSync(Buffer.concat([here, name]), { throwIfNoEntry: false })
      if (stat === undefined) return
      count(stat)
      if (!stat.isDirectory()) return
      const child = depth >= 256 ? -1 : openat2(fd, name, K.O_RDONLY | K.O_DIRECTORY | K.O_NOFOLLOW, K.RESOLVE_NO_XDEV | K.RESOLVE_NO_SYMLINKS)
      if (child !== -1) withFd(child, () => walk(child, depth + 1))
      else if (depth >= 256 || lastErrno() !== 'ENOENT') complete = false
    })
  }
  const stat = naming(`stat ${target}`, () => lstatSync(target))
  count(stat)
  if (stat.isDirectory()) {
    const fd = openPath(`open ${target}`, target, K.O_RDONLY | K.O_DIRECTORY | K.O_NOFOLLOW)
    withFd(fd, () => naming(`measure ${target}`, () => walk(fd, 0)))
  }
  return { usedBytes, inodesUsed, complete }
}

