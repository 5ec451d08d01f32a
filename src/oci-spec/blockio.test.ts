import assert from 'node:assert/strict'
import { test } from 'node:test'
import { blockioOf, parseBlockioClasses } from './blockio.ts'
import { containerSpec } from './container-spec.ts'
import { requestedClass } from './resource-class.ts'
import { containerInput } from './spec-fixtures.ts'

const quantity = (text: string): bigint | undefined => (/^-?\d+$/.test(text) ? BigInt(text) : text === '50M' ? 50_000_000n : undefined)
const parse = (classes: unknown): ReturnType<typeof parseBlockioClasses> => parseBlockioClasses({ Classes: classes }, quantity)
const devices: Readonly<Record<string, readonly { readonly major: number; readonly minor: number }[]>> = { '/dev/sd*': [{ major: 8, minor: 0 }, { major: 8, minor: 16 }], '/dev/sdb': [{ major: 8, minor: 16 }] }
const resolved = (classes: unknown): object => blockioOf(parse(classes).get('c') ?? [], (pattern) => devices[pattern] ?? [])

test('a blockio class is what its entries say of the devices that there are, the later over the earlier', () => {
  assert.deepEqual(resolved({ c: [{ Weight: 80 }, { Devices: ['/dev/sd*'], ThrottleReadBps: '50M', throttlewriteiops: 7, Weight: '50' }, { Devices: ['/dev/sdb', '/dev/gone*'], ThrottleReadBps: '0', ThrottleWriteBps: 5, ThrottleReadIOPS: '6' }] }), {
    weight: 80,
    weightDevice: [{ major: 8, minor: 0, weight: 50 }, { major: 8, minor: 16, weight: 50 }],
    throttleReadBpsDevice: [{ major: 8, minor: 0, rate: 50_000_000 }, { major: 8, minor: 16, rate: 0 }],
    throttleWriteBpsDevice: [{ major: 8, minor: 16, rate: 5 }],
    throttleReadIOPSDevice: [{ major: 8, minor: 16, rate: 6 }],
    throttleWriteIOPSDevice: [{ major: 8, minor: 0, rate: 7 }, { major: 8, minor: 16, rate: 7 }],
  })
  assert.deepEqual(resolved({ c: [] }), {})
  assert.deepEqual([...parseBlockioClasses(null, quantity), ...parseBlockioClasses({ classes: null }, quantity)], [])
})

test('a mistake in the file is named with its place', () => {
  for (const [classes, message] of [
    [[], /Classes is no mapping/], [{ c: {} }, /class c is no list/], [{ c: [5] }, /class c, entry 1 is no mapping/], [{ c: [{ Wight: 5 }] }, /field Wight is not known/],
    [{ c: [{ Weight: 9 }] }, /Weight is 9: it must be in 10\.\.1000/], [{ c: [{ Weight: 1001 }] }, /in 10\.\.1000/], [{ c: [{ Weight: 'x' }] }, /Weight is "x"/], [{ c: [{ Weight: true }] }, /Weight is true/],
    [{ c: [{}, { Devices: ['/dev/sda'], ThrottleReadBps: '-1' }] }, /entry 2: ThrottleReadBps is -1: it must be at least 0/], [{ c: [{ ThrottleReadBps: '5' }] }, /ThrottleReadBps without Devices/],
    [{ c: [{ Devices: '/dev/sda' }] }, /Devices is no list/],
  ] as const) assert.throws(() => parse(classes), message)
  assert.throws(() => parseBlockioClasses({ classes: {}, more: 1 }, quantity), /field more is not known/)
})

test('whose class a container has: its own annotation, the pod\'s for it, the pod\'s', () => {
  const pod = { 'blockio.resources.beta.kubernetes.io/pod': 'p', 'blockio.resources.beta.kubernetes.io/container.app': 'a', 'rdt.resources.beta.kubernetes.io/pod': 'gold' }
  assert.deepEqual(requestedClass('blockio', 'app', { 'io.kubernetes.cri.blockio-class': 'own' }, pod), { name: 'own', origin: 'container' })
  assert.deepEqual(requestedClass('blockio', 'app', {}, pod), { name: 'a', origin: 'pod' })
  assert.deepEqual(requestedClass('blockio', 'side', {}, pod), { name: 'p', origin: 'pod' })
  assert.deepEqual(requestedClass('rdt', 'side', {}, pod), { name: 'gold', origin: 'pod' })
  assert.equal(requestedClass('rdt', 'side', { 'io.kubernetes.cri.rdt-class': '' }, pod), undefined)
  assert.equal(requestedClass('rdt', 'side', {}, {}), undefined)
})

test('classes in the spec', () => {
  const { linux } = containerSpec(containerInput({ config: { linux: { resources: { cpu_shares: '5' } } } }, { blockIO: { weight: 80 }, rdtClass: 'gold' }))
  assert.deepEqual([linux?.resources?.blockIO, linux?.resources?.cpu, linux?.intelRdt], [{ weight: 80 }, { shares: 5 }, { closID: 'gold' }])
  const off = containerSpec(containerInput({ settings: { disableCgroup: true } }, { blockIO: { weight: 80 } }))
  assert.equal(off.linux?.resources?.blockIO, undefined)
})
