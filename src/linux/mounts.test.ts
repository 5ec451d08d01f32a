import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { fitMountData, maxMountData, MountBit, mountBits, parseMountOptions, readonlyMount } from './mount-options.ts'
import { mountOf, parseMountInfo } from './mountinfo.ts'
import { remountBind } from './ops/mounts.ts'
import { failing, fixture } from './testing/fixture.ts'

const overlay = (options: string[]): { type: string; source: string; options: string[] } => ({ type: 'overlay', source: 'overlay', options })

test('mount options: words become bits, the last one wins, the rest is for the file system', () => {
  assert.deepEqual(parseMountOptions(['rbind', 'ro', 'nosuid', 'suid', 'lowerdir=/a:/b', 'mode=755', 'rw', 'noexec', 'rprivate']), {
    bits: MountBit.BIND | MountBit.REC | MountBit.NOEXEC | MountBit.PRIVATE,
    data: ['lowerdir=/a:/b', 'mode=755'],
  })
  assert.deepEqual(parseMountOptions(['defaults', '', 'constructor']), { bits: 0, data: ['constructor'] })
  assert.equal(mountBits(['bind', 'rec', 'rslave']), MountBit.BIND | MountBit.REC | MountBit.SLAVE)
  for (const option of ['loop', 'uidmap=0:1000:1', 'X-containerd.format']) assert.throws(() => parseMountOptions([option]), failing('UNIMPLEMENTED', option))
})

test('a read-only overlay has no upper directory of its own', () => {
  const mount = overlay(['index=off', 'workdir=/s/3/work', 'upperdir=/s/3/fs', 'lowerdir=/s/2/fs:/s/1/fs', 'rw'])
  assert.deepEqual(readonlyMount(mount).options, ['index=off', 'lowerdir=/s/3/fs:/s/2/fs:/s/1/fs', 'ro'])
  assert.deepEqual(readonlyMount({ type: 'bind', source: '/s/1/fs', options: ['rw', 'rbind'] }).options, ['rbind', 'ro'])
})

test('overlay options that do not fit in a page are made relative, or refused: the kernel would cut them off in silence', () => {
  const lower = Array.from({ length: 80 }, (_, index) => `/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/${index}/fs`)
  const options = ['index=off', `lowerdir=${lower.join(':')}`]
  const { data, cwd } = fitMountData('overlay', options)
  assert.equal(cwd, '/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots')
  assert.equal(data, `index=off,lowerdir=${lower.map((_, index) => `${index}/fs`).join(':')}`)
  assert.deepEqual(fitMountData('overlay', ['lowerdir=/a:/b']), { data: 'lowerdir=/a:/b', cwd: undefined })
  assert.equal(fitMountData('tmpfs', ['x'.repeat(maxMountData)]).cwd, undefined)
  assert.throws(() => fitMountData('tmpfs', ['x'.repeat(maxMountData + 1)]), failing('E2BIG', 'tmpfs'))
  assert.throws(() => fitMountData('overlay', [`lowerdir=${Array.from({ length: 900 }, (_, index) => `/a/b/layer${index}`).join(':')}`]), failing('E2BIG', '900'))
})

test('mountinfo: optional fields, escapes, propagation', () => {
  const mounts = parseMountInfo(
    '24 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw,errors=remount-ro\n' +
      '30 24 0:25 /sub /mnt/a\\040b ro,nosuid shared:7 master:2 propagate_from:1 - tmpfs tmp\\134fs rw,size=4k\n' +
      '31 24 0:26 / /mnt/u rw unbindable - proc proc rw\n32 24 0:4 net:[4026532000] /run/netns/x rw master:3 - nsfs nsfs rw\n33 24 0:27 / /mnt/p rw - overlay  rw\n',
  )
  assert.deepEqual(mounts.map(({ propagation }) => propagation), ['shared', 'shared+slave', 'unbindable', 'slave', 'private'])
  assert.deepEqual(mounts[1], {
    mountId: 30, parentId: 24, deviceMajor: 0, deviceMinor: 25, root: '/sub', mountPoint: '/mnt/a b', options: ['ro', 'nosuid'],
    sharedGroup: 7, masterGroup: 2, propagation: 'shared+slave', fstype: 'tmpfs', source: 'tmp\\fs', superOptions: ['rw', 'size=4k'],
  })
  assert.equal(mountOf(mounts, '/mnt/a b/c')?.mountId, 30)
  assert.equal(mountOf(mounts, '/mnt/a bc')?.mountId, 24)
  assert.throws(() => parseMountInfo('nonsense'), failing('INTERNAL', 'nonsense'))
})

test('an overlay is mounted, written to and unmounted; also for reading alone', async (t) => {
  const { linux, dir } = await fixture(t)
  for (const name of ['l1', 'l2', 'upper', 'work', 'target', 'view']) mkdirSync(join(dir, name))
  writeFileSync(join(dir, 'l1/one'), '1')
  writeFileSync(join(dir, 'l2/two'), '2')
  const [target, view] = [join(dir, 'target'), join(dir, 'view')]
  const mounts = [overlay([`lowerdir=${dir}/l2:${dir}/l1`, `upperdir=${dir}/upper`, `workdir=${dir}/work`])]
  await linux.mountAll(mounts, target)
  writeFileSync(join(target, 'three'), '3')
  assert.deepEqual(readdirSync(target), ['one', 'three', 'two'])
  assert.deepEqual(readdirSync(join(dir, 'upper')), ['three'])
  await linux.unmount(target)
  await linux.mountAll(mounts, view, { readonly: true })
  assert.deepEqual(readdirSync(view), ['one', 'three', 'two'])
  assert.throws(() => writeFileSync(join(view, 'four'), '4'), { code: 'EROFS' })
  await linux.unmount(view)
  assert.deepEqual(await linux.mountsUnder(dir), [])
})

test('an overlay of more layers than fit in a page', async (t) => {
  const { linux, dir } = await fixture(t)
  const layers = Array.from({ length: 120 }, (_, index) => join(dir, 'a-directory-with-a-rather-long-name', `${index}`))
  for (const [index, layer] of layers.entries()) {
    mkdirSync(layer, { recursive: true })
    writeFileSync(join(layer, `file-${index}`), '')
  }
  const target = join(dir, 'target')
  mkdirSync(target)
  const cwd = process.cwd()
  await linux.mountAll([overlay([`lowerdir=${layers.join(':')}`])], target)
  assert.equal(readdirSync(target).length, 120)
  assert.equal(process.cwd(), cwd)
  assert.ok(existsSync('/proc/self/cwd/src') === existsSync(join(cwd, 'src')))
})

test('a read-only bind mount keeps what its source forbids', async (t) => {
  const { linux, dir } = await fixture(t)
  const [source, target, old] = [join(dir, 'source'), join(dir, 'target'), join(dir, 'old')]
  for (const path of [source, target, old]) mkdirSync(path)
  await linux.mount({ source: 'tmpfs', target: source, fstype: 'tmpfs', flags: ['noexec', 'nodev'], data: 'size=64k' })
  await linux.mount({ source, target, flags: ['rbind', 'ro', 'nosuid', 'rprivate'] })
  assert.throws(() => writeFileSync(join(target, 'x'), ''), { code: 'EROFS' })
  writeFileSync(join(source, 'x'), '')
  const [mount] = await linux.mountsUnder(target)
  for (const option of ['ro', 'noexec', 'nodev', 'nosuid']) assert.ok(mount?.options.includes(option), `${option} in ${mount?.options.join()}`)
  assert.equal(mount?.propagation, 'private')

  // The way of kernels before mount_setattr gives the same.
  await linux.mount({ source, target: old, flags: ['bind'] })
  remountBind(old, old, mountBits(['ro', 'nosuid']))
  const [same] = await linux.mountsUnder(old)
  assert.deepEqual(same?.options.toSorted(), mount?.options.toSorted())
})

test('propagation is set, and seen', async (t) => {
  const { linux, dir } = await fixture(t)
  await linux.mount({ source: 'tmpfs', target: dir, fstype: 'tmpfs', flags: ['shared'] })
  assert.equal((await linux.mountsUnder(dir))[0]?.propagation, 'shared')
  await linux.mount({ source: 'none', target: dir, flags: ['rprivate'] })
  assert.equal((await linux.mountsUnder(dir))[0]?.propagation, 'private')
  await assert.rejects(linux.mount({ source: 'x', target: dir }), failing('INVALID_ARGUMENT', dir))
})

test('a failing list of mounts leaves none behind and says which one it was', async (t) => {
  const { linux, dir } = await fixture(t)
  const target = join(dir, 'target')
  mkdirSync(target)
  const mounts = [{ type: 'tmpfs', source: 'tmpfs', options: [] }, { type: 'bind', source: join(dir, 'missing'), options: ['rbind'] }]
  await assert.rejects(linux.mountAll(mounts, target), failing('ENOENT', join(dir, 'missing'), target))
  await assert.rejects(linux.mount({ source: 'x', target, fstype: 'nosuchfs' }), failing('ENODEV', 'nosuchfs', target))
  await assert.rejects(linux.mount({ source: dir, target: join(dir, 'missing'), flags: ['bind'] }), failing('ENOENT', 'missing'))
  assert.deepEqual(await linux.mountsUnder(dir), [])
})

test('a mount below the target cannot leave it through a symbolic link', async (t) => {
  const { linux, dir } = await fixture(t)
  const [layer, target, outside] = [join(dir, 'layer'), join(dir, 'target'), join(dir, 'outside')]
  for (const path of [layer, target, outside, join(layer, 'outside')]) mkdirSync(path)
  symlinkSync('/../outside', join(layer, 'link'))
  symlinkSync('/nowhere', join(layer, 'dangling'))
  const bind = { type: 'bind', source: layer, options: ['rbind'] }
  const tmpfs = { type: 'tmpfs', source: 'tmpfs', options: [] }
  await linux.mountAll([bind, { ...tmpfs, target: 'link' }], target)
  assert.deepEqual((await linux.mountsUnder(dir)).map(({ mountPoint }) => mountPoint), [target, join(target, 'outside')])
  assert.equal(await linux.isMountPoint(outside), false)
  await linux.unmount(join(target, 'outside'))
  await linux.unmount(target)
  await assert.rejects(linux.mountAll([bind, { ...tmpfs, target: 'dangling' }], target), failing('ENOENT', 'dangling'))
  assert.deepEqual(await linux.mountsUnder(dir), [])
})

test('unmount: as often as mounted, OK for what is not, EBUSY named for what is in use', async (t) => {
  const { linux, dir, defer } = await fixture(t)
  const target = join(dir, 'target')
  mkdirSync(target)
  await linux.unmount(target)
  await linux.unmount(join(dir, 'missing'))
  assert.equal(await linux.isMountPoint(target), false)
  assert.equal(await linux.isMountPoint(join(dir, 'missing')), false)
  assert.equal(await linux.isMountPoint('/'), true)
  for (let times = 0; times < 3; times += 1) await linux.mount({ source: 'tmpfs', target, fstype: 'tmpfs' })
  assert.equal(await linux.isMountPoint(target), true)
  assert.equal(await linux.isMountPoint(`${target}/`), true)
  await linux.unmount(target)
  assert.equal(await linux.isMountPoint(target), false)

  await linux.mount({ source: target, target, flags: ['bind'] })
  assert.equal(await linux.isMountPoint(target), true)
  const mount = await linux.mountInfo()
  assert.equal(mount.length, readFileSync('/proc/self/mountinfo', 'utf8').trim().split('\n').length)
  const user = spawn('cat', [], { cwd: target, stdio: ['pipe', 'pipe', 'inherit'] })
  defer(() => user.kill('SIGKILL'))
  await new Promise((resolve) => user.once('spawn', resolve))
  await assert.rejects(linux.unmount(target), failing('EBUSY', target))
  await linux.unmount(target, { detach: true })
  assert.equal(await linux.isMountPoint(target), false)
})
