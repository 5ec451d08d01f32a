import { type ContainerConfig, MountPropagation, NamespaceMode, type PodSandboxConfig, Protocol, SecurityProfile_ProfileType as Profile, Signal, SupplementalGroupsPolicy } from '../../generated/cri.ts'
import type { Init } from '../../generated/int64.ts'

/** What a request says that differs from the plain pod and container. Together they must set every field that api.proto has. */
export interface GoldenRequest {
  readonly pod?: Init<PodSandboxConfig>
  readonly container?: Init<ContainerConfig>
}

type ContainerContext = NonNullable<NonNullable<Init<ContainerConfig>['linux']>['security_context']>
type PodContext = NonNullable<NonNullable<Init<PodSandboxConfig>['linux']>['security_context']>
type ContainerResources = NonNullable<NonNullable<Init<ContainerConfig>['linux']>['resources']>

const context = (security_context: ContainerContext): GoldenRequest => ({ container: { linux: { security_context } } })
const resources = (given: ContainerResources): GoldenRequest => ({ container: { linux: { resources: given } } })
const pod = (security_context: PodContext): GoldenRequest => ({ pod: { linux: { security_context } } })
const both = (shared: ContainerContext & PodContext): GoldenRequest => ({ pod: { linux: { security_context: shared } }, container: { linux: { security_context: shared } } })
/** There the pod has the node's name. */
const hostNetwork = (shared: ContainerContext & PodContext): GoldenRequest => ({ pod: { hostname: '', linux: { security_context: shared } }, container: { linux: { security_context: shared } } })
const mount = (changes: object): GoldenRequest => ({ container: { mounts: [{ container_path: '/data', host_path: '/srv/data', ...changes }] } })

const ids = (host_id: number) => [{ host_id, container_id: 0, length: 65536 }]
const mapped = { mode: NamespaceMode.POD, uids: ids(65536), gids: ids(131072) }
const allResources = {
  cpu_period: '100000', cpu_quota: '50000', cpu_shares: '512', memory_limit_in_bytes: '67108864', oom_score_adj: '500', cpuset_cpus: '0-1', cpuset_mems: '0',
  hugepage_limits: [{ page_size: '2MB', limit: '2097152' }], unified: { 'memory.high': '1000000' }, memory_swap_limit_in_bytes: '134217728',
}

export const goldenRequests: Readonly<Record<string, GoldenRequest>> = {
  'metadata of a container': { container: { metadata: { name: 'other', attempt: 3 } } },
  'image': { container: { image: { image: 'sha256:1', annotations: { a: 'b' }, user_specified_image: 'app:1', runtime_handler: 'runc', image_ref: 'sha256:2' } } },
  'command': { container: { command: ['/bin/other', '-x'] } },
  'args': { container: { args: ['-v', ''] } },
  'working_dir': { container: { working_dir: '/srv' } },
  'envs': { container: { envs: [{ key: 'LANG', value: Buffer.from('de') }, { key: 'EMPTY', value: Buffer.from('') }] } },
  'mount': mount({}),
  'mount, read-only': mount({ readonly: true }),
  'mount, recursively read-only': mount({ readonly: true, recursive_read_only: true }),
  'mount, relabelled': mount({ selinux_relabel: true }),
  'mount, from the host': mount({ propagation: MountPropagation.PROPAGATION_HOST_TO_CONTAINER }),
  'mount, both ways': mount({ propagation: MountPropagation.PROPAGATION_BIDIRECTIONAL }),
  'mount, with ids': mount({ uidMappings: ids(1000), gidMappings: ids(2000) }),
  'mount of an image': mount({ host_path: '', readonly: true, image: { image: 'sha256:3', annotations: { a: 'b' }, user_specified_image: 'data:1', runtime_handler: 'runc', image_ref: 'sha256:3' }, image_sub_path: 'etc' }),
  'mount over /dev': mount({ container_path: '/dev' }),
  'device': { container: { devices: [{ container_path: '/dev/x', host_path: '/dev/y', permissions: 'rw' }] } },
  'labels of a container': { container: { labels: { a: 'b' } } },
  'annotations of a container': { container: { annotations: { 'passed.io': '1', 'kept.io': '2', 'cdi.k8s.io/x': 'vendor.com/class=0' } } },
  'log_path': { container: { log_path: 'app/0.log' } },
  'stdin': { container: { stdin: true, stdin_once: true } },
  'tty': { container: { tty: true } },
  'windows container': { container: { windows: {} } },
  'CDI device': { container: { CDI_devices: [{ name: 'vendor.com/class=0' }] } },
  'stop_signal': { container: { stop_signal: Signal.SIGQUIT } },

  'cpu_period': resources({ cpu_period: '50000' }),
  'cpu_quota': resources({ cpu_quota: '25000' }),
  'cpu_quota, none': resources({ cpu_quota: '-1' }),
  'cpu_shares': resources({ cpu_shares: '512' }),
  'memory_limit_in_bytes': resources({ memory_limit_in_bytes: '67108864' }),
  'memory_limit_in_bytes beyond 2^53': resources({ memory_limit_in_bytes: '9223372036854771712' }),
  'memory_swap_limit_in_bytes': resources({ memory_limit_in_bytes: '67108864', memory_swap_limit_in_bytes: '134217728' }),
  'oom_score_adj': resources({ oom_score_adj: '-997' }),
  'cpuset': resources({ cpuset_cpus: '0-1', cpuset_mems: '0' }),
  'hugepage_limits': resources({ hugepage_limits: [{ page_size: '2MB', limit: '2097152' }] }),
  'unified': resources({ unified: { 'memory.high': '1000000' } }),

  'add_capabilities': context({ capabilities: { add_capabilities: ['NET_ADMIN', 'sys_time'] } }),
  'add_capabilities, ALL': context({ capabilities: { add_capabilities: ['ALL'], drop_capabilities: ['SYS_ADMIN'] } }),
  'drop_capabilities': context({ capabilities: { drop_capabilities: ['CHOWN', 'NET_RAW'] } }),
  'drop_capabilities, ALL': context({ capabilities: { drop_capabilities: ['ALL'], add_capabilities: ['NET_BIND_SERVICE'] } }),
  'add_ambient_capabilities': context({ capabilities: { add_ambient_capabilities: ['NET_RAW'] } }),
  'privileged': both({ privileged: true }),
  'privileged in a pod that is not': context({ privileged: true }),
  'privileged pod': pod({ privileged: true }),
  'network of the node': hostNetwork({ namespace_options: { network: NamespaceMode.NODE } }),
  'pid of the node': both({ namespace_options: { pid: NamespaceMode.NODE } }),
  'pid of its own': both({ namespace_options: { pid: NamespaceMode.CONTAINER } }),
  'pid of another container': context({ namespace_options: { pid: NamespaceMode.TARGET, target_id: 'c0' } }),
  'target_id in a pod': pod({ namespace_options: { target_id: 'c0' } }),
  'ipc of the node': both({ namespace_options: { ipc: NamespaceMode.NODE } }),
  'user namespace': both({ namespace_options: { userns_options: mapped } }),
  'user namespace on the network of the node': hostNetwork({ namespace_options: { network: NamespaceMode.NODE, userns_options: mapped } }),
  'selinux_options of a container': context({ selinux_options: { user: 'staff_u', role: 'staff_r', type: 'web_t', level: 's0:c5,c6' } }),
  'selinux_options of a pod': pod({ selinux_options: { user: 'staff_u', role: 'staff_r', type: 'web_t', level: 's0:c5,c6' } }),
  'run_as_user': both({ run_as_user: { value: '1000' } }),
  'run_as_group': both({ run_as_user: { value: '1000' }, run_as_group: { value: '3000' } }),
  'run_as_group without a user': both({ run_as_group: { value: '3000' } }),
  'run_as_username': context({ run_as_username: 'app' }),
  'readonly_rootfs': both({ readonly_rootfs: true }),
  'supplemental_groups': both({ run_as_user: { value: '1000' }, supplemental_groups: ['4000'] }),
  'supplemental_groups_policy': both({ run_as_user: { value: '1000' }, supplemental_groups: ['4000'], supplemental_groups_policy: SupplementalGroupsPolicy.Strict }),
  'no_new_privs': context({ no_new_privs: true }),
  'masked_paths': context({ masked_paths: ['/proc/kcore', '/sys/firmware'] }),
  'readonly_paths': context({ readonly_paths: ['/proc/sys'] }),
  'seccomp': both({ seccomp: { profile_type: Profile.RuntimeDefault } }),
  'seccomp with SYS_ADMIN': context({ seccomp: { profile_type: Profile.RuntimeDefault }, capabilities: { add_capabilities: ['SYS_ADMIN'] } }),
  'seccomp, unconfined': both({ seccomp: { profile_type: Profile.Unconfined } }),
  'seccomp, localhost': both({ seccomp: { profile_type: Profile.Localhost, localhost_ref: 'p.json' } }),
  'seccomp_profile_path': both({ seccomp_profile_path: 'localhost/p.json' }),
  'apparmor': both({ apparmor: { profile_type: Profile.Localhost, localhost_ref: 'custom' } }),
  'apparmor, not loaded': context({ apparmor: { profile_type: Profile.Localhost, localhost_ref: 'absent' } }),
  'apparmor_profile': context({ apparmor_profile: 'localhost/custom' }),

  'metadata of a pod': { pod: { metadata: { name: 'n', uid: 'u', namespace: 's', attempt: 4 } } },
  'hostname': { pod: { hostname: 'web-1' } },
  'log_directory': { pod: { log_directory: '/var/log/pods/other' } },
  'dns_config': { pod: { dns_config: { servers: ['10.0.0.1'], searches: ['a.b'], options: ['ndots:5'] } } },
  'port_mappings': { pod: { port_mappings: [{ protocol: Protocol.UDP, container_port: 53, host_port: 5353, host_ip: '127.0.0.1' }] } },
  'labels of a pod': { pod: { labels: { a: 'b' } } },
  'annotations of a pod': { pod: { annotations: { 'passed.io': '1', 'kept.io': '2' } } },
  'cgroup_parent': { pod: { linux: { cgroup_parent: '/kubepods/burstable/podx' } } },
  'cgroup_parent, slice': { pod: { linux: { cgroup_parent: '/kubepods.slice/kubepods-podx.slice' } } },
  'sysctls': { pod: { linux: { sysctls: { 'net.ipv4.tcp_syncookies': '1', 'kernel.shm_rmid_forced': '1' } } } },
  'overhead': { pod: { linux: { overhead: allResources } } },
  'resources of a pod': { pod: { linux: { resources: allResources } } },
  'windows pod': { pod: { windows: {} } },
}
