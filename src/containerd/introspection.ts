import { Code, CriError } from '../errors/cri-error.ts'
import type { Any, introspection_Plugin } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import { packAny, unpackAny } from './any.ts'
import type { ContainerdClient } from './client.ts'

/** What containerd says about itself. */
export class IntrospectionService {
  readonly #client: ContainerdClient

  constructor(client: ContainerdClient) {
    this.#client = client
  }

  /** `1.6.20~ds1` and the git revision. Short deadline: this is the liveness question. */
  async version(ctx: Ctx): Promise<{ readonly version: string; readonly revision: string }> {
    return this.#client.call(ctx, 'containerd.services.version.v1.Version', 'Version', {}, 'version', { timeoutMs: 5_000 })
  }

  /** A name that containerd gives itself when its root is made and keeps for good. */
  async uuid(ctx: Ctx): Promise<string> {
    return (await this.#client.call(ctx, 'containerd.services.introspection.v1.Introspection', 'Server', {}, 'server')).uuid
  }

  async plugins(ctx: Ctx, filters: readonly string[] = []): Promise<introspection_Plugin[]> {
    return (await this.#client.call(ctx, 'containerd.services.introspection.v1.Introspection', 'Plugins', { filters }, 'plugins')).plugins
  }

  /**
   * What the shim of a runtime says of it when it is asked (`-info`): the features document of the OCI runtime specification, as JSON. Undefined when the
   * shim names none, and before containerd 2.0, which asks no shims.
   */
  async runtimeFeatures(ctx: Ctx, runtimePath: string, options: Init<Any> | undefined): Promise<string | undefined> {
    const request = packAny('containerd.types.RuntimeRequest', { runtime_path: runtimePath, ...(options === undefined ? {} : { options }) })
    try {
      const answer = await this.#client.call(ctx, 'containerd.services.introspection.v1.Introspection', 'PluginInfo', { type: 'io.containerd.runtime.v2', id: 'task', options: request }, `runtime ${runtimePath}`)
      return unpackAny('containerd.types.RuntimeInfo', answer.extra)?.features?.value.toString('utf8')
    } catch (error) {
      if (error instanceof CriError && error.code === Code.UNIMPLEMENTED) return undefined
      throw error
    }
  }
}
