import type { Linux } from '../../linux/linux.ts'
import { type Ctx, newRequestId } from '../../observability/context.ts'
import { runAttach } from '../../runtime-service/attach.ts'
import type { RuntimeServiceDeps } from '../../runtime-service/deps.ts'
import { runExec } from '../../runtime-service/exec.ts'
import { connectToPod } from '../../runtime-service/port-forward.ts'
import type { StreamingBackend } from '../../streaming/types.ts'

/** What the streaming server's sessions do: each under a request id of its own, until it ends or `base.signal` aborts. */
export function streamingBackend(deps: RuntimeServiceDeps, linux: Pick<Linux, 'connectLoopback'>, base: Ctx): StreamingBackend {
  const ctxOf = (method: string, thing: Readonly<Record<string, string>>): Ctx => {
    const requestId = newRequestId()
    return { requestId, log: base.log.child({ requestId, method, ...thing }), signal: base.signal }
  }
  return {
    exec: (session, io) => runExec(deps, ctxOf('Exec', { container: session.containerId }), session, io),
    attach: (session, io) => runAttach(deps, ctxOf('Attach', { container: session.containerId }), session, io),
    connect: (session, port, signal) => connectToPod({ sandboxes: deps.sandboxes, connect: (netns, to, options) => linux.connectLoopback(netns, to, options) }, session, port, AbortSignal.any([signal, base.signal])),
  }
}
