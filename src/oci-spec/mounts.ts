import { join } from 'node:path/posix'
import { failedPrecondition, invalidArgument } from '../errors/cri-error.ts'
import { MountPropagation } from '../generated/cri.ts'
import type { HostFacts, ResolvedMount, RuntimeView } from './input.ts'
import type { OciMount } from './types.ts'
import { idMappings } from './user-namespace.ts'

const CGROUP_OPTIONS = ['nosuid', 'noexec', 'nodev', 'relatime']
/** Options of the cgroup2 superblock that a container's mount would reset for the whole node. */
const CGROUP2_SHARED_OPTIONS = ['nsdelegate', 'memory_recursiveprot']

export interface MountsInput {
  /** The mounts of the base spec. */
  readonly base: readonly OciMount[]
  readonly mounts: readonly ResolvedMount[]
  readonly privileged: boolean
  readonly cgroupNamespace: boolean
  /** A user namespace on the node's network, where the kernel lets nobody mount sysfs. */
  readonly bindSysfs: boolean
  readonly hostFacts: Pick<HostFacts, 'cgroup2MountOptions'>
  readonly runtime: Pick<RuntimeView, 'cgroupWritable' | 'features'>
}

/**
 * mounts and linux.rootfsPropagation of a container. The request's mounts replace this service's and the defaults on the same path; a mount
 * on /dev replaces all defaults below it. Shallow paths come first, so that none hides another. Throws INVALID_ARGUMENT for mounts that
 * contradict themselves and FAILED_PRECONDITION for what the runtime cannot do.
 */
export function containerMounts(input: MountsInput): { readonly mounts: OciMount[]; readonly rootfsPropagation?: string } {
  const requested = input.mounts.filter(({ origin }) => origin === 'cri')
  const taken = new Set(requested.map(destination))
  const binds = [...requested, ...input.mounts.filter((mount) => mount.origin === 'host' && !taken.has(destination(mount)))]
  const ordered = binds.toSorted((a, b) => depth(destination(a)) - depth(destination(b)))
  const covered = new Set(ordered.map(destination))
  const defaults = [...input.base.filter((mount) => clean(mount.destination) !== '/run'), cgroupMount(input)]
    .filter((mount) => !covered.has(clean(mount.destination)))
    .filter((mount) => !(covered.has('/dev') && clean(mount.destination).startsWith('/dev/')))
    .map((mount) => (input.bindSysfs && clean(mount.destination) === '/sys' ? SYSFS_BIND : mount))
    .map((mount) => (input.privileged ? writableKernelMount(mount) : mount))
  const propagation = ordered.map(({ propagation: mode }) => mode)
  return {
    mounts: [...defaults, ...ordered.map((mount) => bindMount(mount, input.runtime))],
    ...(propagation.includes(MountPropagation.PROPAGATION_BIDIRECTIONAL) ? { rootfsPropagation: 'rshared' }
      : propagation.includes(MountPropagation.PROPAGATION_HOST_TO_CONTAINER) ? { rootfsPropagation: 'rslave' } : {}),
  }
}

/** /sys of the node, all of it read-only, in place of a sysfs mount. */
export const SYSFS_BIND: OciMount = { destination: '/sys', type: 'bind', source: '/sys', options: ['rbind', 'rro', 'nosuid', 'nodev', 'noexec'] }

const clean = (path: string): string => {
  const joined = join('/', path)
  return joined.length > 1 && joined.endsWith('/') ? joined.slice(0, -1) : joined
}
const destination = (mount: ResolvedMount): string => clean(mount.containerPath)
const depth = (path: string): number => path.split('/').length

function cgroupMount({ cgroupNamespace, hostFacts, runtime }: MountsInput): OciMount {
  const shared = cgroupNamespace ? [] : (hostFacts.cgroup2MountOptions ?? []).filter((option) => CGROUP2_SHARED_OPTIONS.includes(option))
  return { destination: '/sys/fs/cgroup', type: 'cgroup', source: 'cgroup', options: [...CGROUP_OPTIONS, runtime.cgroupWritable ? 'rw' : 'ro', ...shared] }
}

/** sysfs and cgroup file systems for a privileged process. */
export function writableKernelMount(mount: OciMount): OciMount {
  if (mount.type !== 'sysfs' && mount.type !== 'cgroup') return mount
  return { ...mount, options: (mount.options ?? []).map((option) => (option === 'ro' ? 'rw' : option)) }
}

function bindMount(mount: ResolvedMount, runtime: Pick<RuntimeView, 'features'>): OciMount {
  const path = destination(mount)
  if (path === '/' || mount.containerPath === '') throw invalidArgument(`mount of "${mount.hostPath}": the container path is "${mount.containerPath}", it must be a path below /`)
  if (mount.containerPath.includes('\0') || mount.hostPath.includes('\0')) throw invalidArgument('mount: a path has a NUL byte in it')
  const ids = [...(mount.uidMappings ?? []), ...(mount.gidMappings ?? [])].length > 0
  if (ids && runtime.features?.idmapMounts !== true) {
    throw failedPrecondition(`mount of "${mount.hostPath}" on "${path}" needs id-mapped mounts, which the runtime of this pod does not have: use runc 1.2 or later`)
  }
  return {
    destination: path,
    type: 'bind',
    source: mount.hostPath,
    options: ['rbind', propagationOption(mount), writeOption(mount, runtime)],
    ...(ids ? { uidMappings: idMappings(mount.uidMappings ?? []), gidMappings: idMappings(mount.gidMappings ?? []) } : {}),
  }
}

function propagationOption(mount: ResolvedMount): string {
  switch (mount.propagation ?? MountPropagation.PROPAGATION_PRIVATE) {
    case MountPropagation.PROPAGATION_PRIVATE: return 'rprivate'
    case MountPropagation.PROPAGATION_HOST_TO_CONTAINER: return 'rslave'
    case MountPropagation.PROPAGATION_BIDIRECTIONAL: return 'rshared'
    default: throw invalidArgument(`mount of "${mount.hostPath}": unknown mount propagation ${mount.propagation}`)
  }
}

function writeOption(mount: ResolvedMount, runtime: Pick<RuntimeView, 'features'>): string {
  if (mount.recursiveReadOnly !== true) return mount.readonly ? 'ro' : 'rw'
  if (!mount.readonly) throw invalidArgument(`mount of "${mount.hostPath}": recursive_read_only goes only with readonly`)
  if ((mount.propagation ?? MountPropagation.PROPAGATION_PRIVATE) !== MountPropagation.PROPAGATION_PRIVATE) {
    throw invalidArgument(`mount of "${mount.hostPath}": recursive_read_only needs private mount propagation`)
  }
  if (runtime.features?.recursiveReadOnlyMounts !== true) {
    // The kubelet knows this failure by the word at its front.
    throw failedPrecondition(`RROUnsupported: the runtime of this pod has no recursive read-only mounts (mount of "${mount.hostPath}")`, { reason: 'RROUnsupported' })
  }
  return 'rro'
}
