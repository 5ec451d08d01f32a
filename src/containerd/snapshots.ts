import { Code, CriError, failedPrecondition, isNotFound } from '../errors/cri-error.ts'
import type { Mount, snapshots_Info } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { CallOptions, ContainerdClient, MethodName, RequestOf, ResponseOf } from './client.ts'

export type SnapshotInfo = snapshots_Info

const service = 'containerd.services.snapshots.v1.Snapshots'
type Service = typeof service

/** containerd hands on the labels of this name space to the snapshotter, and keeps all others to itself. */
const forSnapshotters = 'containerd.io/snapshot/'

export interface SnapshotUsage {
  readonly sizeBytes: bigint
  readonly inodes: bigint
}

/**
 * containerd's snapshotters, those included that run outside of it. Failures name the snapshotter; UNAVAILABLE with reason SnapshotterUnavailable for one that
 * does not answer, FAILED_PRECONDITION with reason NoSnapshotter when containerd has none of that name.
 */
export class SnapshotsService {
  readonly #client: ContainerdClient

  constructor(client: ContainerdClient) {
    this.#client = client
  }

  /** A writable snapshot on top of `parent`; its mounts. ALREADY_EXISTS when the key is taken. */
  async prepare(ctx: Ctx, snapshotter: string, key: string, parent: string, labels: Readonly<Record<string, string>> = {}, options?: CallOptions): Promise<Mount[]> {
    return (await this.#call(ctx, 'Prepare', { snapshotter, key, parent, labels }, { ...options, throughout: true })).mounts
  }

  /** A read-only view of `parent`; its mounts. */
  async view(ctx: Ctx, snapshotter: string, key: string, parent: string, labels: Readonly<Record<string, string>> = {}, options?: CallOptions): Promise<Mount[]> {
    return (await this.#call(ctx, 'View', { snapshotter, key, parent, labels }, { ...options, throughout: true })).mounts
  }

  async mounts(ctx: Ctx, snapshotter: string, key: string): Promise<Mount[]> {
    return (await this.#call(ctx, 'Mounts', { snapshotter, key })).mounts
  }

  async commit(ctx: Ctx, snapshotter: string, name: string, key: string, labels: Readonly<Record<string, string>> = {}, options?: CallOptions): Promise<void> {
    await this.#call(ctx, 'Commit', { snapshotter, name, key, labels }, options)
  }

  /** Undefined when there is none. */
  async stat(ctx: Ctx, snapshotter: string, key: string): Promise<SnapshotInfo | undefined> {
    try {
      return (await this.#call(ctx, 'Stat', { snapshotter, key })).info ?? undefined
    } catch (error) {
      if (isNotFound(error)) return undefined
      throw error
    }
  }

  /** Sets one label. NOT_FOUND when the snapshot is gone. */
  async setLabel(ctx: Ctx, snapshotter: string, name: string, key: string, value: string): Promise<void> {
    await this.#call(ctx, 'Update', { snapshotter, info: { name, labels: { [key]: value } }, update_mask: { paths: [`labels.${key}`] } })
  }

  /** Of the snapshot alone, without its parents. containerd walks through an active one. */
  async usage(ctx: Ctx, snapshotter: string, key: string, options?: CallOptions): Promise<SnapshotUsage> {
    const answer = await this.#call(ctx, 'Usage', { snapshotter, key }, options)
    return { sizeBytes: BigInt(answer.size), inodes: BigInt(answer.inodes) }
  }

  async list(ctx: Ctx, snapshotter: string, filters: readonly string[] = []): Promise<SnapshotInfo[]> {
    const all: SnapshotInfo[] = []
    try {
      for await (const page of this.#client.serverStream(ctx, service, 'List', { snapshotter, filters }, `snapshots of ${snapshotter}`, { timeoutMs: 60_000 })) all.push(...page.info)
    } catch (error) {
      throw explained(error, snapshotter)
    }
    return all
  }

  /** Idempotent. */
  async remove(ctx: Ctx, snapshotter: string, key: string): Promise<void> {
    try {
      await this.#call(ctx, 'Remove', { snapshotter, key })
    } catch (error) {
      if (!isNotFound(error)) throw error
    }
  }

  async #call<M extends MethodName<Service>>(ctx: Ctx, method: M, request: Init<RequestOf<Service, M>> & { readonly snapshotter: string; readonly key?: string; readonly name?: string; readonly info?: { readonly name: string } }, options?: CallOptions): Promise<ResponseOf<Service, M>> {
    const { snapshotter } = request
    try {
      return await this.#client.call(ctx, service, method, request, `snapshot ${request.name ?? request.key ?? request.info?.name ?? ''} of ${snapshotter}`, options)
    } catch (error) {
      throw explained(error, snapshotter)
    }
  }
}

/** What of somebody's annotations is for the snapshotter. */
export function snapshotLabels(annotations: Readonly<Record<string, string>>): Record<string, string> {
  return Object.fromEntries(Object.entries(annotations).filter(([name]) => name.startsWith(forSnapshotters)))
}

/** A failure with what to do about it, when it is the snapshotter's. */
function explained(error: unknown, snapshotter: string): unknown {
  if (!(error instanceof CriError) || error.reason === 'ContainerdUnavailable') return error
  if (error.message.includes(`snapshotter not loaded: ${snapshotter}`)) {
    return failedPrecondition(`containerd has no snapshotter ${snapshotter}, which is set as snapshotter in cri-shim's configuration: load its plugin, or name it in [proxy_plugins.${snapshotter}] of containerd's configuration`, { reason: 'NoSnapshotter', cause: error })
  }
  // containerd's refusals end in the name of their class; a list's come without their code.
  if (error.code !== Code.UNAVAILABLE && !error.message.endsWith(': unavailable')) return error
  const remedy = / connection |transport|EOF/.test(error.message)
    ? `it runs outside of containerd: start it, and look whether it listens where [proxy_plugins.${snapshotter}] of containerd's configuration says`
    : 'its own log says why: it runs outside of containerd and needs the registry, also of images that are here already'
  return new CriError(Code.UNAVAILABLE, `snapshotter ${snapshotter} is not available (${error.message}); ${remedy}`, { reason: 'SnapshotterUnavailable', cause: error })
}
