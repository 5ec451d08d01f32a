import { BoundedQueue } from '../concurrency/bounded-queue.ts'
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

/** Writable layers that are measured at once: each is walked on the disk. */
const concurrentWalks = 4

type Usage = Pick<Init<ContainerStats>, 'cpu' | 'memory' | 'swap' | 'io' | 'writable_layer'>

interface DiskUsage {
  readonly mountpoint: string
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
  // Kept under a container's metadata, which stays the same for its life and goes with it: nothing has to be told of a removal.
  readonly #disk = new WeakMap<Container['metadata'], DiskUsage>()
  readonly #measuring = new WeakMap<Container['metadata'], Promise<DiskUsage | undefined>>()
  readonly #cpu = new WeakMap<Container['metadata'], CpuSample>()
  readonly #walks = new BoundedQueue({ name: 'measuring writable layers', concurrency: concurrentWalks, maxWaiting: 10_000 })

  constructor(deps: ContainerUsageDeps) {
    this.#deps = deps
  }

  /** What can be measured of a container: one that goes away meanwhile, or that cannot be read, does not spoil the answer for the others. */
  async measure(container: Container): Promise<Usage> {
    const [cgroup, disk] = await Promise.all([this.#cgroup(container), this.#diskUsage(container)])
    return {
      ...(cgroup === undefined ? {} : this.#fromCgroup(container, cgroup)),
      ...(disk === undefined ? {} : {
        writable_layer: { timestamp: String(disk.timestampNs), fs_id: { mountpoint: disk.mountpoint }, used_bytes: { value: String(disk.sizeBytes) }, inodes_used: { value: String(disk.inodes) } },
      }),
    }
  }

  async #cgroup({ id, status, cgroups }: Container): Promise<CgroupStats | undefined> {
    if (status.state !== 'running' || cgroups === undefined) return undefined
    try {
      return await this.#deps.cgroupStats(cgroups)
    } catch (error) {
      this.#deps.ctx.log.warn({ err: error, container: id }, 'cannot read the cgroup of a container')
      return undefined
    }
  }

  #fromCgroup(container: Container, stats: CgroupStats): Usage {
    const timestamp = String(stats.timestampNs)
    const { cpu, memory } = stats
    return {
      cpu: { timestamp, ...value('usage_core_nano_seconds', cpu.usageNs), ...value('usage_nano_cores', this.#nanoCores(container, stats)) },
      memory: {
        timestamp, ...value('working_set_bytes', memory.workingSetBytes), ...value('available_bytes', memory.availableBytes), ...value('usage_bytes', memory.usageBytes),
        ...value('rss_bytes', memory.rssBytes), ...value('page_faults', memory.pageFaults), ...value('major_page_faults', memory.majorPageFaults),
      },
      swap: { timestamp, ...value('swap_usage_bytes', memory.swapUsageBytes), ...value('swap_available_bytes', memory.swapAvailableBytes) },
    }
  }

  /** Since the last question, when that is long enough ago to mean something. */
  #nanoCores({ metadata }: Container, stats: CgroupStats): bigint | undefined {
    const usageNs = stats.cpu.usageNs
    if (usageNs === undefined) return undefined
    const before = this.#cpu.get(metadata)
    const elapsedNs = before === undefined ? 0n : stats.timestampNs - before.timestampNs
    if (before === undefined || elapsedNs >= 1_000_000_000n) this.#cpu.set(metadata, { timestampNs: stats.timestampNs, usageNs })
    if (before === undefined || elapsedNs <= 0n || usageNs < before.usageNs) return undefined
    return ((usageNs - before.usageNs) * 1_000_000_000n) / elapsedNs
  }

  async #diskUsage(container: Container): Promise<DiskUsage | undefined> {
    const { metadata } = container
    const known = this.#disk.get(metadata)
    const now = BigInt(Date.now()) * 1_000_000n
    if (known !== undefined && now - known.timestampNs < BigInt(this.#deps.diskUsageMaxAgeMs) * 1_000_000n) return known
    let measuring = this.#measuring.get(metadata)
    if (measuring === undefined) {
      measuring = this.#walk(container).finally(() => this.#measuring.delete(metadata))
      this.#measuring.set(metadata, measuring)
    }
    return measuring
  }

  async #walk(container: Container): Promise<DiskUsage | undefined> {
    try {
      const snapshotter = this.#deps.snapshotterOf(container)
      const measured = await this.#walks.add(async () => ({
        timestampNs: BigInt(Date.now()) * 1_000_000n, mountpoint: this.#deps.snapshotterRoot(snapshotter), ...await this.#deps.snapshots.usage(this.#deps.ctx, snapshotter, container.id),
      }))
      this.#disk.set(container.metadata, measured)
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
