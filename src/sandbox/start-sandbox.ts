import { mkdir } from 'node:fs/promises'
import { join } from '../concurrency/join.ts'
import type { Operation } from '../concurrency/operation.ts'
import { labelledMounts } from '../containerd/mount-label.ts'
import { snapshotLabels } from '../containerd/snapshots.ts'
import { toNanoseconds } from '../containerd/timestamp.ts'
import type { Mount } from '../generated/containerd.ts'
import type { PodSandboxConfig } from '../generated/cri.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import { hostIds, idRanges, userNamespaceMappings } from '../oci-spec/user-namespace.ts'
import { encodeSandboxMetadata, labels, sandboxExtension, type SandboxMetadata } from '../state/metadata.ts'
import { displayName } from '../state/image-names.ts'
import type { Image, Sandbox } from '../state/records.ts'
import type { SandboxDeps } from './deps.ts'
import { usesHostIpc, writeSandboxFiles } from './files.ts'
import { clearIntent, writeIntent } from './making.ts'
import { cniPod } from './network.ts'

export interface StartSandboxRequest {
  readonly id: string
  readonly name: string
  readonly config: PodSandboxConfig
  /** Where the network namespace is to be bound; empty for a pod on the host's network. */
  readonly netnsPath: string
  readonly runtimeHandler: string
  /** The pause image. */
  readonly image: Image
}

/** 64 MiB, the size of a pod's /dev/shm as containerd and Docker make it. */
const shmBytes = 64n * 1024n * 1024n

/**
 * Makes a pod sandbox: network namespace, files, pause container. The CNI ADD (half of the time) runs beside the snapshot, the container
 * and `runc create`; the two join before the pause process starts. Every step's way back is in `operation`.
 */
export async function startSandbox(deps: SandboxDeps, ctx: Ctx, operation: Operation, request: StartSandboxRequest): Promise<Sandbox> {
  const { id, config, image, netnsPath } = request
  const { containerd, host, layout } = deps
  const runtime = deps.runtime(request.runtimeHandler)
  const hostNetwork = netnsPath === ''
  operation.onUndo('release SELinux level', async () => { deps.selinux.release(id) })
  const selinux = deps.selinux.labels({ id, options: config.linux?.security_context?.selinux_options ?? null, podLabel: '', handler: request.runtimeHandler })
  const metadata: SandboxMetadata = {
    id, name: request.name, config, netnsPath, ips: [], runtimeHandler: request.runtimeHandler, cniResult: undefined, processLabel: selinux?.recorded ?? '',
  }
  const mappings = userNamespaceMappings(config.linux?.security_context?.namespace_options?.userns_options)
  const userns = layout.sandboxUserns(id)
  const owner = mappings === undefined ? undefined : hostIds(mappings, { uid: 0, gid: 0 })
  const spec = await operation.step('make spec', () => deps.sandboxSpec(ctx, { id, config, netnsPath, usernsPath: mappings === undefined ? undefined : userns, image, runtimeHandler: request.runtimeHandler, selinux }))

  // The ways back are registered before each thing is made, and are fine with finding nothing: a step that is cut off half-way
  // (client gone, containerd restarted) may have made its thing all the same.
  let left = false
  const onUndo = (name: string, undo: (signal: AbortSignal) => Promise<unknown>): void => operation.onUndo(name, async (signal) => {
    try {
      await undo(signal)
    } catch (error) {
      left = true
      throw error
    }
  })
  operation.onUndo('remove sandbox directories', async () => {
    // What could not be taken back is written down there, for this service after a restart.
    if (left) return
    await host.removeTree(layout.sandboxStateDir(id))
    await host.removeTree(layout.sandboxDir(id))
  })
  await operation.step('write intent', () => writeIntent(layout, { id, name: request.name, config, netnsPath, runtimeHandler: request.runtimeHandler }))
  const undoCtx = (signal: AbortSignal): Ctx => withSignal(ctx, signal)
  const [files, namespace] = [makeFiles(), makeNamespace()]
  const [network, pause] = await join<[Awaited<ReturnType<typeof addNetwork>>, Awaited<ReturnType<typeof createPause>>, void, void]>(ctx.signal, [
    (signal) => addNetwork(signal),
    (signal) => createPause(withSignal(ctx, signal)),
    () => files,
    () => namespace,
  ])

  async function makeNamespace(): Promise<void> {
    if (mappings !== undefined) onUndo('delete user namespace', () => host.deleteUserNamespace(userns))
    if (!hostNetwork) onUndo('delete network namespace', () => host.deleteNetns(netnsPath))
    if (mappings !== undefined) await operation.step('create user namespace', () => host.createUserNamespace(userns, { ...idRanges(mappings), ...(hostNetwork ? {} : { netns: netnsPath }) }))
    else if (!hostNetwork) await operation.step('create network namespace', () => host.createNetns(netnsPath))
  }

  async function addNetwork(signal: AbortSignal): Promise<{ readonly ips: readonly string[]; readonly result: unknown }> {
    if (hostNetwork) return { ips: [], result: undefined }
    await namespace
    const networks = deps.networks(request.runtimeHandler)
    const pod = cniPod(metadata)
    onUndo('cni del', (undoSignal) => networks.del(pod, undoSignal))
    const made = await operation.step('cni add', () => networks.add(pod, signal))
    return { ips: made.ips, result: made.asGoCniResult }
  }

  async function createPause(branch: Ctx): Promise<{ readonly pid: number; readonly createdAt: bigint }> {
    onUndo('remove pause container', async (signal) => {
      await deps.teardown.destroy(undoCtx(signal), id)
      await containerd.containers.delete(undoCtx(signal), id)
      await containerd.snapshots.remove(undoCtx(signal), runtime.snapshotter, id)
    })
    // The container is recorded first: it is what keeps the snapshot from garbage collection.
    const record = await operation.step('create container record', () => containerd.containers.create(branch, {
      id,
      labels: { ...deps.labels(image, config.labels), [labels.kind]: labels.kindSandbox },
      image: displayName(image),
      runtime: { name: runtime.type, options: runtime.options },
      spec,
      snapshotter: runtime.snapshotter,
      snapshot_key: id,
      extensions: { [sandboxExtension]: encodeSandboxMetadata(metadata) },
    }))
    const mounts = await operation.step('prepare snapshot', () => containerd.snapshots.prepare(branch, runtime.snapshotter, id, image.chainId, snapshotLabels(config.annotations)))
    // The runtime binds them into the root file system: a /dev/shm that is not mounted by then would be a plain directory of the host's.
    await Promise.all([files, namespace])
    const createTask = (rootfs: Mount[]): Promise<number> => deps.teardown.exclusive(id, () => containerd.tasks.create(branch, {
      containerId: id, rootfs: labelledMounts(rootfs, selinux?.mountLabel ?? ''), stdin: '', stdout: '', stderr: '', terminal: false, options: runtime.options, runtimePath: runtime.path,
    }), branch.signal)
    const pid = await operation.step('create task', () => (mappings === undefined ? createTask(mounts)
      : host.withIdmapped({ rootfs: mounts, volumes: [], dir: layout.sandboxIdmapDir(id), userns }, createTask)))
    return { pid, createdAt: toNanoseconds(record.created_at) }
  }

  async function makeFiles(): Promise<void> {
    await operation.step('write pod files', () => writeSandboxFiles(layout, id, config, owner))
    if (usesHostIpc(config)) return
    const shm = layout.sandboxShm(id)
    onUndo('unmount /dev/shm', () => host.unmount(shm))
    await operation.step('mount /dev/shm', async () => {
      await mkdir(shm, { recursive: true, mode: 0o711 })
      await host.mountShm(shm, shmBytes, owner)
    })
  }

  const complete: SandboxMetadata = { ...metadata, ips: network.ips, cniResult: network.result }
  await join<[void, void]>(ctx.signal, [
    (signal) => operation.step('start task', () => deps.teardown.exclusive(id, async () => void await containerd.tasks.start(withSignal(ctx, signal), id), signal)),
    (signal) => operation.step('store metadata', () => containerd.containers.setExtension(withSignal(ctx, signal), id, sandboxExtension, encodeSandboxMetadata(complete))),
  ])
  // The pause process holds it from here on.
  if (mappings !== undefined) await operation.step('let go of user namespace', () => host.deleteUserNamespace(userns))
  const sandbox: Sandbox = { id, metadata: complete, state: 'ready', createdAt: pause.createdAt, pid: pause.pid, networkDown: hostNetwork }
  await operation.step('clear intent', () => clearIntent(layout, id))
  return sandbox
}
