import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { Linux } from '../../linux/linux.ts'
import { containerConfig } from '../../oci-spec/spec-fixtures.ts'
import { CdiSpecifications } from './cdi.ts'

let dir: string
let linux: Linux
let cdi: CdiSpecifications
const warnings: string[] = []

before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'cri-shim-cdi-'))
  linux = await Linux.start({ log: { warn: () => undefined, info: () => undefined } })
  cdi = new CdiSpecifications({ dirs: [join(dir, 'static'), join(dir, 'dynamic')], log: { warn: (_: unknown, message?: string) => void warnings.push(message ?? '') }, lstat: (path) => linux.statPath(path, { followSymlinks: false }) })
})
after(async () => {
  await linux.close()
  await rm(dir, { recursive: true, force: true })
})

const ask = async (...names: string[]): Promise<string[]> => (await cdi.injectionFor(containerConfig({ CDI_devices: names.map((name) => ({ name })) }))).edits.flatMap(({ env }) => env)
const yaml = (value: string): string => `---\ncdiVersion: 0.6.0\nkind: vendor.com/gpu\ndevices:\n- name: "0"\n  containerEdits:\n    env: [ "V=${value}" ]\n    deviceNodes:\n    - path: /dev/null\n      fileMode: 0660\n`

test('without directories nothing is found, and the message says where it was looked', async () => {
  assert.deepEqual(await ask(), [])
  await assert.rejects(ask('vendor.com/gpu=0'), (error) => error instanceof Error && error.message.includes(`${dir}/static, ${dir}/dynamic`))
})

test('a specification counts from the moment when it is there, changed, or gone', async () => {
  await mkdir(join(dir, 'static'))
  await writeFile(join(dir, 'static', 'gpu.yaml'), yaml('one'))
  assert.deepEqual(await ask('vendor.com/gpu=0'), ['V=one'])
  await writeFile(join(dir, 'static', 'gpu.yaml'), yaml('two'))
  assert.deepEqual(await ask('vendor.com/gpu=0'), ['V=two'])
  await writeFile(join(dir, 'static', 'gpu.tmp'), yaml('six'))
  await rename(join(dir, 'static', 'gpu.tmp'), join(dir, 'static', 'gpu.yaml'))
  assert.deepEqual(await ask('vendor.com/gpu=0'), ['V=six'])
  await mkdir(join(dir, 'dynamic'))
  await writeFile(join(dir, 'dynamic', 'gpu.json'), JSON.stringify({ cdiVersion: '0.6.0', kind: 'vendor.com/gpu', devices: [{ name: '0', containerEdits: { env: ['V=dynamic'] } }] }))
  assert.deepEqual(await ask('vendor.com/gpu=0'), ['V=dynamic'])
  await rm(join(dir, 'dynamic', 'gpu.json'))
  assert.deepEqual(await ask('vendor.com/gpu=0'), ['V=six'])
})

test('device nodes are looked up on the node, octal modes are octal', async () => {
  const { edits, nodes } = await cdi.injectionFor(containerConfig({ CDI_devices: [{ name: 'vendor.com/gpu=0' }] }))
  assert.equal(edits.flatMap(({ deviceNodes }) => deviceNodes)[0]?.fileMode, 0o660)
  assert.deepEqual(nodes.get('/dev/null'), { type: 'c', major: 1, minor: 3, fileMode: 0o666 })
})

test('files that cannot be used spoil nothing else and are told once', async () => {
  const place = join(dir, 'static')
  await writeFile(join(place, 'broken.json'), '{')
  await writeFile(join(place, 'broken.yaml'), 'a: [')
  await writeFile(join(place, 'twice.yaml'), 'kind: a\nkind: b\n')
  await writeFile(join(place, 'bomb.yaml'), `a: &a [x, x]\n${'bcdefghij'.split('').map((name, index) => `${name}: &${name} [${`*${'abcdefghij'.charAt(index)},`.repeat(10)}]`).join('\n')}\n`)
  await writeFile(join(place, 'notes.txt'), 'not a specification')
  await mkdir(join(place, 'dir.json'))
  execFileSync('mkfifo', [join(place, 'fifo.json')])
  warnings.length = 0
  assert.deepEqual(await ask('vendor.com/gpu=0'), ['V=six'])
  assert.deepEqual(warnings.map((message) => /static\/(\w+\.\w+)/.exec(message)?.[1] ?? '').toSorted((a, b) => a.localeCompare(b)), ['bomb.yaml', 'broken.json', 'broken.yaml', 'twice.yaml'])
  assert.deepEqual(await ask('vendor.com/gpu=0'), ['V=six'])
  assert.equal(warnings.length, 4)
  await assert.rejects(ask('vendor.com/gpu=9'), /files that cannot be used: .*broken\.json/)
  await writeFile(join(place, 'other.yaml'), yaml('other'))
  await assert.rejects(ask('vendor.com/gpu=0'), /gpu\.yaml and .*other\.yaml, which have the same priority/)
  assert.match(warnings.at(-1) ?? '', /nobody gets it/)
})
