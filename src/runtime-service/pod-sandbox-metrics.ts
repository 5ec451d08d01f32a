import type { ListMetricDescriptorsRequest, ListMetricDescriptorsResponse, ListPodSandboxMetricsRequest, StreamPodSandboxMetricsRequest } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import { descriptors } from '../stats/metric-descriptors.ts'
import type { PodMetrics } from '../stats/pod-metrics.ts'
import type { RuntimeServiceDeps } from './deps.ts'

export interface PodSandboxMetricsDeps extends Pick<RuntimeServiceDeps, 'sandboxes' | 'containers'> {
  readonly metrics: Pick<PodMetrics, 'pieces'>
}

/** ListMetricDescriptors: every metric with its labels (KEP-2371). */
export async function listMetricDescriptors(_deps: object, _ctx: Ctx, _request: ListMetricDescriptorsRequest): Promise<Init<ListMetricDescriptorsResponse>> {
  return { descriptors: descriptors.map(({ name, help, labelKeys }) => ({ name, help, label_keys: labelKeys })) }
}

/** ListPodSandboxMetrics of all pods that run, encoded. */
export async function listPodSandboxMetrics({ metrics, sandboxes, containers }: PodSandboxMetricsDeps, ctx: Ctx, _request: ListPodSandboxMetricsRequest): Promise<Buffer> {
  const pieces: Buffer[] = []
  for await (const piece of metrics.pieces(ctx, [...sandboxes.values()], containers.values())) pieces.push(piece)
  return Buffer.concat(pieces)
}

/** StreamPodSandboxMetrics, encoded: the same in pieces, each measured when it is sent; at least one message. */
export async function streamPodSandboxMetrics(
  { metrics, sandboxes, containers }: PodSandboxMetricsDeps, ctx: Ctx, _request: StreamPodSandboxMetricsRequest, send: (message: Buffer) => Promise<void>,
): Promise<void> {
  let sent = false
  for await (const piece of metrics.pieces(ctx, [...sandboxes.values()], containers.values())) {
    await send(piece)
    sent = true
  }
  if (!sent) await send(Buffer.alloc(0))
}
