import { dirname } from 'node:path'
import type { Containerd } from '../containerd/containerd.ts'
import type { Ctx } from '../observability/context.ts'
import type { SandboxHost } from './deps.ts'

interface Deps {
  readonly containerd: { readonly leases: Pick<Containerd['leases'], 'resources' | 'delete'>; readonly snapshots: Pick<Containerd['snapshots'], 'remove'> }
  readonly host: Pick<SandboxHost, 'unmount' | 'removeTree'>
}

/**
 * Removes what containerd's own CRI plugin (2.1 and newer) keeps of the images that a pod of its making mounts: a lease named after the pod, and
 * under it a snapshot for each image, named after the directory that it is mounted on (containerd internal/cri/server/container_image_mount.go). Idempotent.
 */
export async function removePluginImageMounts(deps: Deps, ctx: Ctx, sandboxId: string): Promise<void> {
  const dirs = new Set<string>()
  for (const { type, id: path } of await deps.containerd.leases.resources(ctx, sandboxId)) {
    const snapshotter = /^snapshots\/(.+)$/.exec(type)?.[1]
    // Nothing else than what the plugin named itself: the path is unmounted and removed.
    if (snapshotter === undefined || !/^\/.+\/io\.containerd\.(grpc\.v1\.cri|cri\.v1\.runtime)\/image-volumes\/[0-9a-f]+\/[0-9a-f]+$/.test(path) || path.includes('/../') || !path.includes(`/image-volumes/${sandboxId}/`)) continue
    await deps.host.unmount(path)
    await deps.containerd.snapshots.remove(ctx, snapshotter, path)
    dirs.add(dirname(path))
  }
  for (const dir of dirs) await deps.host.removeTree(dir)
  await deps.containerd.leases.delete(ctx, sandboxId)
}
