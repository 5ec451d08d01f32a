import { fstatSync, lstatSync, statfsSync } from 'node:fs'
import { Code, CriError, failedPrecondition, internal } from '../../errors/cri-error.ts'
import { errnoError, fromNodeError, naming } from '../errno.ts'
import { check, cString, K, lastErrno, libc, openPath, restarting, withFd } from '../libc.ts'
import type { OpContext } from './context.ts'

const maxStacked = 128

/** A kind of namespace that lives by being mounted on a file: its clone(2) flag and its name in messages. */
export interface NamespaceKind {
  readonly flag: number
  readonly name: string
}

export const networkNamespace: NamespaceKind = { flag: K.CLONE_NEWNET, name: 'network namespace' }
export const userNamespace: NamespaceKind = { flag: K.CLONE_NEWUSER, name: 'user namespace' }

/**
 * The empty file that the namespace is mounted on; one that a crash left is taken as it is. The lock on it keeps a second call for
 * the same path out until this one is done.
 */
export function openMountPoint(target: string, { name }: NamespaceKind): number {
  const fd = openPath(`create ${target}`, target, K.O_RDONLY | K.O_CREAT | K.O_NOFOLLOW | K.O_NONBLOCK, 0o444)
  try {
    if (isNsfs(fd)) throw new CriError(Code.ALREADY_EXISTS, `a namespace is mounted on ${target} already`, { reason: 'EEXIST' })
    const stat = fstatSync(fd)
    if (!stat.isFile() || stat.size !== 0) {
      throw new CriError(Code.ALREADY_EXISTS, `${target} is there and is no empty file: it does not belong to a ${name}`, { reason: 'EEXIST' })
    }
    if (libc.flock(fd, K.LOCK_EX | K.LOCK_NB) === -1) {
      throw new CriError(Code.ALREADY_EXISTS, `another call makes the ${name} ${target} now`, { reason: 'EEXIST' })
    }
    // Between our open and our lock another call may have come and gone: then its mount is over the file, or the name leads elsewhere.
    const now = lstatSync(target, { throwIfNoEntry: false })
    if (now?.ino !== stat.ino || now.dev !== stat.dev) {
      throw new CriError(Code.ALREADY_EXISTS, `another call made or removed the ${name} ${target} meanwhile`, { reason: 'EEXIST' })
    }
    return fd
  } catch (error) {
    libc.close(fd)
    throw fromNodeError(`look at ${target}`, error)
  }
}

/** Mounts a namespace, given by its file in /proc, on a file that openMountPoint() made. */
export function pinNamespace(source: string, target: string, { name }: NamespaceKind): void {
  check(`mount the ${name} on ${target}`, libc.mount(cString(source), cString(target), cString('none'), 0x1000, null))
}

/** Takes back pinNamespace() and openMountPoint() after a failure. */
export function unpinNamespace(target: string, mounted: boolean): void {
  if (mounted) libc.umount2(cString(target), K.MNT_DETACH | K.UMOUNT_NOFOLLOW)
  libc.unlinkat(K.AT_FDCWD, cString(target), 0)
}

/** Unmounts and removes it; nothing when it is not there. FAILED_PRECONDITION when something else is. */
export function deletePinned(context: OpContext, target: string, kind: NamespaceKind): void {
  for (let times = 0; isPinned(target, kind); times += 1) {
    if (times === maxStacked) throw internal(`${target} is still a ${kind.name} after ${maxStacked} unmounts`, { reason: 'EBUSY' })
    context.throwIfCancelled()
    check(`unmount ${target}`, libc.umount2(cString(target), K.MNT_DETACH | K.UMOUNT_NOFOLLOW))
  }
  const stat = naming(`look at ${target}`, () => lstatSync(target, { throwIfNoEntry: false }))
  if (stat === undefined) return
  if (!stat.isFile() || stat.size !== 0 || pinnedType(target) !== undefined) throw failedPrecondition(`${target} is no ${kind.name}, so it is left alone`)
  if (libc.unlinkat(K.AT_FDCWD, cString(target), 0) === -1) {
    const name = lastErrno()
    if (name !== 'ENOENT') throw errnoError(`remove ${target}`, name)
  }
}

/** Whether a namespace of this kind is mounted on `target`. */
export function isPinned(target: string, { flag }: NamespaceKind): boolean {
  return pinnedType(target) === flag
}

/** The kind of namespace that is mounted on `target`, undefined when it is none. */
function pinnedType(target: string): number | undefined {
  const fd = restarting(() => libc.open(cString(target), K.O_PATH | K.O_NOFOLLOW | K.O_CLOEXEC, 0))
  if (fd === -1) {
    const name = lastErrno()
    if (name === 'ENOENT' || name === 'ENOTDIR') return undefined
    throw errnoError(`open ${target}`, name)
  }
  return withFd(fd, () => {
    // Opened by path alone first: opening a FIFO or a device for real could block or have effects.
    if (!isNsfs(fd)) return undefined
    return withFd(openPath(`open ${target}`, `/proc/thread-self/fd/${fd}`, K.O_RDONLY), (namespace) => libc.ioctl(namespace, K.NS_GET_NSTYPE, null))
  })
}

/** Whether a descriptor is of the file system of namespaces. */
export function isNsfs(fd: number): boolean {
  return naming('ask for the file system type', () => statfsSync(`/proc/thread-self/fd/${fd}`)).type === K.NSFS_MAGIC
}

export function isNamespace(fd: number, kind: NamespaceKind): boolean {
  return libc.ioctl(fd, K.NS_GET_NSTYPE, null) === kind.flag
}
