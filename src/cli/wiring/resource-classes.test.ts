import assert from 'node:assert/strict'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { Code, CriError } from '../../errors/cri-error.ts'
import type { FileStat } from '../../linux/linux.ts'
import { createLogger } from '../../observability/logger.ts'
import { containerConfig, podConfig } from '../../oci-spec/spec-fixtures.ts'
import { ResourceClasses, type ResourceClassesOptions } from './resource-classes.ts'

const refused = (code: number, message: RegExp) => (error: unknown): boolean => error instanceof CriError && error.code === code && message.test(error.message)

/** A node with both files and a resctrl with the class gold; sda is a block device, null none. */
async function fixture(t: TestContext, settings: Partial<ResourceClassesOptions['settings']> = {}) {
  const dir = await mkdtemp(join(tmpdir(), 'cri-shim-classes-'))
  t.after(async () => rm(dir, { recursive: true }))
  const files = { blockio: join(dir, 'blockio.yaml'), rdt: join(dir, 'rdt.yaml') }
  for (const name of ['sda', 'sdb', 'null']) await writeFile(join(dir, name), '')
  await writeFile(files.blockio, `Classes:\n  slow:\n    - Weight: 80\n    - Devices:\n        - ${dir}/sd[a-z]\n        - ${dir}/null\n      ThrottleReadBps: 1.5M\n      ThrottleWriteIOPS: 1k\n`)
  await writeFile(files.rdt, 'partitions:\n  default:\n    l3Allocation: 100%\n    classes:\n      gold:\n        l3Allocation: 50%\n        kubernetes:\n          denyPodAnnotation: true\n      silver: {}\n')
  await mkdir(join(dir, 'resctrl', 'gold'), { recursive: true })
  for (const group of ['', 'gold']) await writeFile(join(dir, 'resctrl', group, 'schemata'), 'L3:0=ff\n')
  const statPath = async (path: string): Promise<FileStat | undefined> => ({ type: path.endsWith('null') ? 'character-device' : 'block-device', major: 8, minor: path.endsWith('sdb') ? 16 : 0 } as FileStat)
  const classes = new ResourceClasses({
    settings: { blockioConfigFile: files.blockio, rdtConfigFile: files.rdt, ignoreBlockioNotEnabledErrors: false, ignoreRdtNotEnabledErrors: false, ...settings },
    log: createLogger('fatal'), resctrl: join(dir, 'resctrl'), statPath,
  })
  const of = async (annotations: Readonly<Record<string, string>>, pod: Readonly<Record<string, string>> = {}): Promise<object> =>
    classes.of(containerConfig({ metadata: { name: 'app' }, annotations }), podConfig({ annotations: pod }))
  return { dir, files, of }
}

const blockio = (name: string) => ({ 'io.kubernetes.cri.blockio-class': name })
const rdt = (name: string) => ({ 'io.kubernetes.cri.rdt-class': name })

test('a blockio class by its file, which may change meanwhile', async (t) => {
  const { files, of } = await fixture(t)
  const throttled = (rate: number): object[] => [{ major: 8, minor: 0, rate }, { major: 8, minor: 16, rate }]
  assert.deepEqual(await of(blockio('slow')), { blockIO: { weight: 80, throttleReadBpsDevice: throttled(1_500_000), throttleWriteIOPSDevice: throttled(1000) }, rdtClass: undefined })
  assert.deepEqual(await of({}), { blockIO: undefined, rdtClass: undefined })
  await assert.rejects(of(blockio('fast')), refused(Code.INVALID_ARGUMENT, /"fast" is not defined in .*blockio\.yaml; there are slow/))
  await writeFile(files.blockio, 'Classes: {fast: [{Weight: 500}]}')
  assert.deepEqual(await of({}, { 'blockio.resources.beta.kubernetes.io/container.app': 'fast' }), { blockIO: { weight: 500 }, rdtClass: undefined })
  await writeFile(files.blockio, 'Classes: {fast: [{Weight: 5}]}')
  await assert.rejects(of(blockio('fast')), refused(Code.FAILED_PRECONDITION, /cannot be used: class fast, entry 1: Weight is 5/))
  await writeFile(files.blockio, 'Classes: [')
  await assert.rejects(of(blockio('fast')), refused(Code.FAILED_PRECONDITION, /cannot be used/))
})

test('an RDT class must exist, be allowed, and be one', async (t) => {
  const { of } = await fixture(t)
  assert.deepEqual(await of(rdt('gold')), { blockIO: undefined, rdtClass: 'gold' })
  await assert.rejects(of({}, { 'rdt.resources.beta.kubernetes.io/pod': 'gold' }), refused(Code.INVALID_ARGUMENT, /must not be asked for by annotations of the pod/))
  await assert.rejects(of(rdt('silver')), refused(Code.INVALID_ARGUMENT, /"silver" does not exist/))
  for (const hostile of ['..', '.', '../gold', 'a\nb', 'a\0', 'x'.repeat(300)]) await assert.rejects(of(rdt(hostile)), refused(Code.INVALID_ARGUMENT, /is not the name of one/), hostile)
  assert.deepEqual(await of(rdt('system/default')), { blockIO: undefined, rdtClass: undefined })
})

test('a node without classes refuses, or runs without when it is told to', async (t) => {
  const none = await fixture(t, { blockioConfigFile: '', rdtConfigFile: '' })
  await assert.rejects(none.of(blockio('slow')), refused(Code.FAILED_PRECONDITION, /ignore_blockio_not_enabled_errors/))
  await assert.rejects(none.of(rdt('gold')), refused(Code.FAILED_PRECONDITION, /ignore_rdt_not_enabled_errors/))
  const ignoring = { ignoreBlockioNotEnabledErrors: true, ignoreRdtNotEnabledErrors: true }
  const soft = await fixture(t, { ...ignoring, blockioConfigFile: '', rdtConfigFile: '' })
  assert.deepEqual(await soft.of({ ...blockio('slow'), ...rdt('gold') }), { blockIO: undefined, rdtClass: undefined })
  const broken = await fixture(t, { ...ignoring, blockioConfigFile: '/nowhere/blockio.yaml' })
  assert.deepEqual(await broken.of(blockio('slow')), { blockIO: undefined, rdtClass: undefined })
  // That there are no classes is forgiven; one that is not among them is not.
  const present = await fixture(t, ignoring)
  await assert.rejects(present.of(blockio('fast')), refused(Code.INVALID_ARGUMENT, /not defined/))
  await rm(join(present.dir, 'resctrl'), { recursive: true })
  assert.deepEqual(await present.of(rdt('gold')), { blockIO: undefined, rdtClass: undefined })
  const strict = await fixture(t)
  await rm(join(strict.dir, 'resctrl'), { recursive: true })
  await assert.rejects(strict.of(rdt('gold')), refused(Code.FAILED_PRECONDITION, /is not mounted/))
})
