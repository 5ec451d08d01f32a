import type { SnapshotsService } from '../containerd/snapshots.ts'
import type { ContainerStats } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { CgroupPaths, CgroupStats } from '../linux/cgroups.ts'
import type { Ctx } from '../observability/context.ts'
import type { Container } from '../state/records.ts'

export interface ContainerUsageDeps {
  readonly cgroupStats: (paths: CgroupPaths) => Promise<CgroupStats | undefined>
  readonly snapshots: SnapshotsService
  /** The snapshotter that the container's writable layer is in. */
  readonly snapshotterOf: (container: Container) => string
  /** Where that snapshotter keeps its snapshots, for the file system's id. */
  readonly snapshotterRoot: (snapshotter: string) => string
  /** How old a measured disk usage may be, in milliseconds: a walk over a writable layer costs I/O. */
  readonly diskUsageMaxAgeMs: number
  readonly ctx: Ctx
}

type Usage = Pick<Init<ContainerStats>, 'cpu' | 'memory' | 'swap' | 'io' | 'writable_layer'>

interface DiskUsage {
  readonly timestampNs: bigint
  readonly sizeBytes: bigint
  readonly inodes: bigint
}

interface CpuSample {
  readonly timestampNs: bigint
  readonly usageNs: bigint
}

/**
 * What containers use: cgroup files read off the main thread, the writable layer from the snapshotter. Disk usage is measured at most once
 * per `diskUsageMaxAgeMs` and container, and once at a time, however many ask.
 */
export class ContainerUsage {
  readonly #deps: ContainerUsageDeps
  readonly #disk = new Map<string, DiskUsage>()
  readonly #measuring = new Map<string, Promise<DiskUsage | undefined>>()
  readonly #cpu = new Map<string, CpuSample>()

  constructor(deps: ContainerUsageDeps) {
    this.#deps = deps
  }

  /** A container was removed. */
  forget(id: string): void {
    this.#disk.delete(id)
    this.#cpu.delete(id)
  }

  async measure(container: Container): Promise<Usage> {
    const running = container.status.state === 'running' && container.cgroups !== undefined
    const [cgroup, disk] = await Promise.all([
      running && container.cgroups !== undefined ? this.#deps.cgroupStats(container.cgroups) : undefined,
      this.#diskUsage(container),
    ])
    const mountpoint = this.#deps.snapshotterRoot(this.#deps.snapshotterOf(container))
    return {
      ...(cgroup === undefined ? {} : this.#fromCgroup(container.id, cgroup)),
      ...(disk === undefined ? {} : {
        writable_layer: { timestamp: String(disk.timestampNs), fs_id: { mountpoint }, used_bytes: { value: String(disk.sizeBytes) }, inodes_used: { value: String(disk.inodes) } },
      }),
    }
  }

  #fromCgroup(id: string, stats: CgroupStats): Usage {
    const timestamp = String(stats.timestampNs)
    const { cpu, memory } = stats
    return {
      cpu: { timestamp, ...value('usage_core_nano_seconds', cpu.usageNs), ...value('usage_nano_cores', this.#nanoCores(id, stats)) },
      memory: {
        timestamp, ...value('working_set_bytes', memory.workingSetBytes), ...value('available_bytes', memory.availableBytes), ...value('usage_bytes', memory.usageBytes),
        ...value('rss_bytes', memory.rssBytes), ...value('page_faults', memory.pageFaults), ...value('major_page_faults', memory.majorPageFaults),
      },
      swap: { timestamp, ...value('swap_usage_bytes', memory.swapUsageBytes), ...value('swap_available_bytes', memory.swapAvailableBytes) },
    }
  }

  /** Since the last question, when that is long enough ago to mean something. */
  #nanoCores(id: string, stats: CgroupStats): bigint | undefined {
    const usageNs = stats.cpu.usageNs
    if (usageNs === undefined) return undefined
    const before = this.#cpu.get(id)
    const elapsedNs = before === undefined ? 0n : stats.timestampNs - before.timestampNs
    if (before === undefined || elapsedNs >= 1_000_000_000n) this.#cpu.set(id, { timestampNs: stats.timestampNs, usageNs })
    if (before === undefined || elapsedNs <= 0n || usageNs < before.usageNs) return undefined
    return ((usageNs - before.usageNs) * 1_000_000_000n) / elapsedNs
  }

  async #diskUsage(container: Container): Promise<DiskUsage | undefined> {
    const { id } = container
    const known = this.#disk.get(id)
    const now = BigInt(Date.now()) * 1_000_000n
    if (known !== undefined && now - known.timestampNs < BigInt(this.#deps.diskUsageMaxAgeMs) * 1_000_000n) return known
    let measuring = this.#measuring.get(id)
    if (measuring === undefined) {
      measuring = this.#walk(container, now).finally(() => this.#measuring.delete(id))
      this.#measuring.set(id, measuring)
    }
    return measuring
  }

  async #walk(container: Container, timestampNs: bigint): Promise<DiskUsage | undefined> {
    try {
      const usage = await this.#deps.snapshots.usage(this.#deps.ctx, this.#deps.snapshotterOf(container), container.id)
      const measured = { timestampNs, ...usage }
      this.#disk.set(container.id, measured)
      return measured
    } catch (error) {
      // A container that goes away during the question has no usage; the rest of the answer is still good.
      this.#deps.ctx.log.debug({ err: error, container: container.id }, 'cannot measure a writable layer')
      return undefined
    }
  }
}

function value<K extends string>(key: K, amount: bigint | undefined): { readonly [P in K]?: { readonly value: string } } {
  return (amount === undefined ? {} : { [key]: { value: String(amount < 0n ? 0n : amount) } }) as { readonly [P in K]?: { readonly value: string } }
}
