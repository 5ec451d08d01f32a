import koffi from 'koffi'
import { invalidArgument } from '../errors/cri-error.ts'
import { errnoError } from './errno.ts'
import { K, check, lastErrno, libc, restarting, withFd } from './libc.ts'

const AF_UNIX = 1
const MSG_DONTWAIT = 0x40
const MSG_NOSIGNAL = 0x4000
/** sizeof(sockaddr_un.sun_path) */
const sunPathBytes = 108

const sendto = koffi.load(null).func('sendto', 'long', ['int', 'void *', 'ulong', 'int', 'void *', 'uint']) as unknown as
  (fd: number, data: Uint8Array, length: number, flags: number, address: Uint8Array, addressLength: number) => number

/** The sockaddr_un of `/path`, or of the abstract name `@name`. */
export function unixSocketAddress(name: string): Buffer {
  const abstract = name.startsWith('@')
  if (!abstract && !name.startsWith('/')) throw invalidArgument(`"${name}" is neither an absolute path nor an abstract socket ("@name")`)
  const path = Buffer.from(abstract ? `\0${name.slice(1)}` : `${name}\0`)
  if (path.length > sunPathBytes) throw invalidArgument(`"${name}" is longer than the ${sunPathBytes} bytes of a unix socket address`)
  const family = Buffer.alloc(2)
  // The family is in the byte order of the machine; both architectures that we run on are little-endian.
  family.writeUInt16LE(AF_UNIX)
  return Buffer.concat([family, path])
}

/**
 * Sends one datagram to a unix socket, as sd_notify(3) does; node:dgram has no unix sockets. Never blocks: UNAVAILABLE (reason EAGAIN) when the
 * receiver's queue is full.
 */
export function sendUnixDatagram(name: string, payload: string): void {
  const address = unixSocketAddress(name)
  const data = Buffer.from(payload)
  const what = `notify ${name}`
  withFd(check(what, libc.socket(AF_UNIX, K.SOCK_DGRAM | K.SOCK_CLOEXEC, 0)), (fd) => {
    if (restarting(() => sendto(fd, data, data.length, MSG_DONTWAIT | MSG_NOSIGNAL, address, address.length)) === -1) throw errnoError(what, lastErrno())
  })
}
