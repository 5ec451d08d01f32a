import { internal, messageOf } from '../errors/cri-error.ts'
import type { Descriptor, Mount } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { CallOptions, ContainerdClient } from './client.ts'
import type { IntrospectionService } from './introspection.ts'

const service = 'containerd.services.diff.v1.Diff'

export interface DiffOptions {
  readonly introspection: Pick<IntrospectionService, 'version'>
  /** Writes the file system that holds a path to the disk. */
  readonly syncFileSystem: (path: string) => Promise<void>
}

/** containerd's differ: unpacks a layer onto mounts. */
export class DiffService {
  readonly #client: Pick<ContainerdClient, 'call'>
  readonly #options: DiffOptions

  constructor(client: Pick<ContainerdClient, 'call'>, options: DiffOptions) {
    this.#client = client
    this.#options = options
  }

  /**
   * Unpacks the layer that `diff` names onto `mounts`. Returns the digest of the uncompressed layer, to compare with the image's diff id. With `syncFs` its
   * files are on the disk by then.
   */
  async apply(ctx: Ctx, diff: Init<Descriptor>, mounts: readonly Mount[], options: CallOptions & { readonly syncFs?: boolean } = {}): Promise<string> {
    const syncFs = options.syncFs === true
    const answer = await this.#client.call(ctx, service, 'Apply', { diff, mounts, ...(syncFs ? { sync_fs: true } : {}) }, `layer ${diff.digest}`, options)
    if (syncFs) await this.#sync(ctx, diff.digest ?? '', mounts)
    return answer.applied?.digest ?? ''
  }

  /** What `right` has that `left` has not, as a layer in the content store. */
  async compare(ctx: Ctx, left: readonly Mount[], right: readonly Mount[], layer: { readonly mediaType: string; readonly ref: string }, options: CallOptions): Promise<Descriptor> {
    const { diff } = await this.#client.call(ctx, service, 'Diff', { left, right, media_type: layer.mediaType, ref: layer.ref }, layer.ref, options)
    if (diff === null) throw internal(`containerd compared file systems for ${layer.ref} and did not say what came of it`)
    return diff
  }

  /** An older containerd passes over `sync_fs` without a word. It may be replaced by another one while this runs, so it is asked each time. */
  async #sync(ctx: Ctx, digest: string, mounts: readonly Mount[]): Promise<void> {
    const { version } = await this.#options.introspection.version(ctx)
    const path = writtenPath(mounts)
    if (syncsLayers(version) || path === undefined) return
    try {
      await this.#options.syncFileSystem(path)
    } catch (error) {
      throw internal(`layer ${digest} cannot be written to the disk (image_pull_with_sync_fs): ${messageOf(error)}`, { reason: 'SyncFailed', cause: error })
    }
  }
}

/** Whether a version of containerd knows `sync_fs`: from 1.7.14 on. */
export function syncsLayers(version: string): boolean {
  const [, major = '0', minor = '0', patch = '0'] = /^v?(\d+)\.(\d+)\.(\d+)/.exec(version) ?? []
  const [first, second, third] = [Number(major), Number(minor), Number(patch)]
  return first > 1 || (first === 1 && (second > 7 || (second === 7 && third >= 14)))
}

/** Where a layer's files are written. Undefined for mounts that have a file system of their own: it is unmounted after the layer, which writes it out. */
function writtenPath(mounts: readonly Mount[]): string | undefined {
  const [mount, ...more] = mounts
  if (mount === undefined || more.length > 0) return undefined
  if (mount.type === 'bind') return mount.source
  if (mount.type !== 'overlay') return undefined
  const upper = 'upperdir='
  return mount.options.find((option) => option.startsWith(upper))?.slice(upper.length)
}
