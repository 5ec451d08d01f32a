import type { Settings } from '../../config/settings.ts'
import type { Linux } from '../../linux/linux.ts'
import type { Background } from '../../observability/background.ts'
import { type Ctx, newRequestId } from '../../observability/context.ts'
import type { Logger } from '../../observability/logger.ts'
import type { Metrics } from '../../observability/metrics.ts'
import { runAttach } from '../../runtime-service/attach.ts'
import type { RuntimeServiceDeps } from '../../runtime-service/deps.ts'
import { runExec } from '../../runtime-service/exec.ts'
import { connectToPod } from '../../runtime-service/port-forward.ts'
import { StreamingServer } from '../../streaming/server.ts'
import type { StreamingBackend } from '../../streaming/types.ts'
import type { AuditWiring } from './audit.ts'

/** How long running streams may go on at a stop, in milliseconds. */
export const streamDrainMs = 5_000

export interface StreamingOptions {
  readonly settings: Settings['streaming']
  readonly deps: RuntimeServiceDeps
  readonly linux: Pick<Linux, 'connectLoopback'>
  readonly log: Logger
  readonly metrics: Metrics
  readonly background: Background
  /** What still runs when it aborts is ended at once: after the streaming server is closed. */
  readonly base: Ctx
  readonly audit?: AuditWiring | undefined
}

/** The streaming server of exec, attach and port-forward. */
export function streamingServer({ settings, deps, linux, log, metrics, background, base, audit }: StreamingOptions): StreamingServer {
  const backend = streamingBackend({ ...deps, background }, linux, base)
  return StreamingServer.create({ settings, log: log.child({ component: 'streaming' }), metrics, background, backend: audit?.streams(backend) ?? backend })
}

/** What its sessions do, each under the request id of the call that asked for it. */
function streamingBackend(deps: RuntimeServiceDeps & { readonly background: Background }, linux: Pick<Linux, 'connectLoopback'>, base: Ctx): StreamingBackend {
  const ctxOf = (method: string, container: string, requestId = newRequestId()): Ctx => ({ requestId, log: base.log.child({ requestId, method, container }), signal: base.signal })
  return {
    exec: (session, io) => runExec(deps, ctxOf('Exec', session.containerId, session.requestId), session, io),
    attach: (session, io) => runAttach(deps, ctxOf('Attach', session.containerId, session.requestId), session, io),
    connect: (session, port, signal) => connectToPod({ sandboxes: deps.sandboxes, connect: (netns, to, options) => linux.connectLoopback(netns, to, options) }, session, port, AbortSignal.any([signal, base.signal])),
  }
}
