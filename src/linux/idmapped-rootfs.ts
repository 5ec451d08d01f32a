import { lchown, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { failedPrecondition } from '../errors/cri-error.ts'
import type { Linux } from './linux.ts'
import type { ContainerdMount } from './mount-options.ts'
import type { IdmapMount } from './ops/idmap.ts'

export interface IdmappedRequest<M extends ContainerdMount = ContainerdMount> {
  /** What containerd's snapshotter gave for a root file system. */
  readonly rootfs: readonly M[]
  /** Further files and directories to show with mapped ids, at targets below `dir`. */
  readonly volumes: readonly IdmapMount[]
  /** A directory of the caller's for the mounts; made, and removed again. */
  readonly dir: string
  /** The file of the user namespace. */
  readonly userns: string
}

/**
 * Runs `work` with a root file system whose files of id 0 on the disk belong to the root of a user namespace: its layers are given to the overlay mount as
 * id-mapped mounts, and what is written on top of them belongs to ids of the namespace as it is. Once the root file system and the volumes have been mounted
 * somewhere (containerd's shim and the runtime do that in `work`) the mounts made here are not needed any more; they go in any case.
 * FAILED_PRECONDITION when the kernel, a file system or the snapshotter cannot.
 */
export async function withIdmapped<T, M extends ContainerdMount>(linux: Linux, { rootfs, volumes, dir, userns }: IdmappedRequest<M>, work: (rootfs: M[]) => Promise<T>): Promise<T> {
  const layers: IdmapMount[] = []
  const mapped = (source: string): string => {
    const target = join(dir, String(layers.length))
    layers.push({ source, target })
    return target
  }
  const uppers: { readonly upper: string; readonly lower: string }[] = []
  const mounts = rootfs.map((mount) => {
    if (mount.type === 'bind') return { ...mount, source: mapped(mount.source) }
    if (mount.type !== 'overlay') throw failedPrecondition(`the ids of a root file system of type ${mount.type} cannot be mapped: pods with a user namespace need a snapshotter of directories, as overlayfs is`, { reason: 'NoIdmap' })
    let lowers: string[] = []
    const options = mount.options.map((option) => {
      if (!option.startsWith('lowerdir=')) return option
      lowers = layersOf(option.slice('lowerdir='.length)).map(mapped)
      return `lowerdir=${lowers.join(':')}`
    })
    const upper = mount.options.find((option) => option.startsWith('upperdir='))?.slice('upperdir='.length)
    const [lower] = lowers
    if (upper !== undefined && lower !== undefined) uppers.push({ upper, lower })
    return { ...mount, options }
  })
  const all = [...layers, ...volumes]
  try {
    await linux.mountIdmapped(all, userns)
    // The root directory itself is the upper one's: it belongs to whom the image's belongs, who is another one inside the namespace.
    for (const { upper, lower } of uppers) {
      const { uid, gid } = await stat(lower)
      await lchown(upper, uid, gid)
    }
    return await work(mounts)
  } finally {
    for (const { target } of all) await linux.unmount(target, { detach: true })
    await linux.removeTree(dir)
  }
}

/** The directories of `lowerdir=`; a colon in a name is written `\:`. */
function layersOf(lowerdir: string): string[] {
  return lowerdir.split(/(?<!\\):/).map((layer) => layer.replaceAll('\\:', ':'))
}

/** Unmounts what a crash in the middle of withIdmapped() left below a directory of this service; the directories go with what they belong to. */
export async function cleanIdmapped(linux: Linux, stateDir: string): Promise<void> {
  for (const { mountPoint } of await linux.mountsUnder(stateDir)) {
    if (/\/(?:sandboxes|containers)\/[^/]+\/idmap\//.test(mountPoint.slice(stateDir.length))) await linux.unmount(mountPoint, { detach: true })
  }
}
