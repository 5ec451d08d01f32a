import type { ListPodSandboxRequest, PodSandbox, StreamPodSandboxesRequest } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { Sandbox } from '../state/records.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { EntryEncoder, pageSize } from './encoding.ts'
import { filterSandboxes, sandboxState } from './filters.ts'

const encoder = new EntryEncoder<Sandbox>('runtime.v1.PodSandbox', toPodSandbox)

function toPodSandbox(sandbox: Sandbox): Init<PodSandbox> {
  const { config, runtimeHandler } = sandbox.metadata
  return {
    id: sandbox.id, metadata: config.metadata, state: sandboxState(sandbox), created_at: String(sandbox.createdAt), labels: config.labels,
    annotations: config.annotations, runtime_handler: runtimeHandler,
  }
}

/** ListPodSandbox, encoded: from memory, every filter. */
export async function listPodSandbox(deps: Pick<RuntimeServiceDeps, 'sandboxes'>, _ctx: Ctx, request: ListPodSandboxRequest): Promise<Buffer> {
  return encoder.list(filterSandboxes(deps.sandboxes.values(), request.filter))
}

/** StreamPodSandboxes, encoded: the same in pieces. */
export async function streamPodSandboxes(
  deps: Pick<RuntimeServiceDeps, 'sandboxes'>, _ctx: Ctx, request: StreamPodSandboxesRequest, send: (message: Buffer) => Promise<void>,
): Promise<void> {
  for (const page of encoder.pages(filterSandboxes(deps.sandboxes.values(), request.filter), pageSize)) await send(page)
}
