import type { Container as CriContainer, ListContainersRequest, StreamContainersRequest } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { Container } from '../state/records.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { EntryEncoder, pageSize } from './encoding.ts'
import { containerState, filterContainers } from './filters.ts'

const encoder = new EntryEncoder<Container>('runtime.v1.Container', toContainer)

function toContainer(container: Container): Init<CriContainer> {
  const { config, imageRef, sandboxId } = container.metadata
  return {
    id: container.id, pod_sandbox_id: sandboxId, metadata: config.metadata, image: config.image, image_ref: imageRef, image_id: imageRef,
    state: containerState(container), created_at: String(container.status.createdAt), labels: config.labels, annotations: config.annotations,
  }
}

/** ListContainers, encoded: from memory, every filter. */
export async function listContainers(deps: Pick<RuntimeServiceDeps, 'containers'>, _ctx: Ctx, request: ListContainersRequest): Promise<Buffer> {
  return encoder.list(filterContainers(deps.containers.values(), request.filter))
}

/** StreamContainers, encoded: the same in pieces. */
export async function streamContainers(
  deps: Pick<RuntimeServiceDeps, 'containers'>, _ctx: Ctx, request: StreamContainersRequest, send: (message: Buffer) => Promise<void>,
): Promise<void> {
  for (const page of encoder.pages(filterContainers(deps.containers.values(), request.filter), pageSize)) await send(page)
}
