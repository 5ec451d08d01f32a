import { type Concurrency, type OperationName, type Target, concurrencies, memoryTargetBytes, operations, targetOf } from './operations.ts'
import type { Phase } from './phases.ts'
import type { ServedToMany } from './served.ts'
import { type Samples, type SideName, median, percentile } from './statistics.ts'

/** One row of the report; durations in milliseconds. */
export interface OperationResult {
  readonly operation: OperationName
  readonly concurrency: Concurrency
  /** Samples per side. */
  readonly count: number
  readonly medianMs: Readonly<Record<SideName, number>>
  readonly p99Ms: Readonly<Record<SideName, number>>
  /** Calls were given up after this time, which stands for theirs; undefined when none was. */
  readonly limitMs: number | undefined
  /** Of the medians: below 1, cri-shim is faster. */
  readonly ratio: number
  readonly target: Target | undefined
  /** Whether the target is met; undefined without one. */
  readonly met: boolean | undefined
}

export interface ProcessTotals {
  /** CPU seconds since the process started. */
  readonly cpuSeconds: number
  /** CPU seconds of children that it waited for. */
  readonly childrenCpuSeconds: number
  readonly peakBytes: number
}

export interface SideTotals {
  readonly title: string
  readonly service: ProcessTotals
  /** The containerd behind the service, when that is another process. */
  readonly backend: ProcessTotals | undefined
  /** Peak resident memory of the service while it had 100 containers; undefined when that part was left out. */
  readonly peakBytesWith100Containers: number | undefined
  /** CPU while nobody asks, of the service and the containerd behind it, in milliseconds per container and minute; undefined when that part was left out. */
  readonly idleMsPerContainerMinute: number | undefined
}

export interface Results {
  /** What ran where: versions, machine, options. */
  readonly about: Readonly<Record<string, string>>
  readonly operations: readonly OperationResult[]
  readonly totals: ReadonlyMap<SideName, SideTotals>
  readonly phases: readonly Phase[]
  /** What the registry served to many callers of one image; undefined when that part was left out. */
  readonly served: ServedToMany | undefined
}

/** The chosen operations that were measured on both sides. */
export function summarise(samples: Samples, only: ReadonlySet<OperationName>): readonly OperationResult[] {
  return operations.filter((operation) => only.has(operation)).flatMap((operation) => concurrencies.flatMap((concurrency): OperationResult[] => {
    const [plugin, shim] = [samples.of('plugin', operation, concurrency), samples.of('shim', operation, concurrency)]
    if (plugin.length === 0 || shim.length === 0) return []
    const medianMs = { plugin: median(plugin), shim: median(shim) }
    const ratio = medianMs.shim / medianMs.plugin
    const target = targetOf(operation, concurrency)
    return [{
      operation, concurrency, ratio, target, medianMs, limitMs: samples.limitOf(operation),
      count: Math.min(plugin.length, shim.length),
      p99Ms: { plugin: percentile(plugin, 0.99), shim: percentile(shim, 0.99) },
      met: isMet(samples, target, { ratio, medianMs: medianMs.shim, p99Ms: percentile(shim, 0.99), concurrency }),
    }]
  }))
}

function isMet(samples: Samples, target: Target | undefined, shim: { readonly ratio: number; readonly medianMs: number; readonly p99Ms: number; readonly concurrency: Concurrency }): boolean | undefined {
  if (target === undefined) return undefined
  if (target.kind === 'ratio') return shim.ratio <= target.atMost
  if (target.kind === 'median') return shim.medianMs <= target.atMostMs
  if (target.kind === 'extra') return shim.medianMs - median(samples.of('shim', target.over, shim.concurrency)) <= target.atMostMs
  return shim.p99Ms <= target.atMost * percentile(samples.of('shim', target.over, shim.concurrency), 0.99)
}

/** Whether cri-shim's memory with 100 containers is within its target; undefined when it was not measured. */
export function memoryMet({ peakBytesWith100Containers }: SideTotals): boolean | undefined {
  return peakBytesWith100Containers === undefined ? undefined : peakBytesWith100Containers <= memoryTargetBytes
}
