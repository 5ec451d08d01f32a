import type { ContainerStats, ContainerStatsRequest, ContainerStatsResponse, ListContainerStatsRequest, ListContainerStatsResponse, StreamContainerStatsRequest, StreamContainerStatsResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { Container } from '../state/records.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { pageSize } from './encoding.ts'
import { filterContainers } from './filters.ts'

export interface ContainerStatsDeps extends Pick<RuntimeServiceDeps, 'containers'> {
  /** cpu, memory and writable layer of one container; what cannot be measured is left out. */
  readonly measure: (container: Container) => Promise<Pick<Init<ContainerStats>, 'cpu' | 'memory' | 'swap' | 'io' | 'writable_layer'>>
}

/** ContainerStats of one container. A container that does not run has only what its writable layer uses. */
export async function containerStats(deps: ContainerStatsDeps, _ctx: Ctx, request: ContainerStatsRequest): Promise<Init<ContainerStatsResponse>> {
  return { stats: await stats(deps, deps.containers.find(request.container_id)) }
}

/** ListContainerStats, every filter. */
export async function listContainerStats(deps: ContainerStatsDeps, _ctx: Ctx, request: ListContainerStatsRequest): Promise<Init<ListContainerStatsResponse>> {
  return { stats: await measureAll(deps, request) }
}

/** StreamContainerStats: the same in pieces. */
export async function streamContainerStats(
  deps: ContainerStatsDeps, _ctx: Ctx, request: StreamContainerStatsRequest, send: (message: Init<StreamContainerStatsResponse>) => Promise<void>,
): Promise<void> {
  const all = await measureAll(deps, request)
  for (let at = 0; at === 0 || at < all.length; at += pageSize) await send({ container_stats: all.slice(at, at + pageSize) })
}

async function measureAll(deps: ContainerStatsDeps, request: Pick<ListContainerStatsRequest, 'filter'>): Promise<Init<ContainerStats>[]> {
  return Promise.all([...filterContainers(deps.containers.values(), request.filter)].map((container) => stats(deps, container)))
}

async function stats(deps: ContainerStatsDeps, container: Container): Promise<Init<ContainerStats>> {
  const { config } = container.metadata
  return {
    attributes: { id: container.id, metadata: config.metadata, labels: config.labels, annotations: config.annotations },
    ...await deps.measure(container),
  }
}
