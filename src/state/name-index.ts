import { Code, CriError } from '../errors/cri-error.ts'

/** What holds a name while it is being made. */
export interface InFlight {
  /** `RunPodSandbox in flight for 143 s, step: cni add` */
  describe(): string
}

/**
 * Names are unique: a pod's attempt or a container's attempt is made once. A name is reserved from the beginning of the call that
 * makes it until the thing is removed.
 */
export class NameIndex {
  readonly #kind: string
  readonly #names = new Map<string, { readonly id: string; inFlight: InFlight | undefined }>()
  /** How many names an id has. */
  readonly #ids = new Map<string, number>()

  constructor(kind: string) {
    this.#kind = kind
  }

  /**
   * Takes a name. ALREADY_EXISTS says who has it and, when that is a call that still runs, what it does now and since when.
   * Reserving a name again for the id that has it is fine.
   */
  reserve(name: string, id: string, inFlight?: InFlight): void {
    const held = this.#names.get(name)
    if (held !== undefined && held.id !== id) {
      const by = held.inFlight === undefined ? `${this.#kind} ${held.id}; remove that first` : `${this.#kind} ${held.id}: ${held.inFlight.describe()}; wait for it`
      throw new CriError(Code.ALREADY_EXISTS, `the name ${name} is reserved for ${by}`, { reason: held.inFlight === undefined ? 'NameTaken' : 'InFlight' })
    }
    if (held === undefined) this.#ids.set(id, (this.#ids.get(id) ?? 0) + 1)
    this.#names.set(name, { id, inFlight })
  }

  /** The call that made it is over: the name stays, held by the thing itself. */
  settle(name: string): void {
    const held = this.#names.get(name)
    if (held !== undefined) held.inFlight = undefined
  }

  /** Gives the name back, if `id` has it. */
  release(name: string, id: string): void {
    if (this.#names.get(name)?.id !== id) return
    this.#names.delete(name)
    const left = (this.#ids.get(id) ?? 1) - 1
    if (left === 0) this.#ids.delete(id)
    else this.#ids.set(id, left)
  }

  /** Whether a name is reserved for this id, be it made already or under way. */
  holds(id: string): boolean {
    return this.#ids.has(id)
  }
}

/** `pod_namespace_uid_attempt`, as containerd's CRI plugin names sandboxes. The parts can be told apart: names of Kubernetes hold no underscore. */
export function sandboxName(metadata: { readonly name: string; readonly namespace: string; readonly uid: string; readonly attempt: number }): string {
  return [metadata.name, metadata.namespace, metadata.uid, metadata.attempt].join('_')
}

/** `container_pod_namespace_uid_attempt`, the sandbox's own attempt left out, as containerd's CRI plugin names containers. */
export function containerName(
  metadata: { readonly name: string; readonly attempt: number },
  sandbox: { readonly name: string; readonly namespace: string; readonly uid: string },
): string {
  return [metadata.name, sandbox.name, sandbox.namespace, sandbox.uid, metadata.attempt].join('_')
}
