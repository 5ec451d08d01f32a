import type { introspection_Plugin } from '../generated/containerd.ts'
import type { Ctx } from '../observability/context.ts'
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
}
