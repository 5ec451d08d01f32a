import { isAbsolute, normalize } from 'node:path'
import { checkpointContainer as checkpoint, type CheckpointDeps } from '../container/checkpoint.ts'
import { CriError, deadlineExceeded, failedPrecondition, invalidArgument } from '../errors/cri-error.ts'
import type { CheckpointContainerRequest, CheckpointContainerResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import { containerStatusMessage } from './container-message.ts'
import type { RuntimeServiceDeps } from './deps.ts'

export interface CheckpointContainerDeps extends Pick<RuntimeServiceDeps, 'containers' | 'sandboxes' | 'images' | 'mutex' | 'operation'> {
  readonly checkpoint: CheckpointDeps
  /** `enable_criu`. */
  readonly enabled: boolean
}

/**
 * CheckpointContainer: writes processes, memory and changed files of a running container to the archive `location`; it goes on afterwards. `timeout` in seconds
 * bounds the whole; 0: an hour, or as long as the call lasts.
 */
export async function checkpointContainer(deps: CheckpointContainerDeps, ctx: Ctx, request: CheckpointContainerRequest): Promise<Init<CheckpointContainerResponse>> {
  const { location } = request
  const seconds = Number(request.timeout)
  if (location === '') throw invalidArgument('location is missing: the path of the archive that the checkpoint is to become')
  if (!isAbsolute(location) || normalize(location) !== location || location.endsWith('/')) throw invalidArgument(`location ${location} is not the absolute path of a file`)
  if (seconds < 0) throw invalidArgument(`timeout ${request.timeout} is negative`)
  if (!deps.enabled) throw failedPrecondition('checkpoints are switched off on this node: enable_criu is false in the configuration', { reason: 'CriuDisabled' })
  const { id } = deps.containers.find(request.container_id)
  const timeoutMs = seconds === 0 ? defaultTimeoutMs : Math.min(seconds * 1000, maxTimeoutMs)
  const timeout = AbortSignal.timeout(timeoutMs)
  const bounded = withSignal(ctx, AbortSignal.any([ctx.signal, timeout]))
  const operation = deps.operation('CheckpointContainer')
  try {
    await deps.mutex.run(id, async () => {
      const container = deps.containers.find(id)
      const { state } = container.status
      if (container.removing) throw failedPrecondition(`container ${id} is being removed`, { reason: 'WrongState' })
      if (state !== 'running') throw failedPrecondition(`container ${id} is ${state}: only a running container can be checkpointed`, { reason: 'WrongState' })
      const handler = deps.sandboxes.get(container.metadata.sandboxId)?.metadata.runtimeHandler ?? ''
      await checkpoint(deps.checkpoint, bounded, operation, container, { location, handler, dumpTimeoutMs: timeoutMs, status: containerStatusMessage(container, deps.images) })
    }, bounded.signal)
  } catch (error) {
    if (timeout.aborted && !ctx.signal.aborted) throw deadlineExceeded(`the checkpoint of container ${id} took longer than ${timeoutMs / 1000} s (step: ${operation.failedStep}); the container goes on`, { reason: 'Timeout', cause: error })
    throw CriError.from(error)
  }
  ctx.log.info({ container: id, location }, 'checkpoint written')
  return {}
}

/** A container with much memory on a slow disk. */
const defaultTimeoutMs = 3_600_000
/** What a timer takes. */
const maxTimeoutMs = 2 ** 31 - 1
