import type { CgroupMounts, CgroupPaths } from '../linux/cgroups.ts'
import { Figure, type InterfaceCounters, type NetworkTarget, rowLength } from '../linux/usage.ts'
import type { Ctx } from '../observability/context.ts'
import type { Container, Sandbox } from '../state/records.ts'
import { type CgroupReader, figure } from './cgroup-figures.ts'
import type { CpuSampler } from './cpu-sampler.ts'
import { pauseCgroup, podCgroup } from './pod-cgroup.ts'
import type { SnapshotUsage } from './snapshot-usage.ts'
import type { ContainerFigures, PodFigures } from './stats-messages.ts'

export interface UsageDeps {
  readonly reader: CgroupReader
  readonly sampler: CpuSampler
  readonly disk: Pick<SnapshotUsage, 'ofAll'>
  readonly networkCounters: (targets: readonly NetworkTarget[]) => Promise<readonly (readonly InterfaceCounters[] | undefined)[]>
  /** The snapshotter that the container's writable layer is in. */
  readonly snapshotterOf: (container: Container) => string
  /** Where that snapshotter keeps its snapshots, for the file system's id. */
  readonly snapshotterRoot: (snapshotter: string) => string
  readonly mounts: CgroupMounts
  /** Whether systemd makes the cgroups of the pod's containers. */
  readonly systemdCgroup: (sandbox: Sandbox) => boolean
}

/** The cgroup of a container that has a task; undefined for the others. */
export function taskCgroup({ status, cgroups }: Container): CgroupPaths | undefined {
  return status.state === 'running' ? cgroups : undefined
}

const podCgroups = new WeakMap<Sandbox['metadata'], { readonly cgroups: CgroupPaths | undefined }>()

/**
 * The cgroup of a pod that runs. Not of one whose pause process has ended: the pod's next sandbox is in the same cgroup, and would be
 * counted twice.
 */
export function runningPodCgroup(sandbox: Sandbox, mounts: CgroupMounts): CgroupPaths | undefined {
  if (sandbox.state !== 'ready') return undefined
  const known = podCgroups.get(sandbox.metadata) ?? { cgroups: podCgroup(sandbox, mounts) }
  podCgroups.set(sandbox.metadata, known)
  return known.cgroups
}

/** The network namespaces of pods that have one and run, and what is counted in them; undefined for the others. */
export async function networksOf(
  read: UsageDeps['networkCounters'], sandboxes: readonly Sandbox[],
): Promise<(readonly InterfaceCounters[] | undefined)[]> {
  const wanted = sandboxes.filter(({ state, networkDown, metadata }) => state === 'ready' && !networkDown && metadata.netnsPath !== '')
  const found = wanted.length === 0 ? [] : await read(wanted.map(({ pid, metadata }) => ({ netnsPath: metadata.netnsPath, pid })))
  const bySandbox = new Map(wanted.map((sandbox, index) => [sandbox, found[index]]))
  return sandboxes.map((sandbox) => bySandbox.get(sandbox))
}

/** What pods and containers use, for the stats calls: cgroups and networks are read off the main thread, disks were measured before. */
export class Usage {
  readonly #deps: UsageDeps

  constructor(deps: UsageDeps) {
    this.#deps = deps
  }

  /** What is known of each: one that goes away meanwhile, or cannot be read, does not spoil the answer for the others. */
  async containers(ctx: Ctx, containers: readonly Container[]): Promise<ContainerFigures[]> {
    const { reader, disk, snapshotterOf, snapshotterRoot } = this.#deps
    const snapshotters = containers.map((container) => snapshotterOf(container))
    const [figures, disks] = await Promise.all([
      reader.read(ctx, 'usage', containers.map((container) => asRequest(taskCgroup(container)))),
      disk.ofAll(ctx, containers.map(({ id }, index) => ({ snapshotter: snapshotters[index] ?? '', key: id }))),
    ])
    return containers.map((container, index) => {
      const row = figures[index]?.row
      return {
        container, row, disk: disks[index], diskMountpoint: snapshotterRoot(snapshotters[index] ?? ''),
        nanoCores: row === undefined ? Number.NaN : this.#deps.sampler.nanoCores(container.metadata, row),
      }
    })
  }

  /** The same of pods with their containers, `all` of which may be those of other pods too. */
  async pods(ctx: Ctx, sandboxes: readonly Sandbox[], all: Iterable<Container>): Promise<PodFigures[]> {
    const { reader, mounts, systemdCgroup, networkCounters } = this.#deps
    const byPod = new Map<string, ContainerFigures[]>(sandboxes.map(({ id }) => [id, []]))
    const [containers, pods, networks] = await Promise.all([
      this.containers(ctx, [...all].filter(({ metadata }) => byPod.has(metadata.sandboxId))),
      reader.read(ctx, 'usage', sandboxes.map((sandbox) => asRequest(runningPodCgroup(sandbox, mounts)))),
      networksOf(networkCounters, sandboxes),
    ])
    const networkMs = Date.now()
    for (const each of containers) byPod.get(each.container.metadata.sandboxId)?.push(each)
    // A pod without a cgroup of its own is the sum of what is in it.
    const pauses = await reader.read(ctx, 'usage', sandboxes.map((sandbox, index) => (
      pods[index] !== undefined || sandbox.state !== 'ready' ? undefined : asRequest(pauseCgroup(sandbox, mounts, systemdCgroup(sandbox)))
    )))
    return sandboxes.map((sandbox, index) => {
      const own = byPod.get(sandbox.id) ?? []
      const pod = pods[index]?.row
      const parts = [pauses[index]?.row, ...own.map(({ row }) => row)].filter((row) => row !== undefined)
      return {
        sandbox, containers: own, network: networks[index], networkMs,
        row: pod ?? (sandbox.state === 'ready' ? sumOf(parts) : undefined),
        nanoCores: pod === undefined ? sumOfRates(own) : this.#deps.sampler.nanoCores(sandbox.metadata, pod),
      }
    })
  }
}

function asRequest(cgroups: CgroupPaths | undefined): { readonly cgroups: CgroupPaths } | undefined {
  return cgroups === undefined ? undefined : { cgroups }
}

function sumOfRates(containers: readonly ContainerFigures[]): number {
  const running = containers.filter(({ row }) => row !== undefined)
  return running.length === 0 ? Number.NaN : running.reduce((sum, { nanoCores }) => sum + nanoCores, 0)
}

const summed = ['cpuNs', 'memoryUsage', 'workingSet', 'rss', 'pageFaults', 'majorPageFaults', 'swapUsage', 'tasks'] as const

/** Undefined of nothing. Pressure does not add up, and limits of one container are not the pod's. */
function sumOf(rows: readonly Float64Array[]): Float64Array | undefined {
  const [first] = rows
  if (first === undefined) return undefined
  const sum = new Float64Array(rowLength.usage).fill(Number.NaN)
  sum[Figure.wallMs] = figure(first, 'wallMs')
  sum[Figure.monotonicMs] = figure(first, 'monotonicMs')
  for (const name of summed) sum[Figure[name]] = rows.reduce((total, row) => total + (figure(row, name) || 0), 0)
  return sum
}
