import assert from 'node:assert/strict'
import { chmod, lstat, mkdir, mkdtempDisposable, readFile, readlink, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { it } from 'node:test'
import { copyFromRoot, resolveInQuietRoot } from './copy-tree.ts'
import { hostDevices } from './host-devices.ts'

it('resolves every link inside the root, hostile ones too', async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-copy-'))
  const root = join(dir.path, 'root')
  await mkdir(join(root, 'data/deep'), { recursive: true })
  for (const [name, target] of [['absolute', '/data'], ['up', '../../../../data'], ['loop', 'loop'], ['host', '/etc'], ['through', 'absolute/deep'], ['dangling', 'nowhere']] as const) await symlink(target, join(root, name))
  for (const [path, expected] of [['/data', 'data'], ['absolute', 'data'], ['up', 'data'], ['../../data/./deep/..', 'data'], ['through', 'data/deep']] as const) {
    assert.equal(await resolveInQuietRoot(root, path), join(root, expected), path)
  }
  assert.equal(await resolveInQuietRoot(root, 'host/passwd'), undefined)
  assert.equal(await resolveInQuietRoot(root, 'dangling'), undefined)
  await assert.rejects(resolveInQuietRoot(root, 'loop'), /more than 40 symbolic links/)
})

it('copies a directory with modes and links, follows none of them, and nothing that is not there', async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-copy-'))
  const [root, target] = [join(dir.path, 'root'), join(dir.path, 'target')]
  await mkdir(join(root, 'data'), { recursive: true })
  await mkdir(target)
  await writeFile(join(root, 'data/-rf'), 'x')
  await symlink('/etc/passwd', join(root, 'data/link'))
  await chmod(join(root, 'data'), 0o1770)
  await copyFromRoot(root, '/data', target)
  assert.equal(await readFile(join(target, '-rf'), 'utf8'), 'x')
  assert.equal(await readlink(join(target, 'link')), '/etc/passwd')
  assert.equal((await lstat(target)).mode & 0o7777, 0o1770)
  const empty = join(dir.path, 'empty')
  await copyFromRoot(root, '/nowhere', empty)
  await copyFromRoot(root, '/data/-rf', empty)
  await assert.rejects(lstat(empty), { code: 'ENOENT' })
})

it('lists the device nodes of the machine, terminals of their own left out', async () => {
  const devices = await hostDevices()
  const zero = devices.find(({ path }) => path === '/dev/zero')
  assert.deepEqual([zero?.type, zero?.major, zero?.minor], ['character-device', 1, 5])
  assert.ok(devices.every(({ path, type }) => !path.startsWith('/dev/pts/') && (type === 'character-device' || type === 'block-device')))
})
