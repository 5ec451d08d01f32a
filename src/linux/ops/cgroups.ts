import { type Dirent, readdirSync, readFileSync, rmdirSync } from 'node:fs'
import { posix } from 'node:path'
import { Code, failedPrecondition, notFound } from '../../errors/cri-error.ts'
import type { CgroupMounts, CgroupPaths, CgroupStats, Pressure, PressureLine } from '../cgroups.ts'
import { fromNodeError } from '../errno.ts'
import { isWithin, type MountInfo } from '../mountinfo.ts'
import { absolute, type OpContext } from './context.ts'
import { readMountInfo } from './mounts.ts'

/** A file of a cgroup; undefined when it or the cgroup is not there, or (ENODEV) the cgroup was removed under the open file. */
function readControl(dir: string | undefined, name: string): string | undefined {
  if (dir === undefined) return undefined
  try {
    return readFileSync(posix.join(dir, name), 'latin1').trim()
  } catch (error) {
    const cause = fromNodeError(`read ${dir}/${name}`, error)
    if (cause.code === Code.NOT_FOUND || ['ENODEV', 'ENOTDIR', 'EOPNOTSUPP', 'ENOTSUP'].includes(cause.reason)) return undefined
    throw cause
  }
}

const count = (text: string | undefined): bigint | undefined => (text !== undefined && /^[0-9]+$/.test(text) ? BigInt(text) : undefined)

/** `key value` lines. */
function keyed(text: string | undefined): ReadonlyMap<string, bigint> {
  const values = new Map<string, bigint>()
  for (const line of (text ?? '').split('\n')) {
    const [key, value] = line.split(' ')
    const number = count(value)
    if (key !== undefined && number !== undefined) values.set(key, number)
  }
  return values
}

/** v1 writes "no limit" as the largest number of pages. */
const unlimited = 2n ** 63n - 2n ** 20n

function limit(text: string | undefined): bigint | undefined {
  const value = count(text)
  return value === undefined || value >= unlimited ? undefined : value
}

function minus(a: bigint | undefined, b: bigint | undefined): bigint | undefined {
  if (a === undefined || b === undefined) return undefined
  return a > b ? a - b : 0n
}

/** @see Linux.cgroupPathsOf */
export function cgroupPathsOf(_: OpContext, pid: number): CgroupPaths {
  const text = readControl('/proc', `${pid}/cgroup`)
  if (text === undefined) throw notFound(`process ${pid} has ended`, { reason: 'ESRCH' })
  return resolveCgroups(text, readMountInfo())
}

/** The directories for the text of a /proc/PID/cgroup file. */
export function resolveCgroups(text: string, mounts: readonly MountInfo[]): CgroupPaths {
  const v1: Record<string, string> = {}
  let v2: string | undefined
  for (const line of text.split('\n')) {
    const first = line.indexOf(':')
    const second = line.indexOf(':', first + 1)
    if (second === -1) continue
    const controllers = line.slice(first + 1, second)
    const path = line.slice(second + 1)
    if (controllers === '') v2 = directoryOf(mounts.filter(({ fstype }) => fstype === 'cgroup2'), path)
    for (const controller of controllers === '' ? [] : controllers.split(',')) {
      const dir = directoryOf(
        mounts.filter(({ fstype, superOptions }) => fstype === 'cgroup' && superOptions.includes(controller)),
        path,
      )
      if (dir !== undefined) v1[controller] = dir
    }
  }
  return { v1, v2 }
}

/** A hierarchy may be mounted several times, and may show only a part; the first mount that shows the path is taken. */
function directoryOf(mounts: readonly MountInfo[], path: string): string | undefined {
  const mount = mounts.find(({ root }) => isWithin(path, root))
  return mount === undefined ? undefined : posix.join(mount.mountPoint, mount.root === '/' ? path : path.slice(mount.root.length))
}

/** Which hierarchies are mounted where, from mountinfo. */
export function cgroupMounts(mounts: readonly MountInfo[]): CgroupMounts {
  const v1: Record<string, string> = {}
  // What a container or a chroot mounted elsewhere comes after the host's own place.
  const hostFirst = mounts.toSorted((a, b) => Number(!isWithin(a.mountPoint, '/sys/fs/cgroup')) - Number(!isWithin(b.mountPoint, '/sys/fs/cgroup')))
  const v2 = hostFirst.find(({ fstype }) => fstype === 'cgroup2')?.mountPoint
  const plain = new Set(['rw', 'ro', 'xattr', 'clone_children', 'cpuset_v2_mode', 'noprefix', 'seclabel'])
  for (const { fstype, superOptions, mountPoint } of hostFirst) {
    if (fstype !== 'cgroup') continue
    for (const option of superOptions) {
      if (!plain.has(option) && !option.startsWith('release_agent=') && v1[option] === undefined) v1[option] = mountPoint
    }
  }
  // A v1 hierarchy without controllers (name=systemd) alone does not make a host v1.
  const controllers = Object.keys(v1).some((name) => !name.startsWith('name='))
  return { mode: controllers ? (v2 === undefined ? 'v1' : 'hybrid') : 'v2', v1, v2 }
}

/** @see Linux.oomKillCount */
export function oomKillCount(_: OpContext, paths: CgroupPaths): number | undefined {
  const memory = paths.v1['memory']
  const text = memory === undefined ? readControl(paths.v2, 'memory.events') : readControl(memory, 'memory.oom_control')
  const value = keyed(text).get('oom_kill')
  return value === undefined ? undefined : Number(value)
}

/** @see Linux.cgroupStats */
export function cgroupStats(_: OpContext, paths: CgroupPaths): CgroupStats | undefined {
  const { v1, v2 } = paths
  const cpu = v1['cpuacct'] === undefined ? cpuV2(v2) : cpuV1(v1)
  const memory = v1['memory'] === undefined ? memoryV2(v2) : memoryV1(v1['memory'])
  if (cpu.usageNs === undefined && memory.usageBytes === undefined) return undefined
  const pids = v1['pids'] ?? v2
  return {
    timestampNs: BigInt(Date.now()) * 1_000_000n,
    cpu: { ...cpu, pressure: pressure(readControl(v2, 'cpu.pressure')) },
    memory: { ...memory, pressure: pressure(readControl(v2, 'memory.pressure')) },
    pids: { current: count(readControl(pids, 'pids.current')), limit: count(readControl(pids, 'pids.max')) },
    io: { ...(v1['blkio'] === undefined ? ioV2(v2) : ioV1(v1['blkio'])), pressure: pressure(readControl(v2, 'io.pressure')) },
  }
}

type Cpu = Omit<CgroupStats['cpu'], 'pressure'>
type Memory = Omit<CgroupStats['memory'], 'pressure'>
type Io = Omit<CgroupStats['io'], 'pressure'>

function cpuV1(v1: CgroupPaths['v1']): Cpu {
  const stat = keyed(readControl(v1['cpu'], 'cpu.stat'))
  return { usageNs: count(readControl(v1['cpuacct'], 'cpuacct.usage')), throttledPeriods: stat.get('nr_throttled'), throttledNs: stat.get('throttled_time') }
}

function cpuV2(dir: string | undefined): Cpu {
  const stat = keyed(readControl(dir, 'cpu.stat'))
  const ns = (us: bigint | undefined): bigint | undefined => (us === undefined ? undefined : us * 1000n)
  return { usageNs: ns(stat.get('usage_usec')), throttledPeriods: stat.get('nr_throttled'), throttledNs: ns(stat.get('throttled_usec')) }
}

function memoryV1(dir: string): Memory {
  const stat = keyed(readControl(dir, 'memory.stat'))
  const usageBytes = count(readControl(dir, 'memory.usage_in_bytes'))
  const limitBytes = limit(readControl(dir, 'memory.limit_in_bytes'))
  const workingSetBytes = minus(usageBytes, stat.get('total_inactive_file') ?? 0n)
  const memsw = count(readControl(dir, 'memory.memsw.usage_in_bytes'))
  const memswLimit = limit(readControl(dir, 'memory.memsw.limit_in_bytes'))
  return {
    usageBytes,
    workingSetBytes,
    limitBytes,
    availableBytes: minus(limitBytes, workingSetBytes),
    rssBytes: stat.get('total_rss'),
    pageFaults: stat.get('total_pgfault'),
    majorPageFaults: stat.get('total_pgmajfault'),
    swapUsageBytes: minus(memsw, usageBytes),
    swapAvailableBytes: minus(memswLimit, memsw),
  }
}

function memoryV2(dir: string | undefined): Memory {
  const stat = keyed(readControl(dir, 'memory.stat'))
  const usageBytes = count(readControl(dir, 'memory.current'))
  const limitBytes = limit(readControl(dir, 'memory.max'))
  const workingSetBytes = minus(usageBytes, stat.get('inactive_file') ?? 0n)
  const swapUsageBytes = count(readControl(dir, 'memory.swap.current'))
  return {
    usageBytes,
    workingSetBytes,
    limitBytes,
    availableBytes: minus(limitBytes, workingSetBytes),
    rssBytes: stat.get('anon'),
    pageFaults: stat.get('pgfault'),
    majorPageFaults: stat.get('pgmajfault'),
    swapUsageBytes,
    swapAvailableBytes: minus(limit(readControl(dir, 'memory.swap.max')), swapUsageBytes),
  }
}

/** `8:0 Read 4096` lines. */
function ioV1(dir: string): Io {
  const sum = (name: string, word: string): bigint | undefined => {
    const text = readControl(dir, `${name}_recursive`) ?? readControl(dir, name)
    return text?.split('\n').reduce((total, line) => total + (line.split(' ')[1] === word ? (count(line.split(' ')[2]) ?? 0n) : 0n), 0n)
  }
  const bytes = 'blkio.throttle.io_service_bytes'
  const operations = 'blkio.throttle.io_serviced'
  return { readBytes: sum(bytes, 'Read'), writeBytes: sum(bytes, 'Write'), readOperations: sum(operations, 'Read'), writeOperations: sum(operations, 'Write') }
}

/** `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 …` lines. */
function ioV2(dir: string | undefined): Io {
  const text = readControl(dir, 'io.stat')
  const sum = (key: string): bigint | undefined => {
    if (text === undefined) return undefined
    return [...text.matchAll(new RegExp(`\\b${key}=([0-9]+)`, 'g'))].reduce((total, [, value]) => total + BigInt(value ?? '0'), 0n)
  }
  return { readBytes: sum('rbytes'), writeBytes: sum('wbytes'), readOperations: sum('rios'), writeOperations: sum('wios') }
}

function pressure(text: string | undefined): Pressure | undefined {
  if (text === undefined) return undefined
  const line = (word: string): PressureLine | undefined => {
    const match = new RegExp(`^${word} avg10=([0-9.]+) avg60=([0-9.]+) avg300=([0-9.]+) total=([0-9]+)`, 'm').exec(text)
    if (match === null) return undefined
    const [, avg10, avg60, avg300, total] = match
    return { avg10: Number(avg10), avg60: Number(avg60), avg300: Number(avg300), totalUs: BigInt(total ?? '0') }
  }
  return { some: line('some'), full: line('full') }
}

/** @see Linux.removeCgroup */
export function removeCgroup(context: OpContext, paths: CgroupPaths): void {
  const mounts = cgroupMounts(readMountInfo())
  const roots = new Set([...Object.values(mounts.v1), ...(mounts.v2 === undefined ? [] : [mounts.v2]), '/'])
  const dirs = new Set([...Object.values(paths.v1), ...(paths.v2 === undefined ? [] : [paths.v2])].map(absolute))
  for (const dir of dirs) {
    if (roots.has(dir)) throw failedPrecondition(`${dir} is the root of a cgroup hierarchy and is not removed`)
  }
  for (const dir of dirs) removeCgroupDir(context, dir, 0)
}

/** Children first. rmdir takes only a cgroup without processes, so nothing that runs can be hit. */
function removeCgroupDir(context: OpContext, dir: string, depth: number): void {
  context.throwIfCancelled()
  let entries: Dirent[]
  try {
    entries = readdirSync(dir, { withFileTypes: true })
  } catch (error) {
    const cause = fromNodeError(`read ${dir}`, error)
    if (cause.code === Code.NOT_FOUND || cause.reason === 'ENODEV') return
    throw cause
  }
  for (const entry of entries) if (entry.isDirectory() && depth < 64) removeCgroupDir(context, posix.join(dir, entry.name), depth + 1)
  try {
    rmdirSync(dir)
  } catch (error) {
    const cause = fromNodeError(`remove cgroup ${dir}`, error)
    if (cause.code === Code.NOT_FOUND) return
    const pids = (readControl(dir, 'cgroup.procs') ?? '').split('\n').filter((pid) => pid !== '')
    throw cause.reason === 'EBUSY' && pids.length > 0
      ? failedPrecondition(`cgroup ${dir} is not removed: processes ${pids.slice(0, 10).join(', ')} are in it`, { reason: 'EBUSY', cause })
      : cause
  }
}
