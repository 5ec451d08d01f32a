import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, readlinkSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { netSysctlFile } from './ops/netns.ts'
import { failing, fixture } from './testing/fixture.ts'

const inside = (path: string, ...command: string[]): string => execFileSync('nsenter', [`--net=${path}`, ...command], { encoding: 'utf8' })
const namespaces = (): string[] => readdirSync('/proc/self/task').map((tid) => readlinkSync(`/proc/self/task/${tid}/ns/net`))
const openFds = (): number => readdirSync('/proc/self/fd').length

test('a new network namespace: its own, lo up, sysctls set; this process stays where it is', async (t) => {
  const { linux, dir } = await fixture(t)
  const path = join(dir, 'a/b/netns')
  const before = readlinkSync('/proc/self/ns/net')
  await linux.createNetns(path, { sysctls: { 'net.ipv4.ip_unprivileged_port_start': '0', 'net/ipv4/ping_group_range': '0 2147483647' } })

  const { ino } = statSync(path)
  assert.notEqual(`net:[${ino}]`, before)
  assert.equal(inside(path, 'readlink', '/proc/self/ns/net').trim(), `net:[${ino}]`)
  assert.match(inside(path, 'ip', 'link', 'show', 'lo'), /<LOOPBACK,UP,LOWER_UP>/)
  assert.equal(inside(path, 'cat', '/proc/sys/net/ipv4/ip_unprivileged_port_start').trim(), '0')
  assert.equal(inside(path, 'cat', '/proc/sys/net/ipv4/ping_group_range').trim().replace('\t', ' '), '0 2147483647')
  assert.equal(readFileSync('/proc/sys/net/ipv4/ip_unprivileged_port_start', 'latin1').trim(), '1024')
  assert.deepEqual(new Set(namespaces()), new Set([before]))
  assert.equal(await linux.netnsExists(path), true)
  assert.equal(statSync(join(path, '..')).mode & 0o777, 0o755)
  const addresses = await linux.interfaceAddresses(path)
  assert.ok(addresses.some(({ cidr, interfaceName, internal }) => cidr === '127.0.0.1/8' && interfaceName === 'lo' && internal))
  assert.deepEqual(new Set(namespaces()), new Set([before]))
})

test('delete takes it away, however often it is mounted, and again is OK', async (t) => {
  const { linux, dir } = await fixture(t)
  const path = join(dir, 'netns')
  await linux.createNetns(path)
  await linux.mount({ source: path, target: path, flags: ['bind'] })
  await linux.deleteNetns(path)
  assert.equal(existsSync(path), false)
  assert.equal(await linux.netnsExists(path), false)
  await linux.deleteNetns(path)
  await linux.deleteNetns(join(path, 'below/nothing'))
})

test('a second create is refused, the empty file of a crash is not in the way, anything else is left alone', async (t) => {
  const { linux, dir } = await fixture(t)
  const path = join(dir, 'netns')
  writeFileSync(path, '')
  assert.equal(await linux.netnsExists(path), false)
  await linux.createNetns(path)
  const { ino } = statSync(path)
  await assert.rejects(linux.createNetns(path), failing('EEXIST', path))
  assert.equal(statSync(path).ino, ino)
  await linux.deleteNetns(path)

  const file = join(dir, 'file')
  writeFileSync(file, 'precious')
  await assert.rejects(linux.createNetns(file), failing('EEXIST', file))
  await assert.rejects(linux.deleteNetns(file), failing('FAILED_PRECONDITION', file))
  assert.equal(readFileSync(file, 'utf8'), 'precious')
  await assert.rejects(linux.deleteNetns(dir), failing('FAILED_PRECONDITION', dir))
  const link = join(dir, 'link')
  symlinkSync(file, link)
  await assert.rejects(linux.createNetns(link), failing('ELOOP', link))
})

test('of two calls for one path at a time one wins', async (t) => {
  const { linux, dir } = await fixture(t, { workers: 2 })
  const path = join(dir, 'netns')
  for (let round = 0; round < 20; round += 1) {
    const outcomes = await Promise.allSettled([linux.createNetns(path), linux.createNetns(path)])
    assert.deepEqual(outcomes.map(({ status }) => status).sort(), ['fulfilled', 'rejected'])
    assert.equal((await linux.mountsUnder(path)).length, 1)
    await linux.deleteNetns(path)
  }
})

test('a failure on the way leaves nothing: no file, no mount, no thread in a foreign namespace', async (t) => {
  const { linux, dir } = await fixture(t)
  const path = join(dir, 'netns')
  const before = readlinkSync('/proc/self/ns/net')
  await assert.rejects(linux.createNetns(path, { sysctls: { 'net.ipv4.no_such_thing': '1' } }), failing('ENOENT', 'net.ipv4.no_such_thing'))
  await assert.rejects(linux.createNetns(path, { sysctls: { 'net.ipv4.ip_unprivileged_port_start': 'many' } }), failing('EINVAL', 'ip_unprivileged_port_start', 'many'))
  await assert.rejects(linux.createNetns(path, { sysctls: { 'kernel.hostname': 'x' } }), failing('INVALID_ARGUMENT', 'kernel.hostname'))
  await assert.rejects(linux.createNetns('relative/path'), failing('INVALID_ARGUMENT', 'relative/path'))
  assert.deepEqual(readdirSync(dir), [])
  assert.deepEqual(await linux.mountsUnder(dir), [])
  assert.deepEqual(new Set(namespaces()), new Set([before]))
})

test('a sysctl name cannot lead out of net', () => {
  assert.equal(netSysctlFile('net.ipv4.conf.eth0/1.rp_filter'), '/proc/sys/net/ipv4/conf/eth0.1/rp_filter')
  assert.equal(netSysctlFile('net/ipv4/conf/eth0.1/rp_filter'), '/proc/sys/net/ipv4/conf/eth0.1/rp_filter')
  for (const name of ['net', 'kernel.shmmax', 'net/../kernel/hostname', 'net.//.kernel', 'net..ipv4', '../net/x', '/net/ipv4', 'net.\0', '']) {
    assert.throws(() => netSysctlFile(name), failing('INVALID_ARGUMENT'), name)
  }
})

test('two hundred times create and delete leave no descriptor, thread, mount or namespace behind', async (t) => {
  const { linux, dir } = await fixture(t)
  const round = async (index: number): Promise<void> => {
    await linux.createNetns(join(dir, `netns-${index}`))
    await linux.deleteNetns(join(dir, `netns-${index}`))
  }
  await Promise.all([0, 1, 2, 3].map(round))
  const before = { fds: openFds(), threads: readdirSync('/proc/self/task').length, mounts: (await linux.mountInfo()).filter(({ mountPoint }) => mountPoint.startsWith(dir)).length }
  for (let index = 0; index < 200; index += 4) await Promise.all([0, 1, 2, 3].map((offset) => round(index + offset)))
  assert.deepEqual({ fds: openFds(), threads: readdirSync('/proc/self/task').length, mounts: (await linux.mountInfo()).filter(({ mountPoint }) => mountPoint.startsWith(dir)).length }, before)
  assert.deepEqual(readdirSync(dir), [])
})
