/** What is measured, in the order of the report. A name is an RPC's, or says what a row sums up. */
export const operations = [
  'RunPodSandbox', 'CreateContainer', 'StartContainer', 'pod start',
  'ExecSync', 'exec round trip', 'exec output', 'port-forward',
  'StopContainer', 'StopPodSandbox', 'RemoveContainer', 'RemovePodSandbox', 'pod stop and remove',
  'ListContainers', 'ListPodSandbox',
  'ListContainerStats of 100', 'ListPodSandboxStats of 100', 'ListContainerStats of 300', 'ListPodSandboxStats of 300',
  'ListContainers idle', 'ListContainers beside 20 streams',
  'PullImage of one layer', 'PullImage by ten callers', 'PullImage',
  'PullImage of a small image',
  'first byte behind a black hole', 'PullImage behind a black hole', 'PullImage again behind a black hole',
  'first byte behind a silent mirror', 'PullImage behind a silent mirror', 'PullImage again behind a silent mirror',
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
  mirrors: [
    'PullImage of a small image',
    'first byte behind a black hole', 'PullImage behind a black hole', 'PullImage again behind a black hole',
    'first byte behind a silent mirror', 'PullImage behind a silent mirror', 'PullImage again behind a silent mirror',
  ],
} as const satisfies Record<string, readonly OperationName[]>
export type StageName = keyof typeof stages

/** Where cri-shim has to be. */
export type Target =
  /** A bound on the ratio of the medians. */
  | { readonly kind: 'ratio'; readonly atMost: number }
  /** On its own median. */
  | { readonly kind: 'median'; readonly atMostMs: number }
  /** On how much longer its own median is than that of another operation. */
  | { readonly kind: 'extra'; readonly over: OperationName; readonly atMostMs: number }
  /** On its own p99, as a multiple of that of another operation. */
  | { readonly kind: 'p99'; readonly over: OperationName; readonly atMost: number }

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
    case 'first byte behind a black hole': case 'first byte behind a silent mirror': return { kind: 'median', atMostMs: 1500 }
    case 'PullImage again behind a black hole': case 'PullImage again behind a silent mirror': return { kind: 'extra', over: 'PullImage of a small image', atMostMs: 50 }
    default: return undefined
  }
}

/** Peak resident memory of the service process with 100 containers. */
export const memoryTargetBytes = 150e6

const plain = (name: string): string => name.toLowerCase().replaceAll(/[\s_-]/g, '')

/**
 * Operations by name, or by the name of a stage (`pods`, `exec`, `streams`, `list`, `stats`, `pull`, `mirrors`); case, spaces and hyphens do not count.
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
