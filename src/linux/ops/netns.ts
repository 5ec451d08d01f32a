import { mkdirSync, writeFileSync } from 'node:fs'
import { networkInterfaces } from 'node:os'
import { posix } from 'node:path'
import { failedPrecondition, invalidArgument } from '../../errors/cri-error.ts'
import { errnoError, fromNodeError, naming } from '../errno.ts'
import { check, K, lastErrno, libc, openPath, withFd } from '../libc.ts'
import { absolute, type OpContext } from './context.ts'
import { deletePinned, isNamespace, isNsfs, isPinned, networkNamespace, openMountPoint, pinNamespace, unpinNamespace } from './pinned-namespaces.ts'

const ownNamespace = '/proc/thread-self/ns/net'

export interface CreateNetnsOptions {
  /** Namespaced sysctls, all below `net.`: name (dots or slashes) to value. */
  readonly sysctls?: Readonly<Record<string, string>> | undefined
}

/** @see Linux.createNetns */
export function createNetns(context: OpContext, path: string, options: CreateNetnsOptions = {}): void {
  const target = absolute(path)
  const sysctls = Object.entries(options.sysctls ?? {}).map(([name, value]) => ({ name, file: netSysctlFile(name), value }))
  naming(`make ${posix.dirname(target)}`, () => mkdirSync(posix.dirname(target), { recursive: true, mode: 0o755 }))
  const file = openMountPoint(target, networkNamespace)
  try {
    let mounted = false
    try {
      inNewNamespace(context, () => {
        bringLoopbackUp()
        for (const { name, file, value } of sysctls) setSysctl(name, file, value)
        pinNamespace(ownNamespace, target, networkNamespace)
        mounted = true
      })
      context.commit()
    } catch (error) {
      unpinNamespace(target, mounted)
      throw error
    }
  } finally {
    libc.close(file)
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

export function bringLoopbackUp(): void {
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
  deletePinned(context, absolute(path), networkNamespace)
}

/** @see Linux.netnsExists */
export function netnsExists(_: OpContext, path: string): boolean {
  return isPinned(absolute(path), networkNamespace)
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
    if (!isNsfs(fd) || !isNamespace(fd, networkNamespace)) throw failedPrecondition(`${target} is no network namespace`)
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
