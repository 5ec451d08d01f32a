import { isAbsolute, normalize } from 'node:path'
import { invalidArgument } from '../errors/cri-error.ts'

/** The kernel's bound for a unix socket's path (sockaddr_un.sun_path is 108 bytes with its final zero). */
const maxPathBytes = 107

/**
 * The path in `unix:///run/cri-shim/cri-shim.sock`. `setting` is how the person who gave the address calls it (`--listen`).
 * INVALID_ARGUMENT says what is wrong with it and how it is written right.
 */
export function unixSocketPath(address: string, setting: string): string {
  const example = 'write it as unix:///run/cri-shim/cri-shim.sock'
  if (!address.startsWith('unix://')) throw invalidArgument(`${setting}: "${address}" is not a unix socket address; ${example}`)
  const path = address.slice('unix://'.length)
  if (!isAbsolute(path)) throw invalidArgument(`${setting}: the path in "${address}" is not absolute (three slashes after "unix:"); ${example}`)
  if (path.includes('\0')) throw invalidArgument(`${setting}: the path in the address contains a zero byte; ${example}`)
  if (path.endsWith('/')) throw invalidArgument(`${setting}: "${address}" names a directory; ${example}`)
  const normal = normalize(path)
  const bytes = Buffer.byteLength(normal)
  if (bytes > maxPathBytes) {
    throw invalidArgument(`${setting}: the path ${normal} has ${bytes} bytes, and the kernel allows ${maxPathBytes} for a unix socket; choose a shorter one`)
  }
  return normal
}
