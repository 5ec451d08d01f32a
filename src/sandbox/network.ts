import type { CniPod } from '../cni/types.ts'
import { Protocol, type PodSandboxConfig } from '../generated/cri.ts'
import type { SandboxMetadata } from '../state/metadata.ts'

const protocols: Readonly<Record<number, string>> = { [Protocol.TCP]: 'tcp', [Protocol.UDP]: 'udp', [Protocol.SCTP]: 'sctp' }

/** What the CNI plugins are told of a pod. */
export function cniPod(sandbox: Pick<SandboxMetadata, 'id' | 'config' | 'netnsPath'>): CniPod {
  const { config } = sandbox
  return {
    id: sandbox.id,
    namespace: config.metadata?.namespace ?? '',
    name: config.metadata?.name ?? '',
    uid: config.metadata?.uid ?? '',
    netnsPath: sandbox.netnsPath,
    annotations: config.annotations,
    portMappings: portMappings(config),
    dns: config.dns_config === null ? undefined : config.dns_config,
    cgroupPath: config.linux?.cgroup_parent === '' ? undefined : config.linux?.cgroup_parent,
  }
}

function portMappings(config: PodSandboxConfig): CniPod['portMappings'] {
  return config.port_mappings.filter((mapping) => mapping.host_port > 0).map((mapping) => ({
    hostPort: mapping.host_port, containerPort: mapping.container_port, protocol: protocols[mapping.protocol] ?? 'tcp', hostIP: mapping.host_ip,
  }))
}
