import { checkRunning } from '../container/exec-run.ts'
import { checkStreams, execStream, type ExecStreamDeps } from '../container/exec-stream.ts'
import type { ExecRequest, ExecResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import { checkCommand } from '../oci-spec/process.ts'
import type { ExecSession, StreamingHandle, StreamIo, StreamResult } from '../streaming/types.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { processOf } from './exec-processes.ts'

type Deps = Pick<RuntimeServiceDeps, 'container' | 'containers' | 'operation' | 'execProcesses'> & Pick<ExecStreamDeps, 'background'>

/** Exec: a URL at which a client runs the command and has its streams. */
export async function exec(deps: Pick<RuntimeServiceDeps, 'containers'> & { readonly streaming: Pick<StreamingHandle, 'url'> }, ctx: Ctx, request: ExecRequest): Promise<Init<ExecResponse>> {
  const container = deps.containers.find(request.container_id)
  checkStreams(request)
  checkCommand(request.cmd)
  checkRunning(container)
  const { tty, stdin, stdout, stderr } = request
  return { url: await deps.streaming.url({ kind: 'exec', containerId: container.id, command: request.cmd, tty, stdin, stdout, stderr, requestId: ctx.requestId }) }
}

/** The command itself, once the client has come. `ctx.signal` is the service's. */
export async function runExec(deps: Deps, ctx: Ctx, session: ExecSession, io: StreamIo): Promise<StreamResult> {
  const container = deps.containers.find(session.containerId)
  return execStream({ ...deps.container, background: deps.background }, ctx, deps.operation('Exec'), container, session, io, (size) => processOf(deps, ctx, container.id, { cmd: session.command, tty: session.tty, size }))
}
