import { mkdir, rm } from 'node:fs/promises'
import { dirname, join as joinPath } from 'node:path'
import { join } from '../concurrency/join.ts'
import type { Operation } from '../concurrency/operation.ts'
import { labelledMounts } from '../containerd/mount-label.ts'
import { snapshotLabels } from '../containerd/snapshots.ts'
import { nowNanoseconds } from '../containerd/timestamp.ts'
import type { Mount } from '../generated/containerd.ts'
import type { ContainerConfig, PodSandboxConfig } from '../generated/cri.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import type { ResolvedDevice, ResolvedMount } from '../oci-spec/input.ts'
import { parseOciSpec } from '../oci-spec/json.ts'
import { resolveUser } from '../oci-spec/resolve-user.ts'
import { resourcesOfSpec } from '../oci-spec/update-resources.ts'
import { userRequest } from '../oci-spec/user.ts'
import { containerExtension, encodeContainerMetadata, labels, type ContainerMetadata } from '../state/metadata.ts'
import { displayName } from '../state/image-names.ts'
import type { Container, Image, Sandbox } from '../state/records.ts'
import { encodeStatus, writeJson, writeJsonPage } from '../state/status-file.ts'
import type { ContainerDeps } from './deps.ts'
import type { UserDatabase } from './image-users.ts'
import { imageBindMount, type ImageVolume, imageVolumeLabels, mountImageVolumes, removeContainerState, removeImageViews } from './image-volumes.ts'
import { containerLogPath } from './log-path.ts'
import { resolveDevices } from './devices.ts'
import { imageVolumes, resolveMounts } from './mounts.ts'
import { statusPath } from './status.ts'
import { idmappedPath, mapHere, mappingsOf, usernsOf } from './user-namespace.ts'

export interface CreateContainerInput {
  readonly id: string
  readonly name: string
  readonly sandbox: Sandbox
  readonly config: ContainerConfig
  /** The pod's configuration as the request repeats it. */
  readonly sandboxConfig: PodSandboxConfig
  readonly image: Image
  /** The images that it mounts. */
  readonly imageVolumes: readonly ImageVolume[]
  /** What StopContainer sends; empty for SIGTERM. */
  readonly stopSignal: string
  /** Of the container whose PID namespace is joined in mode TARGET. */
  readonly targetPid: number | undefined
}

/** Marks a container that was not made to the end; it goes when CreateContainer has succeeded. */
export function intentPath(dir: string): string {
  return joinPath(dir, 'making')
}

/** Makes a container: its record and its writable snapshot in containerd. Nothing runs yet. Every step's way back is in `operation`. */
export async function createContainer(deps: ContainerDeps, ctx: Ctx, operation: Operation, input: CreateContainerInput): Promise<Container> {
  const { id, config, image, sandbox } = input
  const { containerd, host, layout } = deps
  const runtime = deps.runtime(sandbox.metadata.runtimeHandler)
  const dir = layout.containerDir(id)
  const logPath = containerLogPath(input.sandboxConfig.log_directory, config.log_path)
  const security = config.linux?.security_context ?? null
  const request = userRequest(security, image.config)
  const userns = security?.namespace_options?.userns_options
  const volumes = deps.settings.ignoreImageDefinedVolumes ? [] : imageVolumes(image.config.Volumes, config.mounts, dir)

  operation.onUndo('remove container directory', () => host.removeTree(dir))
  const [[mounts, devices, users]] = await join<[[ResolvedMount[], ResolvedDevice[], UserDatabase], void]>(ctx.signal, [
    (signal) => operation.step('resolve mounts and users', () => Promise.all([
      resolveMounts(host, config.mounts, (mount, index) => imageBindMount(layout, id, index, mount)),
      resolveDevices(host, config.devices),
      deps.imageUsers(withSignal(ctx, signal), image, runtime.snapshotter),
    ])),
    () => operation.step('write intent', async () => {
      await mkdir(dir, { recursive: true, mode: 0o711 })
      await writeJson(intentPath(dir), { id, name: input.name, snapshotter: runtime.snapshotter })
    }),
  ])
  const user = resolveUser(request, users.passwd, users.group, security?.supplemental_groups ?? [], security?.supplemental_groups_policy ?? 0)
  operation.onUndo('release SELinux level', async () => { deps.selinux.release(id) })
  const selinux = deps.selinux.labels({ id, options: security?.selinux_options ?? null, podLabel: sandbox.metadata.processLabel, handler: sandbox.metadata.runtimeHandler })
  const mountLabel = selinux?.mountLabel ?? ''
  const relabelled = mountLabel === '' ? [] : mounts.filter(({ relabel }) => relabel === true)
  if (relabelled.length > 0) await operation.step('relabel volumes', () => Promise.all(relabelled.map(({ hostPath }) => deps.selinux.relabel(hostPath, mountLabel))))
  const mappings = mappingsOf(config)
  const all: ResolvedMount[] = [...mounts, ...volumes.map((volume) => ({
    origin: 'host' as const, containerPath: volume.containerPath, hostPath: volume.hostPath, readonly: false,
    ...(mappings === undefined ? {} : { uidMappings: userns?.uids ?? [], gidMappings: userns?.gids ?? [] }),
  }))]
  const runtimeMaps = mappings === undefined || (await deps.features(sandbox.metadata.runtimeHandler)).idmapMounts
  const { mounts: bound, idmapped } = runtimeMaps ? { mounts: all, idmapped: [] } : mapHere(all, mappings, layout.containerIdmapDir(id))
  if (idmapped.length > 0) await operation.step('note id-mapped volumes', () => writeJson(idmappedPath(layout, id), idmapped))
  const spec = await operation.step('make spec', () => deps.containerSpec({
    id, name: input.name, sandbox, sandboxConfig: input.sandboxConfig, config, image, imageName: displayName(image), user, devices,
    mounts: bound, targetPid: input.targetPid, selinux,
  }))
  const metadata: ContainerMetadata = {
    id, name: input.name, sandboxId: sandbox.id, config, imageRef: image.id, logPath: logPath ?? '', stopSignal: input.stopSignal, processLabel: selinux?.recorded ?? '',
  }
  const viewLabels = imageVolumeLabels(id, runtime.snapshotter, input.imageVolumes)
  operation.onUndo('remove container record and snapshot', async (signal) => {
    await removeImageViews(deps, withSignal(ctx, signal), { labels: viewLabels })
    await containerd.snapshots.remove(withSignal(ctx, signal), runtime.snapshotter, id)
    await containerd.containers.delete(withSignal(ctx, signal), id)
  })
  const container: Container = {
    id, metadata, starting: false, removing: false, oomKilled: false, cgroups: undefined, user: { uid: user.uid, gid: user.gid, additionalGids: user.additionalGids },
    resources: resourcesOfSpec(parseOciSpec(spec.value)),
    status: { state: 'created', pid: 0, createdAt: nowNanoseconds(), startedAt: 0n, finishedAt: 0n, exitCode: 0, reason: '', message: '' },
  }
  if (input.imageVolumes.length > 0) operation.onUndo('unmount images', () => removeContainerState(deps, id))
  const [rootfs] = await join<[Mount[], void, void]>(ctx.signal, [
    (signal) => makeInContainerd(withSignal(ctx, signal)),
    () => operation.step('write status', () => writeJsonPage(statusPath(layout, id), encodeStatus(container))),
    async () => {
      if (logPath !== undefined) await operation.step('make log directory', () => host.mkdirAll(dirname(logPath), 0o755))
    },
  ])
  await operation.step('clear intent', () => rm(intentPath(dir), { force: true }))
  deps.rootfs.keep(id, labelledMounts(rootfs, mountLabel))
  return container

  async function makeInContainerd(branch: Ctx): Promise<Mount[]> {
    // The container is recorded first: it is what keeps the snapshot from garbage collection.
    await operation.step('create container record', () => containerd.containers.create(branch, {
      id,
      labels: { ...deps.labels(image, config.labels), ...viewLabels, [labels.kind]: labels.kindContainer },
      image: displayName(image),
      runtime: { name: runtime.type, options: runtime.options },
      spec,
      snapshotter: runtime.snapshotter,
      snapshot_key: id,
      extensions: { [containerExtension]: encodeContainerMetadata(metadata) },
    }))
    const rootfs = await operation.step('prepare snapshot', () => containerd.snapshots.prepare(branch, runtime.snapshotter, id, image.chainId, snapshotLabels(config.annotations)))
    if (input.imageVolumes.length > 0) await operation.step('mount images', () => mountImageVolumes(deps, branch, {
      id, snapshotter: runtime.snapshotter, volumes: input.imageVolumes, userns: mappings === undefined ? undefined : usernsOf(sandbox), mountLabel,
    }))
    if (volumes.length > 0) {
      await operation.step('fill image volumes', () => host.withMounts(rootfs, async (root) => {
        for (const volume of volumes) {
          await host.mkdirAll(volume.hostPath, 0o755)
          await host.copyFromRoot(root, volume.containerPath, volume.hostPath)
          await deps.selinux.relabel(volume.hostPath, mountLabel)
        }
      }))
    }
    return rootfs
  }
}
