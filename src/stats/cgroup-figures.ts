import type { CgroupPaths } from '../linux/cgroups.ts'
import { type DeviceIo, Figure, type FigureName, type HugetlbUsage, rowLength, type UsageLevel, type UsageRows, type UsageTarget, usageTarget } from '../linux/usage.ts'
import type { Ctx } from '../observability/context.ts'

/** What was read of one cgroup. */
export interface CgroupFigures {
  readonly row: Float64Array
  /** Empty unless everything was asked for. */
  readonly devices: readonly DeviceIo[]
  readonly hugetlb: readonly HugetlbUsage[]
}

/** A cgroup to read, and what is only told when everything is asked for. */
export interface FiguresRequest {
  readonly cgroups: CgroupPaths
  readonly pid?: number
  readonly countProcesses?: boolean
}

/** NaN when it is not known. */
export function figure(row: Float64Array, name: FigureName): number {
  return row[Figure[name]] ?? Number.NaN
}

/** Cgroups per call of the thread that reads: a few milliseconds each, so that a pod's start waits no longer behind it. */
const perCall = { cpu: 200, usage: 32, detail: 12 } as const satisfies Record<UsageLevel, number>

/** Reads cgroups off the main thread, several in one call. */
export class CgroupReader {
  readonly #read: (level: UsageLevel, targets: readonly UsageTarget[]) => Promise<UsageRows>

  constructor(read: (level: UsageLevel, targets: readonly UsageTarget[]) => Promise<UsageRows>) {
    this.#read = read
  }

  /**
   * Their figures in the order of the requests; undefined for a request of undefined and for a cgroup that is gone or cannot be read (which is
   * logged). Rejects with the signal's reason once nobody waits any more.
   */
  async read(ctx: Ctx, level: UsageLevel, requests: readonly (FiguresRequest | undefined)[]): Promise<(CgroupFigures | undefined)[]> {
    const found: (CgroupFigures | undefined)[] = requests.map(() => undefined)
    const wanted = requests.flatMap((request, at) => (request === undefined ? [] : [{ request, at }]))
    const length = rowLength[level]
    for (let first = 0; first < wanted.length; first += perCall[level]) {
      ctx.signal.throwIfAborted()
      const chunk = wanted.slice(first, first + perCall[level])
      const { rows, devices, hugetlb, failures } = await this.#read(level, chunk.map(({ request }) => usageTarget(request.cgroups, level, request)))
      for (const { index, message } of failures) ctx.log.warn({ cgroup: chunk[index]?.request.cgroups.v1['memory'] ?? chunk[index]?.request.cgroups.v2 }, `cannot read a cgroup: ${message}`)
      for (const [index, { at }] of chunk.entries()) {
        const row = rows.subarray(index * length, (index + 1) * length)
        if (Number.isNaN(figure(row, 'cpuNs')) && !(figure(row, 'memoryUsage') >= 0)) continue
        found[at] = { row, devices: devices[index] ?? [], hugetlb: hugetlb[index] ?? [] }
      }
    }
    return found
  }
}
