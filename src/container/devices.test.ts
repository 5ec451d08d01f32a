import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { hostDevices } from '../linux/host-devices.ts'
import { Linux } from '../linux/linux.ts'
import { resolveDevices } from './devices.ts'

let linux: Linux
let dir: string

before(async () => {
  linux = await Linux.start({ log: { warn: () => undefined, info: () => undefined } })
  dir = mkdtempSync(join(tmpdir(), 'cri-shim-devices-'))
  const node = (path: string, type: string, ...numbers: string[]): void => void execFileSync('mknod', ['-m', '640', join(dir, path), type, ...numbers])
  mkdirSync(join(dir, 'all', 'sub'), { recursive: true })
  node('all/one', 'c', '1', '3')
  node('all/sub/two', 'b', '7', '300')
  node('pipe', 'p')
  writeFileSync(join(dir, 'all', 'file'), '')
  symlinkSync('one', join(dir, 'all', 'link'))
  symlinkSync(join(dir, 'all'), join(dir, 'to-all'))
  mkdirSync(join(dir, 'empty'))
})
after(async () => {
  await linux.close()
  rmSync(dir, { recursive: true, force: true })
})

const resolve = (host: string, container = '/dev/x', permissions = 'rw') =>
  resolveDevices({ resolvePath: (path) => linux.resolvePath(path), statPath: (path) => linux.statPath(path), devicesIn: hostDevices }, [{ host_path: join(dir, host), container_path: container, permissions }])
const one = { type: 'c', major: 1, minor: 3, fileMode: 0o640, uid: 0, gid: 0, permissions: 'rw' }

test('a device, also behind a symbolic link, and a FIFO', async () => {
  assert.deepEqual(await resolve('all/one'), [{ ...one, path: '/dev/x' }])
  assert.deepEqual(await resolve('all/link'), [{ ...one, path: '/dev/x' }])
  assert.deepEqual((await resolve('pipe')).map(({ type }) => type), ['p'])
})

test('a directory gives the devices in it, at their places', async () => {
  for (const path of ['all', 'to-all', 'all/']) {
    assert.deepEqual((await resolve(path, '/dev/all/')).toSorted((a, b) => a.path.localeCompare(b.path)), [{ ...one, path: '/dev/all/one' }, { ...one, path: '/dev/all/sub/two', type: 'b', major: 7, minor: 300 }], path)
  }
  assert.deepEqual(await resolve('empty'), [])
})

test('what is no device is refused by name', async () => {
  await assert.rejects(resolve('all/file'), /all\/file: is a file, not a device/)
  await assert.rejects(resolve('missing'), /missing does not exist on this node/)
  for (const permissions of ['', 'x', 'rr', 'rwmr']) await assert.rejects(resolve('all/one', '/dev/x', permissions), /must be letters out of "rwm"/)
  await assert.rejects(resolve('all/one', 'dev/x'), /must be absolute paths/)
  await assert.rejects(resolve('all/one', '/dev/x\0'), /NUL/)
})
