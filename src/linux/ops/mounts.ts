import { readFileSync, readlinkSync, realpathSync } from 'node:fs'
import { posix } from 'node:path'
import { Code, CriError, internal, invalidArgument, messageOf } from '../../errors/cri-error.ts'
import { errnoError, naming } from '../errno.ts'
import { check, cString, K, lastErrno, libc, openat2, openat2Error, openPath, restarting, withFd } from '../libc.ts'
import {
  type ContainerdMount,
  fitMountData,
  MountBit,
  type MountFlag,
  mountBits,
  parseMountOptions,
  readonlyMount,
} from '../mount-options.ts'
import { isWithin, type MountInfo, mountOf, parseMountInfo } from '../mountinfo.ts'
import { absolute, type OpContext } from './context.ts'

/** A mount for mount(2). Per-mount flags of a bind mount (`ro`, `nosuid`…) are applied by a second call, which mount() makes by itself. */
export interface MountRequest {
  /** A path, a device, or any word for a file system that has no source. */
  readonly source: string
  readonly target: string
  /** Default: none, as for a bind mount. */
  readonly fstype?: string | undefined
  readonly flags?: readonly MountFlag[] | undefined
  /** Options of the file system, separated by commas. */
  readonly data?: string | undefined
}

const maxStacked = 128

/** @see Linux.mount */
export function mount(context: OpContext, request: MountRequest): void {
  const target = absolute(request.target)
  const bits = mountBits(request.flags ?? [])
  const data = request.data === undefined || request.data === '' ? [] : [request.data]
  const mounted = mountOnce({ type: request.fstype ?? '', source: request.source, bits, data }, target, target)
  try {
    context.commit()
  } catch (error) {
    if (mounted) libc.umount2(cString(target), K.MNT_DETACH | K.UMOUNT_NOFOLLOW)
    throw error
  }
}

interface RawMount {
  readonly type: string
  readonly source: string
  readonly bits: number
  readonly data: readonly string[]
}

/**
 * Mounts on `at`, which may be a /proc path of a descriptor; `name` is what errors call it. Leaves nothing mounted when it fails.
 * Gives whether there is a new mount (and not an old one changed).
 */
function mountOnce(raw: RawMount, at: string, name: string): boolean {
  const { bits, type } = raw
  const bind = (bits & MountBit.BIND) !== 0
  const remount = (bits & MountBit.REMOUNT) !== 0
  const propagation = bits & MountBit.PROPAGATION
  const recursive = bits & MountBit.REC
  const isNew = !remount && (bind || type !== '')
  if (isNew || remount) {
    const first = bits & ~MountBit.PROPAGATION & ~(isNew && bind ? MountBit.PER_MOUNT : 0)
    mountCall(`mount ${bind ? `bind of ${raw.source}` : type} on ${name}`, raw.source, at, bind ? '' : type, first, raw.data)
  } else if (propagation === 0) throw invalidArgument(`mount on ${name}: a file system type, or the flag bind, remount or a propagation is needed`)
  try {
    if (propagation !== 0) {
      check(`change the mount propagation of ${name}`, libc.mount(cString('none'), cString(at), null, propagation | recursive, null))
    }
    if (isNew && bind && (bits & MountBit.PER_MOUNT) !== 0) setBindAttributes(at, name, bits & MountBit.PER_MOUNT)
  } catch (error) {
    if (isNew) libc.umount2(cString(name), K.MNT_DETACH | K.UMOUNT_NOFOLLOW)
    throw error
  }
  return isNew
}

function mountCall(what: string, source: string, at: string, type: string, bits: number, options: readonly string[]): void {
  const { data, cwd } = fitMountData(type, options)
  const fstype = type === '' ? null : cString(type)
  if (cwd !== undefined) check(`change to ${cwd}`, libc.chdir(cString(cwd)))
  try {
    check(what, libc.mount(cString(source), cString(at), fstype, bits, data === '' ? null : cString(data)))
  } finally {
    if (cwd !== undefined) libc.chdir(cString('/'))
  }
}

/** Adds per-mount flags to a fresh bind mount and keeps those that it inherited (a `noexec` of the source stays). */
function setBindAttributes(at: string, name: string, bits: number): void {
  const atime = bits & (MountBit.NOATIME | MountBit.STRICTATIME | MountBit.RELATIME)
  const set =
    (bits & (MountBit.RDONLY | MountBit.NOSUID | MountBit.NODEV | MountBit.NOEXEC)) |
    ((bits & MountBit.NODIRATIME) === 0 ? 0 : 0x80) |
    ((atime & MountBit.NOATIME) === 0 ? 0 : 0x10) |
    ((atime & MountBit.STRICTATIME) === 0 ? 0 : 0x20)
  const attributes = Buffer.alloc(32)
  attributes.writeBigUInt64LE(BigInt(set), 0)
  attributes.writeBigUInt64LE(atime === 0 ? 0n : 0x70n, 8)
  const result = libc.mountSetattr(K.AT_FDCWD, cString(at), 0, attributes, attributes.length)
  if (result === -1 && lastErrno() === 'ENOSYS') remountBind(at, name, bits)
  else check(`set the mount flags of ${name}`, result)
}

/** The way before Linux 5.12: a remount replaces all flags, so those in force are read first. */
export function remountBind(at: string, name: string, bits: number): void {
  const mountPoint = naming(`resolve ${name}`, () => realpathSync.native(at))
  const inForce = mountOf(readMountInfo(), mountPoint)
  const kept = parseMountOptions(inForce?.options ?? []).bits & MountBit.PER_MOUNT
  const all = MountBit.REMOUNT | MountBit.BIND | kept | bits
  check(`set the mount flags of ${name}`, libc.mount(cString('none'), cString(at), null, all, null))
}

export interface MountAllOptions {
  /** Mount for reading alone: an overlay gets no upper directory. */
  readonly readonly?: boolean | undefined
}

/** @see Linux.mountAll */
export function mountAll(context: OpContext, mounts: readonly ContainerdMount[], target: string, options: MountAllOptions = {}): void {
  const root = absolute(target)
  const done: string[] = []
  try {
    for (const mount of mounts) {
      const { type, source, options: words, target: below } = options.readonly === true ? readonlyMount(mount) : mount
      if (/^fuse3?\./.test(type)) {
        const remedy = 'use the overlayfs or native snapshotter'
        throw new CriError(Code.UNIMPLEMENTED, `a mount of type "${type}" needs a helper program, which is not supported; ${remedy}`)
      }
      const parsed = parseMountOptions(words)
      // containerd writes a bind mount as type "bind" and the option "rbind"; the type alone says as much.
      const bits = parsed.bits | (type === 'bind' ? MountBit.BIND : 0)
      const raw = { type, source, bits, data: parsed.data }
      if (below === undefined || below === '') {
        mountOnce(raw, root, root)
        done.push(root)
      } else done.push(mountBelow(raw, root, below))
      context.throwIfCancelled()
    }
    context.commit()
  } catch (error) {
    const left: string[] = []
    for (const mounted of done.reverse()) {
      if (libc.umount2(cString(mounted), K.MNT_DETACH | K.UMOUNT_NOFOLLOW) === -1) left.push(`${mounted}: ${lastErrno()}`)
    }
    if (left.length === 0) throw error
    throw internal(`${messageOf(error)}; and it could not be taken back: ${left.join(', ')}`, { cause: error })
  }
}

/** Mounts on a directory below `root`, found without leaving it, and gives the path that was mounted on. */
function mountBelow(raw: RawMount, root: string, below: string): string {
  return withFd(openPath(`open ${root}`, root, K.O_PATH | K.O_DIRECTORY), (rootFd) => {
    const fd = openat2(rootFd, below, K.O_PATH, K.RESOLVE_IN_ROOT | K.RESOLVE_NO_MAGICLINKS)
    if (fd === -1) throw openat2Error(`open ${below} inside ${root}`)
    return withFd(fd, () => {
      const at = `/proc/thread-self/fd/${fd}`
      const path = naming(`read the path of ${below} inside ${root}`, () => readlinkSync(at))
      mountOnce(raw, at, path)
      return path
    })
  })
}

export interface UnmountOptions {
  /** Take the mount out of the tree now and let go of it when its last user has (MNT_DETACH). */
  readonly detach?: boolean | undefined
}

/** @see Linux.unmount */
export function unmount(context: OpContext, target: string, options: UnmountOptions = {}): void {
  const path = absolute(target)
  const flags = K.UMOUNT_NOFOLLOW | (options.detach === true ? K.MNT_DETACH : 0)
  for (let times = 0; times < maxStacked; times += 1) {
    context.throwIfCancelled()
    if (libc.umount2(cString(path), flags) === -1) {
      const name = lastErrno()
      if (name === 'ENOENT') return
      // EINVAL is said of what is no mount point, but of a locked mount too.
      if (name === 'EINVAL' && !isMountPoint(context, path)) return
      throw errnoError(`unmount ${path}`, name)
    }
  }
  throw errnoError(`unmount ${path}: still mounted after ${maxStacked} times`, 'EBUSY')
}

/** @see Linux.isMountPoint */
export function isMountPoint(_: OpContext, path: string): boolean {
  const normal = absolute(path)
  if (normal === '/') return true
  const parent = restarting(() => libc.open(cString(posix.dirname(normal)), K.O_PATH | K.O_DIRECTORY | K.O_CLOEXEC, 0))
  if (parent === -1) {
    const name = lastErrno()
    if (name === 'ENOENT' || name === 'ENOTDIR') return false
    throw errnoError(`open ${posix.dirname(normal)}`, name)
  }
  return withFd(parent, () => {
    // The kernel refuses to step onto a mount with EXDEV, before it asks the file system that is mounted there (which may hang).
    const fd = openat2(parent, posix.basename(normal), K.O_PATH | K.O_NOFOLLOW, K.RESOLVE_NO_XDEV)
    if (fd !== -1) return withFd(fd, () => false)
    const name = lastErrno()
    if (name === 'EXDEV') return true
    if (name === 'ENOENT') return false
    throw openat2Error(`look at ${normal}`)
  })
}

/** @see Linux.mountInfo */
export function mountInfo(): MountInfo[] {
  return readMountInfo()
}

/** @see Linux.mountsUnder */
export function mountsUnder(_: OpContext, dir: string): MountInfo[] {
  const normal = absolute(dir)
  return readMountInfo().filter((mount) => isWithin(mount.mountPoint, normal))
}

/** The file is not read in one piece: a mount made meanwhile can hide another line. So it is read until two readings agree. */
export function readMountInfo(): MountInfo[] {
  const read = (): string => naming('read /proc/thread-self/mountinfo', () => readFileSync('/proc/thread-self/mountinfo', 'utf8'))
  let text = read()
  for (let attempt = 0; attempt < 4; attempt += 1) {
    const again = read()
    if (again === text) break
    text = again
  }
  return parseMountInfo(text)
}
