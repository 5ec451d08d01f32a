import assert from 'node:assert/strict'
import test from 'node:test'
import { Code } from '../errors/cri-error.ts'
import {
  type ContainerConfig, type LinuxContainerConfig, type LinuxContainerResources, type LinuxContainerSecurityContext, type LinuxPodSandboxConfig, type LinuxSandboxSecurityContext,
  NamespaceMode, SecurityProfile_ProfileType as Type,
} from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import { containerSpec } from './container-spec.ts'
import type { ResolvedMount } from './input.ts'
import { sandboxSpec } from './sandbox-spec.ts'
import { containerInput, hostFacts, refusal, sandboxInput, settings } from './spec-fixtures.ts'
import type { OciSpec } from './types.ts'
import { userRequest } from './user.ts'

/** One check for every field of a message: a field that api.proto gains does not compile until somebody says here what it does. */
type EveryField<T> = Record<keyof T, () => void>

const run = (checks: Record<string, () => void>, message: string): void => {
  for (const [field, check] of Object.entries(checks)) test(`${message}.${field}`, check)
}

const plain = containerSpec(containerInput())
const container = (config: Init<ContainerConfig>): OciSpec => containerSpec(containerInput({ config }))
const secure = (context: Init<LinuxContainerSecurityContext>): OciSpec => container({ linux: { security_context: context } })
const pod = (linux: Init<LinuxPodSandboxConfig>): OciSpec => sandboxSpec(sandboxInput({ pod: { linux } }))
const unchanged = (config: Init<ContainerConfig>): void => assert.deepEqual(container(config), plain)
const mount = (changes: Partial<ResolvedMount>): ResolvedMount => ({ origin: 'cri', containerPath: '/data', hostPath: '/srv', readonly: false, ...changes })

run({
  metadata: () => unchanged({ metadata: { name: 'other', attempt: 3 } }),
  image: () => unchanged({ image: { image: 'sha256:1' } }),
  command: () => assert.deepEqual(container({ command: ['/x'] }).process?.args, ['/x']),
  args: () => assert.deepEqual(container({ args: ['-v'] }).process?.args, ['/bin/app', '-v']),
  working_dir: () => assert.equal(container({ working_dir: '/srv' }).process?.cwd, '/srv'),
  envs: () => assert.deepEqual(container({ envs: [{ key: 'LANG', value: Buffer.from('de') }] }).process?.env, ['PATH=/usr/bin', 'HOSTNAME=web-0', 'LANG=de', 'HOME=/root']),
  mounts: () => assert.deepEqual(containerSpec(containerInput({}, { mounts: [mount({})] })).mounts?.at(-1),
    { destination: '/data', type: 'bind', source: '/srv', options: ['rbind', 'rprivate', 'rw'] }),
  devices: () => {
    const device = { path: '/dev/x', type: 'c' as const, major: 5, minor: 6, fileMode: 0o20660, uid: 7, gid: 8, permissions: 'rw' }
    const linux = containerSpec(containerInput({}, { devices: [device] })).linux
    assert.deepEqual(linux?.devices, [{ path: '/dev/x', type: 'c', major: 5, minor: 6, fileMode: 0o660, uid: 7, gid: 8 }])
    assert.deepEqual(linux?.resources?.devices, [{ allow: false, access: 'rwm' }, { allow: true, type: 'c', major: 5, minor: 6, access: 'rw' }])
    for (const permissions of ['', 'x', 'rr', 'rwmr']) {
      assert.throws(() => containerSpec(containerInput({}, { devices: [{ ...device, permissions }] })), refusal(Code.INVALID_ARGUMENT, /not one or more of r, w and m/))
    }
    const owned = containerSpec(containerInput({ config: { linux: { security_context: { run_as_user: { value: '1000' } } } }, settings: { deviceOwnershipFromSecurityContext: true } }, { devices: [device] }))
    assert.deepEqual([owned.linux?.devices?.[0]?.uid, owned.linux?.devices?.[0]?.gid], [1000, 8])
  },
  labels: () => unchanged({ labels: { a: 'b' } }),
  annotations: () => {
    const input = { config: { annotations: { 'a.io/x': '1', 'b.io/x': '2', 'io.kubernetes.cri.sandbox-id': 'forged' } }, runtime: { containerAnnotations: ['a.io/*', 'io.kubernetes.*'] } }
    const { annotations } = containerSpec(containerInput(input))
    assert.deepEqual([annotations?.['a.io/x'], annotations?.['b.io/x'], annotations?.['io.kubernetes.cri.sandbox-id']], ['1', undefined, 's1'])
    assert.throws(() => container({ annotations: { 'cdi.k8s.io/x': 'vendor.com/class=1' } }), refusal(Code.FAILED_PRECONDITION, /CDI/))
  },
  log_path: () => unchanged({ log_path: 'app/0.log' }),
  stdin: () => unchanged({ stdin: true }),
  stdin_once: () => unchanged({ stdin_once: true }),
  tty: () => {
    const { process } = container({ tty: true })
    assert.equal(process?.terminal, true)
    assert.ok(process.env?.includes('TERM=xterm'))
    assert.equal(plain.process?.terminal, false)
  },
  linux: () => unchanged({ linux: {} }),
  windows: () => assert.throws(() => container({ windows: {} }), refusal(Code.INVALID_ARGUMENT, /windows/)),
  CDI_devices: () => assert.throws(() => container({ CDI_devices: [{ name: 'vendor.com/gpu=0' }] }), refusal(Code.FAILED_PRECONDITION, /vendor\.com\/gpu=0/)),
  stop_signal: () => unchanged({ stop_signal: 5 }),
} satisfies EveryField<ContainerConfig>, 'ContainerConfig')

run({
  resources: () => assert.equal(container({ linux: { resources: { cpu_shares: '512' } } }).linux?.resources?.cpu?.shares, 512),
  security_context: () => assert.equal(secure({ readonly_rootfs: true }).root?.readonly, true),
} satisfies EveryField<LinuxContainerConfig>, 'LinuxContainerConfig')

const MAPPING = { mode: NamespaceMode.POD, uids: [{ host_id: 65536, container_id: 0, length: 65536 }], gids: [{ host_id: 131072, container_id: 0, length: 65536 }] }

run({
  capabilities: () => assert.deepEqual(secure({ capabilities: { drop_capabilities: ['ALL'] } }).process?.capabilities, { bounding: [], effective: [], permitted: [] }),
  privileged: () => assert.throws(() => secure({ privileged: true }), refusal(Code.INVALID_ARGUMENT, /privileged/)),
  namespace_options: () => {
    const of = (options: object, sandbox: object = {}, overrides: object = {}): OciSpec => containerSpec(containerInput(
      { config: { linux: { security_context: { namespace_options: options } } }, pod: { linux: { security_context: { namespace_options: sandbox } } } }, overrides))
    const path = (spec: OciSpec, type: string): string | undefined => spec.linux?.namespaces?.find((namespace) => namespace.type === type)?.path
    assert.deepEqual(of({}).linux?.namespaces, [
      { type: 'pid', path: '/proc/4242/ns/pid' }, { type: 'ipc', path: '/proc/4242/ns/ipc' }, { type: 'uts', path: '/proc/4242/ns/uts' }, { type: 'mount' },
      { type: 'network', path: '/run/netns/web' }, { type: 'cgroup' },
    ])
    const own = of({ pid: NamespaceMode.CONTAINER })
    assert.ok(own.linux?.namespaces?.some(({ type }) => type === 'pid') && path(own, 'pid') === undefined)
    assert.equal(path(of({ pid: NamespaceMode.NODE }, { pid: NamespaceMode.NODE }), 'pid'), '/proc/4242/ns/pid')
    assert.equal(path(of({ pid: NamespaceMode.TARGET, target_id: 'c0' }, {}, { targetPid: 77 }), 'pid'), '/proc/77/ns/pid')
    assert.throws(() => of({ pid: NamespaceMode.TARGET, target_id: 'c0' }), refusal(Code.INVALID_ARGUMENT, /needs the target_id of a running container/))
    assert.throws(() => of({ target_id: 'c0' }), refusal(Code.INVALID_ARGUMENT, /only with pid namespace mode TARGET/))
    assert.ok(!of({}, { network: NamespaceMode.NODE }, { netnsPath: undefined }).linux?.namespaces?.some(({ type }) => type === 'network'))
    for (const kind of ['network', 'ipc', 'pid']) assert.throws(() => of({ [kind]: NamespaceMode.NODE }), refusal(Code.INVALID_ARGUMENT, new RegExp(`${kind} namespace mode NODE`)))
    for (const kind of ['network', 'ipc']) assert.throws(() => of({ [kind]: NamespaceMode.CONTAINER }), refusal(Code.INVALID_ARGUMENT, /mode CONTAINER is not supported/))
    assert.throws(() => of({ pid: 9 }), refusal(Code.INVALID_ARGUMENT, /mode 9/))
    const userns = of({ userns_options: MAPPING }, { userns_options: MAPPING })
    assert.equal(path(userns, 'user'), '/proc/4242/ns/user')
    assert.deepEqual(userns.linux?.uidMappings, [{ containerID: 0, hostID: 65536, size: 65536 }])
    assert.deepEqual(userns.linux?.gidMappings, [{ containerID: 0, hostID: 131072, size: 65536 }])
    assert.throws(() => of({ userns_options: MAPPING }), refusal(Code.INVALID_ARGUMENT, /differ from those of its pod/))
    assert.throws(() => of({ userns_options: MAPPING }, { userns_options: { ...MAPPING, uids: MAPPING.gids } }), refusal(Code.INVALID_ARGUMENT, /differ/))
    const hostNetwork = of({ userns_options: MAPPING }, { network: NamespaceMode.NODE, userns_options: MAPPING }, { netnsPath: undefined })
    // What is the node's cannot be joined by who is root in a user namespace alone.
    for (const type of ['uts', 'network']) assert.ok(!hostNetwork.linux?.namespaces?.some((namespace) => namespace.type === type))
    assert.deepEqual(hostNetwork.mounts?.find(({ destination }) => destination === '/sys')?.options, ['rbind', 'rro', 'nosuid', 'nodev', 'noexec'])
    assert.throws(() => containerSpec(containerInput({}, { sandboxPid: 0 })), refusal(Code.FAILED_PRECONDITION, /no running process/))
  },
  selinux_options: () => assert.throws(() => secure({ selinux_options: { level: 'bad' } }), refusal(Code.INVALID_ARGUMENT, /SELinux level/)),
  run_as_user: () => assert.deepEqual(userRequest({ run_as_user: { value: '5' }, run_as_group: null }, { User: '' }), { uid: 5 }),
  run_as_group: () => assert.deepEqual(userRequest({ run_as_user: { value: '5' }, run_as_group: { value: '6' } }, { User: '' }), { uid: 5, gid: 6 }),
  run_as_username: () => assert.deepEqual(userRequest({ run_as_user: null, run_as_group: null, run_as_username: 'a' }, { User: '' }), { username: 'a' }),
  readonly_rootfs: () => assert.deepEqual([secure({ readonly_rootfs: true }).root, plain.root], [{ path: 'rootfs', readonly: true }, { path: 'rootfs', readonly: false }]),
  supplemental_groups: () => assert.deepEqual(containerSpec(containerInput({}, { user: { uid: 1, gid: 2, additionalGids: [2, 3] } })).process?.user, { uid: 1, gid: 2, additionalGids: [2, 3] }),
  // resolveUser() works it out: user.test.ts.
  supplemental_groups_policy: () => assert.deepEqual(secure({ supplemental_groups_policy: 1 }), plain),
  no_new_privs: () => assert.deepEqual([secure({ no_new_privs: true }).process?.noNewPrivileges, plain.process?.noNewPrivileges], [true, false]),
  masked_paths: () => {
    assert.deepEqual([secure({ masked_paths: ['/proc/kcore'] }).linux?.maskedPaths, plain.linux?.maskedPaths], [['/proc/kcore'], []])
    assert.ok(containerSpec(containerInput({ settings: { disableProcMount: true } })).linux?.maskedPaths?.includes('/proc/kcore'))
    assert.throws(() => secure({ masked_paths: ['proc'] }), refusal(Code.INVALID_ARGUMENT, /not an absolute path/))
  },
  readonly_paths: () => {
    assert.deepEqual([secure({ readonly_paths: ['/proc/sys'] }).linux?.readonlyPaths, plain.linux?.readonlyPaths], [['/proc/sys'], []])
    assert.ok(containerSpec(containerInput({ settings: { disableProcMount: true } })).linux?.readonlyPaths?.includes('/proc/sys'))
  },
  seccomp: () => {
    assert.equal(plain.linux?.seccomp, undefined)
    const spec = secure({ seccomp: { profile_type: Type.RuntimeDefault }, capabilities: { add_capabilities: ['SYS_TIME'] } })
    assert.ok(spec.linux?.seccomp?.syscalls?.some(({ names }) => names.includes('settimeofday')))
    const localhost = { config: { linux: { security_context: { seccomp: { profile_type: Type.Localhost, localhost_ref: 'p.json' } } } } }
    assert.deepEqual(containerSpec(containerInput(localhost, { seccompProfile: '{"defaultAction":"SCMP_ACT_LOG"}' })).linux?.seccomp, { defaultAction: 'SCMP_ACT_LOG', syscalls: [] })
    assert.throws(() => containerSpec(containerInput(localhost)), refusal(Code.INTERNAL, /was not passed on/))
  },
  apparmor: () => assert.deepEqual([secure({ apparmor: { profile_type: Type.Localhost, localhost_ref: 'custom' } }).process?.apparmorProfile, plain.process?.apparmorProfile], ['custom', 'cri-containerd.apparmor.d']),
  apparmor_profile: () => assert.equal(secure({ apparmor_profile: 'unconfined' }).process?.apparmorProfile, undefined),
  seccomp_profile_path: () => assert.equal(secure({ seccomp_profile_path: 'runtime/default' }).linux?.seccomp?.defaultAction, 'SCMP_ACT_ERRNO'),
} satisfies EveryField<LinuxContainerSecurityContext>, 'LinuxContainerSecurityContext')

const limited = (resources: Init<LinuxContainerResources>, facts: object = {}, changed: object = {}): OciSpec =>
  containerSpec(containerInput({ config: { linux: { resources } }, facts, settings: { ...settings, ...changed } }))
const resourcesOf = (...parameters: Parameters<typeof limited>) => limited(...parameters).linux?.resources
const refused = (resources: Init<LinuxContainerResources>, code: number, message: RegExp): void => assert.throws(() => limited(resources), refusal(code, message))

run({
  cpu_period: () => {
    assert.deepEqual(resourcesOf({ cpu_period: '100000' })?.cpu, { period: 100000 })
    for (const wrong of ['-1', '999', '1000001']) refused({ cpu_period: wrong }, Code.INVALID_ARGUMENT, /cpu_period is .* 1000\.\.1000000 microseconds/)
  },
  cpu_quota: () => {
    assert.deepEqual([resourcesOf({ cpu_quota: '50000' })?.cpu, resourcesOf({ cpu_quota: '-1' })?.cpu], [{ quota: 50000 }, { quota: -1 }])
    for (const wrong of ['-2', '1', '999']) refused({ cpu_quota: wrong }, Code.INVALID_ARGUMENT, /cpu_quota is/)
  },
  cpu_shares: () => {
    assert.deepEqual([resourcesOf({ cpu_shares: '2' })?.cpu, resourcesOf({ cpu_shares: '262144' })?.cpu], [{ shares: 2 }, { shares: 262144 }])
    for (const wrong of ['1', '-5', '262145']) refused({ cpu_shares: wrong }, Code.INVALID_ARGUMENT, /cpu_shares is .* 2\.\.262144/)
  },
  memory_limit_in_bytes: () => {
    assert.deepEqual(resourcesOf({ memory_limit_in_bytes: '1048576' })?.memory, { limit: 1048576, swap: 1048576 })
    assert.deepEqual(resourcesOf({ memory_limit_in_bytes: '1048576' }, { swapControllerAvailable: false })?.memory, { limit: 1048576 })
    assert.equal(resourcesOf({ memory_limit_in_bytes: '9223372036854771712' })?.memory?.limit, 9223372036854771712n)
  },
  oom_score_adj: () => {
    assert.equal(limited({ oom_score_adj: '-997' }).process?.oomScoreAdj, -997)
    assert.equal(limited({}).process?.oomScoreAdj, 0)
    assert.equal(plain.process?.oomScoreAdj, undefined)
    const weak = { effectiveCapabilities: 0xffffffn, ownOomScoreAdj: -500 }
    assert.equal(limited({ oom_score_adj: '-997' }, weak).process?.oomScoreAdj, -500)
    assert.equal(limited({ oom_score_adj: '1000' }, weak).process?.oomScoreAdj, 1000)
    assert.equal(limited({ oom_score_adj: '-997' }, { ownOomScoreAdj: 10 }, { restrictOomScoreAdj: true }).process?.oomScoreAdj, 10)
    refused({ oom_score_adj: '-1001' }, Code.INVALID_ARGUMENT, /oom_score_adj is -1001/)
  },
  cpuset_cpus: () => {
    assert.deepEqual(resourcesOf({ cpuset_cpus: '0-2,7' })?.cpu, { cpus: '0-2,7' })
    for (const wrong of ['all', '3-1', '1,', '-1', '1234567']) refused({ cpuset_cpus: wrong }, Code.INVALID_ARGUMENT, /cpuset_cpus ".*" is malformed/)
    const facts = { possibleCpus: '0-3,8' }
    assert.deepEqual(resourcesOf({ cpuset_cpus: '1-3,8' }, facts)?.cpu, { cpus: '1-3,8' })
    for (const wrong of ['4', '2-4', '0,9']) assert.throws(() => limited({ cpuset_cpus: wrong }, facts), refusal(Code.INVALID_ARGUMENT, /names (4|2-4|9), which this node does not have: it has 0-3,8/))
  },
  cpuset_mems: () => {
    assert.deepEqual(resourcesOf({ cpuset_mems: '1' })?.cpu, { mems: '1' })
    assert.throws(() => limited({ cpuset_mems: '1' }, { possibleMemoryNodes: '0' }), refusal(Code.INVALID_ARGUMENT, /cpuset_mems "1" names 1/))
  },
  hugepage_limits: () => {
    const hugepage_limits = [{ page_size: '2MB', limit: '4194304' }, { page_size: '1GB', limit: '0' }]
    assert.deepEqual(resourcesOf({ hugepage_limits })?.hugepageLimits, [{ pageSize: '2MB', limit: 4194304 }, { pageSize: '1GB', limit: 0 }])
    assert.equal(resourcesOf({ hugepage_limits }, {}, { disableHugetlbController: true })?.hugepageLimits, undefined)
    assert.equal(resourcesOf({ hugepage_limits }, { hugetlbControllerPresent: false }, { tolerateMissingHugetlbController: true })?.hugepageLimits, undefined)
    assert.throws(() => limited({ hugepage_limits }, { hugetlbControllerPresent: false }), refusal(Code.FAILED_PRECONDITION, /tolerate_missing_hugetlb_controller/))
    refused({ hugepage_limits: [{ page_size: '../2MB', limit: '0' }] }, Code.INVALID_ARGUMENT, /huge page size/)
    refused({ hugepage_limits: [{ page_size: '2MB', limit: '0' }, { page_size: '2MB', limit: '1' }] }, Code.INVALID_ARGUMENT, /twice/)
  },
  unified: () => {
    assert.deepEqual(resourcesOf({ unified: { 'memory.high': '1000', 'memory.oom.group': '1' } })?.unified, { 'memory.high': '1000', 'memory.oom.group': '1' })
    refused({ unified: { '../cgroup.procs': '1' } }, Code.INVALID_ARGUMENT, /malformed/)
    for (const own of ['cgroup.procs', 'cgroup.kill', 'cgroup.subtree_control']) refused({ unified: { [own]: '1' } }, Code.INVALID_ARGUMENT, /manages the cgroup itself/)
    refused({ unified: { 'memory.high': '1\n2' } }, Code.INVALID_ARGUMENT, /line break/)
    assert.deepEqual(resourcesOf({ unified: { 'cgroup.max.depth': '3', 'hugetlb.2MB.max': '0' } })?.unified, { 'cgroup.max.depth': '3', 'hugetlb.2MB.max': '0' })
    for (const cgroupMode of ['legacy', 'hybrid']) assert.throws(() => limited({ unified: { 'memory.high': '1' } }, { cgroupMode }), refusal(Code.FAILED_PRECONDITION, /need cgroup v2/))
  },
  memory_swap_limit_in_bytes: () => {
    assert.deepEqual(resourcesOf({ memory_limit_in_bytes: '100', memory_swap_limit_in_bytes: '300' })?.memory, { limit: 100, swap: 300 })
    assert.deepEqual(resourcesOf({ memory_limit_in_bytes: '100', memory_swap_limit_in_bytes: '-1' })?.memory, { limit: 100, swap: -1 })
    assert.deepEqual(resourcesOf({ memory_swap_limit_in_bytes: '300' }, { swapControllerAvailable: false })?.memory, {})
    assert.deepEqual(resourcesOf({ memory_swap_limit_in_bytes: '-1' })?.memory, { swap: -1 })
    refused({ memory_swap_limit_in_bytes: '300' }, Code.INVALID_ARGUMENT, /without a memory limit/)
    refused({ memory_limit_in_bytes: '-1', memory_swap_limit_in_bytes: '300' }, Code.INVALID_ARGUMENT, /without a memory limit/)
    refused({ memory_limit_in_bytes: '301', memory_swap_limit_in_bytes: '300' }, Code.INVALID_ARGUMENT, /below the memory limit of 301/)
  },
} satisfies EveryField<LinuxContainerResources>, 'LinuxContainerResources')

const plainPod = sandboxSpec(sandboxInput())

run({
  cgroup_parent: () => {
    assert.deepEqual([pod({ cgroup_parent: '/kubepods/pod1' }).linux?.cgroupsPath, plainPod.linux?.cgroupsPath], ['/kubepods/pod1/s1', '/k8s.io/s1'])
    const inPod = { pod: { linux: { cgroup_parent: '/kubepods/pod1' } } }
    assert.equal(containerSpec(containerInput(inPod)).linux?.cgroupsPath, '/kubepods/pod1/c1')
    assert.equal(containerSpec(containerInput({ ...inPod, settings: { disableCgroup: true } })).linux?.cgroupsPath, undefined)
  },
  security_context: () => assert.throws(() => pod({ security_context: { selinux_options: { level: 'bad' } } }), refusal(Code.INVALID_ARGUMENT, /SELinux/)),
  sysctls: () => {
    const of = (sysctls: Record<string, string>, namespace_options: object = {}): OciSpec => sandboxSpec(sandboxInput({ pod: { hostname: '', linux: { sysctls, security_context: { namespace_options } } } }))
    const allowed = { 'net.ipv4.tcp_syncookies': '1', 'kernel.shm_rmid_forced': '1', 'fs.mqueue.msg_max': '10', 'net/ipv4/conf/eth0.100/forwarding': '1', 'net.ipv4.ip_local_port_range': '1024\t65535' }
    assert.deepEqual(of(allowed).linux?.sysctl, allowed)
    for (const name of ['vm.swappiness', 'kernel.core_pattern', 'kernel.hostname', 'kernel.shmx', 'kernel.shm_rmid_forced2', 'fs.file-max', 'user.max_user_namespaces', 'netx.y']) {
      assert.throws(() => of({ [name]: '1' }), refusal(Code.INVALID_ARGUMENT, /belongs to the whole node/), name)
    }
    for (const name of ['', 'net', 'net..x', 'net.ipv4.x=1', 'net.ipv4.x+kernel.core_pattern', 'net/../kernel/x', '/net/x', 'net.\nx', 'NET.x', 'net.x.']) {
      assert.throws(() => of({ [name]: '1' }), refusal(Code.INVALID_ARGUMENT, /not the name of a sysctl/), name)
    }
    for (const value of ['', '1+kernel.core_pattern=|/x', '1\nx', '\0', 'ä']) assert.throws(() => of({ 'net.x': value }), refusal(Code.INVALID_ARGUMENT, /characters that are not allowed/), value)
    assert.throws(() => of({ 'net.core.somaxconn': '1' }, { network: NamespaceMode.NODE }), refusal(Code.INVALID_ARGUMENT, /node's network namespace/))
    assert.throws(() => of({ 'net/core/somaxconn': '1' }, { network: NamespaceMode.NODE }), refusal(Code.INVALID_ARGUMENT, /node's network namespace/))
    assert.throws(() => of({ 'kernel.msgmax': '1' }, { ipc: NamespaceMode.NODE }), refusal(Code.INVALID_ARGUMENT, /node's ipc namespace/))
    const unprivileged = { settings: { enableUnprivilegedPorts: true, enableUnprivilegedIcmp: true } }
    assert.deepEqual(sandboxSpec(sandboxInput(unprivileged)).linux?.sysctl, { 'net.ipv4.ip_unprivileged_port_start': '0', 'net.ipv4.ping_group_range': '0 2147483647' })
    const given = { 'net/ipv4/ip_unprivileged_port_start': '80' }
    assert.deepEqual(sandboxSpec(sandboxInput({ ...unprivileged, pod: { linux: { sysctls: given, security_context: { namespace_options: { userns_options: MAPPING } } } } })).linux?.sysctl, given)
    assert.equal(sandboxSpec(sandboxInput({ ...unprivileged, pod: { hostname: '', linux: { security_context: { namespace_options: { network: NamespaceMode.NODE } } } } })).linux?.sysctl, undefined)
  },
  overhead: () => assert.deepEqual(pod({ overhead: { cpu_shares: '5' } }), plainPod),
  resources: () => {
    const { annotations, linux } = pod({ resources: { cpu_period: '1', cpu_quota: '2', cpu_shares: '3', memory_limit_in_bytes: '4' } })
    assert.deepEqual(['cpu-period', 'cpu-quota', 'cpu-shares', 'memory'].map((key) => annotations?.[`io.kubernetes.cri.sandbox-${key}`]), ['1', '2', '3', '4'])
    assert.deepEqual(linux?.resources?.cpu, { shares: 2 })
  },
} satisfies EveryField<LinuxPodSandboxConfig>, 'LinuxPodSandboxConfig')

const podWith = (context: Init<LinuxSandboxSecurityContext>): OciSpec => sandboxSpec(sandboxInput({ pod: { hostname: '', linux: { security_context: context } } }))

run({
  namespace_options: () => {
    const types = (options: object): string[] | undefined => podWith({ namespace_options: options }).linux?.namespaces?.map(({ type }) => type)
    assert.deepEqual(plainPod.linux?.namespaces, [{ type: 'pid' }, { type: 'ipc' }, { type: 'uts' }, { type: 'mount' }, { type: 'network', path: '/run/netns/web' }])
    assert.deepEqual(types({ network: NamespaceMode.NODE }), ['pid', 'ipc', 'mount'])
    assert.deepEqual(types({ pid: NamespaceMode.NODE, ipc: NamespaceMode.NODE }), ['uts', 'mount', 'network'])
    assert.deepEqual(types({ pid: NamespaceMode.CONTAINER }), ['pid', 'ipc', 'uts', 'mount', 'network'])
    for (const options of [{ pid: NamespaceMode.TARGET }, { network: NamespaceMode.CONTAINER }, { ipc: NamespaceMode.TARGET }]) {
      assert.throws(() => types(options), refusal(Code.INVALID_ARGUMENT, /is not supported/))
    }
    const userns = sandboxSpec(sandboxInput({ pod: { linux: { security_context: { namespace_options: { userns_options: MAPPING } } } } }, { usernsPath: '/run/userns/s1' }))
    assert.deepEqual(userns.linux?.namespaces?.at(-1), { type: 'user', path: '/run/userns/s1' })
    assert.deepEqual(userns.linux?.uidMappings, [{ containerID: 0, hostID: 65536, size: 65536 }])
    const refusals: [object, RegExp][] = [
      [{ mode: NamespaceMode.NODE, uids: MAPPING.uids }, /mode NODE goes without/], [{ mode: NamespaceMode.POD }, /exactly one uid mapping/],
      [{ ...MAPPING, gids: [...MAPPING.gids, ...MAPPING.gids] }, /exactly one gid mapping/], [{ mode: NamespaceMode.CONTAINER }, /mode 1 is not supported/],
      [{ ...MAPPING, uids: [{ host_id: 1, container_id: 0, length: 0 }] }, /length 0/], [{ ...MAPPING, uids: [{ host_id: 4294967295, container_id: 0, length: 2 }] }, /beyond the largest uid/],
      [{ ...MAPPING, uids: [{ host_id: 1, container_id: 1, length: 65536 }] }, /uid 0 of the container must be mapped/],
      [{ ...MAPPING, uids: [{ host_id: 1, container_id: 0, length: 65537 }] }, /length 65537 and the gid mapping 65536/],
      [{ mode: NamespaceMode.POD, uids: [{ host_id: 1, container_id: 0, length: 65535 }], gids: [{ host_id: 1, container_id: 0, length: 65535 }] }, /uid 65535 does not exist in the pod's user namespace, which has 0 to 65534/],
    ]
    for (const [options, message] of refusals) assert.throws(() => types({ userns_options: options }), refusal(Code.INVALID_ARGUMENT, message))
    assert.deepEqual(types({ userns_options: { mode: NamespaceMode.NODE } }), ['pid', 'ipc', 'uts', 'mount', 'network'])
  },
  selinux_options: () => assert.throws(() => podWith({ selinux_options: { type: 'a b' } }), refusal(Code.INVALID_ARGUMENT, /SELinux option/)),
  run_as_user: () => assert.deepEqual(plainPod.process?.user, { uid: 65535, gid: 65535, additionalGids: [65535] }),
  run_as_group: () => assert.throws(() => userRequest({ run_as_user: null, run_as_group: { value: '1' } }, { User: '1' }), refusal(Code.INVALID_ARGUMENT, /without run_as_user/)),
  readonly_rootfs: () => assert.deepEqual([podWith({ readonly_rootfs: false }).root, podWith({ readonly_rootfs: true }).root], [{ path: 'rootfs', readonly: true }, { path: 'rootfs', readonly: true }]),
  // The caller passes them to resolveUser().
  supplemental_groups: () => assert.deepEqual(podWith({ supplemental_groups: ['7'] }), podWith({})),
  supplemental_groups_policy: () => assert.deepEqual(podWith({ supplemental_groups_policy: 1 }), podWith({})),
  privileged: () => assert.equal(podWith({ privileged: true, seccomp: { profile_type: Type.RuntimeDefault } }).linux?.seccomp, undefined),
  seccomp: () => assert.equal(podWith({ seccomp: { profile_type: Type.RuntimeDefault } }).linux?.seccomp?.defaultAction, 'SCMP_ACT_ERRNO'),
  apparmor: () => assert.deepEqual([podWith({ apparmor: { profile_type: Type.RuntimeDefault } }).process?.apparmorProfile, plainPod.process?.apparmorProfile], ['cri-containerd.apparmor.d', undefined]),
  seccomp_profile_path: () => assert.equal(podWith({ seccomp_profile_path: 'docker/default' }).linux?.seccomp?.defaultAction, 'SCMP_ACT_ERRNO'),
} satisfies EveryField<LinuxSandboxSecurityContext>, 'LinuxSandboxSecurityContext')

test('the pause container: confined, hard to kill, and known to runtimes by its annotations', () => {
  assert.equal(plainPod.hostname, 'web-0')
  assert.deepEqual(plainPod.process?.args, ['/pause'])
  assert.equal(plainPod.process?.oomScoreAdj, -998)
  assert.equal(sandboxSpec(sandboxInput({ facts: { effectiveCapabilities: 0n, ownOomScoreAdj: 0 } })).process?.oomScoreAdj, 0)
  assert.equal(plainPod.process?.noNewPrivileges, true)
  assert.ok(plainPod.linux?.maskedPaths?.includes('/proc/kcore') && plainPod.linux.readonlyPaths?.includes('/proc/sys'))
  assert.deepEqual(plainPod.mounts?.slice(-2).map(({ destination, source, options }) => [destination, source, options?.join()]), [
    ['/dev/shm', '/run/cri-shim/s1/shm', 'rbind,ro,nosuid,nodev,noexec'], ['/etc/resolv.conf', '/var/lib/cri-shim/s1/resolv.conf', 'rbind,ro,nosuid,nodev,noexec'],
  ])
  assert.equal(plainPod.mounts?.filter(({ destination }) => destination === '/dev/shm').length, 1)
  assert.deepEqual(plainPod.annotations, {
    'io.kubernetes.cri.sandbox-id': 's1', 'io.kubernetes.cri.sandbox-namespace': 'shop', 'io.kubernetes.cri.sandbox-uid': 'uid-1', 'io.kubernetes.cri.sandbox-name': 'web',
    'io.kubernetes.cri.sandbox-log-directory': '/var/log/pods/web', 'io.kubernetes.cri.podsandbox.image-name': 'registry.k8s.io/pause:3.10', 'io.kubernetes.cri.container-type': 'sandbox',
  })
  assert.throws(() => sandboxSpec(sandboxInput({}, { netnsPath: undefined })), refusal(Code.INVALID_ARGUMENT, /no network namespace was made/))
  assert.throws(() => sandboxSpec(sandboxInput({ pod: { windows: {} } })), refusal(Code.INVALID_ARGUMENT, /windows/))
  assert.throws(() => sandboxSpec(sandboxInput({ pod: { linux: { security_context: { namespace_options: { network: NamespaceMode.NODE } } } } })), refusal(Code.INVALID_ARGUMENT, /hostname "web-0"/))
  assert.throws(() => sandboxSpec(sandboxInput({ pod: { hostname: 'a b' } })), refusal(Code.INVALID_ARGUMENT, /hostname "a b"/))
})

test('an ordinary container, whole', () => {
  assert.deepEqual(plain.annotations, {
    'io.kubernetes.cri.sandbox-id': 's1', 'io.kubernetes.cri.sandbox-namespace': 'shop', 'io.kubernetes.cri.sandbox-uid': 'uid-1', 'io.kubernetes.cri.sandbox-name': 'web',
    'io.kubernetes.cri.container-name': 'app', 'io.kubernetes.cri.image-name': 'docker.io/library/app:1', 'io.kubernetes.cri.container-type': 'container',
  })
  assert.deepEqual(plain.mounts?.map(({ destination }) => destination), ['/proc', '/dev', '/dev/pts', '/dev/shm', '/dev/mqueue', '/sys', '/sys/fs/cgroup'])
  assert.ok(plain.mounts?.find(({ destination }) => destination === '/sys')?.options?.includes('ro'))
  assert.equal(plain.process?.rlimits, undefined)
  assert.deepEqual(plain.linux?.resources, { devices: [{ allow: false, access: 'rwm' }] })
  assert.ok(containerSpec(containerInput({ pod: { hostname: '' } })).process?.env?.includes(`HOSTNAME=${hostFacts.hostname}`))
})
