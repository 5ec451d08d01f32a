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
}

/** The streaming server of exec, attach and port-forward. */
export function streamingServer({ settings, deps, linux, log, metrics, background, base }: StreamingOptions): StreamingServer {
  return StreamingServer.create({ settings, log: log.child({ component: 'streaming' }), metrics, background, backend: streamingBackend(deps, linux, base) })
}

/** What its sessions do, each under a request id of its own. */
function streamingBackend(deps: RuntimeServiceDeps, linux: Pick<Linux, 'connectLoopback'>, base: Ctx): StreamingBackend {
  const ctxOf = (method: string, container: string): Ctx => {
    const requestId = newRequestId()
    return { requestId, log: base.log.child({ requestId, method, container }), signal: base.signal }
  }
  return {
    exec: (session, io) => runExec(deps, ctxOf('Exec', session.containerId), session, io),
    attach: (session, io) => runAttach(deps, ctxOf('Attach', session.containerId), session, io),
    connect: (session, port, signal) => connectToPod({ sandboxes: deps.sandboxes, connect: (netns, to, options) => linux.connectLoopback(netns, to, options) }, session, port, AbortSignal.any([signal, base.signal])),
  }
}
