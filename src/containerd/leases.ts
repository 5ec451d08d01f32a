import { isNotFound } from '../errors/cri-error.ts'
import type { leases_Lease, leases_Resource } from '../generated/containerd.ts'
import type { Ctx } from '../observability/context.ts'
import type { ContainerdClient } from './client.ts'

const service = 'containerd.services.leases.v1.Leases'

/** containerd's leases: what is created under one is safe from garbage collection until it is deleted or expires. */
export class LeasesService {
  readonly #client: ContainerdClient

  constructor(client: ContainerdClient) {
    this.#client = client
  }

  /** `expiresInMs` bounds what a crash of ours can leave behind. ALREADY_EXISTS when the id is taken. */
  async create(ctx: Ctx, id: string, expiresInMs: number, labels: Readonly<Record<string, string>> = {}): Promise<void> {
    const expires = new Date(Date.now() + expiresInMs).toISOString()
    await this.#client.call(ctx, service, 'Create', { id, labels: { ...labels, 'containerd.io/gc.expire': expires } }, `lease ${id}`)
  }

  /** Idempotent. `sync` waits for the garbage collection that follows. */
  async delete(ctx: Ctx, id: string, sync = false): Promise<void> {
    try {
      await this.#client.call(ctx, service, 'Delete', { id, sync }, `lease ${id}`)
    } catch (error) {
      if (!isNotFound(error)) throw error
    }
  }

  async list(ctx: Ctx, filters: readonly string[] = []): Promise<leases_Lease[]> {
    return (await this.#client.call(ctx, service, 'List', { filters }, 'leases')).leases
  }

  /** What is under a lease; nothing when there is no such lease. */
  async resources(ctx: Ctx, id: string): Promise<leases_Resource[]> {
    try {
      return (await this.#client.call(ctx, service, 'ListResources', { id }, `lease ${id}`)).resources
    } catch (error) {
      if (isNotFound(error)) return []
      throw error
    }
  }

  /** Puts something that exists already under the lease. `type` is `content`, `snapshots/overlayfs`, … */
  async addResource(ctx: Ctx, id: string, type: string, resourceId: string): Promise<void> {
    await this.#client.call(ctx, service, 'AddResource', { id, resource: { id: resourceId, type } }, `lease ${id}`)
  }
}
