import { abortable } from '../concurrency/keyed-mutex.ts'
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

interface Reading {
  readonly request: FiguresRequest
  readonly figures: PromiseWithResolvers<CgroupFigures | undefined>
}

/**
 * Reads cgroups off the main thread, several in one call and one call at a time. Those who ask for one that is still to be read share the reading:
 * nobody gets figures from before the question, and many callers cost little more than one.
 */
export class CgroupReader {
  readonly #read: (level: UsageLevel, targets: readonly UsageTarget[]) => Promise<UsageRows>
  /** By cgroup, which is an object that lives as long as what is in it: still to be read, the oldest first. */
  readonly #waiting: Readonly<Record<UsageLevel, Map<CgroupPaths, Reading>>> = { cpu: new Map(), usage: new Map(), detail: new Map() }
  readonly #busy = new Set<UsageLevel>()

  constructor(read: (level: UsageLevel, targets: readonly UsageTarget[]) => Promise<UsageRows>) {
    this.#read = read
  }

  /**
   * Their figures in the order of the requests; undefined for a request of undefined and for a cgroup that is gone or cannot be read (which is
   * logged). Rejects with the signal's reason once nobody waits any more.
   */
  async read(ctx: Ctx, level: UsageLevel, requests: readonly (FiguresRequest | undefined)[]): Promise<(CgroupFigures | undefined)[]> {
    const waiting = this.#waiting[level]
    const readings = requests.map(async (request) => {
      if (request === undefined) return undefined
      const reading = waiting.get(request.cgroups) ?? { request, figures: Promise.withResolvers<CgroupFigures | undefined>() }
      waiting.set(request.cgroups, reading)
      return reading.figures.promise
    })
    if (!this.#busy.has(level)) void this.#run(ctx, level)
    return abortable(Promise.all(readings), ctx.signal)
  }

  /** Reads until nothing waits. Never rejects: who asked is told. */
  async #run(ctx: Ctx, level: UsageLevel): Promise<void> {
    const waiting = this.#waiting[level]
    this.#busy.add(level)
    while (waiting.size > 0) {
      const chunk = [...waiting.values().take(perCall[level])]
      for (const { request } of chunk) waiting.delete(request.cgroups)
      try {
        this.#deliver(ctx, level, chunk, await this.#read(level, chunk.map(({ request }) => usageTarget(request.cgroups, level, request))))
      } catch (error) {
        for (const { figures } of chunk) {
          figures.promise.catch(() => undefined)
          figures.reject(error)
        }
      }
    }
    this.#busy.delete(level)
  }

  #deliver(ctx: Ctx, level: UsageLevel, chunk: readonly Reading[], { rows, devices, hugetlb, failures }: UsageRows): void {
    const length = rowLength[level]
    for (const { index, message } of failures) ctx.log.warn({ cgroup: chunk[index]?.request.cgroups.v1['memory'] ?? chunk[index]?.request.cgroups.v2 }, `cannot read a cgroup: ${message}`)
    for (const [index, { figures }] of chunk.entries()) {
      const row = rows.subarray(index * length, (index + 1) * length)
      const there = !Number.isNaN(figure(row, 'cpuNs')) || figure(row, 'memoryUsage') >= 0
      figures.resolve(there ? { row, devices: devices[index] ?? [], hugetlb: hugetlb[index] ?? [] } : undefined)
    }
  }
}
