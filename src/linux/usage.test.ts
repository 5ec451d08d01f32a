import assert from 'node:assert/strict'
import { mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { parseNetDev } from './ops/usage.ts'
import { fixture } from './testing/fixture.ts'
import { Figure, type FigureName, rowLength, type UsageLevel, type UsageRows, usageTarget } from './usage.ts'

function tree(dir: string, files: Readonly<Record<string, string>>): string {
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(dir, name)), { recursive: true })
    writeFileSync(join(dir, name), content.endsWith('\0') ? content.slice(0, -1) : `${content}\n`)
  }
  return dir
}

/** What is known in one row, without the times of reading. */
function known({ rows }: UsageRows, level: UsageLevel, index = 0): Record<string, number> {
  const row = rows.subarray(index * rowLength[level], (index + 1) * rowLength[level])
  const names = Object.keys(Figure) as FigureName[]
  return Object.fromEntries(names.filter((name) => !name.endsWith('Ms')).flatMap((name) => {
    const value = row[Figure[name]]
    return value === undefined || Number.isNaN(value) ? [] : [[name, value]]
  }))
}

const v2Files = {
  'cpu.stat': 'usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 8\nnr_throttled 3\nthrottled_usec 70', 'cpu.max': '20000 100000', 'cpu.weight': '39',
  'cpu.pressure': 'some avg10=1.50 avg60=0.20 avg300=0.00 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5',
  'io.pressure': 'some avg10=0.00 avg60=0.00 avg300=0.25 total=9',
  'memory.current': '10000', 'memory.max': '50000', 'memory.swap.current': '100', 'memory.swap.max': '1000', 'memory.peak': '20000', 'memory.min': '64',
  'memory.stat': 'anon 4000\nfile 5000\nkernel 900\nfile_mapped 50\ninactive_file 3000\nactive_file 2000\npgfault 77\npgmajfault 7',
  'memory.events': 'low 0\nmax 12\noom 4\noom_kill 2\noom_group_kill 1',
  'pids.current': '5', 'pids.max': 'max',
  'io.stat': '8:0 rbytes=100 wbytes=200 rios=1 wios=2 dbytes=0 dios=0\n1:999 rbytes=11 wbytes=22 rios=3 wios=4\n7:0 ',
}

test('cgroup v2: every figure of each level', async (t) => {
  const { linux, dir } = await fixture(t)
  const paths = { v1: {}, v2: tree(dir, v2Files) }
  assert.deepEqual(known(await linux.cgroupUsage('cpu', [usageTarget(paths, 'cpu')]), 'cpu'), { cpuNs: 1_500_000 })
  const usage = {
    cpuNs: 1_500_000, memoryUsage: 10_000, workingSet: 7000, memoryLimit: 50_000, rss: 4000, pageFaults: 77, majorPageFaults: 7, swapUsage: 100, swapAvailable: 900, tasks: 5,
    cpuSome: 12_345_000, cpuFull: 5000, ioSome: 9000,
  }
  const read = await linux.cgroupUsage('usage', [usageTarget(paths, 'usage')])
  assert.deepEqual(known(read, 'usage'), usage)
  assert.deepEqual([...read.rows.slice(Figure.cpuSome, Figure.cpuSome + 4), ...read.rows.slice(Figure.ioSome + 1, Figure.ioSome + 4)], [12_345_000, 1.5, 0.2, 0, 0, 0, 0.25])
  const detail = await linux.cgroupUsage('detail', [usageTarget(paths, 'detail')])
  assert.deepEqual(known(detail, 'detail'), {
    ...usage, userNs: 1_000_000, systemNs: 500_000, periods: 8, throttledPeriods: 3, throttledNs: 70_000, cache: 5000, mappedFile: 50, activeFile: 2000, inactiveFile: 3000,
    kernelMemory: 900, maxMemoryUsage: 20_000, memoryLimitHits: 12, ownPageFaults: 77, ownMajorPageFaults: 7, oomKills: 2, cpuPeriodUs: 100_000, cpuQuotaUs: 20_000, cpuShares: 998,
    memoryReservation: 64, swapLimit: 1000,
  })
  assert.deepEqual(detail.devices[0]?.map(({ device, ...rest }) => ({ ...rest, named: device === `${rest.major}:${rest.minor}` || device.startsWith('/dev/') })), [
    { major: '8', minor: '0', bytes: { Read: 100, Write: 200, Discard: 0 }, operations: { Read: 1, Write: 2, Discard: 0 }, named: true },
    { major: '1', minor: '999', bytes: { Read: 11, Write: 22 }, operations: { Read: 3, Write: 4 }, named: true },
  ])
  assert.equal(detail.devices[0]?.[1]?.device, '1:999')
})

test('cgroup v1: every figure of each level', async (t) => {
  const { linux, dir } = await fixture(t)
  tree(dir, {
    'cpu/cpu.stat': 'nr_periods 9\nnr_throttled 4\nthrottled_time 800', 'cpu/cpuacct.usage': '123456789012345', 'cpu/cpuacct.stat': 'user 12\nsystem 3',
    'cpu/cpu.shares': '512', 'cpu/cpu.cfs_quota_us': '-1', 'cpu/cpu.cfs_period_us': '100000',
    'memory/memory.usage_in_bytes': '6000', 'memory/memory.limit_in_bytes': '9000', 'memory/memory.memsw.usage_in_bytes': '6500', 'memory/memory.memsw.limit_in_bytes': '9223372036854771712',
    'memory/memory.stat': 'cache 1\nrss 1\ninactive_file 2\npgfault 3\npgmajfault 1\nhierarchical_memory_limit 9000\nhierarchical_memsw_limit 9000\ntotal_cache 70\ntotal_rss 600\ntotal_mapped_file 20\ntotal_swap 500\n' +
      'total_inactive_file 5000\ntotal_active_file 40\ntotal_pgfault 8\ntotal_pgmajfault 9',
    'memory/memory.oom_control': 'oom_kill_disable 0\nunder_oom 0\noom_kill 6', 'memory/memory.failcnt': '2', 'memory/memory.max_usage_in_bytes': '8000',
    'memory/memory.kmem.usage_in_bytes': '300', 'memory/memory.soft_limit_in_bytes': '9223372036854771712',
    'pids/pids.current': '1', 'pids/pids.max': '32',
    'blkio/blkio.throttle.io_service_bytes': '8:0 Read 1\n8:0 Write 2\nTotal 3', 'blkio/blkio.throttle.io_service_bytes_recursive': '8:0 Read 10\n8:0 Write 20\n8:0 Sync 30\n8:0 Total 30\n8:1 Read 5\nTotal 35',
    'blkio/blkio.throttle.io_serviced': '8:0 Read 1\n8:0 Write 2\nTotal 3',
  })
  const v1 = { cpu: join(dir, 'cpu'), cpuacct: join(dir, 'cpu'), memory: join(dir, 'memory'), pids: join(dir, 'pids'), blkio: join(dir, 'blkio') }
  assert.deepEqual(known(await linux.cgroupUsage('cpu', [usageTarget({ v1 }, 'cpu')]), 'cpu'), { cpuNs: 123_456_789_012_345 })
  // The limit on memory and swap is the pod's: this cgroup has none of its own.
  const usage = { cpuNs: 123_456_789_012_345, memoryUsage: 6000, workingSet: 1000, memoryLimit: 9000, rss: 600, pageFaults: 8, majorPageFaults: 9, swapUsage: 500, tasks: 1 }
  assert.deepEqual(known(await linux.cgroupUsage('usage', [usageTarget({ v1 }, 'usage')]), 'usage'), usage)
  const detail = await linux.cgroupUsage('detail', [usageTarget({ v1 }, 'detail')])
  assert.deepEqual(known(detail, 'detail'), {
    ...usage, userNs: 120_000_000, systemNs: 30_000_000, periods: 9, throttledPeriods: 4, throttledNs: 800, cache: 70, mappedFile: 20, activeFile: 40, inactiveFile: 5000, kernelMemory: 300,
    maxMemoryUsage: 8000, memoryLimitHits: 2, ownPageFaults: 3, ownMajorPageFaults: 1, oomKills: 6, maxTasks: 32, cpuPeriodUs: 100_000, cpuShares: 512,
  })
  assert.deepEqual(detail.devices[0]?.map(({ bytes, operations }) => ({ bytes, operations })), [
    { bytes: { Read: 10, Write: 20, Sync: 30 }, operations: { Read: 1, Write: 2 } }, { bytes: { Read: 5 }, operations: {} },
  ])
})

test('one that is gone, empty or unreadable leaves the others theirs', async (t) => {
  const { linux, dir } = await fixture(t)
  tree(dir, { 'a/cpu.stat': 'usage_usec 1', 'b/memory.current': '5', 'b/memory.stat': 'anon 1', 'c/cpu.stat': '\0', 'e/cpu.stat': 'usage_usec 2' })
  mkdirSync(join(dir, 'd/cpu.stat'), { recursive: true })
  const read = await linux.cgroupUsage('detail', ['a', 'gone', 'b', 'c', 'd', 'e'].map((name) => ({ v2: join(dir, name), countProcesses: true })))
  assert.deepEqual([0, 1, 2, 3, 4, 5].map((index) => known(read, 'detail', index)), [
    { cpuNs: 1000, processes: 0, descriptors: 0, sockets: 0 }, {}, { memoryUsage: 5, workingSet: 5, rss: 1, processes: 0, descriptors: 0, sockets: 0 }, { processes: 0, descriptors: 0, sockets: 0 }, {},
    { cpuNs: 2000, processes: 0, descriptors: 0, sockets: 0 },
  ])
  assert.deepEqual(read.failures.map(({ index }) => index), [4])
  assert.match(read.failures[0]?.message ?? '', /EISDIR.*/)
  assert.deepEqual([read.devices.length, read.hugetlb.length], [6, 6])
})

test('processes below a cgroup with what they have open', async (t) => {
  const { linux, dir } = await fixture(t)
  tree(dir, { 'pids.current': '3', 'cgroup.procs': `${process.pid}\n4000000`, 'nested/deeper/cgroup.procs': `${process.ppid}`, 'nested/cgroup.procs': '0' })
  const { rows } = await linux.cgroupUsage('detail', [{ v2: dir, pid: process.pid, countProcesses: true }])
  assert.equal(rows[Figure.processes], 3)
  assert.ok((rows[Figure.descriptors] ?? 0) > 3)
  assert.ok((rows[Figure.openFilesLimit] ?? 0) > 0)
})

test('the columns of /proc/net/dev', () => {
  const text = 'Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n' +
    '    lo:  100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n' +
    '  eth0: 1234567890123     22    3    4    0     0          0         0 5    6    7    8    0     0       0          0\nnet1:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n'
  assert.deepEqual(parseNetDev(text), [
    { name: 'eth0', rxBytes: 1_234_567_890_123, rxPackets: 22, rxErrors: 3, rxDropped: 4, txBytes: 5, txPackets: 6, txErrors: 7, txDropped: 8 },
    { name: 'net1', rxBytes: 1, rxPackets: 2, rxErrors: 3, rxDropped: 4, txBytes: 9, txPackets: 10, txErrors: 11, txDropped: 12 },
  ])
})

test('network namespaces: by a process in them, by path when the process is gone or another one', { skip: process.getuid?.() === 0 ? false : 'needs root' }, async (t) => {
  const { linux, dir, defer } = await fixture(t)
  const path = join(dir, 'netns')
  await linux.createNetns(path)
  defer(() => linux.deleteNetns(path))
  const own = await linux.networkCounters([{ netnsPath: '/proc/self/ns/net', pid: process.pid }])
  assert.ok(Array.isArray(own[0]))
  // This process is not in it, so what it sees must not be taken for the pod's: a new namespace has nothing but lo (and what modules put there).
  const [empty, also, none] = await linux.networkCounters([{ netnsPath: path, pid: process.pid }, { netnsPath: path, pid: 0 }, { netnsPath: join(dir, 'gone'), pid: 0 }])
  assert.ok(empty?.every(({ rxBytes, txBytes }) => rxBytes === 0 && txBytes === 0))
  assert.deepEqual(also, empty)
  assert.equal(none, undefined)
})
