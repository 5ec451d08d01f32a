import { join } from 'node:path'
import { allOf } from '../concurrency/join.ts'
import type { ContainerRecord } from '../containerd/containers.ts'
import type { Ctx } from '../observability/context.ts'
import { parseOciSpec } from '../oci-spec/json.ts'
import { pluginDirs } from '../state/plugin-files.ts'
import type { Sandbox } from '../state/records.ts'
import type { SandboxDeps } from './deps.ts'
import { cniPod } from './network.ts'
import { removePluginImageMounts } from './plugin-image-mounts.ts'

/**
 * Ends the pause process and takes the network down, side by side: the process needs no network to die. Idempotent. When the network
 * cannot be taken down the namespace stays for the next try, so that the plugins can still find what they made. Before it does anything else the
 * sandbox is not ready any more: no container is made or started in it from then on.
 */
export async function stopSandbox(deps: SandboxDeps, ctx: Ctx, sandbox: Sandbox): Promise<void> {
  const { id, metadata } = sandbox
  markNotReady(deps, id)
  // Neither is stopped by the failure of the other: a deletion that is cut off is worse than one that is made in vain.
  await allOf([endPause(deps, ctx, id), endNetwork(deps, ctx, sandbox.networkDown, metadata)])
  await deps.host.unmount(deps.layout.sandboxShm(id))
}

/** No container is made or started in it from then on. */
export function markNotReady(deps: Pick<SandboxDeps, 'sandboxes'>, id: string): void {
  deps.sandboxes.update(id, (now) => (now.state === 'notready' ? now : { ...now, state: 'notready' }))
}

async function endPause(deps: SandboxDeps, ctx: Ctx, id: string): Promise<void> {
  await deps.teardown.destroy(ctx, id)
  deps.sandboxes.update(id, (now) => (now.pid === 0 ? now : { ...now, pid: 0 }))
}

async function endNetwork(deps: SandboxDeps, ctx: Ctx, down: boolean, metadata: Sandbox['metadata']): Promise<void> {
  if (down) return
  await takeNetworkDown(deps, ctx.signal, metadata)
  deps.sandboxes.update(metadata.id, (now) => ({ ...now, networkDown: true }))
}

/** CNI DEL, then the namespace. Idempotent. */
export async function takeNetworkDown(deps: SandboxDeps, signal: AbortSignal, metadata: Pick<Sandbox['metadata'], 'id' | 'config' | 'netnsPath' | 'runtimeHandler'>): Promise<void> {
  if (metadata.netnsPath === '') return
  await deps.networks(metadata.runtimeHandler).del(cniPod(metadata), signal)
  await deps.host.deleteNetns(metadata.netnsPath)
}

/** Deletes everything that a stopped sandbox left: container record, snapshot, files. Idempotent. */
export async function removeSandbox(deps: SandboxDeps, ctx: Ctx, sandbox: Pick<Sandbox, 'id'>): Promise<void> {
  const { id } = sandbox
  // There after a start that was cut off.
  await deps.host.deleteUserNamespace(deps.layout.sandboxUserns(id))
  const [record] = await Promise.all([deps.containerd.containers.get(ctx, id), deps.teardown.destroy(ctx, id), deps.host.unmount(deps.layout.sandboxShm(id))])
  await Promise.all([
    // The snapshot is where the record says, whatever is configured by now. It goes first: while the record is there, a failure in between is found again.
    record === undefined || record.snapshotter === '' ? undefined : deps.containerd.snapshots.remove(ctx, record.snapshotter, id),
    deps.host.removeTree(deps.layout.sandboxStateDir(id)),
  ])
  // What containerd's own CRI plugin kept of it, if that made it.
  const dirs = record === undefined ? [] : pluginDirsOf(record)
  if (dirs.length > 0) await removePluginImageMounts(deps, ctx, id)
  for (const dir of dirs) {
    await deps.host.unmount(join(dir, 'sandboxes', id, 'shm'))
    await deps.host.removeTree(join(dir, 'sandboxes', id))
  }
  await deps.containerd.containers.delete(ctx, id)
  await deps.host.removeTree(deps.layout.sandboxDir(id))
}

/** Where containerd's own CRI plugin keeps files of the sandbox in this record; empty when it did not make it. */
export function pluginDirsOf({ id, spec }: ContainerRecord): string[] {
  return spec === null ? [] : pluginDirs(parseOciSpec(spec.value).mounts ?? [], id)
}
