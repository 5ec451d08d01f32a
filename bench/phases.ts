import type { CpuSeconds } from './process-meter.ts'
import { type HistogramEntry, histogramDelta, readHistogram } from './prometheus.ts'
import type { Side } from './side.ts'
import type { SideName } from './statistics.ts'

export interface PhaseUsage {
  readonly service: CpuSeconds
  /** The containerd behind the service, when that is another process. */
  readonly backend: CpuSeconds | undefined
}

/** cri-shim's own measurements of a phase. */
export interface PhaseProfile {
  /** Labels `method`, `code`. */
  readonly rpcs: readonly HistogramEntry[]
  /** Labels `operation`, `step`, `result`. */
  readonly steps: readonly HistogramEntry[]
  /** Labels `method`, `code`. */
  readonly containerd: readonly HistogramEntry[]
}

export interface Phase {
  readonly name: string
  readonly usage: ReadonlyMap<SideName, PhaseUsage>
  readonly profile: PhaseProfile | undefined
}

const difference = (after: CpuSeconds, before: CpuSeconds): CpuSeconds => ({ own: after.own - before.own, children: after.children - before.children })

async function usageNow(sides: readonly Side[]): Promise<Map<SideName, PhaseUsage>> {
  return new Map(await Promise.all(sides.map(async ({ name, service, backend }) => [name, { service: await service.cpu(), backend: await backend?.cpu() }] as const)))
}

async function metricsNow(sides: readonly Side[]): Promise<PhaseProfile | undefined> {
  const texts = await Promise.all(sides.map(async (side) => side.metrics()))
  const text = texts.find((text) => text !== undefined)
  if (text === undefined) return undefined
  return { rpcs: readHistogram(text, 'cri_shim_rpc_seconds'), steps: readHistogram(text, 'cri_shim_step_seconds'), containerd: readHistogram(text, 'cri_shim_containerd_call_seconds') }
}

/** What the services have cost since their start. */
export async function measureStart(sides: readonly Side[]): Promise<Phase> {
  return { name: 'start', usage: await usageNow(sides), profile: undefined }
}

/** Runs `work` and says what it cost. */
export async function measurePhase<T>(name: string, sides: readonly Side[], work: () => Promise<T>): Promise<{ readonly result: T; readonly phase: Phase }> {
  const [usageBefore, metricsBefore] = [await usageNow(sides), await metricsNow(sides)]
  const result = await work()
  const [usageAfter, metricsAfter] = [await usageNow(sides), await metricsNow(sides)]
  const usage = new Map<SideName, PhaseUsage>()
  for (const [side, after] of usageAfter) {
    const before = usageBefore.get(side)
    if (before === undefined) continue
    usage.set(side, {
      service: difference(after.service, before.service),
      backend: after.backend === undefined || before.backend === undefined ? undefined : difference(after.backend, before.backend),
    })
  }
  const profile = metricsBefore === undefined || metricsAfter === undefined ? undefined : {
    rpcs: histogramDelta(metricsBefore.rpcs, metricsAfter.rpcs),
    steps: histogramDelta(metricsBefore.steps, metricsAfter.steps),
    containerd: histogramDelta(metricsBefore.containerd, metricsAfter.containerd),
  }
  return { result, phase: { name, usage, profile } }
}
