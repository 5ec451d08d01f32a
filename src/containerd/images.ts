import { isAlreadyExists, isNotFound, notFound } from '../errors/cri-error.ts'
import type { images_Image } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { ContainerdClient } from './client.ts'

export type ImageRecord = images_Image

const service = 'containerd.services.images.v1.Images'
const maxAttempts = 5

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

  /** Creates the record, or points the one that is there at the new target. Labels are added to those that it has (one may say that it is pinned). */
  async createOrUpdate(ctx: Ctx, image: Init<ImageRecord>): Promise<void> {
    for (let attempt = 1; ; attempt++) {
      try {
        await this.#client.call(ctx, service, 'Create', { image }, `image ${image.name}`)
        return
      } catch (error) {
        if (!isAlreadyExists(error)) throw error
      }
      try {
        const paths = ['target', ...Object.keys(image.labels ?? {}).map((key) => `labels.${key}`)]
        await this.#client.call(ctx, service, 'Update', { image, update_mask: { paths } }, `image ${image.name}`)
        return
      } catch (error) {
        // Removed in between: it is made again.
        if (!isNotFound(error) || attempt >= maxAttempts) throw error
      }
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
