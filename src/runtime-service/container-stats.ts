import type { ContainerStatsRequest, ListContainerStatsRequest, StreamContainerStatsRequest } from '../generated/cri.ts'
import type { Ctx } from '../observability/context.ts'
import { writeContainerStats } from '../stats/stats-messages.ts'
import type { Usage } from '../stats/usage.ts'
import { MessageWriter } from '../stats/wire.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { pageSize } from './encoding.ts'
import { filterContainers } from './filters.ts'

export interface ContainerStatsDeps extends Pick<RuntimeServiceDeps, 'containers'> {
  readonly usage: Pick<Usage, 'containers'>
}

/** ContainerStats of one container, encoded. A container that does not run has only what its writable layer uses. NOT_FOUND when there is none. */
export async function containerStats(deps: ContainerStatsDeps, ctx: Ctx, request: ContainerStatsRequest): Promise<Buffer> {
  return encode(deps, ctx, [deps.containers.find(request.container_id)])
}

/** ListContainerStats, encoded; every filter. */
export async function listContainerStats(deps: ContainerStatsDeps, ctx: Ctx, request: ListContainerStatsRequest): Promise<Buffer> {
  return encode(deps, ctx, [...filterContainers(deps.containers.values(), request.filter)])
}

/** StreamContainerStats, encoded: the same in pieces, each measured when it is sent. */
export async function streamContainerStats(
  deps: ContainerStatsDeps, ctx: Ctx, request: StreamContainerStatsRequest, send: (message: Buffer) => Promise<void>,
): Promise<void> {
  const all = [...filterContainers(deps.containers.values(), request.filter)]
  for (let at = 0; at === 0 || at < all.length; at += pageSize) await send(await encode(deps, ctx, all.slice(at, at + pageSize)))
}

/** The answers of all three calls are one field with the same number. */
async function encode(deps: ContainerStatsDeps, ctx: Ctx, containers: Parameters<Usage['containers']>[1]): Promise<Buffer> {
  const out = new MessageWriter(Math.max(1, containers.length) * 1024)
  for (const figures of await deps.usage.containers(ctx, containers)) writeContainerStats(out, 1, figures)
  return out.finish()
}
