import { mkdirSync, rmdirSync, statfsSync, statSync, writeFileSync } from 'node:fs'
import { release } from 'node:os'
import { posix } from 'node:path'
import { type CriError, failedPrecondition, messageOf } from '../../errors/cri-error.ts'
import { naming } from '../errno.ts'
import { check, cString, K, lastErrno, libc, openPath, withFd } from '../libc.ts'
import { mountOf } from '../mountinfo.ts'
import { absolute, type OpContext } from './context.ts'
import { readMountInfo } from './mounts.ts'
import { withUserNamespace } from './userns.ts'

/** One id-mapped view: what is at `source`, shown at `target`, which is made (a file for a file). */
export interface IdmapMount {
  readonly source: string
  readonly target: string
}

/** @see Linux.mountIdmapped */
export function mountIdmapped(context: OpContext, mounts: readonly IdmapMount[], userns: string): void {
  const done: string[] = []
  const namespace = openPath(`open user namespace ${userns}`, absolute(userns), K.O_RDONLY)
  withFd(namespace, (fd) => {
    try {
      for (const mount of mounts) {
        const [source, target] = [absolute(mount.source), absolute(mount.target)]
        makeTarget(source, target)
        withIdmapped(source, fd, (tree) => {
          check(`mount the id-mapped ${source} on ${target}`, libc.moveMount(tree, cString(''), K.AT_FDCWD, cString(target), K.MOVE_MOUNT_F_EMPTY_PATH))
        })
        done.push(target)
        context.throwIfCancelled()
      }
      context.commit()
    } catch (error) {
      for (const target of done.reverse()) libc.umount2(cString(target), K.MNT_DETACH | K.UMOUNT_NOFOLLOW)
      throw error
    }
  })
}

/** @see Linux.idmapProblem */
export function idmapProblem(_: OpContext, path: string, scratch: string): string | undefined {
  const [lower, empty, merged] = ['idmap-lower', 'idmap-empty', 'idmap-merged'].map((name) => posix.join(absolute(scratch), name)) as [string, string, string]
  const ids = [{ containerId: 0, hostId: 65536, size: 65536 }]
  const mounted: string[] = []
  // What a crash in the middle of this left.
  for (const dir of [merged, empty, lower]) while (libc.umount2(cString(dir), K.MNT_DETACH | K.UMOUNT_NOFOLLOW) !== -1);
  try {
    for (const dir of [lower, empty, merged]) mkdirSync(dir, { recursive: true, mode: 0o700 })
    withUserNamespace(ids, ids, (fd) => withIdmapped(absolute(path), fd, (tree) => {
      check(`mount ${lower}`, libc.moveMount(tree, cString(''), K.AT_FDCWD, cString(lower), K.MOVE_MOUNT_F_EMPTY_PATH))
      mounted.push(lower)
    }))
    if (libc.mount(cString('overlay'), cString(merged), cString('overlay'), 1, cString(`lowerdir=${lower}:${empty}`)) === -1) {
      return `the kernel (${release()}) has no overlay mounts over id-mapped layers (${lastErrno()}): Linux 5.19 or newer has them`
    }
    mounted.push(merged)
    return undefined
  } catch (error) {
    return messageOf(error)
  } finally {
    for (const dir of mounted.reverse()) libc.umount2(cString(dir), K.MNT_DETACH | K.UMOUNT_NOFOLLOW)
    for (const dir of [lower, empty, merged]) {
      try {
        rmdirSync(dir)
      } catch {
        // Never made, or still mounted over for a moment: the next look takes it as it is.
      }
    }
  }
}

/** A detached clone of the mount that `source` is on, with `source` as its root and its ids mapped; gone after `use` unless that attached it. */
function withIdmapped(source: string, userns: number, use: (tree: number) => void): void {
  const tree = libc.openTree(K.AT_FDCWD, cString(source), K.OPEN_TREE_CLONE | K.O_CLOEXEC)
  if (tree === -1 && lastErrno() === 'ENOSYS') throw tooOld(source)
  withFd(check(`clone the mount of ${source}`, tree), (fd) => {
    const attributes = Buffer.alloc(32)
    attributes.writeBigUInt64LE(BigInt(K.MOUNT_ATTR_IDMAP), 0)
    attributes.writeBigUInt64LE(BigInt(userns), 24)
    if (libc.mountSetattr(fd, cString(''), K.AT_EMPTY_PATH, attributes, attributes.length) === -1) {
      const name = lastErrno()
      if (name === 'ENOSYS') throw tooOld(source)
      const fstype = mountOf(readMountInfo(), source)?.fstype ?? `0x${naming(`look at ${source}`, () => statfsSync(source)).type.toString(16)}`
      throw failedPrecondition(`the ids of ${source} cannot be mapped: this kernel (${release()}) has no id-mapped mounts of the file system ${fstype} (${name})`, { reason: 'NoIdmap' })
    }
    use(fd)
  })
}

function tooOld(source: string): CriError {
  return failedPrecondition(`the ids of ${source} cannot be mapped: this kernel (${release()}) has no id-mapped mounts; Linux 5.12 or newer has them`, { reason: 'NoIdmap' })
}

function makeTarget(source: string, target: string): void {
  const isDirectory = naming(`look at ${source}`, () => statSync(source)).isDirectory()
  naming(`make ${target}`, () => {
    mkdirSync(isDirectory ? target : posix.dirname(target), { recursive: true, mode: 0o711 })
    if (!isDirectory) writeFileSync(target, '', { flag: 'a', mode: 0o600 })
  })
}
