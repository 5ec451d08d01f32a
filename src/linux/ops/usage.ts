import { closeSync, openSync, readdirSync, readlinkSync, readSync, statSync } from 'node:fs'
import { basename } from 'node:path/posix'
import { Code, messageOf } from '../../errors/cri-error.ts'
import { fromNodeError } from '../errno.ts'
import { type DeviceIo, Figure, type HugetlbUsage, type InterfaceCounters, type NetworkTarget, rowLength, type UsageLevel, type UsageRows, type UsageTarget } from '../usage.ts'
import type { OpContext } from './context.ts'
import { hugepageSize } from './host.ts'
import { insideNetns } from './netns.ts'

// Opened, read and closed by hand into one buffer: half the time of readFileSync, and there are some ten files per container.
const buffer = Buffer.allocUnsafe(65_536)
/** Files that the kernel hands out record by record end a read up to a page early. */
const surelyWhole = 2048
/** A file of thousands of processes or devices ends here. */
const maxFileBytes = 1 << 20

/** A file of a cgroup or of /proc; undefined when it, its cgroup or its process is not there, or the kernel was built without it. */
function read(path: string): string | undefined {
  let fd: number
  try {
    fd = openSync(path, 'r')
  } catch (error) {
    return absent(path, error)
  }
  try {
    let length = readSync(fd, buffer, 0, buffer.length, 0)
    const text = buffer.toString('latin1', 0, length)
    if (length < surelyWhole) return text
    const parts = [text]
    for (let total = length; total < maxFileBytes; total += length) {
      length = readSync(fd, buffer, 0, buffer.length, total)
      if (length === 0) break
      parts.push(buffer.toString('latin1', 0, length))
    }
    return parts.join('')
  } catch (error) {
    return absent(path, error)
  } finally {
    closeSync(fd)
  }
}

const absentReasons = new Set(['ENODEV', 'ENOTDIR', 'EOPNOTSUPP', 'ENOTSUP', 'ESRCH'])

function absent(path: string, error: unknown): undefined {
  const cause = fromNodeError(`read ${path}`, error)
  if (cause.code === Code.NOT_FOUND || absentReasons.has(cause.reason)) return undefined
  throw cause
}

/** The number that a file holds; NaN for none, and for `max`. */
function numberIn(dir: string | undefined, name: string): number {
  const text = dir === undefined ? undefined : read(`${dir}/${name}`)
  return text === undefined ? Number.NaN : parse(text)
}

function parse(text: string): number {
  const value = Number.parseInt(text, 10)
  return value >= 0 ? value : Number.NaN
}

/** The value in the line `key value`. */
function valueOf(text: string | undefined, key: string): number {
  if (text === undefined) return Number.NaN
  const at = text.startsWith(`${key} `) ? 0 : text.indexOf(`\n${key} `) + 1
  return at === 0 && !text.startsWith(`${key} `) ? Number.NaN : parse(text.slice(at + key.length + 1, at + key.length + 24))
}

/** v1 writes "no limit" as the largest number of pages. */
const unlimited = 2 ** 62

const limited = (value: number): number => (value < unlimited ? value : Number.NaN)
const atLeastZero = (value: number): number => (value < 0 ? 0 : value)

/** @see Linux.cgroupUsage */
export function cgroupUsage(context: OpContext, level: UsageLevel, targets: readonly UsageTarget[]): UsageRows {
  const length = rowLength[level]
  const rows = new Float64Array(length * targets.length).fill(Number.NaN)
  const devices: DeviceIo[][] = []
  const hugetlb: HugetlbUsage[][] = []
  const failures: { index: number; message: string }[] = []
  for (const [index, target] of targets.entries()) {
    context.throwIfCancelled()
    const row = rows.subarray(index * length, (index + 1) * length)
    try {
      readRow(row, level, target)
      if (level === 'detail') {
        readDetail(context, row, target)
        devices.push(target.blkio === undefined ? ioV2(target.v2) : ioV1(target.blkio))
        hugetlb.push(hugetlbOf(target))
      }
    } catch (error) {
      context.throwIfCancelled()
      row.fill(Number.NaN)
      failures.push({ index, message: messageOf(error) })
      if (level === 'detail') {
        devices.length = hugetlb.length = index
        devices.push([])
        hugetlb.push([])
      }
    }
  }
  return { rows, devices, hugetlb, failures }
}

function readRow(row: Float64Array, level: UsageLevel, target: UsageTarget): void {
  const { cpuacct, memory, pids, v2 } = target
  const cpuStat = cpuacct === undefined && v2 !== undefined ? read(`${v2}/cpu.stat`) : undefined
  row[Figure.cpuNs] = cpuacct === undefined ? valueOf(cpuStat, 'usage_usec') * 1000 : numberIn(cpuacct, 'cpuacct.usage')
  // Right beside the CPU time, which rates are made of.
  row[Figure.monotonicMs] = Number(process.hrtime.bigint()) / 1e6
  row[Figure.wallMs] = Date.now()
  if (level === 'cpu') return
  if (memory === undefined) memoryV2(row, v2)
  else memoryV1(row, memory)
  row[Figure.tasks] = numberIn(pids ?? v2, 'pids.current')
  if (v2 !== undefined) {
    pressure(row, Figure.cpuSome, Figure.cpuFull, `${v2}/cpu.pressure`)
    pressure(row, Figure.memorySome, Figure.memoryFull, `${v2}/memory.pressure`)
    pressure(row, Figure.ioSome, Figure.ioFull, `${v2}/io.pressure`)
  }
  if (level !== 'detail' || cpuStat === undefined) return
  row[Figure.userNs] = valueOf(cpuStat, 'user_usec') * 1000
  row[Figure.systemNs] = valueOf(cpuStat, 'system_usec') * 1000
  throttling(row, cpuStat, 'throttled_usec', 1000)
}

function throttling(row: Float64Array, cpuStat: string | undefined, timeKey: string, toNs: number): void {
  row[Figure.periods] = valueOf(cpuStat, 'nr_periods')
  row[Figure.throttledPeriods] = valueOf(cpuStat, 'nr_throttled')
  row[Figure.throttledNs] = valueOf(cpuStat, timeKey) * toNs
}

function memoryV1(row: Float64Array, dir: string): void {
  const stat = read(`${dir}/memory.stat`)
  const usage = numberIn(dir, 'memory.usage_in_bytes')
  row[Figure.memoryUsage] = usage
  row[Figure.workingSet] = atLeastZero(usage - (valueOf(stat, 'total_inactive_file') || 0))
  row[Figure.rss] = valueOf(stat, 'total_rss')
  row[Figure.pageFaults] = valueOf(stat, 'total_pgfault')
  row[Figure.majorPageFaults] = valueOf(stat, 'total_pgmajfault')
  row[Figure.swapUsage] = valueOf(stat, 'total_swap')
  // The smallest limit from here to the root: where there is none the files with the cgroup's own need not be read.
  if (limited(valueOf(stat, 'hierarchical_memory_limit')) >= 0) row[Figure.memoryLimit] = limited(numberIn(dir, 'memory.limit_in_bytes'))
  if (limited(valueOf(stat, 'hierarchical_memsw_limit')) >= 0) {
    row[Figure.swapAvailable] = atLeastZero(limited(numberIn(dir, 'memory.memsw.limit_in_bytes')) - numberIn(dir, 'memory.memsw.usage_in_bytes'))
  }
  if (row.length <= Figure.cache) return
  memoryDetail(row, stat, 'total_cache', 'total_mapped_file', 'total_active_file', 'total_inactive_file')
  row[Figure.ownPageFaults] = valueOf(stat, 'pgfault')
  row[Figure.ownMajorPageFaults] = valueOf(stat, 'pgmajfault')
}

function memoryDetail(row: Float64Array, stat: string | undefined, cache: string, mapped: string, active: string, inactive: string): void {
  row[Figure.cache] = valueOf(stat, cache)
  row[Figure.mappedFile] = valueOf(stat, mapped)
  row[Figure.activeFile] = valueOf(stat, active)
  row[Figure.inactiveFile] = valueOf(stat, inactive)
}

function memoryV2(row: Float64Array, dir: string | undefined): void {
  if (dir === undefined) return
  const stat = read(`${dir}/memory.stat`)
  if (stat === undefined) return
  const usage = numberIn(dir, 'memory.current')
  const swap = numberIn(dir, 'memory.swap.current')
  row[Figure.memoryUsage] = usage
  row[Figure.workingSet] = atLeastZero(usage - (valueOf(stat, 'inactive_file') || 0))
  row[Figure.memoryLimit] = numberIn(dir, 'memory.max')
  row[Figure.rss] = valueOf(stat, 'anon')
  row[Figure.pageFaults] = valueOf(stat, 'pgfault')
  row[Figure.majorPageFaults] = valueOf(stat, 'pgmajfault')
  row[Figure.swapUsage] = swap
  if (swap >= 0) row[Figure.swapAvailable] = atLeastZero(numberIn(dir, 'memory.swap.max') - swap)
  if (row.length <= Figure.cache) return
  memoryDetail(row, stat, 'file', 'file_mapped', 'active_file', 'inactive_file')
  row[Figure.ownPageFaults] = row[Figure.pageFaults] ?? Number.NaN
  row[Figure.ownMajorPageFaults] = row[Figure.majorPageFaults] ?? Number.NaN
  const kernel = valueOf(stat, 'kernel')
  // The sum is in memory.stat from Linux 5.18 on.
  row[Figure.kernelMemory] = Number.isNaN(kernel) ? valueOf(stat, 'kernel_stack') + (valueOf(stat, 'pagetables') || 0) + (valueOf(stat, 'slab') || 0) : kernel
}

/** `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` lines. */
function pressure(row: Float64Array, some: number, full: number, path: string): void {
  for (const line of read(path)?.split('\n') ?? []) {
    const at = line.startsWith('some ') ? some : line.startsWith('full ') ? full : undefined
    if (at === undefined) continue
    const [, avg10, avg60, avg300, total] = line.split('=')
    row[at] = Number.parseInt(total ?? '', 10) * 1000
    row[at + 1] = Number.parseFloat(avg10 ?? '')
    row[at + 2] = Number.parseFloat(avg60 ?? '')
    row[at + 3] = Number.parseFloat(avg300 ?? '')
  }
}

/** USER_HZ: 100 on every architecture that Linux has today. */
const nanosecondsPerTick = 1e7

function readDetail(context: OpContext, row: Float64Array, target: UsageTarget): void {
  const { cpuacct, cpu, memory, pids, v2, pid = 0 } = target
  if (cpuacct !== undefined) {
    const stat = read(`${cpuacct}/cpuacct.stat`)
    row[Figure.userNs] = valueOf(stat, 'user') * nanosecondsPerTick
    row[Figure.systemNs] = valueOf(stat, 'system') * nanosecondsPerTick
  }
  if (cpu !== undefined) {
    throttling(row, read(`${cpu}/cpu.stat`), 'throttled_time', 1)
    row[Figure.cpuPeriodUs] = numberIn(cpu, 'cpu.cfs_period_us')
    row[Figure.cpuQuotaUs] = numberIn(cpu, 'cpu.cfs_quota_us')
    row[Figure.cpuShares] = numberIn(cpu, 'cpu.shares')
  } else if (v2 !== undefined) {
    const [quota, period] = read(`${v2}/cpu.max`)?.split(' ') ?? []
    row[Figure.cpuQuotaUs] = parse(quota ?? '')
    row[Figure.cpuPeriodUs] = parse(period ?? '')
    row[Figure.cpuShares] = sharesOfWeight(numberIn(v2, 'cpu.weight'))
  }
  if (memory !== undefined) {
    row[Figure.kernelMemory] = numberIn(memory, 'memory.kmem.usage_in_bytes')
    row[Figure.maxMemoryUsage] = numberIn(memory, 'memory.max_usage_in_bytes')
    row[Figure.memoryLimitHits] = numberIn(memory, 'memory.failcnt')
    row[Figure.oomKills] = valueOf(read(`${memory}/memory.oom_control`), 'oom_kill')
    row[Figure.memoryReservation] = limited(numberIn(memory, 'memory.soft_limit_in_bytes'))
    row[Figure.swapLimit] = limited(numberIn(memory, 'memory.memsw.limit_in_bytes'))
  } else if (v2 !== undefined) {
    const events = read(`${v2}/memory.events`)
    row[Figure.maxMemoryUsage] = numberIn(v2, 'memory.peak')
    row[Figure.memoryLimitHits] = valueOf(events, 'max')
    row[Figure.oomKills] = valueOf(events, 'oom_kill')
    row[Figure.memoryReservation] = numberIn(v2, 'memory.min')
    row[Figure.swapLimit] = numberIn(v2, 'memory.swap.max')
  }
  row[Figure.maxTasks] = numberIn(pids ?? v2, 'pids.max')
  if (target.countProcesses === true) countProcesses(context, row, pids ?? memory ?? v2)
  if (pid > 0) row[Figure.openFilesLimit] = openFilesLimit(read(`/proc/${pid}/limits`))
}

/** What runc makes of cpu.shares on v2, the other way round. */
function sharesOfWeight(weight: number): number {
  return weight > 0 ? Math.floor(2 + ((weight - 1) * 262_142) / 9999) : Number.NaN
}

function openFilesLimit(limits: string | undefined): number {
  const soft = /^Max open files\s+(\S+)/m.exec(limits ?? '')?.[1]
  return soft === undefined ? Number.NaN : soft === 'unlimited' ? Number.POSITIVE_INFINITY : Number(soft)
}

/** What a container may make of cgroups below its own, processes and descriptors is bounded here: beyond it the count is too low. */
const bounds = { depth: 16, cgroups: 256, processes: 4096, links: 8192 }

function countProcesses(context: OpContext, row: Float64Array, dir: string | undefined): void {
  const pids: string[] = []
  if (dir === undefined || !processesOf(dir, pids)) return
  let [descriptors, sockets, links] = [0, 0, 0]
  for (const pid of pids) {
    context.throwIfCancelled()
    let names: string[]
    try {
      names = readdirSync(`/proc/${pid}/fd`)
    } catch {
      continue // It has ended.
    }
    descriptors += names.length
    for (const name of names) {
      links += 1
      if (links > bounds.links) break
      try {
        if (readlinkSync(`/proc/${pid}/fd/${name}`).startsWith('socket:')) sockets += 1
      } catch {
        // Closed meanwhile.
      }
    }
  }
  row[Figure.processes] = pids.length
  row[Figure.descriptors] = descriptors
  row[Figure.sockets] = sockets
}

/** The processes of a cgroup and of those below it; false when it is gone. */
function processesOf(top: string, pids: string[]): boolean {
  const dirs = [{ dir: top, depth: 0 }]
  for (let next = dirs.shift(), seen = 1; next !== undefined && seen <= bounds.cgroups; next = dirs.shift(), seen += 1) {
    const { dir, depth } = next
    const text = read(`${dir}/cgroup.procs`)
    if (text === undefined && depth === 0 && statSync(dir, { throwIfNoEntry: false }) === undefined) return false
    for (const pid of text?.split('\n') ?? []) if (pid !== '' && pid !== '0' && pids.length < bounds.processes) pids.push(pid)
    // kernfs counts the directories in a directory.
    if (depth >= bounds.depth || (statSync(dir, { throwIfNoEntry: false })?.nlink ?? 0) <= 2) continue
    try {
      for (const entry of readdirSync(dir, { withFileTypes: true })) if (entry.isDirectory()) dirs.push({ dir: `${dir}/${entry.name}`, depth: depth + 1 })
    } catch (error) {
      absent(dir, error)
    }
  }
  return true
}

const names = new Map<string, { readonly name: string; readonly untilMs: number }>()
const nameAgeMs = 60_000

/** `8:0` → `/dev/sda`. Remembered for a minute: a number may go to another device. */
function deviceName(number: string): string {
  const known = names.get(number)
  if (known !== undefined && performance.now() < known.untilMs) return known.name
  let name = number
  try {
    name = `/dev/${basename(readlinkSync(`/sys/dev/block/${number}`))}`
  } catch (error) {
    absent(`/sys/dev/block/${number}`, error)
  }
  if (names.size > 1024) names.clear()
  names.set(number, { name, untilMs: performance.now() + nameAgeMs })
  return name
}

function device(number: string): { device: string; major: string; minor: string; bytes: Record<string, number>; operations: Record<string, number> } {
  const [major = '', minor = ''] = number.split(':')
  return { device: deviceName(number), major, minor, bytes: {}, operations: {} }
}

/** `8:0 Read 4096` lines. */
function ioV1(dir: string): DeviceIo[] {
  const found = new Map<string, ReturnType<typeof device>>()
  for (const [name, key] of [['blkio.throttle.io_service_bytes', 'bytes'], ['blkio.throttle.io_serviced', 'operations']] as const) {
    for (const line of (read(`${dir}/${name}_recursive`) ?? read(`${dir}/${name}`))?.split('\n') ?? []) {
      const [number = '', operation, value] = line.split(' ')
      if (operation === undefined || value === undefined || operation === 'Total') continue
      const entry = found.get(number) ?? device(number)
      found.set(number, entry)
      entry[key][operation] = parse(value)
    }
  }
  return [...found.values()]
}

const ioKeys = { rbytes: ['bytes', 'Read'], wbytes: ['bytes', 'Write'], dbytes: ['bytes', 'Discard'], rios: ['operations', 'Read'], wios: ['operations', 'Write'], dios: ['operations', 'Discard'] } as const

/** `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 …` lines. */
function ioV2(dir: string | undefined): DeviceIo[] {
  const text = dir === undefined ? undefined : read(`${dir}/io.stat`)
  return (text?.split('\n') ?? []).flatMap((line) => {
    const [number, ...pairs] = line.split(' ')
    if (number === undefined || !number.includes(':')) return []
    const entry = device(number)
    for (const pair of pairs) {
      const [key = '', value = ''] = pair.split('=')
      if (!Object.hasOwn(ioKeys, key)) continue
      const [kind, operation] = ioKeys[key as keyof typeof ioKeys]
      entry[kind][operation] = parse(value)
    }
    // Devices that were never used are listed too.
    return Object.keys(entry.bytes).length === 0 ? [] : [entry]
  })
}

let pageSizes: readonly string[] | undefined

/** `2MB`, `1GB`: fixed at boot. */
function hugePageSizes(): readonly string[] {
  if (pageSizes !== undefined) return pageSizes
  let found: string[] = []
  try {
    found = readdirSync('/sys/kernel/mm/hugepages')
  } catch (error) {
    absent('/sys/kernel/mm/hugepages', error)
  }
  pageSizes = found.map(hugepageSize).filter((size) => size !== undefined)
  return pageSizes
}

function hugetlbOf({ hugetlb, v2 }: UsageTarget): HugetlbUsage[] {
  const dir = hugetlb ?? v2
  if (dir === undefined) return []
  return hugePageSizes().flatMap((pageSize) => {
    const usageBytes = numberIn(dir, hugetlb === undefined ? `hugetlb.${pageSize}.current` : `hugetlb.${pageSize}.usage_in_bytes`)
    if (Number.isNaN(usageBytes)) return []
    const maxUsageBytes = hugetlb === undefined ? undefined : numberIn(dir, `hugetlb.${pageSize}.max_usage_in_bytes`)
    return [{ pageSize, usageBytes, maxUsageBytes }]
  })
}

/** @see Linux.networkCounters */
export function networkCounters(context: OpContext, targets: readonly NetworkTarget[]): (readonly InterfaceCounters[] | undefined)[] {
  return targets.map((target) => {
    context.throwIfCancelled()
    try {
      const text = inTheNamespace(target) ? read(`/proc/${target.pid}/net/dev`) : undefined
      return parseNetDev(text ?? insideNetns(context, target.netnsPath, () => read('/proc/thread-self/net/dev')) ?? '')
    } catch {
      context.throwIfCancelled()
      // Deleted, or no namespace any more: one pod without figures must not keep the others from theirs.
      return undefined
    }
  })
}

/** A pid may be another process's by now. */
function inTheNamespace({ netnsPath, pid }: NetworkTarget): boolean {
  if (pid <= 0) return false
  const [own, wanted] = [statSync(`/proc/${pid}/ns/net`, { throwIfNoEntry: false }), statSync(netnsPath, { throwIfNoEntry: false })]
  return own !== undefined && own.ino === wanted?.ino && own.dev === wanted.dev
}

/** The interfaces of a /proc/net/dev but for the loopback one. */
export function parseNetDev(text: string): InterfaceCounters[] {
  return text.split('\n').flatMap((line) => {
    const colon = line.indexOf(':')
    if (colon === -1) return []
    const name = line.slice(0, colon).trim()
    const [rxBytes = 0, rxPackets = 0, rxErrors = 0, rxDropped = 0, , , , , txBytes = 0, txPackets = 0, txErrors = 0, txDropped = 0] = line.slice(colon + 1).trim().split(/\s+/).map(Number)
    return name === 'lo' || name.includes('|') ? [] : [{ name, rxBytes, rxPackets, rxErrors, rxDropped, txBytes, txPackets, txErrors, txDropped }]
  })
}
