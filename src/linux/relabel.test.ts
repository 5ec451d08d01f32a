import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { cString, libc } from './libc.ts'
import { failing, fixture } from './testing/fixture.ts'

/** The attribute of a file itself, undefined when it has none. */
function attribute(path: string, name: string): string | undefined {
  const value = Buffer.alloc(256)
  const length = libc.lgetxattr(cString(path), cString(name), value, value.length)
  return length === -1 ? undefined : value.subarray(0, length).toString()
}

async function tree(t: TestContext): Promise<{ readonly linux: Awaited<ReturnType<typeof fixture>>['linux']; readonly dir: string; readonly outside: string }> {
  const { linux, dir } = await fixture(t)
  await linux.mount({ source: 'labels', target: dir, fstype: 'tmpfs', flags: [], data: '' })
  const [root, outside] = [join(dir, 'root'), join(dir, 'outside')]
  mkdirSync(join(root, 'a', 'b'), { recursive: true })
  mkdirSync(outside)
  writeFileSync(join(root, 'a', 'file'), '')
  writeFileSync(join(outside, 'secret'), '')
  symlinkSync(outside, join(root, 'a', 'out'))
  symlinkSync(join(outside, 'secret'), join(root, 'secret'))
  execFileSync('mkfifo', [join(root, 'a', 'b', 'fifo')])
  chmodSync(join(root, 'a', 'b'), 0)
  return { linux, dir: root, outside }
}

const LABEL = 'system_u:object_r:container_file_t:s0:c1,c2'

for (const name of ['security.selinux', 'trusted.cri-shim']) {
  test(`a tree gets a label (${name}), what its links lead to does not`, async (t) => {
    const { linux, dir, outside } = await tree(t)
    await linux.relabelTree(dir, LABEL, { attribute: name })
    for (const path of ['', 'a', 'a/file', 'a/b', 'a/b/fifo']) assert.equal(attribute(join(dir, path), name), LABEL, path)
    for (const path of ['', 'secret']) assert.equal(attribute(join(outside, path), name), undefined, path)
    await linux.relabelTree(dir, 'other', { attribute: name })
    assert.equal(attribute(join(dir, 'a', 'b', 'fifo'), name), 'other')
    await linux.relabelTree(join(dir, 'a', 'file'), LABEL, { attribute: name })
    assert.deepEqual([attribute(join(dir, 'a', 'file'), name), attribute(dir, name)], [LABEL, 'other'])
  })
}

test('what has the label already is not written: a read-only mount is fine then', async (t) => {
  const { linux, dir } = await tree(t)
  await linux.relabelTree(dir, LABEL)
  await linux.mount({ source: '', target: join(dir, '..'), fstype: '', flags: ['remount', 'ro'], data: '' })
  await linux.relabelTree(dir, LABEL)
  await assert.rejects(linux.relabelTree(dir, 'other'), failing('EROFS', dir, 'other'))
})

test('directories of the machine, missing paths and file systems without labels', async (t) => {
  const { linux, dir } = await tree(t)
  for (const path of ['/', '/etc', '/usr/', '/var/lib/../lib', '/home']) await assert.rejects(linux.relabelTree(path, LABEL), failing('RelabelRefused'), path)
  await assert.rejects(linux.relabelTree(join(dir, 'missing'), LABEL), failing('ENOENT', 'missing'))
  await linux.relabelTree('/proc/self/fdinfo', LABEL)
})
