import { closeSync, fsyncSync, lstatSync, mkdirSync, openSync, realpathSync, renameSync, rmSync, type Stats, statfsSync, statSync, writeFileSync } from 'node:fs'
import { randomUUID } from 'node:crypto'
import { posix } from 'node:path'
import { failedPrecondition } from '../../errors/cri-error.ts'
import { errnoError, fromNodeError, naming } from '../errno.ts'
import { check, cString, libc } from '../libc.ts'
import { absolute, type OpContext } from './context.ts'

export type FileType = 'file' | 'directory' | 'symlink' | 'character-device' | 'block-device' | 'fifo' | 'socket'

export interface FileStat {
  readonly type: FileType
  /** Permission bits with set-user-id, set-group-id and sticky (0o7777). */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** The device number of a device node, as the kernel packs it; 0 for anything else. */
  readonly rdev: number
  /** The two halves of `rdev`. */
  readonly major: number
  readonly minor: number
  readonly sizeBytes: number
}

export function fileStat(stat: Stats): FileStat {
  const { rdev } = stat
  return {
    type: fileType(stat),
    mode: stat.mode & 0o7777,
    uid: stat.uid,
    gid: stat.gid,
    rdev,
    major: Math.floor(rdev / 2 ** 8) % 2 ** 12,
    minor: (rdev % 2 ** 8) + Math.floor(rdev / 2 ** 20) * 2 ** 8,
    sizeBytes: stat.size,
  }
}

function fileType(stat: Stats): FileType {
  if (stat.isFile()) return 'file'
  if (stat.isDirectory()) return 'directory'
  if (stat.isSymbolicLink()) return 'symlink'
  if (stat.isCharacterDevice()) return 'character-device'
  if (stat.isBlockDevice()) return 'block-device'
  return stat.isFIFO() ? 'fifo' : 'socket'
}

/** @see Linux.resolvePath */
export function resolvePath(_: OpContext, path: string): string {
  return naming(`resolve ${path}`, () => realpathSync.native(absolute(path)))
}

export interface StatOptions {
  /** Look at what a symbolic link at the end points to. Default: true. */
  readonly followSymlinks?: boolean | undefined
}

/** @see Linux.statPath */
export function statPath(_: OpContext, path: string, options: StatOptions = {}): FileStat | undefined {
  try {
    const name = absolute(path)
    return fileStat(options.followSymlinks === false ? lstatSync(name) : statSync(name))
  } catch (error) {
    const cause = fromNodeError(`stat ${path}`, error)
    if (cause.reason === 'ENOENT' || cause.reason === 'ENOTDIR') return undefined
    throw cause
  }
}

/** @see Linux.mkdirAll */
export function mkdirAll(_: OpContext, path: string, mode = 0o755): void {
  try {
    mkdirSync(absolute(path), { recursive: true, mode })
  } catch (error) {
    const cause = fromNodeError(`make directory ${path}`, error)
    // Node says EEXIST of a file that is in the way; the caller asked for a directory to be there, so that would mislead.
    throw cause.reason === 'EEXIST' ? errnoError(`make directory ${path}`, 'ENOTDIR') : cause
  }
}

/** @see Linux.mkfifo */
export function mkfifo(_: OpContext, path: string, mode = 0o600): void {
  check(`make FIFO ${path}`, libc.mkfifo(cString(absolute(path)), mode))
}

export interface WriteFileOptions {
  /** Permission bits, exact: no umask applies. Default: 0o644. */
  readonly mode?: number | undefined
}

/** @see Linux.writeFileAtomic */
export function writeFileAtomic(context: OpContext, path: string, data: string | Uint8Array, options: WriteFileOptions = {}): void {
  const target = absolute(path)
  const dir = posix.dirname(target)
  const temporary = `${dir}/.${posix.basename(target)}.${randomUUID().slice(0, 8)}.tmp`
  try {
    const fd = openSync(temporary, 'wx', options.mode ?? 0o644)
    try {
      writeFileSync(fd, data)
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
    context.commit()
    renameSync(temporary, target)
    const parent = openSync(dir, 'r')
    try {
      fsyncSync(parent)
    } finally {
      closeSync(parent)
    }
  } catch (error) {
    rmSync(temporary, { force: true })
    throw fromNodeError(`write ${target}`, error)
  }
}

export interface FsInfo {
  /** Magic number of the file system type (statfs(2)), 0x01021994 for tmpfs and so on. */
  readonly magic: number
  readonly totalBytes: number
  readonly freeBytes: number
  /** What is free for a process without privileges. */
  readonly availableBytes: number
  /** 0 for a file system that does not count its inodes. */
  readonly totalInodes: number
  readonly freeInodes: number
}

/** @see Linux.fsInfo */
export function fsInfo(_: OpContext, path: string): FsInfo {
  const { type, bsize, blocks, bfree, bavail, files, ffree } = naming(`statfs ${path}`, () => statfsSync(absolute(path)))
  return { magic: type, totalBytes: blocks * bsize, freeBytes: bfree * bsize, availableBytes: bavail * bsize, totalInodes: files, freeInodes: ffree }
}

/** Refuses to touch the root and the directories right below it. */
export function notTopLevel(path: string): string {
  const normal = absolute(path)
  if (normal.split('/').length < 3) throw failedPrecondition(`${normal} is a top-level directory of this machine and is not removed`)
  return normal
}
