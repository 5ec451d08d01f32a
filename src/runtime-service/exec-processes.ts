import { notFound } from '../errors/cri-error.ts'
import type { Any } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import { ociProcessAny } from '../oci-spec/json.ts'
import { execProcess, type ExecProcessInput } from '../oci-spec/process.ts'
import type { OciProcess, OciSpec } from '../oci-spec/types.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { specOf } from './spec-of.ts'

const maxContainers = 256

/**
 * The processes of the containers that commands ran in last: what a command runs as never changes while its container is there, and probes run
 * the same ones all the time.
 */
export class ExecProcesses {
  readonly #known = new Map<string, OciProcess>()

  get(containerId: string): OciProcess | undefined {
    const process = this.#known.get(containerId)
    if (process !== undefined) {
      this.#known.delete(containerId)
      this.#known.set(containerId, process)
    }
    return process
  }

  keep(containerId: string, spec: OciSpec): void {
    if (spec.process === undefined) return
    this.#known.set(containerId, spec.process)
    const oldest = this.#known.keys().next()
    if (this.#known.size > maxContainers && oldest.done !== true) this.#known.delete(oldest.value)
  }

  /** The container was removed. */
  forget(containerId: string): void {
    this.#known.delete(containerId)
  }
}

/** What containerd is told to run for a command. NOT_FOUND when the container is gone from containerd; else the errors of execProcess. */
export async function processOf(deps: Pick<RuntimeServiceDeps, 'container' | 'execProcesses'>, ctx: Ctx, containerId: string, input: ExecProcessInput): Promise<Init<Any>> {
  const known = deps.execProcesses.get(containerId)
  if (known !== undefined) return ociProcessAny(execProcess({ process: known }, input))
  const spec = specOf(await deps.container.containerd.containers.get(ctx, containerId))
  if (spec === null) throw notFound(`container ${containerId} is gone from containerd`)
  deps.execProcesses.keep(containerId, spec)
  return ociProcessAny(execProcess(spec, input))
}
