import assert from 'node:assert/strict'
import test from 'node:test'
import { Code } from '../errors/cri-error.ts'
import { MountPropagation } from '../generated/cri.ts'
import { passThroughAnnotations } from './annotations.ts'
import { cgroupDriverMismatch, cgroupsPath } from './cgroups-path.ts'
import { containerSpec } from './container-spec.ts'
import { safeImageLabels } from './image-labels.ts'
import type { ResolvedMount, RuntimeView } from './input.ts'
import { ociProcessAny, ociSpecAny, parseOciJson, parseOciSpec } from './json.ts'
import { containerInput, refusal } from './spec-fixtures.ts'
import type { OciSpec } from './types.ts'

const { PROPAGATION_BIDIRECTIONAL: BIDIRECTIONAL, PROPAGATION_HOST_TO_CONTAINER: HOST_TO_CONTAINER } = MountPropagation
const mount = (containerPath: string, changes: Partial<ResolvedMount> = {}): ResolvedMount => ({ origin: 'cri', containerPath, hostPath: `/host${containerPath}`, readonly: false, ...changes })
const withMounts = (mounts: ResolvedMount[], runtime: Partial<RuntimeView> = {}): OciSpec => containerSpec(containerInput({ runtime }, { mounts }))

test('cgroupsPath: containerd\'s rule, and what the systemd driver cannot do', () => {
  const path = (cgroupParent: string, systemdCgroup: boolean): string => cgroupsPath({ cgroupParent, systemdCgroup, id: 'x' })
  assert.equal(path('/kubepods/burstable/pod1', false), '/kubepods/burstable/pod1/x')
  assert.equal(path('/kubepods/a/', false), '/kubepods/a/x')
  assert.throws(() => path('/kubepods/../a/', false), refusal(Code.INVALID_ARGUMENT, /must not contain/))
  assert.equal(path('relative', false), 'relative/x')
  assert.equal(path('/kubepods.slice/kubepods-pod1.slice', true), 'kubepods-pod1.slice:cri-containerd:x')
  assert.equal(path('/kubepods.slice/', true), 'kubepods.slice:cri-containerd:x')
  assert.equal(path('/kubepods.slice', false), 'kubepods.slice:cri-containerd:x')
  assert.equal(path('', false), '/k8s.io/x')
  assert.equal(path('', true), 'system.slice:cri-containerd:x')
  assert.throws(() => path('/kubepods', true), refusal(Code.INVALID_ARGUMENT, /not a systemd slice.*cgroupDriver/))
  assert.match(cgroupDriverMismatch('/kubepods.slice', false) ?? '', /SystemdCgroup = true/)
  assert.deepEqual([cgroupDriverMismatch('/kubepods.slice', true), cgroupDriverMismatch('/kubepods', false), cgroupDriverMismatch('', false)], [undefined, undefined, undefined])
})

test('mounts: shallow first, the request before the service before the defaults', () => {
  const spec = withMounts([
    mount('/a/b/c'), mount('/etc/hosts', { origin: 'host', hostPath: '/pod/hosts' }), mount('/etc/resolv.conf', { origin: 'host', hostPath: '/pod/resolv.conf' }),
    mount('/dev/shm', { origin: 'host', hostPath: '/pod/shm' }), mount('/a'), mount('/etc/hosts/', { hostPath: '/kubelet/hosts' }), mount('/sys/fs/cgroup'),
  ])
  assert.deepEqual(spec.mounts?.map(({ destination, source }) => `${destination}=${source}`), [
    '/proc=proc', '/dev=tmpfs', '/dev/pts=devpts', '/dev/mqueue=mqueue', '/sys=sysfs',
    '/a=/host/a', '/etc/hosts=/kubelet/hosts', '/etc/resolv.conf=/pod/resolv.conf', '/dev/shm=/pod/shm', '/a/b/c=/host/a/b/c', '/sys/fs/cgroup=/host/sys/fs/cgroup',
  ])
  assert.deepEqual(withMounts([mount('/dev')]).mounts?.map(({ destination }) => destination), ['/proc', '/sys', '/sys/fs/cgroup', '/dev'])
  assert.equal(withMounts([mount('x/../y', { hostPath: '/h' })]).mounts?.at(-1)?.destination, '/y')
  for (const path of ['/', '', '/x/..']) assert.throws(() => withMounts([mount(path)]), refusal(Code.INVALID_ARGUMENT, /a path below \//), path)
})

test('mounts: read-only, recursively so, propagation, id mappings', () => {
  const options = (changes: Partial<ResolvedMount>, runtime: Partial<RuntimeView> = {}): string | undefined => withMounts([mount('/a', changes)], runtime).mounts?.at(-1)?.options?.join()
  assert.equal(options({}), 'rbind,rprivate,rw')
  assert.equal(options({ readonly: true }), 'rbind,rprivate,ro')
  assert.equal(options({ readonly: true, recursiveReadOnly: true }), 'rbind,rprivate,rro')
  assert.equal(options({ propagation: BIDIRECTIONAL }), 'rbind,rshared,rw')
  assert.equal(options({ propagation: HOST_TO_CONTAINER, readonly: true }), 'rbind,rslave,ro')
  assert.throws(() => options({ propagation: 9 }), refusal(Code.INVALID_ARGUMENT, /propagation 9/))
  assert.throws(() => options({ recursiveReadOnly: true }), refusal(Code.INVALID_ARGUMENT, /only with readonly/))
  assert.throws(() => options({ readonly: true, recursiveReadOnly: true, propagation: HOST_TO_CONTAINER }), refusal(Code.INVALID_ARGUMENT, /private/))
  assert.throws(() => options({ readonly: true, recursiveReadOnly: true }, { features: {} }), refusal(Code.FAILED_PRECONDITION, /^RROUnsupported: /))
  const rootfs = (...modes: number[]): string | undefined => withMounts(modes.map((propagation, index) => mount(`/m${index}`, { propagation }))).linux?.rootfsPropagation
  assert.deepEqual([rootfs(0), rootfs(HOST_TO_CONTAINER, 0), rootfs(BIDIRECTIONAL, HOST_TO_CONTAINER), rootfs(HOST_TO_CONTAINER, BIDIRECTIONAL)], [undefined, 'rslave', 'rshared', 'rshared'])
  const mapped = { uidMappings: [{ host_id: 1, container_id: 0, length: 2 }], gidMappings: [{ host_id: 3, container_id: 0, length: 4 }] }
  assert.deepEqual(withMounts([mount('/a', mapped)]).mounts?.at(-1)?.gidMappings, [{ containerID: 0, hostID: 3, size: 4 }])
  assert.throws(() => withMounts([mount('/a', mapped)], { features: {} }), refusal(Code.FAILED_PRECONDITION, /id-mapped/))
})

test('the cgroup mount follows cgroup_writable, the namespace the cgroup mode', () => {
  const of = (changes: object): [string | undefined, boolean | undefined] => {
    const spec = containerSpec(containerInput(changes))
    return [spec.mounts?.find(({ type }) => type === 'cgroup')?.options?.at(-1), spec.linux?.namespaces?.some(({ type }) => type === 'cgroup')]
  }
  assert.deepEqual(of({}), ['ro', true])
  assert.deepEqual(of({ runtime: { cgroupWritable: true } }), ['rw', true])
  assert.deepEqual(of({ facts: { cgroupMode: 'legacy' } }), ['ro', false])
  assert.deepEqual(of({ facts: { cgroupMode: 'hybrid' } }), ['ro', false])
})

test('pass-through annotations match as Go\'s path.Match does', () => {
  const passes = (pattern: string, key: string): boolean => key in passThroughAnnotations({ [key]: 'v' }, [pattern])
  const cases: [string, string, boolean][] = [
    ['a.io/x', 'a.io/x', true], ['a.io/*', 'a.io/x', true], ['a.io/*', 'a.io/x/y', false], ['*', 'a.io/x', false], ['*', 'abc', true], ['a.*.io', 'a.b.c.io', true], ['a.io', 'aXio', false],
    ['a?c', 'abc', true], ['a?c', 'a/c', false], ['a[bc]d', 'acd', true], ['a[^bc]d', 'acd', false], ['a[b-d]e', 'ace', true], ['a[', 'a[', false], ['a\\*', 'a*', true], ['a\\*', 'ab', false],
    ['io.katacontainers.*', 'io.katacontainers.config.x', true], ['**', 'ab', true], ['a\\', 'a', false], ['[z-a]', 'b', false],
  ]
  for (const [pattern, key, expected] of cases) assert.equal(passes(pattern, key), expected, `${pattern} ~ ${key}`)
  const spec = containerSpec(containerInput({ pod: { annotations: { 'a.io/x': '1' } }, runtime: { podAnnotations: ['a.io/*'] } }))
  assert.equal(spec.annotations?.['a.io/x'], '1')
})

test('safeImageLabels keeps an image from steering containerd', () => {
  const labels = {
    'org.opencontainers.image.title': 'app', 'containerd.io/gc.root': 'x', 'containerd.io/restart.status': 'running', 'io.cri-containerd.kind': 'sandbox', 'io.cri-containerd': 'x',
    'io.cri-containerdx': 'x', 'x.containerd.io/a': 'kept', fits: 'x'.repeat(4092), big: 'x'.repeat(4094), wide: 'ä'.repeat(2047),
  }
  assert.deepEqual(Object.keys(safeImageLabels(labels)), ['org.opencontainers.image.title', 'x.containerd.io/a', 'fits'])
})

test('a base spec keeps what the request does not speak of, and is not changed', () => {
  const text = '{"ociVersion":"1.0.2","process":{"cwd":"/","user":{"uid":0,"gid":0},"env":["A=1"],"rlimits":[{"type":"RLIMIT_NOFILE","hard":18446744073709551615,"soft":1024}],' +
    '"capabilities":{"bounding":["CAP_KILL"],"effective":["CAP_KILL"],"permitted":["CAP_KILL"],"inheritable":["CAP_KILL"]}},"hooks":{"prestart":[]},"annotations":{"a":"b"},' +
    '"mounts":[{"destination":"/proc","type":"proc","source":"proc"},{"destination":"/run","type":"tmpfs"},{"destination":"/extra","type":"tmpfs"}],' +
    '"linux":{"cgroupsPath":"/wrong","namespaces":[{"type":"mount"}],"seccomp":{"defaultAction":"SCMP_ACT_LOG"},"resources":{"pids":{"limit":100}}}}'
  const baseSpec = parseOciJson(text) as OciSpec
  const before = structuredClone(baseSpec)
  const spec = containerSpec(containerInput({ runtime: { baseSpec } }))
  assert.deepEqual(baseSpec, before)
  assert.equal(spec.ociVersion, '1.0.2')
  assert.deepEqual(spec.hooks, { prestart: [] })
  assert.equal(spec.process?.rlimits?.[0]?.hard, 18446744073709551615n)
  assert.deepEqual(spec.process?.capabilities, { bounding: ['CAP_KILL'], effective: ['CAP_KILL'], permitted: ['CAP_KILL'] })
  assert.ok(spec.process?.env?.includes('A=1'))
  assert.equal(spec.linux?.cgroupsPath, '/k8s.io/c1')
  assert.deepEqual(spec.linux?.resources?.pids, { limit: 100 })
  assert.deepEqual(spec.linux?.seccomp, { defaultAction: 'SCMP_ACT_LOG' })
  assert.deepEqual(spec.linux?.namespaces?.map(({ type }) => type).toSorted(), ['cgroup', 'ipc', 'mount', 'network', 'pid', 'uts'])
  assert.deepEqual(spec.mounts?.map(({ destination }) => destination), ['/proc', '/extra', '/sys/fs/cgroup'])
  assert.match(ociSpecAny(spec).value.toString(), /"hard":18446744073709551615,/)
})

test('ociSpecAny: containerd\'s type URL, and JSON that comes back the same', () => {
  const spec = containerSpec(containerInput({ config: { linux: { resources: { memory_limit_in_bytes: '9223372036854775807', cpu_quota: '-1' } } } }))
  const any = ociSpecAny(spec)
  assert.equal(any.type_url, 'types.containerd.io/opencontainers/runtime-spec/1/Spec')
  assert.match(any.value.toString(), /"limit":9223372036854775807/)
  assert.deepEqual(parseOciSpec(any.value), spec)
  assert.equal(ociProcessAny({ cwd: '/', user: { uid: 0, gid: 0 } }).type_url, 'types.containerd.io/opencontainers/runtime-spec/1/Process')
  assert.deepEqual(parseOciJson('{"a":1.5,"b":-9223372036854775808,"c":"9223372036854775807","d":1e300}'), { a: 1.5, b: -9223372036854775808n, c: '9223372036854775807', d: 1e300 })
})
