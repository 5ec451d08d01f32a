import type { Descriptor, Mount } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { CallOptions, ContainerdClient } from './client.ts'

const service = 'containerd.services.diff.v1.Diff'

/** containerd's differ: unpacks a layer onto mounts. */
export class DiffService {
  readonly #client: ContainerdClient

  constructor(client: ContainerdClient) {
    this.#client = client
  }

  /** Unpacks the layer that `diff` names onto `mounts`. Returns the digest of the uncompressed layer, to compare with the image's diff id. */
  async apply(ctx: Ctx, diff: Init<Descriptor>, mounts: readonly Mount[], options: CallOptions & { readonly syncFs?: boolean } = {}): Promise<string> {
    const answer = await this.#client.call(ctx, service, 'Apply', { diff, mounts, ...(options.syncFs === true ? { sync_fs: true } : {}) }, `layer ${diff.digest}`, options)
    return answer.applied?.digest ?? ''
  }
}
