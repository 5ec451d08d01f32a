import assert from 'node:assert/strict'
import test from 'node:test'
import { Code } from '../errors/cri-error.ts'
import { SecurityProfile_ProfileType as Type } from '../generated/cri.ts'
import { apparmorProfile } from './apparmor.ts'
import { DEFAULT_CAPABILITIES, allCapabilities, containerCapabilities } from './capabilities.ts'
import { containerSpec } from './container-spec.ts'
import { sandboxSpec } from './sandbox-spec.ts'
import { defaultSeccompProfile } from './seccomp-default.ts'
import { localhostSeccompProfile } from './seccomp-localhost.ts'
import { seccompRequest } from './seccomp.ts'
import { ALL_CAPABILITIES, containerInput, hostFacts, refusal, sandboxInput, settings } from './spec-fixtures.ts'

const SYS_RESOURCE = 24n
const facts = { effectiveCapabilities: ALL_CAPABILITIES, capLastCap: 40 }

test('capabilities: ALL first, then additions, then drops; names in any form', () => {
  const of = (add: string[], drop: string[], ambient: string[] = []) =>
    containerCapabilities({ add_capabilities: add, drop_capabilities: drop, add_ambient_capabilities: ambient }, DEFAULT_CAPABILITIES, facts)
  const sets = (names: readonly string[]) => ({ bounding: names, effective: names, permitted: names })
  assert.deepEqual(containerCapabilities(null, DEFAULT_CAPABILITIES, facts), sets(DEFAULT_CAPABILITIES))
  assert.deepEqual(of(['net_admin', 'CAP_SYS_TIME', 'KILL'], ['Chown']), sets([...DEFAULT_CAPABILITIES.filter((name) => name !== 'CAP_CHOWN'), 'CAP_NET_ADMIN', 'CAP_SYS_TIME']))
  assert.deepEqual(of([], ['all']), sets([]))
  assert.deepEqual(of(['NET_BIND_SERVICE'], ['ALL']), sets(['CAP_NET_BIND_SERVICE']))
  assert.deepEqual(of(['ALL'], ['SYS_ADMIN']), sets(allCapabilities(facts).filter((name) => name !== 'CAP_SYS_ADMIN')))
  assert.deepEqual(of(['NET_ADMIN'], ['NET_ADMIN', 'ALL']), sets([]))
  assert.equal(of(['ALL'], []).bounding?.length, 41)
})

test('capabilities: ambient ones are in every set, the inheritable set holds no others', () => {
  const result = containerCapabilities({ add_capabilities: ['NET_ADMIN'], drop_capabilities: ['ALL'], add_ambient_capabilities: ['NET_RAW'] }, DEFAULT_CAPABILITIES, facts)
  assert.deepEqual(result, {
    bounding: ['CAP_NET_ADMIN', 'CAP_NET_RAW'], effective: ['CAP_NET_ADMIN', 'CAP_NET_RAW'], permitted: ['CAP_NET_ADMIN', 'CAP_NET_RAW'], inheritable: ['CAP_NET_RAW'], ambient: ['CAP_NET_RAW'],
  })
  const dropped = containerCapabilities({ add_capabilities: [], drop_capabilities: ['NET_RAW'], add_ambient_capabilities: ['NET_RAW'] }, DEFAULT_CAPABILITIES, facts)
  assert.ok(dropped.ambient === undefined && dropped.inheritable === undefined && !dropped.bounding?.includes('CAP_NET_RAW'))
})

test('capabilities that cannot be given are refused, and ALL leaves them out', () => {
  const weak = { effectiveCapabilities: ALL_CAPABILITIES & ~(1n << SYS_RESOURCE), capLastCap: 37 }
  const add = (name: string, of = facts) => () => containerCapabilities({ add_capabilities: [name], drop_capabilities: [], add_ambient_capabilities: [] }, [], of)
  assert.throws(add('MAKE_COFFEE'), refusal(Code.INVALID_ARGUMENT, /unknown capability "CAP_MAKE_COFFEE"/))
  assert.throws(() => containerCapabilities({ add_capabilities: [], drop_capabilities: ['CHWON'], add_ambient_capabilities: [] }, [], facts), refusal(Code.INVALID_ARGUMENT, /"CAP_CHWON" to drop/))
  assert.throws(add('BPF', weak), refusal(Code.INVALID_ARGUMENT, /kernel does not know it/))
  assert.throws(add('SYS_RESOURCE', weak), refusal(Code.FAILED_PRECONDITION, /"CAP_SYS_RESOURCE" cannot be added/))
  const all = allCapabilities(weak)
  assert.ok(!all.includes('CAP_SYS_RESOURCE') && !all.includes('CAP_BPF') && all.includes('CAP_AUDIT_READ'))
})

test('privileged: all capabilities, devices and kernel files, no profile; only in a privileged pod', () => {
  const config = { linux: { security_context: { privileged: true, masked_paths: ['/proc/kcore'], seccomp: { profile_type: Type.RuntimeDefault }, capabilities: { drop_capabilities: ['ALL'] } } } }
  const pod = { linux: { security_context: { privileged: true } } }
  const spec = containerSpec(containerInput({ config, pod, facts: { cgroup2MountOptions: ['rw', 'nsdelegate', 'memory_recursiveprot'] } }, { selinux: { processLabel: 'p', mountLabel: 'm' } }))
  assert.equal(spec.process?.capabilities?.bounding?.length, 41)
  assert.equal(spec.process?.apparmorProfile, undefined)
  assert.equal(spec.process?.selinuxLabel, undefined)
  assert.equal(spec.linux?.seccomp, undefined)
  assert.deepEqual([spec.linux?.maskedPaths, spec.linux?.readonlyPaths], [[], []])
  assert.deepEqual(spec.linux?.resources?.devices, [{ allow: true, access: 'rwm' }])
  assert.deepEqual(spec.linux?.devices?.map(({ path }) => path), ['/dev/kvm', '/dev/fuse'])
  assert.ok(!spec.linux?.namespaces?.some(({ type }) => type === 'cgroup'))
  assert.ok(spec.mounts?.find(({ destination }) => destination === '/sys')?.options?.includes('rw'))
  assert.deepEqual(spec.mounts?.find(({ type }) => type === 'cgroup')?.options, ['nosuid', 'noexec', 'nodev', 'relatime', 'rw', 'nsdelegate', 'memory_recursiveprot'])
  assert.throws(() => containerSpec(containerInput({ config })), refusal(Code.INVALID_ARGUMENT, /no privileged container is allowed/))

  const withoutDevices = containerSpec(containerInput({ config, pod, runtime: { privilegedWithoutHostDevices: true } }))
  assert.equal(withoutDevices.linux?.devices, undefined)
  assert.deepEqual(withoutDevices.linux?.resources?.devices, [{ allow: false, access: 'rwm' }])
  const allowed = containerSpec(containerInput({ config, pod, runtime: { privilegedWithoutHostDevices: true, privilegedWithoutHostDevicesAllDevicesAllowed: true } }))
  assert.deepEqual([allowed.linux?.devices, allowed.linux?.resources?.devices], [undefined, [{ allow: true, access: 'rwm' }]])
})

test('seccomp: which profile a request means', () => {
  const of = (seccomp: object | null, path = '', privileged = false, unset = '', enabled = true) => seccompRequest(
    { seccomp: seccomp === null ? null : { profile_type: Type.RuntimeDefault, localhost_ref: '', ...seccomp }, seccomp_profile_path: path, privileged },
    { unsetSeccompProfile: unset }, { seccompEnabled: enabled })
  assert.equal(of(null), undefined)
  assert.deepEqual(of({}), { type: 'runtime-default' })
  assert.deepEqual(of({ profile_type: Type.Unconfined }), { type: 'unconfined' })
  assert.deepEqual(of({ profile_type: Type.Localhost, localhost_ref: 'localhost//p/a.json' }), { type: 'localhost', name: '/p/a.json' })
  assert.deepEqual(of(null, 'runtime/default'), { type: 'runtime-default' })
  assert.deepEqual(of(null, 'docker/default'), { type: 'runtime-default' })
  assert.deepEqual(of(null, 'localhost/a.json'), { type: 'localhost', name: 'a.json' })
  assert.deepEqual(of({ profile_type: Type.Unconfined }, 'runtime/default'), { type: 'unconfined' })
  assert.deepEqual(of(null, '', false, 'runtime/default'), { type: 'runtime-default' })
  assert.equal(of({}, '', true), undefined)
  assert.throws(() => of(null, 'nonsense'), refusal(Code.INVALID_ARGUMENT, /"nonsense"/))
  assert.throws(() => of({ profile_type: 9 }), refusal(Code.INVALID_ARGUMENT, /unknown profile type 9/))
  assert.throws(() => of({ localhost_ref: 'x' }), refusal(Code.INVALID_ARGUMENT, /only with the type Localhost/))
  assert.throws(() => of({ profile_type: Type.Localhost }), refusal(Code.INVALID_ARGUMENT, /needs a localhost_ref/))
  assert.throws(() => of({}, '', false, '', false), refusal(Code.FAILED_PRECONDITION, /no seccomp/))
  assert.equal(of(null, '', false, '', false), undefined)
})

test('seccomp: the default profile follows capabilities, architecture and kernel', () => {
  const names = (profile: ReturnType<typeof defaultSeccompProfile>): Set<string> =>
    new Set(profile.syscalls?.filter(({ action, args }) => action === 'SCMP_ACT_ALLOW' && (args ?? []).length === 0).flatMap((rule) => rule.names))
  const plain = defaultSeccompProfile({ arch: 'amd64', capabilities: [], kernel: [6, 1] })
  assert.equal(plain.defaultAction, 'SCMP_ACT_ERRNO')
  assert.deepEqual(plain.architectures, ['SCMP_ARCH_X86_64', 'SCMP_ARCH_X86', 'SCMP_ARCH_X32'])
  for (const name of ['read', 'execve', 'openat2', 'ptrace', 'arch_prctl']) assert.ok(names(plain).has(name), name)
  for (const name of ['mount', 'unshare', 'setns', 'bpf', 'keyctl', 'add_key', 'kexec_load', 'io_uring_setup', 'userfaultfd', 'clone', 'clone3', 'socket', 'chroot', 'reboot', 'open_by_handle_at']) {
    assert.ok(!names(plain).has(name), name)
  }
  assert.deepEqual(plain.syscalls?.find((rule) => rule.names.includes('clone')), { names: ['clone'], action: 'SCMP_ACT_ALLOW', args: [{ index: 0, value: 0x7e020000, valueTwo: 0, op: 'SCMP_CMP_MASKED_EQ' }] })
  assert.deepEqual(plain.syscalls?.find((rule) => rule.names.includes('clone3')), { names: ['clone3'], action: 'SCMP_ACT_ERRNO', errnoRet: 38 })
  const families = plain.syscalls?.filter((rule) => rule.names.includes('socket')).map(({ args }) => args?.[0])
  const passes = (family: number): boolean => families?.some((arg) => arg !== undefined &&
    (arg.op === 'SCMP_CMP_LT' ? family < arg.value : arg.op === 'SCMP_CMP_EQ' ? family === arg.value : family > arg.value)) ?? false
  assert.deepEqual([1, 2, 10, 16, 38, 39, 40, 41].map(passes), [true, true, true, true, false, true, false, true])
  const admin = names(defaultSeccompProfile({ arch: 'amd64', capabilities: ['CAP_SYS_ADMIN', 'CAP_SYS_CHROOT'], kernel: [4, 7] }))
  for (const name of ['mount', 'clone', 'clone3', 'chroot']) assert.ok(admin.has(name), name)
  assert.ok(!admin.has('ptrace'))
  const arm = defaultSeccompProfile({ arch: 'arm64', capabilities: [], kernel: [6, 1] })
  assert.deepEqual(arm.architectures, ['SCMP_ARCH_ARM', 'SCMP_ARCH_AARCH64'])
  assert.ok(names(arm).has('sync_file_range2') && !names(arm).has('arch_prctl'))
  assert.equal(defaultSeccompProfile({ arch: 's390x', capabilities: [], kernel: [6, 1] }).syscalls?.find((rule) => rule.names.includes('clone'))?.args?.[0]?.index, 1)
})

test('seccomp: a Localhost profile in the OCI form and in Docker\'s', () => {
  const facts = { arch: 'amd64', capabilities: ['CAP_SYS_ADMIN'], kernel: [5, 10] as const }
  const of = (profile: object): ReturnType<typeof localhostSeccompProfile> => localhostSeccompProfile('p.json', JSON.stringify(profile), facts)
  assert.deepEqual(of({ defaultAction: 'SCMP_ACT_LOG' }), { defaultAction: 'SCMP_ACT_LOG', syscalls: [] })
  const oci = {
    defaultAction: 'SCMP_ACT_ERRNO', defaultErrnoRet: 1, architectures: ['SCMP_ARCH_X86_64'], flags: ['SECCOMP_FILTER_FLAG_LOG'],
    syscalls: [{ names: ['clone'], action: 'SCMP_ACT_ALLOW', errnoRet: 2, args: [{ index: 0, value: 3, valueTwo: 4, op: 'SCMP_CMP_MASKED_EQ' }] }],
  }
  assert.deepEqual(of(oci), oci)
  const rule = (name: string, filter: object): object => ({ names: [name], action: 'SCMP_ACT_ALLOW', ...filter })
  const docker = of({
    defaultAction: 'SCMP_ACT_ERRNO', archMap: [{ architecture: 'SCMP_ARCH_X86_64', subArchitectures: ['SCMP_ARCH_X86'] }, { architecture: 'SCMP_ARCH_AARCH64' }],
    syscalls: [
      rule('mount', { includes: { caps: ['CAP_SYS_ADMIN'] } }), rule('chroot', { includes: { caps: ['CAP_SYS_CHROOT'] } }), rule('clone3', { excludes: { caps: ['CAP_SYS_ADMIN'] } }),
      rule('arm', { includes: { arches: ['arm64'] } }), rule('x86', { includes: { arches: ['amd64', 'x32'] } }), rule('new', { includes: { minKernel: '6.1' } }), rule('old', { includes: { minKernel: '4.8' } }),
      { name: 'legacy', action: 'SCMP_ACT_ALLOW', excludes: { minKernel: '6.0' } },
    ],
  })
  assert.deepEqual(docker.architectures, ['SCMP_ARCH_X86_64', 'SCMP_ARCH_X86'])
  assert.deepEqual(docker.syscalls?.flatMap(({ names }) => names), ['mount', 'x86', 'old', 'legacy'])
  const big = localhostSeccompProfile('p', '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["x"],"action":"SCMP_ACT_KILL","args":[{"index":0,"value":18446744073709551615,"op":"SCMP_CMP_EQ"}]}]}', facts)
  assert.equal(big.syscalls?.[0]?.args?.[0]?.value, 18446744073709551615n)
  const bad: [object, RegExp][] = [
    [{}, /defaultAction is not an action/], [{ defaultAction: 'ALLOW' }, /defaultAction/], [{ defaultAction: 'SCMP_ACT_LOG', syscalls: {} }, /syscalls is not an array/],
    [{ defaultAction: 'SCMP_ACT_LOG', syscalls: [{ names: [], action: 'SCMP_ACT_ALLOW' }] }, /syscalls\[0\] names no system call/],
    [{ defaultAction: 'SCMP_ACT_LOG', syscalls: [{ names: ['a'], action: 'X' }] }, /syscalls\[0\]\.action/],
    [{ defaultAction: 'SCMP_ACT_LOG', syscalls: [{ names: ['a'], action: 'SCMP_ACT_LOG', args: [{ index: 6, value: 0, op: 'SCMP_CMP_EQ' }] }] }, /index is not in 0\.\.5/],
    [{ defaultAction: 'SCMP_ACT_LOG', syscalls: [{ names: ['a'], action: 'SCMP_ACT_LOG', args: [{ index: 0, value: -1, op: 'SCMP_CMP_EQ' }] }] }, /value is not a number/],
  ]
  for (const [profile, message] of bad) assert.throws(() => of(profile), refusal(Code.INVALID_ARGUMENT, message))
  assert.throws(() => localhostSeccompProfile('p', 'nope', facts), refusal(Code.INVALID_ARGUMENT, /seccomp profile "p": it is not JSON/))
})

test('AppArmor: both fields, what is loaded, and nodes without it', () => {
  const of = (apparmor: object | null, string = '', changes: object = {}): string | undefined => apparmorProfile({
    apparmor: apparmor === null ? null : { profile_type: Type.RuntimeDefault, localhost_ref: '', ...apparmor }, apparmorProfile: string, privileged: false, unset: 'runtime-default', hostFacts, settings, ...changes,
  })
  assert.equal(of(null), 'cri-containerd.apparmor.d')
  assert.equal(of(null, '', { unset: 'unconfined' }), undefined)
  assert.equal(of({ profile_type: Type.Unconfined }), undefined)
  assert.equal(of({ profile_type: Type.Localhost, localhost_ref: 'custom' }), 'custom')
  assert.equal(of(null, 'localhost/custom'), 'custom')
  assert.equal(of(null, 'unconfined'), undefined)
  assert.equal(of(null, '', { privileged: true }), undefined)
  assert.equal(of(null, 'localhost/custom', { privileged: true }), 'custom')
  assert.throws(() => of(null, 'localhost/absent'), refusal(Code.FAILED_PRECONDITION, /"absent" is not loaded/))
  const off = { hostFacts: { ...hostFacts, apparmorEnabled: false } }
  assert.equal(of(null, '', off), undefined)
  assert.equal(of({ profile_type: Type.Unconfined }, '', off), undefined)
  assert.throws(() => of({}, '', off), refusal(Code.FAILED_PRECONDITION, /AppArmor is not available/))
  assert.throws(() => of(null, 'localhost/custom', { settings: { ...settings, disableApparmor: true } }), refusal(Code.FAILED_PRECONDITION, /disable_apparmor = true/))
})

test('SELinux: labels are passed through, a missing label is refused, a privileged pod runs without', () => {
  const selinux = { processLabel: 'system_u:system_r:container_t:s0:c1,c2', mountLabel: 'system_u:object_r:container_file_t:s0:c1,c2' }
  for (const spec of [containerSpec(containerInput({ facts: { selinuxEnabled: true } }, { selinux })), sandboxSpec(sandboxInput({ facts: { selinuxEnabled: true } }, { selinux }))]) {
    assert.equal(spec.process?.selinuxLabel, selinux.processLabel)
    assert.equal(spec.linux?.mountLabel, selinux.mountLabel)
  }
  assert.throws(() => containerSpec(containerInput({ facts: { selinuxEnabled: true } })), refusal(Code.INTERNAL, /no label/))
  const privileged = sandboxSpec(sandboxInput({ pod: { linux: { security_context: { privileged: true } } }, facts: { selinuxEnabled: true } }, { selinux }))
  assert.deepEqual([privileged.process?.selinuxLabel, privileged.linux?.mountLabel], [undefined, selinux.mountLabel])
})
