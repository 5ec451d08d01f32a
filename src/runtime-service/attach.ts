import { attachStream, checkAttachable } from '../container/attach.ts'
import { checkStreams } from '../container/exec-stream.ts'
import type { AttachRequest, AttachResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { AttachSession, StreamingHandle, StreamIo, StreamResult } from '../streaming/types.ts'
import type { RuntimeServiceDeps } from './deps.ts'

/** Attach: a URL at which a client gets the output of the container's first process, and gives it input. */
export async function attach(deps: Pick<RuntimeServiceDeps, 'containers'> & { readonly streaming: Pick<StreamingHandle, 'url'> }, ctx: Ctx, request: AttachRequest): Promise<Init<AttachResponse>> {
  const container = deps.containers.find(request.container_id)
  checkStreams(request)
  checkAttachable(container)
  const { tty, stdin, stdout, stderr } = request
  return { url: await deps.streaming.url({ kind: 'attach', containerId: container.id, tty, stdin, stdout, stderr, requestId: ctx.requestId }) }
}

/** The connection itself, once the client has come. `ctx.signal` is the service's. */
export async function runAttach(deps: Pick<RuntimeServiceDeps, 'container' | 'containers'>, ctx: Ctx, session: AttachSession, io: StreamIo): Promise<StreamResult> {
  return attachStream(deps.container, ctx, deps.containers.find(session.containerId), session, io)
}
