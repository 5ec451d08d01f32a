import type { RuntimeSettings, Settings } from '../../config/settings.ts'
import { genericOptions, runcOptions } from '../../containerd/runtime-options.ts'
import { failedPrecondition, invalidArgument } from '../../errors/cri-error.ts'
import type { SandboxRuntime } from '../../sandbox/deps.ts'

/** A runtime handler with its settings; the default one for an empty name. INVALID_ARGUMENT names those that there are. */
export function runtimeSettings(settings: Settings, handler: string): RuntimeSettings {
  const found = settings.runtimes[handler === '' ? settings.defaultRuntimeName : handler]
  if (found === undefined) throw invalidArgument(`runtime handler ${JSON.stringify(handler)} is not configured on this node; there are ${Object.keys(settings.runtimes).join(', ')}`, { reason: 'UnknownRuntimeHandler' })
  return found
}

/** The handler as containerd is told of it. */
export function sandboxRuntime(settings: Settings, handler: string): SandboxRuntime {
  const runtime = runtimeSettings(settings, handler)
  const { options } = runtime
  return {
    handler, type: runtime.runtimeType, path: runtime.runtimePath, snapshotter: runtime.snapshotter === '' ? settings.snapshotter : runtime.snapshotter,
    options: options.kind === 'runc' ? runcOptions(options) : genericOptions(options),
    optionsFor: ({ uid, gid }) => (options.kind === 'runc' ? runcOptions({ ...options, ioUid: uid, ioGid: gid }) : genericOptions(options)),
  }
}

/** The handler for a new pod. FAILED_PRECONDITION for one whose pods somebody else would have to make. */
export function podRuntime(settings: Settings, handler: string): SandboxRuntime {
  const { sandboxer, runtimeType } = runtimeSettings(settings, handler)
  if (sandboxer !== 'podsandbox') {
    throw failedPrecondition(`runtime handler ${JSON.stringify(handler)} (${runtimeType}) has sandboxer = ${JSON.stringify(sandboxer)}: cri-shim makes pods with a pause container alone; set it to "podsandbox" if the runtime can do with that`, { reason: 'UnsupportedSandboxer' })
  }
  return sandboxRuntime(settings, handler)
}

/** Where the containers of a handler are, also of one that is not configured any more: then it is as good a guess as there is. */
export function snapshotterOfPods(settings: Settings, handler: string): string {
  const own = settings.runtimes[handler === '' ? settings.defaultRuntimeName : handler]?.snapshotter ?? ''
  return own === '' ? settings.snapshotter : own
}

/** Whether containers of the default runtime handler are in cgroups that systemd manages. */
export function usesSystemdCgroup(runtime: RuntimeSettings): boolean {
  return runtime.options.kind === 'runc' && runtime.options.systemdCgroup
}
