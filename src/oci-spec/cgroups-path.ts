import { basename, join } from 'node:path/posix'
import { invalidArgument } from '../errors/cri-error.ts'

/** The containerd namespace: where containers without a parent of their own go. */
const DEFAULT_PARENT = '/k8s.io'

export interface CgroupsPathInput {
  /** `cgroup_parent` of the pod; empty for none. */
  readonly cgroupParent: string
  /** The runtime handler's `SystemdCgroup`. */
  readonly systemdCgroup: boolean
  readonly id: string
}

/**
 * linux.cgroupsPath, by containerd's rule: a parent whose last component is a slice gives runc's systemd form `slice:cri-containerd:id`, any
 * other the path `parent/id`, none `/k8s.io/id`. Where that could only fail in the runtime (systemd driver without a slice) it differs: no
 * parent means system.slice, and a parent that is no slice throws INVALID_ARGUMENT.
 */
export function cgroupsPath({ cgroupParent, systemdCgroup, id }: CgroupsPathInput): string {
  if (cgroupParent === '') return systemdCgroup ? `system.slice:cri-containerd:${id}` : join(DEFAULT_PARENT, id)
  if (cgroupParent.split('/').includes('..')) throw invalidArgument(`cgroup_parent ${JSON.stringify(cgroupParent)} must not contain ".."`)
  const base = basename(cgroupParent)
  if (base.endsWith('.slice')) return `${base}:cri-containerd:${id}`
  if (systemdCgroup) {
    throw invalidArgument(
      `cgroup parent "${cgroupParent}" is not a systemd slice, but the runtime handler has SystemdCgroup = true: ` +
        'set the kubelet\'s cgroupDriver to systemd, or SystemdCgroup to false',
    )
  }
  return join(cgroupParent, id)
}

/**
 * What is wrong when a slice meets a runtime with the cgroupfs driver: it works, but outside the pod's cgroup, so that no pod limit applies.
 * Undefined when both agree.
 */
export function cgroupDriverMismatch(cgroupParent: string, systemdCgroup: boolean): string | undefined {
  if (systemdCgroup || !basename(cgroupParent).endsWith('.slice')) return undefined
  return `cgroup parent "${cgroupParent}" is a systemd slice, but the runtime handler uses cgroupfs, so the pod's limits do not apply: ` +
    'set SystemdCgroup = true in the runtime handler\'s options'
}
