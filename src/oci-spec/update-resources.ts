import type { LinuxContainerResources } from '../generated/cri.ts'
import { passThroughAnnotations } from './annotations.ts'
import type { HostFacts, RuntimeView, SpecSettings } from './input.ts'
import { oomScoreAdj } from './oom.ts'
import { linuxResources, type ResourceFacts, type ResourceSettings } from './resources.ts'
import type { OciInteger, OciResources, OciSpec } from './types.ts'

export interface ResourceUpdate {
  /** Null changes nothing. */
  readonly linux: LinuxContainerResources | null
  readonly annotations: Readonly<Record<string, string>>
  /** It has been started: what a runtime reads at the start alone stays as it is. */
  readonly started: boolean
}

export interface UpdateFacts {
  readonly hostFacts: ResourceFacts & Pick<HostFacts, 'ownOomScoreAdj' | 'effectiveCapabilities' | 'capLastCap'>
  readonly settings: ResourceSettings & Pick<SpecSettings, 'restrictOomScoreAdj'>
  /** The allow-list of the runtime handler. */
  readonly runtime: Pick<RuntimeView, 'containerAnnotations'>
}

/**
 * A container's spec with other resources (UpdateContainerResources): what the request gives replaces, what it leaves out stays. Annotations
 * reach it through the handler's allow-list. The `oom_score_adj` of a container that was started stays: runtimes set it at the start.
 * Throws as linuxResources() does.
 */
export function updatedSpec(spec: OciSpec, { linux, annotations, started }: ResourceUpdate, { hostFacts, settings, runtime }: UpdateFacts): OciSpec {
  const passed = passThroughAnnotations(annotations, runtime.containerAnnotations)
  const annotated: OciSpec = Object.keys(passed).length === 0 ? spec : { ...spec, annotations: { ...spec.annotations, ...passed } }
  if (linux === null) return annotated
  const score = oomScoreAdj(Number(linux.oom_score_adj), hostFacts, settings)
  const rescored = started || linux.oom_score_adj === '0' || spec.process === undefined ? {} : { process: { ...spec.process, oomScoreAdj: score } }
  return { ...annotated, ...rescored, linux: { ...spec.linux, resources: linuxResources(linux, hostFacts, settings, spec.linux?.resources ?? {}) } }
}

/**
 * What brings a task back from `applied` to `before`: a limit that `before` does not have is lifted, since a runtime leaves alone what it is not
 * told. A cpuset cannot be lifted: it stays.
 */
export function revertingResources(before: OciResources, applied: OciResources): OciResources {
  const lifted = <T extends object>(unlimited: T, had: object | undefined, has: object | undefined): Partial<T> =>
    Object.fromEntries(Object.entries(unlimited).filter(([key]) => has !== undefined && key in has && !(had !== undefined && key in had))) as Partial<T>
  return {
    ...before,
    cpu: { ...lifted({ quota: -1, period: 100_000, shares: 1024 }, before.cpu, applied.cpu), ...before.cpu },
    memory: { ...lifted({ limit: -1, swap: -1 }, before.memory, applied.memory), ...before.memory },
  }
}

/** What a spec says of resources, as ContainerStatus.resources gives it. */
export function resourcesOfSpec(spec: OciSpec): LinuxContainerResources {
  const { cpu = {}, memory = {}, hugepageLimits = [], unified = {} } = spec.linux?.resources ?? {}
  const integer = (value: OciInteger | null | undefined): string => String(value ?? 0)
  return {
    cpu_period: integer(cpu.period),
    cpu_quota: integer(cpu.quota),
    cpu_shares: integer(cpu.shares),
    cpuset_cpus: cpu.cpus ?? '',
    cpuset_mems: cpu.mems ?? '',
    memory_limit_in_bytes: integer(memory.limit),
    memory_swap_limit_in_bytes: integer(memory.swap),
    oom_score_adj: integer(spec.process?.oomScoreAdj),
    hugepage_limits: hugepageLimits.map(({ pageSize, limit }) => ({ page_size: pageSize, limit: integer(limit) })),
    unified: { ...unified },
  }
}
