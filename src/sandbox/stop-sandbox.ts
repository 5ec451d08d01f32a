import { join } from '../concurrency/join.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import type { Sandbox } from '../state/records.ts'
import type { SandboxDeps } from './deps.ts'
import { cniPod } from './network.ts'

/**
 * Ends the pause process and takes the network down, side by side: the process needs no network to die. Idempotent. When the network
 * cannot be taken down the namespace stays for the next try, so that the plugins can still find what they made.
 */
export async function stopSandbox(deps: SandboxDeps, ctx: Ctx, sandbox: Sandbox): Promise<void> {
  const { id, metadata } = sandbox
  await join<[void, void]>(ctx.signal, [
    async (signal) => {
      await deps.teardown.destroy(withSignal(ctx, signal), id)
      deps.sandboxes.update(id, (now) => (now.state === 'notready' && now.pid === 0 ? now : { ...now, state: 'notready', pid: 0 }))
    },
    async (signal) => {
      if (sandbox.networkDown) return
      await takeNetworkDown(deps, signal, metadata)
      deps.sandboxes.update(id, (now) => ({ ...now, networkDown: true }))
    },
  ])
  await deps.host.unmount(deps.layout.sandboxShm(id))
}

/** CNI DEL, then the namespace. Idempotent. */
export async function takeNetworkDown(deps: SandboxDeps, signal: AbortSignal, metadata: Pick<Sandbox['metadata'], 'id' | 'config' | 'netnsPath' | 'runtimeHandler'>): Promise<void> {
  if (metadata.netnsPath === '') return
  await deps.networks(metadata.runtimeHandler).del(cniPod(metadata), signal)
  await deps.host.deleteNetns(metadata.netnsPath)
}

/** Deletes everything that a stopped sandbox left: container record, snapshot, files. Idempotent. */
export async function removeSandbox(deps: SandboxDeps, ctx: Ctx, sandbox: Pick<Sandbox, 'id'>, snapshotter: string): Promise<void> {
  const { id } = sandbox
  await deps.teardown.destroy(ctx, id)
  // The snapshot goes first: while the record is there, a failure in between is found again.
  await deps.containerd.snapshots.remove(ctx, snapshotter, id)
  await deps.host.unmount(deps.layout.sandboxShm(id))
  await deps.host.removeTree(deps.layout.sandboxStateDir(id))
  await deps.containerd.containers.delete(ctx, id)
  await deps.host.removeTree(deps.layout.sandboxDir(id))
}
