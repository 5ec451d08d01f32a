import type { CgroupPaths } from './cgroups.ts'

/** How much is read of a cgroup: its CPU time, what the stats calls of CRI tell, or all that metrics tell. Each has everything of those before it. */
export type UsageLevel = 'cpu' | 'usage' | 'detail'

/**
 * Where a figure is in a cgroup's row. Bytes, nanoseconds and counts since the cgroup was made, unless said otherwise; a row holds NaN for
 * what the kernel or this machine does not tell, and for a limit that is not set.
 */
export const Figure = {
  /** When it was read: milliseconds since 1970, and of the monotonic clock. */
  wallMs: 0, monotonicMs: 1,
  cpuNs: 2,
  // ---- level usage
  memoryUsage: 3, workingSet: 4, memoryLimit: 5, rss: 6, pageFaults: 7, majorPageFaults: 8, swapUsage: 9, swapAvailable: 10,
  /** Tasks, threads included, as the pids controller counts them. */
  tasks: 11,
  /** Four figures each: total in nanoseconds, then per cent of the last 10, 60 and 300 s. */
  cpuSome: 12, cpuFull: 16, memorySome: 20, memoryFull: 24, ioSome: 28, ioFull: 32,
  // ---- level detail
  userNs: 36, systemNs: 37, periods: 38, throttledPeriods: 39, throttledNs: 40,
  cache: 41, mappedFile: 42, activeFile: 43, inactiveFile: 44, kernelMemory: 45, maxMemoryUsage: 46, memoryLimitHits: 47,
  /** Of the cgroup itself, without those below it (the same on v2, which does not tell them apart). */
  ownPageFaults: 48, ownMajorPageFaults: 49,
  oomKills: 50, maxTasks: 51, processes: 52, descriptors: 53, sockets: 54,
  /** Soft limit on open files of the process asked for; Infinity without one. */
  openFilesLimit: 55,
  /** Microseconds; the quota is NaN without one. */
  cpuPeriodUs: 56, cpuQuotaUs: 57,
  cpuShares: 58, memoryReservation: 59,
  /** Memory and swap together on v1, swap alone on v2. */
  swapLimit: 60,
} as const
export type FigureName = keyof typeof Figure

/** Figures in a row of each level. */
export const rowLength = { cpu: 3, usage: 36, detail: 61 } as const satisfies Record<UsageLevel, number>

/** The directories that are read of a cgroup, and the process whose limits are told. */
export interface UsageTarget {
  readonly cpuacct?: string | undefined
  readonly cpu?: string | undefined
  readonly memory?: string | undefined
  readonly pids?: string | undefined
  readonly blkio?: string | undefined
  readonly hugetlb?: string | undefined
  readonly v2?: string | undefined
  /** For `openFilesLimit`; 0 for none. */
  readonly pid?: number | undefined
  /** Whether processes and their descriptors are counted: it costs a look at each of them. */
  readonly countProcesses?: boolean | undefined
}

/** I/O on one block device by operation (`Read`, `Write`, `Discard`…). */
export interface DeviceIo {
  /** `/dev/sda`; `8:0` for a device without a name. */
  readonly device: string
  readonly major: string
  readonly minor: string
  readonly bytes: Readonly<Record<string, number>>
  readonly operations: Readonly<Record<string, number>>
}

export interface HugetlbUsage {
  /** `2MB` */
  readonly pageSize: string
  readonly usageBytes: number
  /** undefined on v2, which keeps no record of it. */
  readonly maxUsageBytes: number | undefined
}

/** What is read of several cgroups: a row each, one behind the other, in the order of the targets. A cgroup that is gone has a row of NaN. */
export interface UsageRows {
  readonly rows: Float64Array
  /** Level detail alone: per target. */
  readonly devices: readonly (readonly DeviceIo[])[]
  readonly hugetlb: readonly (readonly HugetlbUsage[])[]
  /** Cgroups that are there and cannot be read. */
  readonly failures: readonly { readonly index: number; readonly message: string }[]
}

/** Counters of one network interface, from the pod's point of view. */
export interface InterfaceCounters {
  readonly name: string
  readonly rxBytes: number
  readonly rxPackets: number
  readonly rxErrors: number
  readonly rxDropped: number
  readonly txBytes: number
  readonly txPackets: number
  readonly txErrors: number
  readonly txDropped: number
}

/** A network namespace: by the path it is mounted on, and a process that should be in it (0 for none), which makes it cheaper to read. */
export interface NetworkTarget {
  readonly netnsPath: string
  readonly pid: number
}

/** What of a cgroup's paths a reading needs: all that is sent to the thread that reads. */
export function usageTarget({ v1, v2 }: CgroupPaths, level: UsageLevel, process: { readonly pid?: number; readonly countProcesses?: boolean } = {}): UsageTarget {
  if (level === 'cpu') return v1['cpuacct'] === undefined ? { v2 } : { cpuacct: v1['cpuacct'] }
  const basic = { cpuacct: v1['cpuacct'], memory: v1['memory'], pids: v1['pids'], v2 }
  return level === 'usage' ? basic : { ...basic, cpu: v1['cpu'], blkio: v1['blkio'], hugetlb: v1['hugetlb'], ...process }
}
