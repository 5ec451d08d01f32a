import { createContainer as create } from '../container/create-container.ts'
import { checkImageMount, type ImageVolume, imageVolumeError, withImageRefs } from '../container/image-volumes.ts'
import { signalNumber } from '../container/stop-container.ts'
import { CriError, failedPrecondition, invalidArgument } from '../errors/cri-error.ts'
import { type CreateContainerRequest, type CreateContainerResponse, type ContainerConfig, NamespaceMode, Signal } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import { containerName } from '../state/name-index.ts'
import type { Image, Sandbox } from '../state/records.ts'
import { signalName } from './container-message.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { newId } from './ids.ts'
import { checkLabels, containerMetadata, sandboxMetadata } from './validate.ts'

type Deps = Pick<RuntimeServiceDeps, 'container' | 'containers' | 'sandboxes' | 'containerNames' | 'mutex' | 'operation' | 'containerImage' | 'volumeImage'>

/** CreateContainer: everything of a container but its process. A failure takes back everything and gives the name free. */
export async function createContainer(deps: Deps, ctx: Ctx, request: CreateContainerRequest): Promise<Init<CreateContainerResponse>> {
  const metadata = containerMetadata(request.config)
  const requested = request.config
  if (requested === null) throw new TypeError('checked above')
  checkLabels(requested.labels, 'config.labels')
  const sandbox = deps.sandboxes.find(request.pod_sandbox_id)
  const sandboxConfig = request.sandbox_config ?? sandbox.metadata.config
  if (sandbox.state !== 'ready') throw notReady(sandbox.id)
  const pod = sandboxMetadata(sandboxConfig, 'sandbox_config')
  if (requested.image === null || requested.image.image === '') throw invalidArgument('config.image is missing')
  const image = await deps.containerImage(ctx, requested.image.image, sandbox.metadata.runtimeHandler)
  const imageVolumes = await imageVolumesOf(deps, ctx, requested, sandbox)
  const config = imageVolumes.length === 0 ? requested : { ...requested, mounts: withImageRefs(requested.mounts, imageVolumes) }
  const stopSignal = stopSignalOf(config, image, ctx)
  const targetPid = targetPidOf(deps, config, sandbox)
  const name = containerName(metadata, pod)
  const id = newId()
  const operation = deps.operation('CreateContainer')
  deps.containerNames.reserve(name, id, operation)
  try {
    return await deps.mutex.run(id, async () => {
      const container = await create(deps.container, ctx, operation, { id, name, sandbox, config, sandboxConfig, image, imageVolumes, stopSignal, targetPid })
      // Whoever stopped the pod meanwhile has not seen this container.
      if (deps.sandboxes.get(sandbox.id)?.state !== 'ready') throw notReady(sandbox.id)
      operation.commit()
      deps.containers.put(container)
      deps.containerNames.settle(name)
      return { container_id: id }
    }, ctx.signal)
  } catch (error) {
    const failedAt = operation.failedStep
    const failures = await operation.undo()
    for (const failure of failures) ctx.log.error({ err: failure.error, container: id, step: failure.name }, 'cannot undo a step of CreateContainer; the next start of the service tries again')
    deps.containerNames.release(name, id)
    const cause = CriError.from(error)
    throw new CriError(cause.code, `container ${metadata.name} of pod ${pod.namespace}/${pod.name} (step ${failedAt}): ${cause.message}`, { reason: cause.reason, cause: error })
  }
}

const notReady = (id: string): CriError => failedPrecondition(`pod sandbox ${id} is not ready: it was stopped, or its pause process has ended; remove it and run it anew`, { reason: 'SandboxNotReady' })

/** The images that the request mounts, each unpacked for the pod's runtime handler. */
async function imageVolumesOf(deps: Deps, ctx: Ctx, config: ContainerConfig, sandbox: Sandbox): Promise<ImageVolume[]> {
  const volumes: ImageVolume[] = []
  for (const [index, mount] of config.mounts.entries()) {
    checkImageMount(mount)
    if (mount.image === null) continue
    try {
      volumes.push({ index, mount, image: await deps.volumeImage(ctx, mount.image.image, sandbox.metadata.runtimeHandler) })
    } catch (error) {
      ctx.signal.throwIfAborted()
      throw imageVolumeError(mount, error)
    }
  }
  return volumes
}

/** The request's signal, else the image's STOPSIGNAL, else none (SIGTERM). An image's nonsense is not worth failing a pod for. */
function stopSignalOf(config: ContainerConfig, image: Image, ctx: Ctx): string {
  if (config.stop_signal !== Signal.RUNTIME_DEFAULT) {
    const name = signalName(config.stop_signal)
    if (name === undefined) throw invalidArgument(`stop_signal: ${config.stop_signal} is no signal of CRI`)
    return name
  }
  if (image.config.StopSignal === '') return ''
  try {
    signalNumber(image.config.StopSignal)
    return image.config.StopSignal
  } catch (error) {
    ctx.log.warn({ err: error, image: image.id }, 'the image has a STOPSIGNAL that is no signal: SIGTERM is used instead')
    return ''
  }
}

/** The init of the container whose PID namespace is asked for. It must be one of the same pod: anything else would let a container out. */
function targetPidOf(deps: Deps, config: ContainerConfig, sandbox: Sandbox): number | undefined {
  const options = config.linux?.security_context?.namespace_options
  if (options?.pid !== NamespaceMode.TARGET) return undefined
  if (options.target_id === '') throw invalidArgument('namespace_options.target_id is empty and pid is TARGET')
  const target = deps.containers.find(options.target_id)
  if (target.metadata.sandboxId !== sandbox.id) throw invalidArgument(`namespace_options.target_id: container ${target.id} is not of pod sandbox ${sandbox.id}`)
  if (target.status.state !== 'running') throw failedPrecondition(`namespace_options.target_id: container ${target.id} does not run`)
  return target.status.pid
}
