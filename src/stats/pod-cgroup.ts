import { posix } from 'node:path'
import { CriError } from '../errors/cri-error.ts'
import { type CgroupMounts, type CgroupPaths, cgroupPathsFor, expandSlice } from '../linux/cgroups.ts'
import { cgroupsPath } from '../oci-spec/cgroups-path.ts'
import type { Sandbox } from '../state/records.ts'

/**
 * The cgroup that a pod's containers are in: its `cgroup_parent`, by path (`/kubepods/burstable/pod1`) or by slice
 * (`/kubepods.slice/…/kubepods-burstable-pod1.slice`). Undefined for a pod without one, and for a parent that is no cgroup's name.
 */
export function podCgroup({ metadata }: Sandbox, mounts: CgroupMounts): CgroupPaths | undefined {
  const parent = metadata.config.linux?.cgroup_parent ?? ''
  if (parent === '' || parent === '/') return undefined
  return resolved(() => {
    const base = posix.basename(parent)
    return cgroupPathsFor(base.endsWith('.slice') ? expandSlice(base) : parent.startsWith('/') ? parent : `/${parent}`, { cgroup: mounts })
  })
}

/** The cgroup of a pod's pause process. */
export function pauseCgroup({ id, metadata }: Sandbox, mounts: CgroupMounts, systemdCgroup: boolean): CgroupPaths | undefined {
  return resolved(() => cgroupPathsFor(cgroupsPath({ cgroupParent: metadata.config.linux?.cgroup_parent ?? '', systemdCgroup, id }), { cgroup: mounts }))
}

/** A name that the pod chose and that makes no path: the pod could not have been started with it, so there is nothing to read. */
function resolved(find: () => CgroupPaths): CgroupPaths | undefined {
  try {
    return find()
  } catch (error) {
    if (error instanceof CriError) return undefined
    throw error
  }
}

/** The path of a cgroup below its hierarchy's mount point, as cAdvisor calls it: `/kubepods/burstable/pod1/id`; empty when it is not known. */
export function cgroupName(paths: CgroupPaths | undefined, mounts: CgroupMounts): string {
  if (paths === undefined) return ''
  const [dir, mount] = paths.v1['memory'] === undefined ? [paths.v2, mounts.v2] : [paths.v1['memory'], mounts.v1['memory']]
  if (dir === undefined || mount === undefined) return ''
  return dir.startsWith(`${mount}/`) ? dir.slice(mount.length) : dir
}
