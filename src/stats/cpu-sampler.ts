import { pause } from '../concurrency/deadline.ts'
import type { CgroupPaths } from '../linux/cgroups.ts'
import { withSignal, type Ctx } from '../observability/context.ts'
import { type CgroupReader, figure } from './cgroup-figures.ts'

export interface CpuSamplerDeps {
  readonly reader: CgroupReader
  /** Everything whose rate is wanted, each under a key that lives as long as it does. */
  readonly list: () => Iterable<{ readonly key: object; readonly cgroups: CgroupPaths }>
  /** Milliseconds between two samples. */
  readonly periodMs: number
  readonly ctx: Ctx
}

interface Sample {
  monotonicMs: number
  usageNs: number
  /** Billionths of a core between the last two samples; NaN with one alone. */
  nanoCores: number
}

/** However many cgroups there are and however slow the machine is, sampling takes at most this part of the time. */
const maxShare = 0.2
/** A rate over less says nothing: the kernel accounts in ticks. */
const shortestMs = 100

/**
 * Reads the CPU time of all cgroups once per period, for rates: as with cAdvisor a rate is the one between the last two samples, whenever
 * and how often it is asked for.
 */
export class CpuSampler {
  readonly #deps: CpuSamplerDeps
  readonly #samples = new WeakMap<object, Sample>()

  constructor(deps: CpuSamplerDeps) {
    this.#deps = deps
  }

  /** Samples until `signal` aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const ctx = withSignal(this.#deps.ctx, signal)
    let told = false
    while (!signal.aborted) {
      const started = performance.now()
      try {
        await this.sample(ctx)
        told = false
      } catch (error) {
        if (signal.aborted) return
        if (!told) ctx.log.warn({ err: error }, 'cannot sample the CPU time of containers')
        told = true
      }
      const took = performance.now() - started
      await pause(Math.max(this.#deps.periodMs - took, took * (1 / maxShare - 1)), signal).catch(() => undefined)
    }
  }

  /** One sample of each. */
  async sample(ctx: Ctx): Promise<void> {
    const all = [...this.#deps.list()]
    const found = await this.#deps.reader.read(ctx, 'cpu', all)
    for (const [index, { key }] of all.entries()) {
      const row = found[index]?.row
      if (row !== undefined) this.#add(key, figure(row, 'monotonicMs'), figure(row, 'cpuNs'))
    }
  }

  /** Billionths of a core that are used now, NaN when that is not known yet. `row` was read just now. */
  nanoCores(key: object, row: Float64Array): number {
    const [nowMs, usageNs] = [figure(row, 'monotonicMs'), figure(row, 'cpuNs')]
    const sample = this.#samples.get(key)
    if (sample === undefined) {
      this.#add(key, nowMs, usageNs)
      return Number.NaN
    }
    const elapsedMs = nowMs - sample.monotonicMs
    // A sampler that falls behind must not let an old rate stand for ever.
    if (!Number.isNaN(sample.nanoCores) && elapsedMs < 5 * Math.max(this.#deps.periodMs, 1000)) return sample.nanoCores
    return elapsedMs < shortestMs ? Number.NaN : rate(sample, nowMs, usageNs)
  }

  #add(key: object, monotonicMs: number, usageNs: number): void {
    if (!(usageNs >= 0)) return
    const before = this.#samples.get(key)
    if (before === undefined) {
      this.#samples.set(key, { monotonicMs, usageNs, nanoCores: Number.NaN })
      return
    }
    if (monotonicMs - before.monotonicMs < shortestMs) return
    before.nanoCores = rate(before, monotonicMs, usageNs)
    before.monotonicMs = monotonicMs
    before.usageNs = usageNs
  }
}

/** NaN when the counter went backwards: another cgroup has its place. */
function rate(before: Sample, nowMs: number, usageNs: number): number {
  return usageNs < before.usageNs ? Number.NaN : ((usageNs - before.usageNs) / (nowMs - before.monotonicMs)) * 1000
}
