import { failedPrecondition, invalidArgument } from '../errors/cri-error.ts'
import type { LinuxContainerResources } from '../generated/cri.ts'
import type { HostFacts, SpecSettings } from './input.ts'
import { ociInteger } from './integers.ts'
import type { OciInteger, OciResources } from './types.ts'

export type ResourceFacts = Pick<HostFacts, 'cgroupMode' | 'swapControllerAvailable' | 'hugetlbControllerPresent' | 'possibleCpus' | 'possibleMemoryNodes'>
export type ResourceSettings = Pick<SpecSettings, 'tolerateMissingHugetlbController' | 'disableHugetlbController'>

/** What the kernel takes (sched: cpu.shares; CFS bandwidth control), in microseconds where it is a time. */
const CPU_SHARES = [2n, 262_144n] as const
const CPU_PERIOD_US = [1000n, 1_000_000n] as const
const MIN_CPU_QUOTA_US = 1000n

/**
 * linux.resources with a request laid over `base` (a base_runtime_spec's, or those of the container so far); zero means "not given" throughout and leaves what
 * is there. The v1 names hold for v2 too: the runtime converts them. Throws INVALID_ARGUMENT for values that no kernel takes,
 * FAILED_PRECONDITION for what this node's cgroups cannot do.
 */
export function linuxResources(request: LinuxContainerResources, facts: ResourceFacts, settings: ResourceSettings, base: OciResources = {}): OciResources {
  return {
    ...base,
    cpu: { ...base.cpu, ...cpuOf(request, facts) },
    memory: memoryOf(request, facts, base.memory ?? {}),
    ...hugepagesOf(request, facts, settings, base.hugepageLimits ?? []),
    ...unifiedOf(request, facts, base.unified),
  }
}

function cpuOf(request: LinuxContainerResources, facts: ResourceFacts): NonNullable<OciResources['cpu']> {
  const quota = ociInteger(request.cpu_quota, 'cpu_quota', -1n)
  if (quota > 0 && quota < MIN_CPU_QUOTA_US) throw invalidArgument(`cpu_quota is ${quota}: it must be -1 (no limit) or at least ${MIN_CPU_QUOTA_US} microseconds`)
  return {
    ...(request.cpu_period === '0' ? {} : { period: within(request.cpu_period, 'cpu_period', CPU_PERIOD_US, ' microseconds') }),
    ...(quota === 0 ? {} : { quota }),
    ...(request.cpu_shares === '0' ? {} : { shares: within(request.cpu_shares, 'cpu_shares', CPU_SHARES) }),
    ...(request.cpuset_cpus === '' ? {} : { cpus: cpuset(request.cpuset_cpus, 'cpuset_cpus', facts.possibleCpus) }),
    ...(request.cpuset_mems === '' ? {} : { mems: cpuset(request.cpuset_mems, 'cpuset_mems', facts.possibleMemoryNodes) }),
  }
}

function within(value: string, field: string, [minimum, maximum]: readonly [bigint, bigint], unit = ''): OciInteger {
  const integer = BigInt(value)
  if (integer < minimum || integer > maximum) throw invalidArgument(`${field} is ${value}: it must be in ${minimum}..${maximum}${unit}`)
  return Number(integer)
}

/** `possible` is the kernel's own list of what the machine can ever have, in the same form. */
function cpuset(value: string, field: string, possible: string | undefined): string {
  if (!/^\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*$/.test(value)) throw invalidArgument(`${field} "${value}" is malformed: it is a list of numbers and ranges such as 0-2,7`)
  const ranges = rangesOf(value)
  for (const [first, last] of ranges) if (first > last) throw invalidArgument(`${field} "${value}" is malformed: the range ${first}-${last} runs backwards`)
  if (possible === undefined) return value
  const there = rangesOf(possible)
  const missing = ranges.find(([first, last]) => !there.some(([from, to]) => first >= from && last <= to))
  if (missing !== undefined) throw invalidArgument(`${field} "${value}" names ${missing[0] === missing[1] ? missing[0] : missing.join('-')}, which this node does not have: it has ${possible}`)
  return value
}

function rangesOf(list: string): readonly (readonly [number, number])[] {
  return list.split(',').map((range) => {
    const [first = '', last = first] = range.split('-')
    return [Number(first), Number(last)] as const
  })
}

type Memory = NonNullable<OciResources['memory']>

function memoryOf(request: LinuxContainerResources, facts: ResourceFacts, base: Memory): Memory {
  const { memory_limit_in_bytes: limit, memory_swap_limit_in_bytes: swap } = request
  // Without a swap limit of its own a container may not swap: the limit on memory and swap together is the one on memory.
  const swapLimit = !facts.swapControllerAvailable ? '0' : swap === '0' ? limit : swap
  const memory: Memory = {
    ...base,
    ...(limit === '0' ? {} : { limit: ociInteger(limit, 'memory_limit_in_bytes', -1n) }),
    ...(swapLimit === '0' ? {} : { swap: ociInteger(swapLimit, 'memory_swap_limit_in_bytes', -1n) }),
  }
  if (memory.swap !== undefined && memory.swap > 0) requireSwapFits(memory.swap, memory.limit ?? 0)
  return memory
}

/** The swap limit is that of memory and swap together; the kernel refuses one below the limit of memory alone. */
function requireSwapFits(swap: OciInteger, limit: OciInteger): void {
  if (limit <= 0) throw invalidArgument(`memory_swap_limit_in_bytes is ${swap} without a memory limit: give memory_limit_in_bytes too (the swap limit counts memory and swap together)`)
  if (swap < limit) throw invalidArgument(`memory_swap_limit_in_bytes is ${swap}, below the memory limit of ${limit}: it counts memory and swap together; make it at least as large, or -1 for no limit`)
}

function hugepagesOf(request: LinuxContainerResources, facts: ResourceFacts, settings: ResourceSettings, base: NonNullable<OciResources['hugepageLimits']>): Pick<OciResources, 'hugepageLimits'> {
  const limits = request.hugepage_limits
  if (limits.length === 0 || settings.disableHugetlbController) return {}
  if (!facts.hugetlbControllerPresent) {
    if (settings.tolerateMissingHugetlbController) return {}
    throw failedPrecondition(
      'huge page limits were asked for, but this node has no hugetlb cgroup controller: enable it, or set tolerate_missing_hugetlb_controller = true',
    )
  }
  const asked = limits.map(({ page_size: pageSize, limit }) => {
    if (!/^\d+[KMG]B$/.test(pageSize)) throw invalidArgument(`huge page size "${pageSize}" is malformed: it looks like 2MB or 1GB`)
    return { pageSize, limit: ociInteger(limit, `limit of ${pageSize} huge pages`, 0n) }
  })
  // One limit per size: an update replaces that of the size.
  const sizes = new Set(asked.map(({ pageSize }) => pageSize))
  if (sizes.size < asked.length) throw invalidArgument(`hugepage_limits has a page size twice: ${asked.map(({ pageSize }) => pageSize).join(', ')}`)
  return { hugepageLimits: [...base.filter(({ pageSize }) => !sizes.has(pageSize)), ...asked] }
}

function unifiedOf(request: LinuxContainerResources, facts: ResourceFacts, base: OciResources['unified']): Pick<OciResources, 'unified'> {
  const entries = Object.entries(request.unified)
  if (entries.length === 0) return {}
  if (facts.cgroupMode !== 'unified') {
    throw failedPrecondition(`unified resources (${entries.map(([key]) => key).join(', ')}) need cgroup v2, and this node runs cgroup v1`)
  }
  for (const [key, value] of entries) {
    // A file name within the container's cgroup, never a path.
    if (!/^[a-z]\w*\.[\w.]+$/.test(key)) throw invalidArgument(`unified resource "${key}" is malformed: it is the name of a cgroup v2 file such as memory.high`)
    // The files of the cgroup itself move processes and change its type: they are no resources.
    if (key.startsWith('cgroup.') && !key.startsWith('cgroup.max.')) throw invalidArgument(`unified resource "${key}" is refused: it manages the cgroup itself and is no resource`)
    if (/[\n\0]/.test(value)) throw invalidArgument(`unified resource "${key}" has a line break or NUL byte in its value`)
  }
  return { unified: { ...base, ...request.unified } }
}
