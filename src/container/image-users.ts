import { randomUUID } from 'node:crypto'
import { abortable } from '../concurrency/keyed-mutex.ts'
import type { Containerd } from '../containerd/containerd.ts'
import { CriError } from '../errors/cri-error.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import { displayName } from '../state/image-names.ts'
import type { Image } from '../state/records.ts'
import type { ContainerHost } from './deps.ts'

/** Larger than any real user database, small enough not to hurt (CVE-2025-4437, CVE-2026-47262: endless files). */
const maxBytes = 8 * 1024 * 1024
const maxImages = 64
/** Characters; larger ones are read each time: 64 images that mean ill must not fill the memory. */
const largestKept = 256 * 1024
const leasePrefix = 'cri-shim-users-'

export interface UserDatabase {
  readonly passwd: string
  readonly group: string
}

/**
 * The user databases of images. What an image holds never changes, so each is read once, from a read-only view of its snapshot,
 * and the most recent ones are kept: a second container of an image mounts nothing.
 */
export class ImageUsers {
  readonly #containerd: Containerd
  readonly #host: Pick<ContainerHost, 'withMounts' | 'readInRoot'>
  readonly #known = new Map<string, Promise<UserDatabase>>()

  constructor(containerd: Containerd, host: Pick<ContainerHost, 'withMounts' | 'readInRoot'>) {
    this.#containerd = containerd
    this.#host = host
  }

  /** Ends the leases of reads that a crash cut off; containerd collects what was under them. */
  async removeLeftovers(ctx: Ctx): Promise<void> {
    const { leases } = this.#containerd
    for (const lease of await leases.list(ctx)) if (lease.id.startsWith(leasePrefix)) await leases.delete(ctx, lease.id, true)
  }

  async read(ctx: Ctx, image: Image, snapshotter: string): Promise<UserDatabase> {
    const key = `${snapshotter}/${image.chainId}`
    const known = this.#known.get(key)
    if (known !== undefined) {
      this.#known.delete(key)
      this.#known.set(key, known)
      return known
    }
    // Shared by whoever asks meanwhile, so it must not end with the first one's call.
    const reading = this.#read(withSignal(ctx, AbortSignal.timeout(60_000)), image, snapshotter)
    this.#known.set(key, reading)
    const forget = (): void => {
      if (this.#known.get(key) === reading) this.#known.delete(key)
    }
    reading.then(({ passwd, group }) => {
      if (passwd.length + group.length > largestKept) forget()
    }, forget)
    for (const oldest of this.#known.keys()) {
      if (this.#known.size <= maxImages) break
      this.#known.delete(oldest)
    }
    return abortable(reading, ctx.signal)
  }

  async #read(ctx: Ctx, image: Image, snapshotter: string): Promise<UserDatabase> {
    const name = `${leasePrefix}${randomUUID()}`
    await this.#containerd.leases.create(ctx, name, 10 * 60_000)
    try {
      const mounts = await this.#containerd.snapshots.view(ctx, snapshotter, name, image.chainId, {}, { lease: name })
      try {
        return await this.#host.withMounts(mounts, async (dir) => {
          const [passwd, group] = await Promise.all([this.#file(dir, '/etc/passwd'), this.#file(dir, '/etc/group')])
          return { passwd, group }
        })
      } finally {
        await this.#cleanUp(ctx, 'snapshot', name, (bounded) => this.#containerd.snapshots.remove(bounded, snapshotter, name))
      }
    } catch (error) {
      throw CriError.from(error, `reading the users of image ${displayName(image)}`)
    } finally {
      await this.#cleanUp(ctx, 'lease', name, (bounded) => this.#containerd.leases.delete(bounded, name))
    }
  }

  /** Under a signal of its own: the one for reading may be what ended it. What stays goes when the lease expires. */
  async #cleanUp(ctx: Ctx, what: string, name: string, work: (ctx: Ctx) => Promise<void>): Promise<void> {
    try {
      await work(withSignal(ctx, AbortSignal.timeout(30_000)))
    } catch (error) {
      ctx.log.warn({ err: error, name }, `cannot remove the ${what} of a look into an image; it goes by itself within ten minutes`)
    }
  }

  async #file(dir: string, path: string): Promise<string> {
    return (await this.#host.readInRoot(dir, path, maxBytes))?.toString('utf8') ?? ''
  }
}
