import type { Mount } from '../generated/containerd.ts'

/** What the snapshotter said when a container's root file system was prepared, kept for its start: it would only say the same again. */
export class RootfsMounts {
  readonly #known = new Map<string, Mount[]>()

  keep(id: string, mounts: Mount[]): void {
    this.#known.set(id, mounts)
  }

  /** Undefined when another process prepared it, or it was taken already. */
  take(id: string): Promise<Mount[]> | undefined {
    const mounts = this.#known.get(id)
    this.#known.delete(id)
    return mounts === undefined ? undefined : Promise.resolve(mounts)
  }

  forget(id: string): void {
    this.#known.delete(id)
  }
}
