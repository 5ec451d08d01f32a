import assert from 'node:assert/strict'
import test from 'node:test'
import { Code, CriError } from '../../errors/cri-error.ts'
import { containerSpec } from '../container-spec.ts'
import { containerConfig, containerInput, refusal } from '../spec-fixtures.ts'
import type { OciSpec } from '../types.ts'
import { applyCdiEdits, type CdiHostNode, hostNodePaths } from './apply.ts'
import { requestedCdiDevices } from './names.ts'
import { parseCdiSpecification } from './parse.ts'
import { CdiRegistry } from './registry.ts'
import type { CdiEdits } from './specification.ts'

const parse = (changes: object): ReturnType<typeof parseCdiSpecification> => parseCdiSpecification({
  cdiVersion: '1.1.0', kind: 'vendor.com/gpu', devices: [{ name: '0', containerEdits: { env: ['A=1'] } }], ...changes,
}, '/etc/cdi/x.json')
const editsOf = (containerEdits: object): CdiEdits => {
  const edits = parse({ devices: [{ name: 'd', containerEdits }] }).devices.get('d')
  assert.ok(edits)
  return edits
}

test('the devices that a container asks for: both ways, each once', () => {
  const of = (names: string[], annotations: Record<string, string> = {}): string[] => requestedCdiDevices(containerConfig({ CDI_devices: names.map((name) => ({ name })), annotations }))
  assert.deepEqual(of([]), [])
  assert.deepEqual(of(['v.com/c=1', 'v.com/c=1', 'v.com/c=all'], { 'cdi.k8s.io/b': 'v.com/c=2,v.com/c=1', 'cdi.k8s.io/a': 'v.com/x.y=a:b', 'other.io/cdi': 'nonsense' }), ['v.com/c=1', 'v.com/c=all', 'v.com/x.y=a:b', 'v.com/c=2'])
  for (const name of ['', 'gpu', 'v.com/c', 'v.com=1', '/c=1', 'v.com/=1', 'v.com/c=', '1v/c=1', 'v.com-/c=1', 'v.com/c=-1', 'v.com/c=1/..', 'v.com/c=a b', '../x/c=1', 'v.com/c=1\n']) {
    assert.throws(() => of([name]), refusal(Code.INVALID_ARGUMENT, /not the name of a CDI device/), name)
    assert.throws(() => of([], { 'cdi.k8s.io/x': name }), refusal(Code.INVALID_ARGUMENT, /annotation cdi\.k8s\.io\/x/), name)
  }
})

test('a specification with everything in it', () => {
  const containerEdits = {
    env: ['A=b=c'],
    deviceNodes: [{ path: '/dev/x', hostPath: '/dev/y', type: 'c', major: 1, minor: 2, fileMode: 0o660, permissions: 'rw', uid: 3, gid: 4 }, { path: '/dev/z' }],
    netDevices: [{ hostInterfaceName: 'ib0', name: 'net1' }],
    hooks: [{ hookName: 'createContainer', path: '/usr/bin/hook', args: ['hook', '-v'], env: ['H=1'], timeout: 5 }],
    mounts: [{ hostPath: '/lib/x', containerPath: '/lib/x', options: ['ro', 'bind'], type: 'bind' }],
    intelRdt: { closID: 'gold', l3CacheSchema: 'L3:0=f', memBwSchema: 'MB:0=20', schemata: ['L3:0=f'], enableMonitoring: true },
    additionalGids: [5],
  }
  const spec = parse({ annotations: { a: 'b' }, containerEdits, devices: [{ name: '0', annotations: { c: 'd' }, containerEdits }] })
  assert.equal(spec.kind, 'vendor.com/gpu')
  assert.deepEqual(spec.edits, containerEdits)
  assert.deepEqual(spec.devices.get('0'), containerEdits)
  assert.deepEqual(parse({ containerEdits: null }).edits, { env: [], deviceNodes: [], netDevices: [], hooks: [], mounts: [], additionalGids: [] })
})

test('a specification that is wrong is refused with the place', () => {
  const cases: [object, RegExp][] = [
    [{ cdiVersion: '2.0.0' }, /cdiVersion "2\.0\.0" is not supported; there are 0\.3\.0, .*1\.1\.0/], [{ cdiVersion: undefined }, /cdiVersion is not a string/], [{ kind: 'gpu' }, /kind "gpu" does not look like/],
    [{ kind: '../x/gpu' }, /kind/], [{ devices: [] }, /devices is empty/], [{ devices: {} }, /devices is not a list/], [{ unknown: 1 }, /the field "unknown"/], [{ annotations: { a: 1 } }, /annotations\.a is not a string/],
    [{ devices: [{ name: 'a', containerEdits: {} }] }, /containerEdits is empty/], [{ devices: [{ name: 'a', containerEdits: { env: ['A=1'] } }, { name: 'a', containerEdits: { env: ['A=1'] } }] }, /"a" twice/],
    [{ devices: [{ name: 'a/b', containerEdits: { env: ['A=1'] } }] }, /not a device name/], [{ containerEdits: { env: ['A'] } }, /containerEdits\.env\[0\] "A" is not NAME=VALUE/],
    [{ containerEdits: { env: ['A=\0'] } }, /NUL/], [{ containerEdits: { deviceNode: [] } }, /the field "deviceNode"/], [{ containerEdits: { deviceNodes: [{ path: 'dev/x' }] } }, /deviceNodes\[0\]\.path "dev\/x" is not an absolute path/],
    [{ containerEdits: { deviceNodes: [{ path: '/dev/x', type: 'd' }] } }, /type "d" is none of/], [{ containerEdits: { deviceNodes: [{ path: '/dev/x', permissions: 'rx' }] } }, /permissions/],
    [{ containerEdits: { deviceNodes: [{ path: '/dev/x', major: 1.5 }] } }, /major is not a whole number/], [{ containerEdits: { hooks: [{ hookName: 'start', path: '/x' }] } }, /hookName "start" is none of/],
    [{ containerEdits: { hooks: [{ hookName: 'poststop', path: 'x' }] } }, /hooks\[0\]\.path/], [{ containerEdits: { mounts: [{ hostPath: '', containerPath: '/x' }] } }, /hostPath is empty/],
    [{ containerEdits: { mounts: [{ hostPath: '/x', containerPath: 'x' }] } }, /containerPath/], [{ containerEdits: { intelRdt: { closID: '../x' } } }, /closID/], [{ containerEdits: { additionalGids: [-1] } }, /additionalGids\[0\]/],
    [{ containerEdits: { netDevices: [{ hostInterfaceName: 'a', name: 'x' }, { hostInterfaceName: 'b', name: 'x' }] } }, /one name twice/],
  ]
  for (const [changes, message] of cases) assert.throws(() => parse(changes), refusal(Code.INVALID_ARGUMENT, message), JSON.stringify(changes))
  for (const document of [null, [], 'x', 5]) assert.throws(() => parseCdiSpecification(document, '/x'), refusal(Code.INVALID_ARGUMENT, /CDI specification \/x: is not an object/))
})

test('what a version does not have yet is refused, and taken from the version that has it', () => {
  const cases: [string, string, object][] = [
    ['1.1.0', '1.0.0', { containerEdits: { netDevices: [{ hostInterfaceName: 'a', name: 'b' }] } }], ['1.1.0', '1.0.0', { containerEdits: { intelRdt: { enableMonitoring: true } } }],
    ['0.7.0', '0.6.0', { containerEdits: { intelRdt: { closID: 'x' } } }], ['0.7.0', '0.6.0', { containerEdits: { additionalGids: [1] } }], ['0.6.0', '0.5.0', { annotations: { a: 'b' } }],
    ['0.6.0', '0.5.0', { kind: 'vendor.com/x.y' }], ['0.5.0', '0.4.0', { containerEdits: { deviceNodes: [{ path: '/dev/x', hostPath: '/dev/y' }] } }],
    ['0.5.0', '0.4.0', { devices: [{ name: '0', containerEdits: { env: ['A=1'] } }] }], ['0.4.0', '0.3.0', { containerEdits: { mounts: [{ hostPath: '/x', containerPath: '/x', type: 'bind' }] } }],
  ]
  const letter = { devices: [{ name: 'a', containerEdits: { env: ['A=1'] } }] }
  for (const [has, lacks, changes] of cases) {
    assert.doesNotThrow(() => parse({ ...letter, ...changes, cdiVersion: has }))
    assert.throws(() => parse({ ...letter, ...changes, cdiVersion: lacks }), refusal(Code.INVALID_ARGUMENT, new RegExp(`cdiVersion is ${lacks}, but .* came with ${has}`)), JSON.stringify(changes))
  }
  assert.doesNotThrow(() => parse({ ...letter, cdiVersion: '0.3.0' }))
  assert.doesNotThrow(() => parse({ ...letter, cdiVersion: 'v0.8.0' }))
})

test('devices by name: a later directory wins, two files of one directory spoil it', () => {
  const source = (path: string, priority: number, value: string, names = ['0']) =>
    ({ path, priority, specification: parse({ containerEdits: { env: [`SPEC=${path}`] }, devices: names.map((name) => ({ name, containerEdits: { env: [`V=${value}`] } })) }) })
  const envs = (registry: CdiRegistry, ...names: string[]): string[][] => registry.resolve(names).map(({ env }) => [...env])
  const layered = new CdiRegistry([source('/etc/cdi/a', 0, 'static', ['0', '1']), source('/run/cdi/b', 1, 'dynamic')], ['/etc/cdi', '/run/cdi'], [])
  assert.deepEqual(envs(layered, 'vendor.com/gpu=0', 'vendor.com/gpu=1'), [['SPEC=/run/cdi/b'], ['V=dynamic'], ['SPEC=/etc/cdi/a'], ['V=static']])
  const both = new CdiRegistry([source('/a', 0, 'x', ['0', '1'])], ['/'], [])
  assert.deepEqual(envs(both, 'vendor.com/gpu=0', 'vendor.com/gpu=1'), [['SPEC=/a'], ['V=x'], ['V=x']])
  const clash = new CdiRegistry([source('/a', 1, 'a'), source('/b', 1, 'b'), source('/c', 0, 'c')], ['/'], [])
  assert.deepEqual(clash.conflicts, [{ device: 'vendor.com/gpu=0', paths: ['/a', '/b'] }])
  assert.throws(() => clash.resolve(['vendor.com/gpu=0']), refusal(Code.FAILED_PRECONDITION, /\/a and \/b, which have the same priority/))
  const overruled = new CdiRegistry([source('/a', 0, 'a'), source('/b', 0, 'b'), source('/c', 1, 'c')], ['/'], [])
  assert.deepEqual(envs(overruled, 'vendor.com/gpu=0'), [['SPEC=/c'], ['V=c']])
  assert.throws(() => layered.resolve(['vendor.com/gpu=0', 'vendor.com/gpu=7', 'other.com/x=1']), (error) => error instanceof CriError && error.reason === 'UnknownCdiDevice' &&
    /in \/etc\/cdi, \/run\/cdi has the devices vendor\.com\/gpu=7, other\.com\/x=1; of this kind there are vendor\.com\/gpu=0, vendor\.com\/gpu=1/.test(error.message))
  assert.throws(() => new CdiRegistry([], ['/etc/cdi'], [{ path: '/etc/cdi/x.json', message: '/etc/cdi/x.json is broken' }]).resolve(['v/c=1']), refusal(Code.INVALID_ARGUMENT, /cannot be used: \/etc\/cdi\/x\.json is broken/))
})

const plain: OciSpec = {
  ociVersion: '1.1.0', process: { cwd: '/', user: { uid: 0, gid: 0, additionalGids: [0] }, env: ['PATH=/bin', 'A=0'] },
  mounts: [{ destination: '/proc', type: 'proc' }, { destination: '/a/b', source: '/old' }],
  linux: { namespaces: [{ type: 'mount' }], devices: [{ path: '/dev/x', type: 'c', major: 9, minor: 9 }], resources: { devices: [{ allow: false, access: 'rwm' }] } },
}
const applied = (containerEdits: object, nodes: Record<string, CdiHostNode | undefined> = {}, spec = plain): OciSpec => applyCdiEdits(spec, { edits: [editsOf(containerEdits)], nodes: new Map(Object.entries(nodes)) })

test('edits: variables and groups', () => {
  const { process } = applied({ env: ['A=1', 'B=2'], additionalGids: [0, 7, 7] })
  assert.deepEqual(process?.env, ['PATH=/bin', 'A=1', 'B=2'])
  assert.deepEqual(process?.user.additionalGids, [0, 7])
  const before = structuredClone(plain)
  applied({ env: ['A=1'], mounts: [{ hostPath: '/x', containerPath: '/y' }], hooks: [{ hookName: 'poststop', path: '/x' }] })
  assert.deepEqual(plain, before)
})

test('edits: device nodes, from the specification and from the node', () => {
  const host: CdiHostNode = { type: 'c', major: 1, minor: 3, fileMode: 0o666 }
  const full = applied({ deviceNodes: [{ path: '/dev/x', type: 'b', major: 7, minor: 0, permissions: 'r', fileMode: 0o100640, uid: 1, gid: 2 }] })
  assert.deepEqual(full.linux?.devices, [{ path: '/dev/x', type: 'b', major: 7, minor: 0, fileMode: 0o640, uid: 1, gid: 2 }])
  assert.deepEqual(full.linux?.resources?.devices, [{ allow: false, access: 'rwm' }, { allow: true, type: 'b', major: 7, minor: 0, access: 'r' }])
  const looked = applied({ deviceNodes: [{ path: '/dev/y', hostPath: '/dev/host' }] }, { '/dev/host': host })
  assert.deepEqual(looked.linux?.devices?.at(-1), { path: '/dev/y', type: 'c', major: 1, minor: 3, fileMode: 0o666 })
  assert.deepEqual(looked.linux?.resources?.devices?.at(-1), { allow: true, type: 'c', major: 1, minor: 3, access: 'rwm' })
  assert.deepEqual(hostNodePaths([editsOf({ deviceNodes: [{ path: '/dev/y', hostPath: '/dev/host' }, { path: '/dev/z' }, { path: '/dev/z' }] })]), ['/dev/host', '/dev/z'])
  const user = { ...plain, process: { cwd: '/', user: { uid: 1000, gid: 100 } } }
  assert.deepEqual(applied({ deviceNodes: [{ path: '/dev/y' }] }, { '/dev/y': host }, user).linux?.devices?.at(-1), { path: '/dev/y', type: 'c', major: 1, minor: 3, fileMode: 0o666, uid: 1000, gid: 100 })
  const none = applied({ deviceNodes: [{ path: '/dev/y', permissions: 'none' }, { path: '/dev/pipe', type: 'p' }] }, { '/dev/y': host })
  assert.deepEqual([none.linux?.devices?.length, none.linux?.resources?.devices], [3, [{ allow: false, access: 'rwm' }]])
  assert.throws(() => applied({ deviceNodes: [{ path: '/dev/gone' }] }), refusal(Code.FAILED_PRECONDITION, /\/dev\/gone does not exist on this node/))
  assert.throws(() => applied({ deviceNodes: [{ path: '/dev/y', type: 'b' }] }, { '/dev/y': host }), refusal(Code.FAILED_PRECONDITION, /of type c on this node, its specification says b/))
})

test('edits: mounts, hooks, net devices, RDT', () => {
  const spec = applied({ mounts: [{ hostPath: '/deep', containerPath: '/a/b/c', options: ['ro', 'bind'] }, { hostPath: '/new', containerPath: '/a/b/', options: ['rbind'], type: 'bind' }, { hostPath: '/top', containerPath: '/top' }] })
  assert.deepEqual(spec.mounts, [
    { destination: '/proc', type: 'proc' }, { destination: '/top', source: '/top', options: [] }, { destination: '/a/b/', source: '/new', type: 'bind', options: ['rbind'] }, { destination: '/a/b/c', source: '/deep', options: ['ro', 'bind'] },
  ])
  const mapped = { ...plain, linux: { namespaces: [{ type: 'user' as const }] } }
  const options = (mount: object): string[] | undefined => applied({ mounts: [{ hostPath: '/x', containerPath: '/y', ...mount }] }, {}, mapped).mounts?.find(({ destination }) => destination === '/y')?.options
  assert.deepEqual([options({ options: ['bind'] }), options({ options: ['rbind'] }), options({ type: 'bind' }), options({ options: ['rbind', 'idmap'] }), options({ type: 'tmpfs' })],
    [['bind', 'idmap'], ['rbind', 'ridmap'], ['idmap'], ['rbind', 'idmap'], []])
  const hooked = applied({ hooks: [{ hookName: 'prestart', path: '/a' }, { hookName: 'poststop', path: '/b', args: ['b'] }] }, {}, { ...plain, hooks: { prestart: [{ path: '/old' }] } })
  assert.deepEqual(hooked.hooks, { prestart: [{ path: '/old' }, { path: '/a' }], poststop: [{ path: '/b', args: ['b'] }] })
  const { linux } = applied({ netDevices: [{ hostInterfaceName: 'ib0', name: 'net1' }], intelRdt: { closID: 'gold' } })
  assert.deepEqual([linux?.netDevices, linux?.intelRdt], [{ ib0: { name: 'net1' } }, { closID: 'gold' }])
})

test('a container gets what was injected, and is refused where the node injects nothing', () => {
  const config = { CDI_devices: [{ name: 'vendor.com/gpu=0' }] }
  const spec = containerSpec(containerInput({ config }, { cdi: { edits: [editsOf({ env: ['GPU=0'] })], nodes: new Map() } }))
  assert.ok(spec.process?.env?.includes('GPU=0'))
  assert.throws(() => containerSpec(containerInput({ config })), refusal(Code.FAILED_PRECONDITION, /vendor\.com\/gpu=0.*enable_cdi = false/))
  assert.deepEqual(containerSpec(containerInput({}, { cdi: { edits: [], nodes: new Map() } })).mounts, containerSpec(containerInput()).mounts)
})
