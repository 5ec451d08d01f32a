import { CriError, failedPrecondition, invalidArgument } from '../errors/cri-error.ts'
import { NamespaceMode, type PortForwardRequest, type PortForwardResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { Sandbox } from '../state/records.ts'
import type { PortForwardSession, StreamingHandle } from '../streaming/types.ts'
import type { RuntimeServiceDeps } from './deps.ts'

/** How long a server in a pod may take to accept, in milliseconds. */
const connectMs = 30_000

/** PortForward: a URL at which a client connects to ports of a pod. */
export async function portForward(deps: Pick<RuntimeServiceDeps, 'sandboxes'> & { readonly streaming: Pick<StreamingHandle, 'url'> }, ctx: Ctx, request: PortForwardRequest): Promise<Init<PortForwardResponse>> {
  const sandbox = deps.sandboxes.find(request.pod_sandbox_id)
  for (const port of request.port) checkPort(port)
  checkReady(sandbox)
  return { url: await deps.streaming.url({ kind: 'portforward', podSandboxId: sandbox.id, ports: request.port, requestId: ctx.requestId }) }
}

export interface ConnectDeps extends Pick<RuntimeServiceDeps, 'sandboxes'> {
  /** A connected socket's descriptor in the network namespace at `netns` (undefined: the host's), the caller's to close. Linux.connectLoopback */
  readonly connect: (netns: string | undefined, port: number, options: { readonly timeoutMs: number; readonly signal: AbortSignal }) => Promise<number>
}

/** One connection of a client to a port of the pod. Errors are for that client: they name pod and port. */
export async function connectToPod(deps: ConnectDeps, session: PortForwardSession, port: number, signal: AbortSignal): Promise<number> {
  const sandbox = deps.sandboxes.find(session.podSandboxId)
  checkPort(port)
  checkReady(sandbox)
  const { config, netnsPath } = sandbox.metadata
  const onHost = config.linux?.security_context?.namespace_options?.network === NamespaceMode.NODE
  try {
    return await deps.connect(onHost ? undefined : netnsPath, port, { timeoutMs: connectMs, signal })
  } catch (error) {
    throw CriError.from(error, `pod ${sandbox.id} (${config.metadata?.namespace}/${config.metadata?.name})${onHost ? ' on the host network' : ''}`)
  }
}

function checkPort(port: number): void {
  if (!Number.isInteger(port) || port < 1 || port > 65_535) throw invalidArgument(`${port} is no port: 1 to 65535`)
}

function checkReady(sandbox: Sandbox): void {
  if (sandbox.state !== 'ready') throw failedPrecondition(`pod sandbox ${sandbox.id} is not ready: its network is gone, or about to go`, { reason: 'SandboxNotReady' })
}
