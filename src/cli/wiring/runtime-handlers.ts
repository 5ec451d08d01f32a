import type { Settings } from '../../config/settings.ts'
import type { RuntimeHandler } from '../../generated/cri.ts'
import type { Init } from '../../generated/int64.ts'
import type { RuntimeFeatureProbe } from './runtime-features.ts'
import type { UserNamespaces } from './user-namespaces.ts'

/** What the kubelet may ask of the pods of each handler, as it is now; the default handler has the empty name too. */
export async function runtimeHandlers(settings: Settings, features: RuntimeFeatureProbe, userNamespaces: UserNamespaces): Promise<Init<RuntimeHandler>[]> {
  return Promise.all(['', ...Object.keys(settings.runtimes)].map(async (name) => ({
    name,
    features: {
      recursive_read_only_mounts: (await features.of(name)).recursiveReadOnlyMounts,
      user_namespaces: await userNamespaces.problem(name) === undefined,
    },
  })))
}
