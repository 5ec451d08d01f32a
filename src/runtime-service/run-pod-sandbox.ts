import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { CriError, messageOf } from '../errors/cri-error.ts'
import type { RunPodSandboxRequest, RunPodSandboxResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import { podHostname, resolvConf, usesHostNetwork } from '../sandbox/files.ts'
import { startSandbox } from '../sandbox/start-sandbox.ts'
import { sandboxName } from '../state/name-index.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { newId } from './ids.ts'
import { checkLabels, checkNamespaces, checkPortMappings, sandboxMetadata } from './validate.ts'

type Deps = Pick<RuntimeServiceDeps, 'sandbox' | 'sandboxes' | 'sandboxNames' | 'mutex' | 'operation' | 'pauseImage'>

/**
 * RunPodSandbox: makes a pod and its network. A failure takes back everything; what cannot be taken back stays listed, not ready and with
 * its name reserved, so that the kubelet stops and removes it.
 */
export async function runPodSandbox(deps: Deps, ctx: Ctx, request: RunPodSandboxRequest): Promise<Init<RunPodSandboxResponse>> {
  const metadata = sandboxMetadata(request.config, 'config')
  const config = request.config
  if (config === null) throw new TypeError('checked above')
  checkLabels(config.labels, 'config.labels')
  checkNamespaces(config)
  checkPortMappings(config)
  podHostname(config)
  if (config.dns_config !== null) resolvConf(config.dns_config)
  deps.sandbox.runtime(request.runtime_handler)
  const name = sandboxName(metadata)
  const id = newId()
  const netnsPath = usesHostNetwork(config) ? '' : join(deps.sandbox.netnsDir, `cni-${randomUUID()}`)
  const operation = deps.operation('RunPodSandbox')
  deps.sandboxNames.reserve(name, id, operation)
  try {
    return await deps.mutex.run(id, async () => {
      const image = await operation.step('pause image', () => deps.pauseImage(ctx, request.runtime_handler))
      const sandbox = await startSandbox(deps.sandbox, ctx, operation, { id, name, config, netnsPath, runtimeHandler: request.runtime_handler, image })
      operation.commit()
      deps.sandboxes.put(sandbox)
      deps.sandboxNames.settle(name)
      return { pod_sandbox_id: id }
    }, ctx.signal)
  } catch (error) {
    const failedAt = operation.failedStep
    const failures = await operation.undo()
    if (failures.length === 0) deps.sandboxNames.release(name, id)
    else {
      for (const failure of failures) ctx.log.error({ err: failure.error, sandbox: id, step: failure.name }, 'cannot undo a step of RunPodSandbox: the sandbox stays listed as not ready')
      deps.sandboxes.put({
        id, state: 'notready', pid: 0, createdAt: BigInt(Date.now()) * 1_000_000n, networkDown: false,
        metadata: { id, name, config, netnsPath, ips: [], runtimeHandler: request.runtime_handler, cniResult: undefined, processLabel: '' },
      })
      deps.sandboxNames.settle(name)
    }
    const left = failures.length === 0 ? '' : `; taking it back failed as well (${failures.map((failure) => `${failure.name}: ${messageOf(failure.error)}`).join('; ')}): remove the pod to try that again`
    const cause = CriError.from(error)
    throw new CriError(cause.code, `pod ${metadata.namespace}/${metadata.name} (step ${failedAt}): ${cause.message}${left}`, { reason: cause.reason, cause: error })
  }
}
