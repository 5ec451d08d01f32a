import { isNotFound } from '../errors/cri-error.ts'
import type { Mount, snapshots_Info } from '../generated/containerd.ts'
import type { Ctx } from '../observability/context.ts'
import type { CallOptions, ContainerdClient } from './client.ts'

export type SnapshotInfo = snapshots_Info

const service = 'containerd.services.snapshots.v1.Snapshots'

export interface SnapshotUsage {
  readonly sizeBytes: bigint
  readonly inodes: bigint
}

/** containerd's snapshotters. */
export class SnapshotsService {
  readonly #client: ContainerdClient

  constructor(client: ContainerdClient) {
    this.#client = client
  }

  /** A writable snapshot on top of `parent`; its mounts. ALREADY_EXISTS when the key is taken. */
  async prepare(ctx: Ctx, snapshotter: string, key: string, parent: string, labels: Readonly<Record<string, string>> = {}, options?: CallOptions): Promise<Mount[]> {
    return (await this.#client.call(ctx, service, 'Prepare', { snapshotter, key, parent, labels }, `snapshot ${key}`, { ...options, throughout: true })).mounts
  }

  /** A read-only view of `parent`; its mounts. */
  async view(ctx: Ctx, snapshotter: string, key: string, parent: string, labels: Readonly<Record<string, string>> = {}, options?: CallOptions): Promise<Mount[]> {
    return (await this.#client.call(ctx, service, 'View', { snapshotter, key, parent, labels }, `snapshot ${key}`, { ...options, throughout: true })).mounts
  }

  async mounts(ctx: Ctx, snapshotter: string, key: string): Promise<Mount[]> {
    return (await this.#client.call(ctx, service, 'Mounts', { snapshotter, key }, `snapshot ${key}`)).mounts
  }

  async commit(ctx: Ctx, snapshotter: string, name: string, key: string, labels: Readonly<Record<string, string>> = {}, options?: CallOptions): Promise<void> {
    await this.#client.call(ctx, service, 'Commit', { snapshotter, name, key, labels }, `snapshot ${name}`, options)
  }

  /** Undefined when there is none. */
  async stat(ctx: Ctx, snapshotter: string, key: string): Promise<SnapshotInfo | undefined> {
    try {
      return (await this.#client.call(ctx, service, 'Stat', { snapshotter, key }, `snapshot ${key}`)).info ?? undefined
    } catch (error) {
      if (isNotFound(error)) return undefined
      throw error
    }
  }

  /** Sets one label. NOT_FOUND when the snapshot is gone. */
  async setLabel(ctx: Ctx, snapshotter: string, name: string, key: string, value: string): Promise<void> {
    await this.#client.call(ctx, service, 'Update', { snapshotter, info: { name, labels: { [key]: value } }, update_mask: { paths: [`labels.${key}`] } }, `snapshot ${name}`)
  }

  /** Of the snapshot alone, without its parents. containerd walks through an active one. */
  async usage(ctx: Ctx, snapshotter: string, key: string, options?: CallOptions): Promise<SnapshotUsage> {
    const answer = await this.#client.call(ctx, service, 'Usage', { snapshotter, key }, `snapshot ${key}`, options)
    return { sizeBytes: BigInt(answer.size), inodes: BigInt(answer.inodes) }
  }

  async list(ctx: Ctx, snapshotter: string, filters: readonly string[] = []): Promise<SnapshotInfo[]> {
    const all: SnapshotInfo[] = []
    for await (const page of this.#client.serverStream(ctx, service, 'List', { snapshotter, filters }, `snapshots of ${snapshotter}`, { timeoutMs: 60_000 })) all.push(...page.info)
    return all
  }

  /** Idempotent. */
  async remove(ctx: Ctx, snapshotter: string, key: string): Promise<void> {
    try {
      await this.#client.call(ctx, service, 'Remove', { snapshotter, key }, `snapshot ${key}`)
    } catch (error) {
      if (!isNotFound(error)) throw error
    }
  }
}
