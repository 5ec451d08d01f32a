import { failedPrecondition, invalidArgument } from '../errors/cri-error.ts'
import type { LinuxContainerResources } from '../generated/cri.ts'
import type { HostFacts, SpecSettings } from './input.ts'
import { ociInteger } from './integers.ts'
import type { OciResources } from './types.ts'

type ResourceFacts = Pick<HostFacts, 'cgroupMode' | 'swapControllerAvailable' | 'hugetlbControllerPresent'>
type ResourceSettings = Pick<SpecSettings, 'tolerateMissingHugetlbController' | 'disableHugetlbController'>

/**
 * linux.resources for a request; zero means "not given" throughout. The v1 names hold for v2 too: the runtime converts them. Throws
 * INVALID_ARGUMENT for values that no kernel takes, FAILED_PRECONDITION for what this node's cgroups cannot do.
 */
export function linuxResources(request: LinuxContainerResources, facts: ResourceFacts, settings: ResourceSettings): OciResources {
  return { ...cpuOf(request), ...memoryOf(request, facts), ...hugepagesOf(request, facts, settings), ...unifiedOf(request, facts) }
}

function cpuOf(request: LinuxContainerResources): Pick<OciResources, 'cpu'> {
  return {
    cpu: {
      ...(request.cpu_period === '0' ? {} : { period: ociInteger(request.cpu_period, 'cpu_period', 0n) }),
      ...(request.cpu_quota === '0' ? {} : { quota: ociInteger(request.cpu_quota, 'cpu_quota', -1n) }),
      ...(request.cpu_shares === '0' ? {} : { shares: ociInteger(request.cpu_shares, 'cpu_shares', 0n) }),
      ...(request.cpuset_cpus === '' ? {} : { cpus: cpuset(request.cpuset_cpus, 'cpuset_cpus') }),
      ...(request.cpuset_mems === '' ? {} : { mems: cpuset(request.cpuset_mems, 'cpuset_mems') }),
    },
  }
}

function cpuset(value: string, field: string): string {
  if (/^\d+(-\d+)?(,\d+(-\d+)?)*$/.test(value)) return value
  throw invalidArgument(`${field} "${value}" is malformed: it is a list of numbers and ranges such as 0-2,7`)
}

function memoryOf(request: LinuxContainerResources, facts: ResourceFacts): Pick<OciResources, 'memory'> {
  const { memory_limit_in_bytes: limit, memory_swap_limit_in_bytes: swap } = request
  // Without a swap limit of its own a container may not swap: the limit on memory and swap together is the one on memory.
  const swapLimit = !facts.swapControllerAvailable ? '0' : swap === '0' ? limit : swap
  return {
    memory: {
      ...(limit === '0' ? {} : { limit: ociInteger(limit, 'memory_limit_in_bytes', -1n) }),
      ...(swapLimit === '0' ? {} : { swap: ociInteger(swapLimit, 'memory_swap_limit_in_bytes', -1n) }),
    },
  }
}

function hugepagesOf(request: LinuxContainerResources, facts: ResourceFacts, settings: ResourceSettings): Pick<OciResources, 'hugepageLimits'> {
  const limits = request.hugepage_limits
  if (limits.length === 0 || settings.disableHugetlbController) return {}
  if (!facts.hugetlbControllerPresent) {
    if (settings.tolerateMissingHugetlbController) return {}
    throw failedPrecondition(
      'huge page limits were asked for, but this node has no hugetlb cgroup controller: enable it, or set tolerate_missing_hugetlb_controller = true',
    )
  }
  return {
    hugepageLimits: limits.map(({ page_size: pageSize, limit }) => {
      if (!/^\d+[KMG]B$/.test(pageSize)) throw invalidArgument(`huge page size "${pageSize}" is malformed: it looks like 2MB or 1GB`)
      return { pageSize, limit: ociInteger(limit, `limit of ${pageSize} huge pages`, 0n) }
    }),
  }
}

function unifiedOf(request: LinuxContainerResources, facts: ResourceFacts): Pick<OciResources, 'unified'> {
  const entries = Object.entries(request.unified)
  if (entries.length === 0) return {}
  if (facts.cgroupMode !== 'unified') {
    throw failedPrecondition(`unified resources (${entries.map(([key]) => key).join(', ')}) need cgroup v2, and this node runs cgroup v1`)
  }
  for (const [key] of entries) {
    // A file name within the container's cgroup, never a path.
    if (!/^[a-z]\w*\.[\w.]+$/.test(key)) throw invalidArgument(`unified resource "${key}" is malformed: it is the name of a cgroup v2 file such as memory.high`)
  }
  return { unified: { ...request.unified } }
}
