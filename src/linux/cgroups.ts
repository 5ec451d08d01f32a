import { posix } from 'node:path'
import { invalidArgument } from '../errors/cri-error.ts'

/** Where the directories of one cgroup are. On a hybrid host there are both kinds; the v1 controllers count. */
export interface CgroupPaths {
  /** v1 controller (`memory`, `cpuacct`, `name=systemd`) → directory. */
  readonly v1: Readonly<Record<string, string>>
  /** The directory in the unified (v2) hierarchy. */
  readonly v2?: string | undefined
}

/** Where the hierarchies are mounted. */
export interface CgroupMounts {
  readonly mode: 'v1' | 'v2' | 'hybrid'
  /** v1 controller → mount point. Controllers mounted together have the same. */
  readonly v1: Readonly<Record<string, string>>
  /** Mount point of the unified hierarchy. */
  readonly v2?: string | undefined
}

/**
 * The directories of a cgroup by the path that a CRI config or an OCI spec gives: `/kubepods/pod1/id` for the cgroupfs driver,
 * `kubepods-pod1.slice:cri-containerd:id` for the systemd driver. Nothing is looked up; whether they exist is another question.
 */
export function cgroupPathsFor(cgroupsPath: string, host: { readonly cgroup: CgroupMounts }): CgroupPaths {
  const path = cgroupsPath.startsWith('/') ? plainPath(cgroupsPath) : systemdPath(cgroupsPath)
  const { v1, v2 } = host.cgroup
  const below = Object.fromEntries(Object.entries(v1).map(([controller, mount]) => [controller, posix.join(mount, path)]))
  return { v1: below, v2: v2 === undefined ? undefined : posix.join(v2, path) }
}

function plainPath(path: string): string {
  if (path.split('/').includes('..') || path.includes('\0')) throw invalidArgument(`cgroup path "${path}" must not contain ".."`)
  return posix.normalize(path)
}

/** systemd nests `a-b.slice` in `a.slice`; a unit `slice:prefix:name` is the scope `prefix-name.scope` in the slice. */
function systemdPath(path: string): string {
  const [slice, prefix, name, ...rest] = path.split(':')
  if (slice === undefined || prefix === undefined || name === undefined || name === '' || rest.length > 0 || path.includes('/')) {
    throw invalidArgument(`cgroup path "${path}" is neither absolute nor of the form slice:prefix:name`)
  }
  const unit = name.endsWith('.slice') ? name : prefix === '' ? `${name}.scope` : `${prefix}-${name}.scope`
  return posix.join(expandSlice(slice === '' ? 'system.slice' : slice), unit)
}

/** `kubepods-burstable-pod1.slice` → `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice`; `-.slice` is the root. */
export function expandSlice(slice: string): string {
  if (slice === '-.slice') return '/'
  const name = slice.slice(0, -'.slice'.length)
  if (!slice.endsWith('.slice') || slice.includes('/') || name.split('-').includes('')) throw invalidArgument(`"${slice}" is not the name of a systemd slice`)
  const parts = name.split('-')
  return parts.reduce((path, _, index) => `${path}/${parts.slice(0, index + 1).join('-')}.slice`, '')
}
