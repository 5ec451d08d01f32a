import { closeSync, fstatSync, mkdirSync, openSync, rmdirSync } from 'node:fs'
import { type CriError, failedPrecondition, invalidArgument, notFound } from '../../errors/cri-error.ts'
import { errnoError, naming } from '../errno.ts'
import { check, cString, K, lastErrno, libc, openat2, openat2Error, openPath, withFd } from '../libc.ts'
import type { ContainerdMount } from '../mount-options.ts'
import { absolute, type OpContext } from './context.ts'
import { type FileType, fileStat } from './files.ts'
import { mountAll } from './mounts.ts'

export interface MountImageOptions {
  /** A directory or a file of the image, relative to its root. Default: all of the image. */
  readonly subPath?: string | undefined
}

/** Names below the directory of an image mount: what the container gets, and the whole image while a part of it is looked up. */
export const imageMountNames = { volume: 'volume', whole: 'image' } as const

const maxSymlinks = 40
/** PATH_MAX: no symbolic link says more. */
const maxLinkBytes = 4096

/** @see Linux.mountImage */
export function mountImage(context: OpContext, mounts: readonly ContainerdMount[], dir: string, options: MountImageOptions = {}): void {
  const parent = absolute(dir)
  const [volume, whole] = [`${parent}/${imageMountNames.volume}`, `${parent}/${imageMountNames.whole}`]
  const { subPath = '' } = options
  // The point of no return comes when everything is mounted, not after the first part.
  const early: OpContext = { ...context, commit: () => context.throwIfCancelled() }
  naming(`make directory ${parent}`, () => mkdirSync(parent, { recursive: true, mode: 0o711 }))
  try {
    const first = subPath === '' ? volume : whole
    naming(`make directory ${first}`, () => mkdirSync(first, { recursive: true, mode: 0o755 }))
    mountAll(early, mounts, first, { readonly: true })
    if (subPath !== '') mountPart(whole, subPath, volume)
    context.commit()
  } catch (error) {
    for (const path of [volume, whole].map(cString)) {
      while (libc.umount2(path, K.MNT_DETACH | K.UMOUNT_NOFOLLOW) !== -1);
      if (libc.unlinkat(K.AT_FDCWD, path, K.AT_REMOVEDIR) === -1) libc.unlinkat(K.AT_FDCWD, path, 0)
    }
    throw error
  }
}

/** Moves a part of the image that is mounted on `whole` to `volume`: a copy of the mount is made from the descriptor of what was looked at. */
function mountPart(whole: string, subPath: string, volume: string): void {
  const what = `sub path ${JSON.stringify(subPath)} of the image`
  withFd(openPath(`open ${whole}`, whole, K.O_PATH | K.O_DIRECTORY), (root) => {
    withFd(openInside(what, root, subPath), (found) => {
      const type = typeOf(what, found)
      if (type !== 'directory' && type !== 'file') throw failedPrecondition(`${what} is a ${type}; only a directory or a file can be mounted`, { reason: 'NOT_A_FILE' })
      const tree = check(`copy the mount of ${what}`, libc.openTree(found, cString(''), K.OPEN_TREE_CLONE | K.AT_EMPTY_PATH | K.O_CLOEXEC))
      withFd(tree, () => {
        naming(`make ${volume}`, () => (type === 'directory' ? mkdirSync(volume, { recursive: true, mode: 0o755 }) : closeSync(openSync(volume, 'a', 0o644))))
        check(`mount ${what} on ${volume}`, libc.moveMount(tree, cString(''), K.AT_FDCWD, cString(volume), K.MOVE_MOUNT_F_EMPTY_PATH))
      })
    })
  })
  check(`unmount ${whole}`, libc.umount2(cString(whole), K.MNT_DETACH | K.UMOUNT_NOFOLLOW))
  naming(`remove ${whole}`, () => rmdirSync(whole))
}

/**
 * A descriptor (O_PATH) of a path below `root`, one name at a time. An absolute symbolic link begins at the root again, as it does in a container
 * of the image. Stricter than RESOLVE_IN_ROOT: a ".." that would climb above the root is an error, not the root.
 */
function openInside(what: string, root: number, path: string): number {
  if (path.startsWith('/')) throw invalidArgument(`${what} must be relative to the image's root`)
  const parts = (text: string): string[] => text.split('/').filter((part) => part !== '' && part !== '.')
  const opened: number[] = []
  const leave = (keep: number): void => { while (opened.length > keep) libc.close(opened.pop() ?? -1) }
  const pending = parts(path)
  let symlinks = 0
  try {
    for (let name = pending.shift(); name !== undefined; name = pending.shift()) {
      if (name === '..') {
        if (opened.length === 0) throw invalidArgument(`${what} leads out of the image`, { reason: 'ESCAPES' })
        leave(opened.length - 1)
        continue
      }
      const fd = openat2(opened.at(-1) ?? root, name, K.O_PATH | K.O_NOFOLLOW, K.RESOLVE_NO_XDEV | K.RESOLVE_NO_MAGICLINKS)
      if (fd === -1) throw openError(what, name)
      opened.push(fd)
      if (typeOf(what, fd) !== 'symlink') continue
      const target = linkTarget(what, fd)
      leave(target.startsWith('/') ? 0 : opened.length - 1)
      symlinks += 1
      if (symlinks > maxSymlinks) throw errnoError(what, 'ELOOP')
      pending.unshift(...parts(target))
    }
    const last = opened.pop()
    return last ?? check(`open ${what}`, openat2(root, '.', K.O_PATH, K.RESOLVE_NO_XDEV))
  } finally {
    leave(0)
  }
}

function openError(what: string, name: string): CriError | Error {
  const reason = lastErrno()
  if (reason === 'ENOENT') return notFound(`${what} does not exist: the image has no ${JSON.stringify(name)} there`, { reason })
  if (reason === 'ENOTDIR') return notFound(`${what} does not exist: what is above ${JSON.stringify(name)} is no directory`, { reason })
  return openat2Error(what)
}

function typeOf(what: string, fd: number): FileType {
  return fileStat(naming(`look at ${what}`, () => fstatSync(fd))).type
}

function linkTarget(what: string, fd: number): string {
  const target = Buffer.alloc(maxLinkBytes)
  const length = check(`read a symbolic link in ${what}`, libc.readlinkat(fd, cString(''), target, target.length))
  return target.toString('utf8', 0, length)
}
