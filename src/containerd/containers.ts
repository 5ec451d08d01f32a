import { isNotFound } from '../errors/cri-error.ts'
import type { Any, containers_Container } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { ContainerdClient } from './client.ts'

export type ContainerRecord = containers_Container

const service = 'containerd.services.containers.v1.Containers'

/** containerd's container records (metadata only; what runs is a task). */
export class ContainersService {
  readonly #client: ContainerdClient

  constructor(client: ContainerdClient) {
    this.#client = client
  }

  async create(ctx: Ctx, container: Init<ContainerRecord>): Promise<ContainerRecord> {
    const answer = await this.#client.call(ctx, service, 'Create', { container }, `container ${container.id}`, { throughout: true })
    return answer.container ?? Promise.reject(new TypeError('containerd answered Containers.Create without a container'))
  }

  /** Undefined when there is none. */
  async get(ctx: Ctx, id: string): Promise<ContainerRecord | undefined> {
    try {
      return (await this.#client.call(ctx, service, 'Get', { id }, `container ${id}`)).container ?? undefined
    } catch (error) {
      if (isNotFound(error)) return undefined
      throw error
    }
  }

  async list(ctx: Ctx, filters: readonly string[] = []): Promise<ContainerRecord[]> {
    return (await this.#client.call(ctx, service, 'List', { filters }, 'containers')).containers
  }

  /** Replaces one extension and leaves everything else as it is. */
  async setExtension(ctx: Ctx, id: string, key: string, value: Init<Any>): Promise<void> {
    await this.#client.call(ctx, service, 'Update', { container: { id, extensions: { [key]: value } }, update_mask: { paths: [`extensions.${key}`] } }, `container ${id}`)
  }

  /** Replaces the OCI spec and leaves everything else as it is. What runs already is not changed by it. */
  async setSpec(ctx: Ctx, id: string, spec: Init<Any>): Promise<void> {
    await this.#client.call(ctx, service, 'Update', { container: { id, spec }, update_mask: { paths: ['spec'] } }, `container ${id}`, { throughout: true })
  }

  /** Idempotent. */
  async delete(ctx: Ctx, id: string): Promise<void> {
    try {
      await this.#client.call(ctx, service, 'Delete', { id }, `container ${id}`)
    } catch (error) {
      if (!isNotFound(error)) throw error
    }
  }
}
