/** What is measured, in the order of the report. A name is an RPC's, or says what a row sums up. */
export const operations = [
  'RunPodSandbox', 'CreateContainer', 'StartContainer', 'pod start',
  'ExecSync', 'exec round trip', 'exec output', 'port-forward',
  'StopContainer', 'StopPodSandbox', 'RemoveContainer', 'RemovePodSandbox', 'pod stop and remove',
  'ListContainers', 'ListPodSandbox',
  'ListContainerStats of 100', 'ListPodSandboxStats of 100', 'ListContainerStats of 300', 'ListPodSandboxStats of 300',
  'ListContainers idle', 'ListContainers beside 20 streams',
  'PullImage of one layer', 'PullImage by ten callers', 'PullImage',
] as const
export type OperationName = (typeof operations)[number]

/** How many calls are under way at a time. */
export const concurrencies = [1, 4] as const
export type Concurrency = (typeof concurrencies)[number]

/** The parts of a run; each measures some operations. */
export const stages = {
  pods: ['RunPodSandbox', 'CreateContainer', 'StartContainer', 'pod start', 'StopContainer', 'StopPodSandbox', 'RemoveContainer', 'RemovePodSandbox', 'pod stop and remove'],
  exec: ['ExecSync'],
  streams: ['exec round trip', 'exec output', 'port-forward', 'ListContainers idle', 'ListContainers beside 20 streams'],
  list: ['ListContainers', 'ListPodSandbox'],
  stats: ['ListContainerStats of 100', 'ListPodSandboxStats of 100', 'ListContainerStats of 300', 'ListPodSandboxStats of 300'],
  pull: ['PullImage of one layer', 'PullImage by ten callers', 'PullImage'],
} as const satisfies Record<string, readonly OperationName[]>
export type StageName = keyof typeof stages

/** Where cri-shim has to be: a bound on the ratio of the medians, on its own median in milliseconds, or on its own p99 over that of another operation. */
export type Target = { readonly kind: 'ratio'; readonly atMost: number } | { readonly kind: 'median'; readonly atMostMs: number } | { readonly kind: 'p99'; readonly over: OperationName; readonly atMost: number }

const ratio = (atMost: number): Target => ({ kind: 'ratio', atMost })

/** The target of an operation; undefined when none is set. */
export function targetOf(operation: OperationName, concurrency: Concurrency): Target | undefined {
  switch (operation) {
    case 'pod start': return ratio(concurrency === 1 ? 0.8 : 1)
    case 'pod stop and remove': return ratio(0.9)
    case 'ExecSync': case 'exec round trip': case 'exec output': case 'port-forward':
    case 'PullImage of one layer': case 'PullImage by ten callers': case 'PullImage': return ratio(1)
    case 'ListContainers beside 20 streams': return { kind: 'p99', over: 'ListContainers idle', atMost: 3 }
    case 'ListContainers': case 'ListPodSandbox': return concurrency === 1 ? { kind: 'median', atMostMs: 2 } : undefined
    case 'ListContainerStats of 100': case 'ListPodSandboxStats of 100': case 'ListContainerStats of 300': case 'ListPodSandboxStats of 300': return ratio(0.5)
    default: return undefined
  }
}

/** Peak resident memory of the service process with 100 containers. */
export const memoryTargetBytes = 150e6

const plain = (name: string): string => name.toLowerCase().replaceAll(/[\s_-]/g, '')

/**
 * Operations by name, or by the name of a stage (`pods`, `exec`, `streams`, `list`, `stats`, `pull`); case, spaces and hyphens do not count.
 * Throws a RangeError that lists the names.
 */
export function selectOperations(names: readonly string[]): ReadonlySet<OperationName> {
  const chosen = names.flatMap((name): readonly OperationName[] => {
    const stage = Object.entries(stages).find(([stage]) => stage === plain(name))
    const found = stage?.[1] ?? operations.filter((operation) => plain(operation) === plain(name))
    if (found.length === 0) throw new RangeError(`--only: there is no operation "${name}"; there are ${operations.join(', ')}, and the groups ${Object.keys(stages).join(', ')}`)
    return found
  })
  return new Set(chosen)
}
