import { createHash } from 'node:crypto'
import { join } from '../../concurrency/join.ts'
import { KeyedMutex } from '../../concurrency/keyed-mutex.ts'
import type { Operation } from '../../concurrency/operation.ts'
import type { Containerd } from '../../containerd/containerd.ts'
import { Code, CriError, isAlreadyExists } from '../../errors/cri-error.ts'
import { type Ctx, withSignal } from '../../observability/context.ts'
import type { ImageRef } from '../../registry-mirrors/image-ref.ts'

/** A lease outlives a crash by this much, and with it what was downloaded already. */
const leaseMs = 24 * 3_600_000
/** A pull that begins within this time of an interrupted one uses the same lease. */
const leaseBucketMs = 12 * 3_600_000
const deleteTimeoutMs = 30_000
/** After these the next try may succeed, and goes on with what is here; after any other the image is as it is. */
const worthGoingOn: ReadonlySet<Code> = new Set([Code.CANCELLED, Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED])

const leasePrefix = 'cri-shim-pull-'

/** Whether a lease is one of the pulls'. */
export function isPullLease(id: string): boolean {
  return id.startsWith(leasePrefix)
}

/** The same for every try of a pull within half a day: what an interrupted one brought is under it. */
export function leaseId(ref: ImageRef, digest: string, snapshotter: string): string {
  const key = createHash('sha256').update([ref.name, digest, snapshotter].join('\n')).digest('hex').slice(0, 32)
  return `${leasePrefix}${key}-${Math.floor(Date.now() / leaseBucketMs)}`
}

export interface PullLeaseOptions {
  readonly operation: Operation
  readonly id: string
  readonly ref: ImageRef
}

/** Two tags of one image share a lease, and it ends with the last of them. */
export class PullLeases {
  readonly #leases: Containerd['leases']
  /** How many pulls use a lease. */
  readonly #users = new Map<string, number>()
  readonly #mutex = new KeyedMutex()

  constructor(leases: Containerd['leases']) {
    this.#leases = leases
  }

  /**
   * Runs the part of a pull that makes things in containerd: what `prepare` brings meanwhile. The lease ends when that succeeds, or finds the image
   * unusable; when it is interrupted it stays for the next try.
   */
  async under<P, T>(ctx: Ctx, options: PullLeaseOptions, prepare: (ctx: Ctx) => Promise<P>, work: (prepared: P) => Promise<T>): Promise<T> {
    const { operation, id, ref } = options
    let isTaken = false
    let end: 'keep' | 'delete' | 'collect' = 'delete'
    const take = async (): Promise<void> => {
      await operation.step('create lease', () => this.#take(ctx, id, ref))
      isTaken = true
    }
    try {
      // Once begun the lease is made, whatever becomes of the manifest: then it can be given back.
      const [, prepared] = await join<[void, P]>(ctx.signal, [take, (signal) => prepare(withSignal(ctx, signal))])
      return await work(prepared)
    } catch (error) {
      end = error instanceof CriError && worthGoingOn.has(error.code) ? 'keep' : 'collect'
      throw error
    } finally {
      // The image is what counts; a lease that stays ends by itself.
      if (isTaken) {
        await operation.step('delete lease', () => this.#give(withSignal(ctx, AbortSignal.timeout(deleteTimeoutMs)), id, end))
          .catch((error: unknown) => ctx.log.warn({ err: error, lease: id }, 'cannot delete the lease of a pull: it ends after a day'))
      }
    }
  }

  async #take(ctx: Ctx, id: string, ref: ImageRef): Promise<void> {
    await this.#mutex.run(id, async () => {
      try {
        await this.#leases.create(ctx, id, leaseMs, { 'cri-shim/image': ref.toString().slice(0, 3000) })
      } catch (error) {
        if (!isAlreadyExists(error)) throw error
      }
      this.#users.set(id, (this.#users.get(id) ?? 0) + 1)
    }, ctx.signal)
  }

  /** The lease is deleted, unless it is to be kept or another pull still uses it. containerd collects what was under it by itself only after a hundred changes. */
  async #give(ctx: Ctx, id: string, end: 'keep' | 'delete' | 'collect'): Promise<void> {
    await this.#mutex.run(id, async () => {
      const others = (this.#users.get(id) ?? 1) - 1
      if (others > 0) this.#users.set(id, others)
      else this.#users.delete(id)
      if (others === 0 && end !== 'keep') await this.#leases.delete(ctx, id, end === 'collect')
    })
  }
}
