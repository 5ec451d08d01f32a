import type { ResolvedMount } from '../../oci-spec/input.ts'
import type { SelinuxLabeler } from '../../oci-spec/selinux.ts'
import { sandboxFiles, usesHostIpc } from '../../sandbox/files.ts'
import type { Sandbox } from '../../state/records.ts'
import type { Layout } from '../../state/status-file.ts'

export interface PodMountsDeps {
  readonly layout: Layout
  readonly exists: (path: string) => Promise<boolean>
  readonly selinux: Pick<SelinuxLabeler, 'relabel'>
}

/**
 * The pod's own files for a container, which gives way to what the request mounts in their place. They get the container's label: these very
 * files, whatever is mounted on their place in the container (CVE-2021-43816), and never the node's own /dev/shm.
 */
export async function podMounts({ layout, exists, selinux }: PodMountsDeps, sandbox: Sandbox, options: { readonly readonly: boolean; readonly mountLabel: string }): Promise<ResolvedMount[]> {
  const files = sandboxFiles(layout, sandbox.id)
  const hostIpc = usesHostIpc(sandbox.metadata.config)
  const { readonly, mountLabel } = options
  const candidates = [
    { containerPath: '/etc/hostname', hostPath: files.hostname, readonly }, { containerPath: '/etc/hosts', hostPath: files.hosts, readonly },
    { containerPath: '/etc/resolv.conf', hostPath: files.resolvConf, readonly }, { containerPath: '/dev/shm', hostPath: hostIpc ? '/dev/shm' : layout.sandboxShm(sandbox.id), readonly: false },
  ]
  // A sandbox that containerd's own plugin made has its files elsewhere.
  const there = await Promise.all(candidates.map((candidate) => exists(candidate.hostPath)))
  const mounts = candidates.filter((_, index) => there[index]).map((candidate) => ({ origin: 'host' as const, ...candidate }))
  const own = mounts.filter(({ containerPath }) => !(hostIpc && containerPath === '/dev/shm'))
  if (mountLabel !== '') await Promise.all(own.map(({ hostPath }) => selinux.relabel(hostPath, mountLabel)))
  return mounts
}
