import type { ListPodSandboxStatsRequest, PodSandboxStatsRequest, StreamPodSandboxStatsRequest } from '../generated/cri.ts'
import type { Ctx } from '../observability/context.ts'
import type { Sandbox } from '../state/records.ts'
import { writePodStats } from '../stats/stats-messages.ts'
import type { Usage } from '../stats/usage.ts'
import { MessageWriter } from '../stats/wire.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { filterSandboxes } from './filters.ts'

export interface PodSandboxStatsDeps extends Pick<RuntimeServiceDeps, 'sandboxes' | 'containers'> {
  readonly usage: Pick<Usage, 'pods'>
}

/** Pods per message of the streaming call. */
const podsPerMessage = 50

/** PodSandboxStats of one pod, encoded. A pod that does not run has only its containers with their writable layers. NOT_FOUND when there is none. */
export async function podSandboxStats(deps: PodSandboxStatsDeps, ctx: Ctx, request: PodSandboxStatsRequest): Promise<Buffer> {
  return encode(deps, ctx, [deps.sandboxes.find(request.pod_sandbox_id)])
}

/** ListPodSandboxStats, encoded; every filter. */
export async function listPodSandboxStats(deps: PodSandboxStatsDeps, ctx: Ctx, request: ListPodSandboxStatsRequest): Promise<Buffer> {
  return encode(deps, ctx, chosen(deps, request))
}

/** StreamPodSandboxStats, encoded: the same in pieces, each measured when it is sent. */
export async function streamPodSandboxStats(
  deps: PodSandboxStatsDeps, ctx: Ctx, request: StreamPodSandboxStatsRequest, send: (message: Buffer) => Promise<void>,
): Promise<void> {
  const all = chosen(deps, request)
  for (let at = 0; at === 0 || at < all.length; at += podsPerMessage) await send(await encode(deps, ctx, all.slice(at, at + podsPerMessage)))
}

function chosen({ sandboxes }: PodSandboxStatsDeps, { filter }: Pick<ListPodSandboxStatsRequest, 'filter'>): Sandbox[] {
  return [...filterSandboxes(sandboxes.values(), filter === null ? null : { ...filter, state: null })]
}

/** The answers of all three calls are one field with the same number. */
async function encode({ usage, containers }: PodSandboxStatsDeps, ctx: Ctx, sandboxes: readonly Sandbox[]): Promise<Buffer> {
  const out = new MessageWriter(Math.max(1, sandboxes.length) * 4096)
  for (const figures of await usage.pods(ctx, sandboxes, containers.values())) writePodStats(out, 1, figures)
  return out.finish()
}
