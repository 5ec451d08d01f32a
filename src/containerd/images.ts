import { isAlreadyExists, isNotFound, notFound } from '../errors/cri-error.ts'
import type { images_Image } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { ContainerdClient } from './client.ts'

export type ImageRecord = images_Image

const service = 'containerd.services.images.v1.Images'

/** containerd's image records: a name, a target descriptor, labels. */
export class ImagesService {
  readonly #client: ContainerdClient

  constructor(client: ContainerdClient) {
    this.#client = client
  }

  async get(ctx: Ctx, name: string): Promise<ImageRecord | undefined> {
    try {
      return (await this.#client.call(ctx, service, 'Get', { name }, `image ${name}`)).image ?? undefined
    } catch (error) {
      if (isNotFound(error)) return undefined
      throw error
    }
  }

  async list(ctx: Ctx, filters: readonly string[] = []): Promise<ImageRecord[]> {
    return (await this.#client.call(ctx, service, 'List', { filters }, 'images')).images
  }

  /** Creates the record, or points the one that is there at the new target and labels. */
  async createOrUpdate(ctx: Ctx, image: Init<ImageRecord>): Promise<void> {
    try {
      await this.#client.call(ctx, service, 'Create', { image }, `image ${image.name}`)
    } catch (error) {
      if (!isAlreadyExists(error)) throw error
      await this.#client.call(ctx, service, 'Update', { image, update_mask: { paths: ['target', 'labels'] } }, `image ${image.name}`)
    }
  }

  /**
   * Sets one label and leaves everything else as it is. NOT_FOUND when the record is gone. The target goes with it although the mask leaves
   * it alone: containerd 1.7 reads it all the same and crashes on a missing one.
   */
  async setLabel(ctx: Ctx, name: string, key: string, value: string): Promise<void> {
    const record = await this.get(ctx, name)
    if (record === undefined) throw notFound(`image ${name} is not in containerd`)
    await this.#client.call(ctx, service, 'Update', { image: { ...record, labels: { [key]: value } }, update_mask: { paths: [`labels.${key}`] } }, `image ${name}`)
  }

  /** Idempotent. `sync` waits until garbage collection has removed what only this record held. */
  async delete(ctx: Ctx, name: string, sync: boolean): Promise<void> {
    try {
      await this.#client.call(ctx, service, 'Delete', { name, sync }, `image ${name}`)
    } catch (error) {
      if (!isNotFound(error)) throw error
    }
  }
}
