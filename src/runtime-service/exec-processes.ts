import type { OciProcess, OciSpec } from '../oci-spec/types.ts'

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
