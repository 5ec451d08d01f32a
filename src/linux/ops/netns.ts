import { fstatSync, lstatSync, mkdirSync, statfsSync, writeFileSync } from 'node:fs'
import { networkInterfaces } from 'node:os'
import { posix } from 'node:path'
import { Code, CriError, failedPrecondition, internal, invalidArgument } from '../../errors/cri-error.ts'
import { errnoError, fromNodeError, naming } from '../errno.ts'
import { check, cString, K, lastErrno, libc, openPath, restarting, withFd } from '../libc.ts'
import { absolute, type OpContext } from './context.ts'

const ownNamespace = '/proc/thread-self/ns/net'
const maxStacked = 128

export interface CreateNetnsOptions {
  /** Namespaced sysctls, all below `net.`: name (dots or slashes) to value. */
  readonly sysctls?: Readonly<Record<string, string>> | undefined
}

/** @see Linux.createNetns */
export function createNetns(context: OpContext, path: string, options: CreateNetnsOptions = {}): void {
  const target = absolute(path)
  const sysctls = Object.entries(options.sysctls ?? {}).map(([name, value]) => ({ name, file: netSysctlFile(name), value }))
  naming(`make ${posix.dirname(target)}`, () => mkdirSync(posix.dirname(target), { recursive: true, mode: 0o755 }))
  const file = openMountPoint(target)
  try {
    let mounted = false
    try {
      inNewNamespace(context, () => {
        bringLoopbackUp()
        for (const { name, file, value } of sysctls) setSysctl(name, file, value)
        check(`mount the network namespace on ${target}`, libc.mount(cString(ownNamespace), cString(target), cString('none'), 0x1000, null))
        mounted = true
      })
      context.commit()
    } catch (error) {
      if (mounted) libc.umount2(cString(target), K.MNT_DETACH | K.UMOUNT_NOFOLLOW)
      libc.unlinkat(K.AT_FDCWD, cString(target), 0)
      throw error
    }
  } finally {
    libc.close(file)
  }
}

/**
 * The empty file that the namespace is mounted on; one that a crash left is taken as it is. The lock on it keeps a second call for
 * the same path out until this one is done.
 */
function openMountPoint(target: string): number {
  const fd = openPath(`create ${target}`, target, K.O_RDONLY | K.O_CREAT | K.O_NOFOLLOW | K.O_NONBLOCK, 0o444)
  try {
    if (isNsfs(fd)) throw new CriError(Code.ALREADY_EXISTS, `a network namespace is mounted on ${target} already`, { reason: 'EEXIST' })
    const stat = fstatSync(fd)
    if (!stat.isFile() || stat.size !== 0) {
      throw new CriError(Code.ALREADY_EXISTS, `${target} is there and is no empty file: it does not belong to a network namespace`, { reason: 'EEXIST' })
    }
    if (libc.flock(fd, K.LOCK_EX | K.LOCK_NB) === -1) {
      throw new CriError(Code.ALREADY_EXISTS, `another call makes the network namespace ${target} now`, { reason: 'EEXIST' })
    }
    // Between our open and our lock another call may have come and gone: then its mount is over the file, or the name leads elsewhere.
    const now = lstatSync(target, { throwIfNoEntry: false })
    if (now?.ino !== stat.ino || now.dev !== stat.dev) {
      throw new CriError(Code.ALREADY_EXISTS, `another call made or removed the network namespace ${target} meanwhile`, { reason: 'EEXIST' })
    }
    return fd
  } catch (error) {
    libc.close(fd)
    throw fromNodeError(`look at ${target}`, error)
  }
}

/** Runs `action` in a new network namespace and comes back; a thread that cannot come back ends. */
function inNewNamespace(context: OpContext, action: () => void): void {
  const own = openPath(`open ${ownNamespace}`, ownNamespace, K.O_RDONLY)
  withFd(own, () => {
    check('unshare the network namespace', libc.unshare(K.CLONE_NEWNET))
    try {
      action()
    } finally {
      comeBack(context, own)
    }
  })
}

function comeBack(context: OpContext, own: number): void {
  if (libc.setns(own, K.CLONE_NEWNET) !== -1) return
  const name = lastErrno()
  context.retireThread()
  throw errnoError('return to the own network namespace', name)
}

function bringLoopbackUp(): void {
  withFd(check('open a socket', libc.socket(K.AF_INET, K.SOCK_DGRAM | K.SOCK_CLOEXEC, 0)), (fd) => {
    const request = Buffer.alloc(40)
    request.write('lo', 0, 'latin1')
    check('read the flags of lo', libc.ioctl(fd, K.SIOCGIFFLAGS, request))
    request.writeInt16LE(request.readInt16LE(16) | K.IFF_UP, 16)
    check('bring lo up', libc.ioctl(fd, K.SIOCSIFFLAGS, request))
  })
}

/**
 * The file of a sysctl that belongs to a network namespace. As with sysctl(8), the first separator decides: `net.ipv4.conf.eth0/1.rp_filter`
 * and `net/ipv4/conf/eth0.1/rp_filter` are the same. Anything outside /proc/sys/net is INVALID_ARGUMENT: it would be the node's.
 */
export function netSysctlFile(name: string): string {
  const swapped = /^[^/]*\./.test(name)
  const parts = name.split(swapped ? '.' : '/').map((part) => (swapped ? part.replaceAll('/', '.') : part))
  if (parts.length < 2 || parts[0] !== 'net' || parts.some((part) => part === '' || part === '.' || part === '..' || part.includes('\0'))) {
    throw invalidArgument(`sysctl "${name}" does not belong to a network namespace: only net.* can be set for a pod's network`)
  }
  return `/proc/sys/${parts.join('/')}`
}

function setSysctl(name: string, file: string, value: string): void {
  try {
    writeFileSync(file, value, { flag: 'r+' })
  } catch (error) {
    const cause = fromNodeError(`set sysctl ${name} to "${value}"`, error)
    if (cause.reason === 'ENOENT') throw invalidArgument(`sysctl ${name} does not exist in a network namespace of this kernel`, { reason: 'ENOENT', cause })
    throw cause
  }
}

/** @see Linux.deleteNetns */
export function deleteNetns(context: OpContext, path: string): void {
  const target = absolute(path)
  for (let times = 0; netnsExists(context, target); times += 1) {
    if (times === maxStacked) throw internal(`${target} is still a network namespace after ${maxStacked} unmounts`, { reason: 'EBUSY' })
    context.throwIfCancelled()
    check(`unmount ${target}`, libc.umount2(cString(target), K.MNT_DETACH | K.UMOUNT_NOFOLLOW))
  }
  const stat = naming(`look at ${target}`, () => lstatSync(target, { throwIfNoEntry: false }))
  if (stat === undefined) return
  if (!stat.isFile() || stat.size !== 0) throw failedPrecondition(`${target} is no network namespace, so it is left alone`)
  if (libc.unlinkat(K.AT_FDCWD, cString(target), 0) === -1) {
    const name = lastErrno()
    if (name !== 'ENOENT') throw errnoError(`remove ${target}`, name)
  }
}

/** @see Linux.netnsExists */
export function netnsExists(_: OpContext, path: string): boolean {
  const target = absolute(path)
  const fd = restarting(() => libc.open(cString(target), K.O_PATH | K.O_NOFOLLOW | K.O_CLOEXEC, 0))
  if (fd === -1) {
    const name = lastErrno()
    if (name === 'ENOENT' || name === 'ENOTDIR') return false
    throw errnoError(`open ${target}`, name)
  }
  return withFd(fd, () => {
    // Opened by path alone first: opening a FIFO or a device for real could block or have effects.
    if (!isNsfs(fd)) return false
    return withFd(openPath(`open ${target}`, `/proc/thread-self/fd/${fd}`, K.O_RDONLY), isNetwork)
  })
}

function isNsfs(fd: number): boolean {
  return naming('ask for the file system type', () => statfsSync(`/proc/thread-self/fd/${fd}`)).type === K.NSFS_MAGIC
}

function isNetwork(fd: number): boolean {
  return libc.ioctl(fd, K.NS_GET_NSTYPE, null) === K.CLONE_NEWNET
}

export interface InterfaceAddress {
  readonly interfaceName: string
  readonly address: string
  readonly family: 'IPv4' | 'IPv6'
  /** With the length of the prefix: `10.88.0.5/16`. */
  readonly cidr: string
  readonly mac: string
  /** Whether it is a loopback address. */
  readonly internal: boolean
}

/** @see Linux.interfaceAddresses */
export function interfaceAddresses(context: OpContext, path: string): InterfaceAddress[] {
  const found = insideNetns(context, path, networkInterfaces)
  return Object.entries(found).flatMap(([interfaceName, addresses]) =>
    (addresses ?? []).map(({ address, family, cidr, mac, internal }) => ({ interfaceName, address, family, cidr: cidr ?? address, mac, internal })),
  )
}

/** Runs `action` in the network namespace mounted on `path` and comes back; a thread that cannot come back ends. FAILED_PRECONDITION when none is mounted there. */
export function insideNetns<T>(context: OpContext, path: string, action: () => T): T {
  const target = absolute(path)
  return withFd(openPath(`open network namespace ${target}`, target, K.O_RDONLY | K.O_NONBLOCK), (fd) => {
    if (!isNsfs(fd) || !isNetwork(fd)) throw failedPrecondition(`${target} is no network namespace`)
    return withFd(openPath(`open ${ownNamespace}`, ownNamespace, K.O_RDONLY), (own) => {
      check(`enter network namespace ${target}`, libc.setns(fd, K.CLONE_NEWNET))
      try {
        return action()
      } finally {
        comeBack(context, own)
      }
    })
  })
}
