import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { chownSync, existsSync, mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { cleanIdmapped, withIdmapped } from './idmapped-rootfs.ts'
import { failing, type Fixture, fixture } from './testing/fixture.ts'

const base = 100_000
const ids = [{ containerId: 0, hostId: base, size: 65_536 }]

async function layers(t: Parameters<typeof fixture>[0]): Promise<Fixture & { readonly path: (name: string) => string; readonly userns: string }> {
  const made = await fixture(t)
  const path = (name: string): string => join(made.dir, name)
  for (const name of ['lower:1', 'lower2', 'upper', 'work', 'merged']) mkdirSync(path(name))
  writeFileSync(path('lower:1/of-root'), 'root')
  writeFileSync(path('lower2/of-user'), 'user')
  chownSync(path('lower2/of-user'), 1000, 1000)
  chownSync(path('lower:1'), 5, 6)
  const userns = path('userns')
  await made.linux.createUserNamespace(userns, { uids: ids, gids: ids })
  return { ...made, path, userns }
}

test('an overlay of id-mapped layers, on which one writes with the ids of the namespace', async (t) => {
  const { linux, path, userns } = await layers(t)
  const rootfs = [{ type: 'overlay', source: 'overlay', options: [`lowerdir=${path('lower\\:1')}:${path('lower2')}`, `upperdir=${path('upper')}`, `workdir=${path('work')}`] }]
  await withIdmapped(linux, { rootfs, volumes: [], dir: path('run/idmap'), userns }, async (mounts) => {
    assert.notDeepEqual(mounts, rootfs)
    await linux.mountAll(mounts, path('merged'))
  })
  assert.equal(existsSync(path('run/idmap')), false)
  const owner = (name: string): number[] => { const { uid, gid } = statSync(path(name)); return [uid, gid] }
  assert.deepEqual(owner('merged'), [base + 5, base + 6])
  assert.deepEqual(owner('merged/of-root'), [base, base])
  assert.deepEqual(owner('merged/of-user'), [base + 1000, base + 1000])
  // Copied up, it belongs to the same one.
  writeFileSync(path('merged/of-user'), 'changed')
  assert.deepEqual(owner('merged/of-user'), [base + 1000, base + 1000])
  assert.deepEqual(owner('upper/of-user'), [base + 1000, base + 1000])
  assert.deepEqual(owner('lower2/of-user'), [1000, 1000])
  await linux.unmount(path('merged'))
})

test('a bind mount and volumes; whatever fails, no mount is left', async (t) => {
  const { linux, dir, path, userns } = await layers(t)
  const rootfs = [{ type: 'bind', source: path('lower2'), options: ['rbind', 'rw'] }]
  const before = await linux.mountsUnder(dir)
  await assert.rejects(withIdmapped(linux, { rootfs, volumes: [{ source: path('lower:1'), target: path('run/volume') }], dir: path('run'), userns }, async ([mount]) => {
    assert.ok(mount)
    assert.equal(statSync(join(mount.source, 'of-user')).uid, base + 1000)
    assert.equal(statSync(path('run/volume/of-root')).uid, base)
    throw new Error('no task')
  }), /no task/)
  assert.deepEqual(await linux.mountsUnder(dir), before)
  assert.equal(existsSync(path('run')), false)
  const disk = [{ type: 'ext4', source: '/dev/nothing', options: [] }]
  await assert.rejects(withIdmapped(linux, { rootfs: disk, volumes: [], dir: path('run'), userns }, async () => undefined), failing('NoIdmap', 'type ext4'))
  await assert.rejects(withIdmapped(linux, { rootfs, volumes: [{ source: '/proc', target: path('run/proc') }], dir: path('run'), userns }, async () => undefined), failing('NoIdmap', '/proc'))
  assert.deepEqual(await linux.mountsUnder(dir), before)
})

test('what a crash in the middle left goes; other mounts of this service stay', async (t) => {
  const { linux, dir, path, userns } = await layers(t)
  await linux.mountIdmapped([{ source: path('lower2'), target: path('containers/c/idmap/0') }, { source: path('lower2'), target: path('sandboxes/s/idmap/0') }, { source: path('lower2'), target: path('containers/idmap/image-volumes/0') }], userns)
  await cleanIdmapped(linux, dir)
  assert.deepEqual((await linux.mountsUnder(dir)).map(({ mountPoint }) => mountPoint).toSorted(), [path('containers/idmap/image-volumes/0'), userns])
  assert.deepEqual(readdirSync(path('lower2')), ['of-user'])
  execFileSync('umount', [path('containers/idmap/image-volumes/0')])
})
