import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus, release, totalmem } from 'node:os'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { cgroupPathsFor, expandSlice } from './cgroups.ts'
import { parseMountInfo } from './mountinfo.ts'
import { cgroupMounts, resolveCgroups } from './ops/cgroups.ts'
import { capabilitiesOf, hugepageSize, swapLimitV2 } from './ops/host.ts'
import { failing, fixture } from './testing/fixture.ts'
import { Figure, type FigureName, usageTarget } from './usage.ts'

function tree(dir: string, files: Readonly<Record<string, string>>): string {
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(dir, name)), { recursive: true })
    writeFileSync(join(dir, name), `${content}\n`)
  }
  return dir
}

const v1Mounts = parseMountInfo(
  '30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n' +
    '32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n' +
    '34 30 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n35 30 0:29 /kubepods /jail/memory rw - cgroup cgroup rw,memory\n',
)
const v2Mounts = parseMountInfo('30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n')
const systemd = '32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n'

test('which cgroups this is, and where', () => {
  const hybrid = cgroupMounts(v1Mounts)
  assert.deepEqual(hybrid, {
    mode: 'hybrid',
    v1: { 'name=systemd': '/sys/fs/cgroup/systemd', memory: '/sys/fs/cgroup/memory', cpu: '/sys/fs/cgroup/cpu,cpuacct', cpuacct: '/sys/fs/cgroup/cpu,cpuacct' },
    v2: '/sys/fs/cgroup/unified',
  })
  assert.equal(cgroupMounts(v1Mounts.filter(({ fstype }) => fstype !== 'cgroup2')).mode, 'v1')
  assert.deepEqual(cgroupMounts(v2Mounts), { mode: 'v2', v1: {}, v2: '/sys/fs/cgroup' })
  assert.equal(cgroupMounts([...v2Mounts, ...parseMountInfo(systemd)]).mode, 'v2')
})

test('the cgroups of a process', () => {
  assert.deepEqual(resolveCgroups('4:memory:/kubepods/a:b\n1:cpu,cpuacct:/kubepods/a:b\n9:name=systemd:/x\n7:freezer:/y\n0::/z\n', v1Mounts), {
    v1: {
      memory: '/sys/fs/cgroup/memory/kubepods/a:b',
      cpu: '/sys/fs/cgroup/cpu,cpuacct/kubepods/a:b',
      cpuacct: '/sys/fs/cgroup/cpu,cpuacct/kubepods/a:b',
      'name=systemd': '/sys/fs/cgroup/systemd/x',
    },
    v2: '/sys/fs/cgroup/unified/z',
  })
  assert.deepEqual(resolveCgroups('0::/kubepods.slice/x.scope\n', v2Mounts), { v1: {}, v2: '/sys/fs/cgroup/kubepods.slice/x.scope' })
  // Only a part of the hierarchy is mounted.
  assert.deepEqual(resolveCgroups('4:memory:/kubepods/a\n', v1Mounts.slice(-1)), { v1: { memory: '/jail/memory/a' }, v2: undefined })
  assert.deepEqual(resolveCgroups('4:memory:/kubepodsx\n', v1Mounts.slice(-1)), { v1: {}, v2: undefined })
})

test('the directories for a cgroup path, cgroupfs and systemd', () => {
  const host = { cgroup: { mode: 'hybrid', v1: { memory: '/c/memory' }, v2: '/c/unified' } } as const
  assert.deepEqual(cgroupPathsFor('/kubepods/pod1/id', host), { v1: { memory: '/c/memory/kubepods/pod1/id' }, v2: '/c/unified/kubepods/pod1/id' })
  assert.equal(cgroupPathsFor('kubepods-besteffort-pod1_2.slice:cri-containerd:id', host).v2, '/c/unified/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1_2.slice/cri-containerd-id.scope')
  assert.equal(expandSlice('-.slice'), '/')
  for (const wrong of ['/a/../../b', 'a/b', 'a:b', 'a.slice:p:', '../x:y:z', 'a--b.slice:p:n', 'a:b:c:d']) assert.throws(() => cgroupPathsFor(wrong, host), failing('INVALID_ARGUMENT'), wrong)
})

test('whether cgroup v2 limits swap: by the file of the own cgroup, at the root by that of any other', async (t) => {
  const { dir } = await fixture(t)
  assert.equal(swapLimitV2(dir, '0::/'), false)
  tree(dir, { 'cgroup.controllers': 'cpu memory', 'system.slice/x.service/memory.swap.max': 'max', 'plain.slice/memory.max': 'max' })
  assert.deepEqual(['0::/system.slice/x.service', '0::/plain.slice', '0::/gone', '0::/'].map((own) => swapLimitV2(dir, own)), [true, false, false, false])
  tree(dir, { 'init.scope/memory.swap.max': 'max' })
  assert.equal(swapLimitV2(dir, '1:name=systemd:/x\n0::/'), true)
  assert.equal(swapLimitV2(join(dir, 'gone'), ''), false)
})

test('a real cgroup of this machine: found, measured, an out-of-memory kill counted, removed', async (t) => {
  const { linux, defer } = await fixture(t)
  const host = await linux.probeHost()
  const paths = cgroupPathsFor(`/cri-shim-test-${process.pid}`, host)
  const memory = paths.v1['memory'] ?? paths.v2 ?? ''
  const relevant = { v1: Object.fromEntries(Object.entries(paths.v1).filter(([name]) => ['memory', 'cpuacct', 'pids'].includes(name))), v2: host.cgroup.mode === 'v2' ? paths.v2 : undefined }
  const dirs = [...Object.values(relevant.v1), relevant.v2].filter((dir) => dir !== undefined)
  for (const dir of dirs) mkdirSync(dir, { recursive: true })
  defer(() => linux.removeCgroup(relevant))
  mkdirSync(join(memory, 'child/grandchild'), { recursive: true })
  writeFileSync(join(memory, existsSync(join(memory, 'memory.max')) ? 'memory.max' : 'memory.limit_in_bytes'), String(32 * 2 ** 20))
  assert.equal(await linux.oomKillCount(relevant), 0)

  const hungry = 'const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 1))'
  const eater = spawn('sh', ['-c', 'read line; exec "$0" -e "$1"', process.execPath, hungry], { stdio: ['pipe', 'inherit', 'inherit'] })
  defer(() => eater.kill('SIGKILL'))
  for (const dir of dirs) writeFileSync(join(dir, 'cgroup.procs'), String(eater.pid))
  const found = await linux.cgroupPathsOf(eater.pid ?? 0)
  assert.equal(found.v1['memory'] ?? found.v2, memory)
  const { rows } = await linux.cgroupUsage('detail', [{ ...usageTarget(found, 'detail'), pid: eater.pid, countProcesses: true }])
  const value = (name: FigureName): number => rows[Figure[name]] ?? Number.NaN
  assert.equal(value('memoryLimit'), 32 * 2 ** 20)
  assert.ok(value('cpuNs') >= 0 && value('workingSet') < value('memoryLimit') && value('descriptors') >= 3)
  assert.deepEqual([value('tasks'), value('processes')], [1, 1])
  assert.equal(value('openFilesLimit'), Number(execFileSync('sh', ['-c', 'ulimit -Sn'], { encoding: 'utf8' })))
  await assert.rejects(linux.removeCgroup(relevant), failing('EBUSY', String(eater.pid)))
  const exit = once(eater, 'exit')
  eater.stdin.end('go\n')
  assert.deepEqual(await exit, [null, 'SIGKILL'])
  assert.equal(await linux.oomKillCount(relevant), 1)

  await linux.removeCgroup(relevant)
  for (const dir of dirs) assert.equal(existsSync(dir), false)
  await linux.removeCgroup(relevant)
  assert.equal(await linux.oomKillCount(relevant), undefined)
  assert.ok((await linux.cgroupUsage('usage', [usageTarget(relevant, 'usage')])).rows.subarray(3).every(Number.isNaN))
  await assert.rejects(linux.cgroupPathsOf(eater.pid ?? 0), failing('ESRCH', String(eater.pid)))
  await assert.rejects(linux.removeCgroup({ v1: {}, v2: dirname(memory) }), failing('FAILED_PRECONDITION', dirname(memory)))
})

test('the facts of this host agree with what others say', async (t) => {
  const { linux } = await fixture(t)
  const facts = await linux.probeHost()
  assert.equal(facts.kernelRelease, release())
  assert.ok(release().startsWith(`${facts.kernelMajor}.${facts.kernelMinor}`))
  assert.equal(facts.arch, { x86_64: 'amd64', aarch64: 'arm64' }[execFileSync('uname', ['-m'], { encoding: 'utf8' }).trim()])
  assert.equal(facts.cpus, cpus().length)
  assert.equal(facts.memoryTotalBytes, totalmem())
  assert.equal(facts.oomScoreAdj, Number(readFileSync('/proc/self/oom_score_adj', 'latin1')))
  assert.equal(facts.capabilities.last, Number(readFileSync('/proc/sys/kernel/cap_last_cap', 'latin1')))
  // What the capability is for, tried: lowering the score of a process.
  const score = facts.oomScoreAdj
  const lowered = score > -1000 && execFileSync('sh', ['-c', `(echo ${score - 1} > /proc/self/oom_score_adj) 2>/dev/null && echo yes || echo no`], { encoding: 'utf8' }).trim() === 'yes'
  assert.equal(facts.capabilities.effective.includes('CAP_SYS_RESOURCE'), lowered)
  const v1 = readFileSync('/proc/mounts', 'latin1').split('\n').filter((line) => line.split(' ')[2] === 'cgroup')
  assert.equal(facts.cgroup.mode === 'v2', v1.length === 0)
  for (const mount of Object.values(facts.cgroup.v1)) assert.ok(existsSync(join(mount, 'cgroup.procs')), mount)
  assert.ok(facts.cgroup.controllers.includes('memory'))
})

test('capability masks and huge page sizes', () => {
  assert.deepEqual(capabilitiesOf('0000000001000003', 40), ['CAP_CHOWN', 'CAP_DAC_OVERRIDE', 'CAP_SYS_RESOURCE'])
  assert.deepEqual(capabilitiesOf('30000000000', 41), ['CAP_CHECKPOINT_RESTORE', 'CAP_41'])
  assert.equal(capabilitiesOf('1ffffffffff', 40).length, 41)
  assert.deepEqual(['hugepages-2048kB', 'hugepages-1048576kB', 'hugepages-64kB', 'x'].map(hugepageSize), ['2MB', '1GB', '64KB', undefined])
})
