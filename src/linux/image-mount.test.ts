import assert from 'node:assert/strict'
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { spawnSync } from 'node:child_process'
import { type Fixture, failing, fixture } from './testing/fixture.ts'

/** An image of two layers: /etc/name, /data/sub/file, links that stay inside and links that lead out. */
function image({ dir }: Fixture): { readonly overlay: { type: string; source: string; options: string[] }[]; readonly bind: { type: string; source: string; options: string[] }[] } {
  const [lower, upper] = [join(dir, 'lower'), join(dir, 'upper')]
  for (const path of [join(lower, 'etc'), join(lower, 'usr/share'), join(upper, 'data/sub')]) mkdirSync(path, { recursive: true })
  writeFileSync(join(lower, 'etc/name'), 'image')
  writeFileSync(join(lower, 'usr/share/doc'), 'doc')
  writeFileSync(join(upper, 'data/sub/file'), 'deep')
  const links = { absolute: '/usr/share', relative: 'data/../data/sub', climbing: '../../../../etc', loop: 'loop', dangling: '/no/where', 'data/up': '../..', 'data/up-and-down': '../etc' }
  for (const [name, target] of Object.entries(links)) symlinkSync(target, join(upper, name))
  spawnSync('mkfifo', [join(upper, 'fifo')])
  return { overlay: [{ type: 'overlay', source: 'overlay', options: [`lowerdir=${upper}:${lower}`] }], bind: [{ type: 'bind', source: upper, options: ['ro', 'rbind'] }] }
}

test('an image is mounted for reading alone, and goes again', async (t) => {
  const f = await fixture(t)
  for (const [name, mounts] of Object.entries(image(f))) {
    const dir = join(f.dir, `${name}-mount`)
    await f.linux.mountImage(mounts, dir)
    assert.equal(readFileSync(join(dir, 'volume/data/sub/file'), 'utf8'), 'deep')
    assert.throws(() => writeFileSync(join(dir, 'volume/new'), ''), { code: 'EROFS' })
    assert.deepEqual(readdirSync(dir), ['volume'])
    await f.linux.unmount(join(dir, 'volume'))
    assert.deepEqual(await f.linux.mountsUnder(dir), [])
  }
})

test('a part of an image: a directory, a file, through links that stay inside', async (t) => {
  const f = await fixture(t)
  const { overlay, bind } = image(f)
  const cases: readonly (readonly [subPath: string, file: string, content: string])[] = [
    ['etc', 'name', 'image'], ['./etc/', 'name', 'image'], ['absolute', 'doc', 'doc'], ['relative', 'file', 'deep'], ['data/up-and-down', 'name', 'image'],
    ['etc/name', '', 'image'], ['etc/../data/sub', 'file', 'deep'], ['.', 'etc/name', 'image'],
  ]
  for (const [index, [subPath, file, content]] of cases.entries()) {
    const dir = join(f.dir, `part-${index}`)
    await f.linux.mountImage(overlay, dir, { subPath })
    assert.equal(readFileSync(join(dir, 'volume', file), 'utf8'), content, subPath)
    assert.throws(() => writeFileSync(join(dir, 'volume', file), 'x'), { code: 'EROFS' }, subPath)
    assert.deepEqual((await f.linux.mountsUnder(dir)).map(({ mountPoint }) => mountPoint), [join(dir, 'volume')], 'the whole image is not left mounted')
  }
  const dir = join(f.dir, 'part-of-bind')
  await f.linux.mountImage(bind, dir, { subPath: 'data/sub' })
  assert.throws(() => writeFileSync(join(dir, 'volume/file'), 'x'), { code: 'EROFS' }, 'the copy of a bind mount is read-only too')
})

test('a path that is missing, leads out of the image, or is neither directory nor file is refused, and nothing is left', async (t) => {
  const f = await fixture(t)
  const { overlay } = image(f)
  const cases: readonly (readonly [subPath: string, reason: string, text: string])[] = [
    ['nowhere', 'ENOENT', 'no "nowhere"'], ['etc/name/below', 'ENOTDIR', 'no directory'], ['dangling', 'ENOENT', 'no "no"'], ['..', 'ESCAPES', 'leads out'], ['../etc', 'ESCAPES', 'leads out'],
    ['etc/../../etc', 'ESCAPES', 'leads out'], ['climbing', 'ESCAPES', 'leads out'], ['data/up', 'ESCAPES', 'leads out'], ['loop', 'ELOOP', 'loop'], ['fifo', 'NOT_A_FILE', 'is a fifo'],
  ]
  for (const [index, [subPath, reason, text]] of cases.entries()) {
    const dir = join(f.dir, `refused-${index}`)
    await assert.rejects(f.linux.mountImage(overlay, dir, { subPath }), failing(reason, text, subPath))
    assert.deepEqual(await f.linux.mountsUnder(dir), [], subPath)
    assert.deepEqual(readdirSync(dir), [], subPath)
  }
  await assert.rejects(f.linux.mountImage(overlay, join(f.dir, 'abs'), { subPath: '/etc' }), /must be relative/)
  await assert.rejects(f.linux.mountImage(overlay, join(f.dir, 'nul'), { subPath: 'etc\0x' }), /NUL/)
  assert.ok(!existsSync(join(f.dir, 'abs/volume')))
})

test('a mount that fails leaves nothing', async (t) => {
  const f = await fixture(t)
  const dir = join(f.dir, 'failing')
  await assert.rejects(f.linux.mountImage([{ type: 'overlay', source: 'overlay', options: ['lowerdir=/no/such/dir:/nor/this'] }], dir), failing('ENOENT', 'volume'))
  assert.deepEqual(await f.linux.mountsUnder(dir), [])
})
