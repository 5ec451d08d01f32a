import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { failing, fixture } from './testing/fixture.ts'

const ids = [{ containerId: 0, hostId: 100_000, size: 65_536 }]
const inside = (path: string, ...command: string[]): string => execFileSync('nsenter', [`--user=${path}`, ...command], { encoding: 'utf8' })
const openFds = (): number => readdirSync('/proc/self/fd').length
const children = (): string[] => readdirSync('/proc/self/task').flatMap((tid) => readFileSync(`/proc/self/task/${tid}/children`, 'latin1').split(' ').filter((pid) => pid !== ''))

test('a user namespace with its ids, and a network namespace that belongs to it, with lo up', async (t) => {
  const { linux, dir } = await fixture(t)
  const [path, netns] = [join(dir, 'a/user'), join(dir, 'b/net')]
  const own = readlinkSync('/proc/self/ns/user')
  await linux.createUserNamespace(path, { uids: ids, gids: [{ containerId: 0, hostId: 200_000, size: 1000 }], netns })

  assert.notEqual(`user:[${statSync(path).ino}]`, own)
  assert.match(inside(path, 'cat', '/proc/self/uid_map'), /^\s*0\s+100000\s+65536\n$/)
  assert.match(inside(path, 'cat', '/proc/self/gid_map'), /^\s*0\s+200000\s+1000\n$/)
  assert.equal(await linux.userNamespaceExists(path), true)
  assert.equal(await linux.netnsExists(path), false)
  assert.equal(await linux.netnsExists(netns), true)
  assert.equal(await linux.userNamespaceExists(netns), false)
  assert.ok((await linux.interfaceAddresses(netns)).some(({ cidr }) => cidr === '127.0.0.1/8'))
  // Only the owner of a network namespace may change it.
  execFileSync('nsenter', [`--user=${path}`, `--net=${netns}`, 'ip', 'link', 'set', 'lo', 'mtu', '1400'])
  assert.match(execFileSync('nsenter', [`--net=${netns}`, 'ip', 'link', 'show', 'lo'], { encoding: 'utf8' }), /LOOPBACK,UP.*mtu 1400/)
  assert.equal(readlinkSync('/proc/self/ns/user'), own)
  assert.deepEqual(children(), [])

  await assert.rejects(linux.createUserNamespace(path, { uids: ids, gids: ids }), failing('EEXIST', path))
  await assert.rejects(linux.deleteNetns(path), failing('FAILED_PRECONDITION', path))
  await linux.deleteUserNamespace(path)
  await linux.deleteUserNamespace(path)
  await linux.deleteNetns(netns)
  assert.equal(existsSync(path), false)
  assert.equal(existsSync(netns), false)
})

test('a failure on the way leaves nothing: no file, no mount, no process, no descriptor', async (t) => {
  const { linux, dir } = await fixture(t)
  const [path, netns] = [join(dir, 'user'), join(dir, 'net')]
  await linux.createUserNamespace(join(dir, 'first'), { uids: ids, gids: ids })
  await linux.deleteUserNamespace(join(dir, 'first'))
  const fds = openFds()
  const overlapping = [{ containerId: 0, hostId: 1, size: 10 }, { containerId: 5, hostId: 100, size: 10 }]
  await assert.rejects(linux.createUserNamespace(path, { uids: overlapping, gids: ids, netns }), failing('EINVAL', '5 100 10'))
  await assert.rejects(linux.createUserNamespace(path, { uids: [], gids: ids, netns }), failing('INVALID_ARGUMENT', 'uid'))
  await assert.rejects(linux.createUserNamespace(path, { uids: [{ containerId: 0, hostId: 2 ** 32, size: 1 }], gids: ids }), failing('INVALID_ARGUMENT', '4294967296'))
  writeFileSync(netns, 'precious')
  await assert.rejects(linux.createUserNamespace(path, { uids: ids, gids: ids, netns }), failing('EEXIST', netns))
  assert.deepEqual(readdirSync(dir), ['net'])
  assert.deepEqual(await linux.mountsUnder(dir), [])
  assert.deepEqual(children(), [])
  assert.equal(openFds(), fds)
})

test('id-mapped mounts show the files of root as those of the root of a user namespace', async (t) => {
  const { linux, dir } = await fixture(t)
  chmodSync(dir, 0o711)
  const userns = join(dir, 'user')
  const [source, target, file] = [join(dir, 'source'), join(dir, 'x/target'), join(dir, 'x/file')]
  mkdirSync(source)
  writeFileSync(join(source, 'of-root'), 'text')
  writeFileSync(join(source, 'of-daemon'), '')
  chownSync(join(source, 'of-daemon'), 1, 2)
  await linux.createUserNamespace(userns, { uids: ids, gids: ids })
  await linux.mountIdmapped([{ source, target }, { source: join(source, 'of-root'), target: file }], userns)
  assert.equal(statSync(join(target, 'of-root')).uid, 100_000)
  assert.deepEqual([statSync(join(target, 'of-daemon')).uid, statSync(join(target, 'of-daemon')).gid], [100_001, 100_002])
  assert.equal(statSync(file).uid, 100_000)
  assert.equal(readFileSync(file, 'utf8'), 'text')
  // What the root of the namespace makes is root's on the disk.
  execFileSync('nsenter', [`--user=${userns}`, '--setuid=0', '--setgid=0', 'sh', '-c', `echo more > ${target}/made`])
  assert.equal(statSync(join(source, 'made')).uid, 0)

  const before = (await linux.mountsUnder(dir)).length
  await assert.rejects(linux.mountIdmapped([{ source, target: join(dir, 'y') }, { source: '/proc', target: join(dir, 'z') }], userns), failing('NoIdmap', '/proc', 'file system proc'))
  assert.equal((await linux.mountsUnder(dir)).length, before)
  await assert.rejects(linux.mountIdmapped([{ source: join(dir, 'nothing'), target }], userns), failing('ENOENT', 'nothing'))
})

test('whether layers can be mapped is found out by trying', async (t) => {
  const { linux, dir } = await fixture(t)
  const scratch = join(dir, 'scratch')
  mkdirSync(join(dir, 'layers'))
  const answer = await linux.idmapProblem(join(dir, 'layers'), scratch)
  // The kernels from 5.19 on can, whatever the file system of a temporary directory usually is.
  assert.equal(answer, undefined)
  assert.match(await linux.idmapProblem('/proc', scratch) ?? '', /\/proc.*file system proc/)
  assert.match(await linux.idmapProblem(join(dir, 'nothing'), scratch) ?? '', /nothing.*ENOENT/)
  assert.deepEqual(readdirSync(scratch), [])
  assert.deepEqual(await linux.mountsUnder(dir), [])
})
