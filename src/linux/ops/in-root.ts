import { fstatSync, readlinkSync, readSync } from 'node:fs'
import { type CriError, failedPrecondition, invalidArgument, resourceExhausted } from '../../errors/cri-error.ts'
import { errnoError, naming } from '../errno.ts'
import { cString, K, lastErrno, libc, openat2, openat2Error, openPath, withFd } from '../libc.ts'
import { absolute, type OpContext } from './context.ts'
import { type FileStat, fileStat } from './files.ts'

const inRoot = K.RESOLVE_IN_ROOT | K.RESOLVE_NO_MAGICLINKS
const maxSymlinks = 40

function withRoot<T>(rootDir: string, use: (fd: number) => T): T {
  return withFd(openPath(`open ${rootDir}`, absolute(rootDir), K.O_PATH | K.O_DIRECTORY), use)
}

/** Inside the root every path begins at the root, with or without a slash. */
function inside(path: string): string {
  return path === '' || path === '/' ? '.' : path
}

/** @see Linux.readInRoot */
export function readInRoot(context: OpContext, rootDir: string, pathInside: string, maxBytes: number): Uint8Array {
  if (!Number.isSafeInteger(maxBytes) || maxBytes < 0) throw invalidArgument(`maxBytes ${maxBytes} is not a size`)
  const what = `read ${pathInside} inside ${rootDir}`
  return withRoot(rootDir, (root) => {
    // By path alone first: to open a device or a FIFO for reading can have effects or block.
    const path = openat2(root, inside(pathInside), K.O_PATH, inRoot)
    if (path === -1) throw openat2Error(what)
    return withFd(path, () => {
      const { type } = fileStat(naming(what, () => fstatSync(path)))
      if (type !== 'file') throw failedPrecondition(`${what}: it is a ${type}, not a regular file`, { reason: 'NOT_A_FILE' })
      // The link leads to the very inode that was just looked at, whatever the name leads to by now.
      return withFd(openPath(what, `/proc/thread-self/fd/${path}`, K.O_RDONLY | K.O_NONBLOCK), (fd) => naming(what, () => readBounded(context, fd, maxBytes, what)))
    })
  })
}

function readBounded(context: OpContext, fd: number, maxBytes: number, what: string): Uint8Array {
  const tooLarge = (): CriError => resourceExhausted(`${what}: it is larger than ${maxBytes} bytes`, { reason: 'EFBIG' })
  const { size } = fstatSync(fd)
  if (size > maxBytes) throw tooLarge()
  // The size of a file that grows meanwhile, or of a made-up one, says little: read one byte more than is allowed.
  let buffer = Buffer.allocUnsafeSlow(Math.min(maxBytes, Math.max(size, 4096)) + 1)
  let length = 0
  for (;;) {
    context.throwIfCancelled()
    const count = readSync(fd, buffer, length, buffer.length - length, null)
    if (count === 0) return buffer.subarray(0, length)
    length += count
    if (length > maxBytes) throw tooLarge()
    if (length === buffer.length) {
      const larger = Buffer.allocUnsafeSlow(Math.min(buffer.length * 2, maxBytes + 1))
      buffer.copy(larger, 0, 0, length)
      buffer = larger
    }
  }
}

/** @see Linux.statInRoot */
export function statInRoot(_: OpContext, rootDir: string, pathInside: string): FileStat | undefined {
  const what = `stat ${pathInside} inside ${rootDir}`
  return withRoot(rootDir, (root) => {
    const fd = openat2(root, inside(pathInside), K.O_PATH, inRoot)
    if (fd !== -1) return withFd(fd, () => fileStat(naming(what, () => fstatSync(fd))))
    const name = lastErrno()
    if (name === 'ENOENT' || name === 'ENOTDIR') return undefined
    throw openat2Error(what)
  })
}

/** @see Linux.mkdirInRoot */
export function mkdirInRoot(context: OpContext, rootDir: string, pathInside: string, mode = 0o755): void {
  const what = `make directory ${pathInside} inside ${rootDir}`
  const parts = (path: string): string[] => path.split('/').filter((part) => part !== '' && part !== '.')
  withRoot(rootDir, (root) => {
    const open = (path: readonly string[]): number => openat2(root, inside(path.join('/')), K.O_PATH | K.O_DIRECTORY, inRoot)
    let done: string[] = []
    let pending = parts(pathInside)
    let symlinks = 0
    for (let next = pending.shift(); next !== undefined; next = pending.shift()) {
      context.throwIfCancelled()
      const there = open([...done, next])
      if (there !== -1) {
        libc.close(there)
        done.push(next)
        continue
      }
      if (lastErrno() !== 'ENOENT') throw openat2Error(what)
      const parent = open(done)
      if (parent === -1) throw openat2Error(what)
      const name = next
      const link = withFd(parent, () => makeOrReadLink(what, parent, name, mode))
      if (link === undefined) done.push(name)
      else {
        // A symbolic link to what does not exist yet: the directory is made where it points, inside the root.
        symlinks += 1
        if (symlinks > maxSymlinks) throw errnoError(what, 'ELOOP')
        if (link.startsWith('/')) done = []
        pending = [...parts(link), ...pending]
      }
    }
  })
}

/** Makes the directory; if a symbolic link has the name, gives its target. */
function makeOrReadLink(what: string, parent: number, name: string, mode: number): string | undefined {
  if (libc.mkdirat(parent, cString(name), mode) !== -1) return undefined
  const reason = lastErrno()
  if (reason !== 'EEXIST') throw errnoError(what, reason)
  try {
    return readlinkSync(`/proc/thread-self/fd/${parent}/${name}`)
  } catch (error) {
    // No link: somebody else made something there in between. The name alone means to look again.
    if (error instanceof Error && 'code' in error && error.code === 'EINVAL') return name
    throw errnoError(what, 'ENOENT', error)
  }
}
