import type { Method } from './handlers.ts'

/** RPCs that change nothing. A kubelet calls some of them every second: they are logged at debug. */
const reads: ReadonlySet<string> = new Set<Method>([
  'Version', 'Status', 'RuntimeConfig',
  'PodSandboxStatus', 'ListPodSandbox', 'StreamPodSandboxes',
  'ContainerStatus', 'ListContainers', 'StreamContainers',
  'ContainerStats', 'ListContainerStats', 'StreamContainerStats',
  'PodSandboxStats', 'ListPodSandboxStats', 'StreamPodSandboxStats',
  'ListMetricDescriptors', 'ListPodSandboxMetrics', 'StreamPodSandboxMetrics',
  'GetContainerEvents',
  'ImageStatus', 'ListImages', 'StreamImages', 'ImageFsInfo',
])

/** Whether an RPC only reads. */
export function isRead(method: Method): boolean {
  return reads.has(method)
}

/**
 * Whether an RPC is served whatever the state of the service: two tell the client what the state is, and events come when there are some. (A kubelet
 * whose stream was refused a few times does without events for good.)
 */
export function isAlwaysServed(method: Method): boolean {
  return method === 'Version' || method === 'Status' || method === 'GetContainerEvents'
}

/** Whether an RPC runs until its client leaves: a shutdown does not wait for it. */
export function isEndless(method: Method): boolean {
  return method === 'GetContainerEvents'
}
