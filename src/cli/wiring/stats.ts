import type { Settings } from '../../config/settings.ts'
import type { SnapshotsService } from '../../containerd/snapshots.ts'
import { isWithin } from '../../linux/mountinfo.ts'
import type { Linux, HostFacts } from '../../linux/linux.ts'
import type { Background } from '../../observability/background.ts'
import type { Ctx } from '../../observability/context.ts'
import type { Container, Sandbox } from '../../state/records.ts'
import type { ImageStore } from '../../state/image-store.ts'
import type { Store } from '../../state/store.ts'
import { CgroupReader } from '../../stats/cgroup-figures.ts'
import { CpuSampler } from '../../stats/cpu-sampler.ts'
import { PodMetrics } from '../../stats/pod-metrics.ts'
import { type FileSystem, SnapshotUsage } from '../../stats/snapshot-usage.ts'
import { runningPodCgroup, taskCgroup, Usage } from '../../stats/usage.ts'
import { snapshotterOfPods, usesSystemdCgroup } from './runtimes.ts'

export interface StatsWiringOptions {
  readonly settings: Settings
  readonly linux: Linux
  readonly machine: HostFacts
  readonly snapshots: SnapshotsService
  readonly sandboxes: Store<Sandbox>
  readonly containers: Store<Container>
  readonly images: ImageStore
  readonly snapshotterRoot: (snapshotter: string) => string
  readonly ctx: Ctx
}

/** What the calls for stats, metrics and ImageFsInfo work with, and the two background tasks behind them. */
export class StatsWiring {
  readonly usage: Usage
  readonly metrics: PodMetrics
  readonly disk: SnapshotUsage
  readonly #options: StatsWiringOptions
  readonly #sampler: CpuSampler

  constructor(options: StatsWiringOptions) {
    const { settings, linux, machine, sandboxes, containers, images, ctx } = options
    this.#options = options
    const mounts = machine.cgroup
    const handlerOf = (container: Container): string => sandboxes.get(container.metadata.sandboxId)?.metadata.runtimeHandler ?? ''
    const reader = new CgroupReader((level, targets) => linux.cgroupUsage(level, targets))
    this.#sampler = new CpuSampler({
      reader, ctx, periodMs: settings.cpuStatsCollectPeriodMs,
      * list() {
        for (const container of containers.values()) {
          const cgroups = taskCgroup(container)
          if (cgroups !== undefined) yield { key: container.metadata, cgroups }
        }
        for (const sandbox of sandboxes.values()) {
          const cgroups = runningPodCgroup(sandbox, mounts)
          if (cgroups !== undefined) yield { key: sandbox.metadata, cgroups }
        }
      },
    })
    this.disk = new SnapshotUsage({ snapshots: options.snapshots, snapshotters: () => this.snapshotters(), fileSystem: (snapshotter) => this.#fileSystem(snapshotter), periodMs: settings.statsCollectPeriodMs, ctx })
    const shared = {
      reader, mounts, disk: this.disk, networkCounters: linux.networkCounters.bind(linux),
      snapshotterOf: (container: Container) => snapshotterOfPods(settings, handlerOf(container)), snapshotterRoot: options.snapshotterRoot,
      systemdCgroup: ({ metadata }: Sandbox): boolean => {
        const runtime = settings.runtimes[metadata.runtimeHandler === '' ? settings.defaultRuntimeName : metadata.runtimeHandler]
        return runtime !== undefined && usesSystemdCgroup(runtime)
      },
    }
    this.usage = new Usage({ ...shared, sampler: this.#sampler })
    const imageName = ({ metadata }: Container): string => {
      const { image } = metadata.config
      return image?.user_specified_image || (images.byId(metadata.imageRef)?.references[0] ?? image?.image ?? '')
    }
    this.metrics = new PodMetrics({ ...shared, imageName, sandboxImage: settings.sandboxImage })
  }

  /** Every snapshotter that pods may use; the default one first. */
  snapshotters(): readonly string[] {
    const { settings } = this.#options
    return [...new Set([settings.snapshotter, ...Object.keys(settings.runtimes).map((handler) => snapshotterOfPods(settings, handler))])]
  }

  /** Begins to sample and to measure; both end when the signal of the context aborts. */
  start(background: Background): void {
    const { signal } = this.#options.ctx
    background.run('sample the CPU time of containers', this.#sampler.run(signal))
    background.run('measure snapshots', this.disk.run(signal))
  }

  async #fileSystem(snapshotter: string): Promise<FileSystem> {
    const { linux, snapshotterRoot } = this.#options
    const root = snapshotterRoot(snapshotter)
    const [info, mounts] = await Promise.all([linux.fsInfo(root), linux.mountInfo()])
    // The last of the longest mount points that the directory is under.
    const mount = mounts.filter(({ mountPoint }) => isWithin(root, mountPoint)).reduce<typeof mounts[number] | undefined>((best, each) => (best === undefined || each.mountPoint.length >= best.mountPoint.length ? each : best), undefined)
    return { device: mount?.source ?? root, totalBytes: info.totalBytes, totalInodes: info.totalInodes, freeInodes: info.freeInodes }
  }
}
