import type { CgroupMounts, CgroupPaths } from '../linux/cgroups.ts'
import type { InterfaceCounters } from '../linux/usage.ts'
import type { Ctx } from '../observability/context.ts'
import type { Container, Sandbox } from '../state/records.ts'
import { type CgroupFigures, type CgroupReader, figure } from './cgroup-figures.ts'
import { type Descriptor, metrics } from './metric-descriptors.ts'
import { cgroupName, pauseCgroup } from './pod-cgroup.ts'
import type { DiskUsage, SnapshotUsage } from './snapshot-usage.ts'
import { networksOf, runningPodCgroup, taskCgroup, type UsageDeps } from './usage.ts'
import { MessageWriter } from './wire.ts'

export interface PodMetricsDeps extends Pick<UsageDeps, 'networkCounters' | 'snapshotterOf' | 'mounts' | 'systemdCgroup'> {
  readonly reader: CgroupReader
  readonly disk: Pick<SnapshotUsage, 'ofAll' | 'fileSystem'>
  /** The name of a container's image, for people. */
  readonly imageName: (container: Container) => string
  /** The name of the image of pause processes. */
  readonly sandboxImage: string
}

/** The values of the base labels but for the pod's. */
interface Subject {
  readonly container: string
  readonly cgroups: CgroupPaths | undefined
  readonly image: string
  readonly name: string
}

/** Pods that are measured and encoded at a time. */
const podsAtATime = 10

/**
 * cAdvisor's metrics of every pod that runs, as encoded PodSandboxMetrics, field 1 of each answer, some pods in each piece: a node's are megabytes.
 * A pod's own are those of its cgroup (without a container's name) and its network; containers without a task have none.
 */
export class PodMetrics {
  readonly #deps: PodMetricsDeps

  constructor(deps: PodMetricsDeps) {
    this.#deps = deps
  }

  async *pieces(ctx: Ctx, sandboxes: readonly Sandbox[], all: Iterable<Container>): AsyncGenerator<Buffer> {
    const running = sandboxes.filter(({ state }) => state === 'ready')
    const byPod = new Map<string, Container[]>(running.map(({ id }) => [id, []]))
    for (const container of all) if (taskCgroup(container) !== undefined) byPod.get(container.metadata.sandboxId)?.push(container)
    for (let first = 0; first < running.length; first += podsAtATime) {
      const pods = running.slice(first, first + podsAtATime)
      yield await this.#piece(ctx, pods.map((sandbox) => ({ sandbox, containers: byPod.get(sandbox.id) ?? [] })))
    }
  }

  async #piece(ctx: Ctx, pods: readonly { readonly sandbox: Sandbox; readonly containers: readonly Container[] }[]): Promise<Buffer> {
    const { reader, mounts, networkCounters, disk, snapshotterOf } = this.#deps
    const containers = pods.flatMap((pod) => pod.containers)
    const snapshotters = containers.map((container) => snapshotterOf(container))
    const [ofPods, ofContainers, networks, disks] = await Promise.all([
      reader.read(ctx, 'detail', pods.map(({ sandbox }) => {
        const cgroups = runningPodCgroup(sandbox, mounts)
        return cgroups === undefined ? undefined : { cgroups }
      })),
      reader.read(ctx, 'detail', containers.map((container) => {
        const cgroups = taskCgroup(container)
        return cgroups === undefined ? undefined : { cgroups, pid: container.status.pid, countProcesses: true }
      })),
      networksOf(networkCounters, pods.map(({ sandbox }) => sandbox)),
      disk.ofAll(ctx, containers.map(({ id }, index) => ({ snapshotter: snapshotters[index] ?? '', key: id }))),
    ])
    const figures = new Map(containers.map((container, index) => [container, { found: ofContainers[index], disk: disks[index], snapshotter: snapshotters[index] ?? '' }]))
    const out = new MessageWriter(pods.length * 16_384)
    for (const [index, pod] of pods.entries()) {
      out.message(1, () => {
        out.string(1, pod.sandbox.id)
        this.#pod(out, pod.sandbox, ofPods[index], networks[index])
        for (const container of pod.containers) {
          const { found, disk: usage, snapshotter = '' } = figures.get(container) ?? {}
          if (found === undefined) continue
          out.message(3, () => {
            out.string(1, container.id)
            const series = this.#container(out, pod.sandbox, container, found)
            this.#disk(series, usage, snapshotter)
          })
        }
      })
    }
    return out.finish()
  }

  #pod(out: MessageWriter, sandbox: Sandbox, found: CgroupFigures | undefined, network: readonly InterfaceCounters[] | undefined): void {
    const { mounts, systemdCgroup, sandboxImage } = this.#deps
    const nowMs = Date.now()
    // As with cAdvisor the pod's cgroup has no name, and its network is the pause process's.
    const pause = new Series(out, sandbox, { container: '', cgroups: pauseCgroup(sandbox, mounts, systemdCgroup(sandbox)), image: sandboxImage, name: sandbox.id }, mounts, nowMs)
    pause.write(metrics.lastSeen, nowMs / 1000)
    pause.write(metrics.startTime, Number(sandbox.createdAt / 1_000_000_000n))
    for (const each of network ?? []) writeNetwork(pause, each)
    if (found === undefined) return
    const pod = new Series(out, sandbox, { container: '', cgroups: runningPodCgroup(sandbox, mounts), image: '', name: '' }, mounts, figure(found.row, 'wallMs'))
    pod.write(metrics.lastSeen, nowMs / 1000)
    pod.write(metrics.startTime, Number(sandbox.createdAt / 1_000_000_000n))
    writeCgroup(pod, found)
  }

  #container(out: MessageWriter, sandbox: Sandbox, container: Container, found: CgroupFigures): Series {
    const { mounts, imageName } = this.#deps
    const { row } = found
    const series = new Series(out, sandbox, { container: container.metadata.config.metadata?.name ?? '', cgroups: container.cgroups, image: imageName(container), name: container.id }, mounts, figure(row, 'wallMs'))
    series.write(metrics.lastSeen, figure(row, 'wallMs') / 1000)
    series.write(metrics.startTime, Number(container.status.startedAt / 1_000_000_000n))
    writeCgroup(series, found)
    series.write(metrics.processes, figure(row, 'processes'))
    series.write(metrics.fileDescriptors, figure(row, 'descriptors'))
    series.write(metrics.sockets, figure(row, 'sockets'))
    series.write(metrics.ulimitsSoft, figure(row, 'openFilesLimit'), 'max_open_files')
    return series
  }

  #disk(series: Series, usage: DiskUsage | undefined, snapshotter: string): void {
    const fileSystem = this.#deps.disk.fileSystem(snapshotter)
    if (fileSystem === undefined) return
    const { device } = fileSystem
    if (usage !== undefined) series.write(metrics.fsUsage, usage.bytes, device)
    series.write(metrics.fsLimit, fileSystem.totalBytes, device)
    series.write(metrics.fsInodesTotal, fileSystem.totalInodes, device)
    series.write(metrics.fsInodesFree, fileSystem.freeInodes, device)
  }
}

/** What does not change from one answer to the next: each metric's name, encoded. */
const heads = new WeakMap<Descriptor, Buffer>()

function headOf(descriptor: Descriptor): Buffer {
  const known = heads.get(descriptor)
  if (known !== undefined) return known
  const out = new MessageWriter(64)
  out.string(1, descriptor.name)
  out.integer(3, descriptor.type)
  const head = Buffer.from(out.finish())
  heads.set(descriptor, head)
  return head
}

/** Writes the metrics of one container or pod: all have the same first labels. */
class Series {
  readonly #out: MessageWriter
  readonly #labels: Buffer
  readonly #timestampNs: number

  constructor(out: MessageWriter, { metadata }: Sandbox, subject: Subject, mounts: CgroupMounts, timestampMs: number) {
    this.#out = out
    this.#timestampNs = timestampMs * 1e6
    const { name = '', namespace = '' } = metadata.config.metadata ?? {}
    const labels = new MessageWriter(512)
    for (const value of [subject.container, cgroupName(subject.cgroups, mounts), subject.image, subject.name, namespace, name]) labels.element(4, value)
    this.#labels = labels.finish()
  }

  /** Nothing when the value is not known (NaN). */
  write(descriptor: Descriptor, value: number, ...labels: readonly string[]): void {
    if (Number.isNaN(value)) return
    const out = this.#out
    out.message(2, () => {
      out.fields(headOf(descriptor))
      out.integer(2, this.#timestampNs)
      out.fields(this.#labels)
      for (const label of labels) out.element(4, label)
      out.wrapped(5, value)
    })
  }
}

const nanosecondsPerSecond = 1e9

/** What a pod's cgroup and a container's have both. */
function writeCgroup(series: Series, { row, devices, hugetlb }: CgroupFigures): void {
  const value = (name: Parameters<typeof figure>[1]): number => figure(row, name)
  const seconds = (name: Parameters<typeof figure>[1]): number => value(name) / nanosecondsPerSecond
  /** A limit that is not set is 0 with cAdvisor; it is told where its controller is there at all. */
  const limit = (name: Parameters<typeof figure>[1], controller: Parameters<typeof figure>[1]): number => (Number.isNaN(value(controller)) ? Number.NaN : value(name) || 0)

  series.write(metrics.cpuUsage, seconds('cpuNs'), 'total')
  series.write(metrics.cpuUser, seconds('userNs'))
  series.write(metrics.cpuSystem, seconds('systemNs'))
  series.write(metrics.cfsPeriods, value('periods'))
  series.write(metrics.cfsThrottledPeriods, value('throttledPeriods'))
  series.write(metrics.cfsThrottledSeconds, seconds('throttledNs'))

  series.write(metrics.memoryUsage, value('memoryUsage'))
  series.write(metrics.memoryWorkingSet, value('workingSet'))
  series.write(metrics.memoryRss, value('rss'))
  series.write(metrics.memoryCache, value('cache'))
  series.write(metrics.memoryMappedFile, value('mappedFile'))
  series.write(metrics.memorySwap, limit('swapUsage', 'memoryUsage'))
  series.write(metrics.memoryKernel, value('kernelMemory'))
  series.write(metrics.memoryMaxUsage, value('maxMemoryUsage'))
  series.write(metrics.memoryFailcnt, value('memoryLimitHits'))
  series.write(metrics.memoryActiveFile, value('activeFile'))
  series.write(metrics.memoryInactiveFile, value('inactiveFile'))
  series.write(metrics.memoryFailures, value('ownPageFaults'), 'pgfault', 'container')
  series.write(metrics.memoryFailures, value('pageFaults'), 'pgfault', 'hierarchy')
  series.write(metrics.memoryFailures, value('ownMajorPageFaults'), 'pgmajfault', 'container')
  series.write(metrics.memoryFailures, value('majorPageFaults'), 'pgmajfault', 'hierarchy')
  series.write(metrics.oomEvents, value('oomKills'))
  for (const { pageSize, usageBytes, maxUsageBytes = Number.NaN } of hugetlb) {
    series.write(metrics.hugetlbUsage, usageBytes, pageSize)
    series.write(metrics.hugetlbMaxUsage, maxUsageBytes, pageSize)
  }

  for (const { device, major, minor, bytes, operations } of devices) {
    series.write(metrics.fsReadBytes, bytes['Read'] ?? Number.NaN, device)
    series.write(metrics.fsReads, operations['Read'] ?? Number.NaN, device)
    series.write(metrics.fsWriteBytes, bytes['Write'] ?? Number.NaN, device)
    series.write(metrics.fsWrites, operations['Write'] ?? Number.NaN, device)
    for (const [operation, moved] of Object.entries(bytes)) series.write(metrics.blkioUsage, moved, device, major, minor, operation)
  }

  series.write(metrics.threads, value('tasks'))
  series.write(metrics.threadsMax, limit('maxTasks', 'tasks'))

  series.write(metrics.cpuWaiting, seconds('cpuSome'))
  series.write(metrics.cpuStalled, seconds('cpuFull'))
  series.write(metrics.memoryWaiting, seconds('memorySome'))
  series.write(metrics.memoryStalled, seconds('memoryFull'))
  series.write(metrics.ioWaiting, seconds('ioSome'))
  series.write(metrics.ioStalled, seconds('ioFull'))

  series.write(metrics.specCpuPeriod, value('cpuPeriodUs'))
  series.write(metrics.specCpuQuota, value('cpuQuotaUs'))
  series.write(metrics.specCpuShares, value('cpuShares'))
  series.write(metrics.specMemoryLimit, limit('memoryLimit', 'memoryUsage'))
  series.write(metrics.specMemorySwapLimit, limit('swapLimit', 'memoryUsage'))
  series.write(metrics.specMemoryReservation, limit('memoryReservation', 'memoryUsage'))
}

function writeNetwork(series: Series, network: InterfaceCounters): void {
  const { name } = network
  series.write(metrics.networkReceiveBytes, network.rxBytes, name)
  series.write(metrics.networkReceivePackets, network.rxPackets, name)
  series.write(metrics.networkReceiveErrors, network.rxErrors, name)
  series.write(metrics.networkReceiveDropped, network.rxDropped, name)
  series.write(metrics.networkTransmitBytes, network.txBytes, name)
  series.write(metrics.networkTransmitPackets, network.txPackets, name)
  series.write(metrics.networkTransmitErrors, network.txErrors, name)
  series.write(metrics.networkTransmitDropped, network.txDropped, name)
}
