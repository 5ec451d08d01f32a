import { mkdir } from 'node:fs/promises'
import { join as joinPath } from 'node:path'
import { join } from '../concurrency/join.ts'
import type { ContainerRecord } from '../containerd/containers.ts'
import type { SnapshotsService } from '../containerd/snapshots.ts'
import { labelledMounts } from '../containerd/mount-label.ts'
import { CriError, invalidArgument } from '../errors/cri-error.ts'
import type { Mount as SnapshotMount } from '../generated/containerd.ts'
import { type Mount, MountPropagation } from '../generated/cri.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import type { ResolvedMount } from '../oci-spec/input.ts'
import type { Container, Image } from '../state/records.ts'
import { type Layout, namesIn } from '../state/status-file.ts'
import type { ContainerHost } from './deps.ts'

/** An image that a container mounts (KEP-4639). `index` is its place among the mounts of the request. */
export interface ImageVolume {
  readonly index: number
  readonly mount: Mount
  readonly image: Image
}

/** The word at the front by which the kubelet, and people, know this failure (k8s.io/cri-api/pkg/errors). */
const reason = 'ImageVolumeMountFailed'
const gcLabel = 'containerd.io/gc.ref.snapshot.'
const gcLabelForm = /^containerd\.io\/gc\.ref\.snapshot\.([^/]+)\/image-volume-\d+$/

/** A failure to mount an image, with what it was to be mounted on. */
export function imageVolumeError(mount: Mount, error: unknown): CriError {
  const cause = CriError.from(error)
  return new CriError(cause.code, `${reason}: mount ${mount.container_path} of image ${mount.image?.user_specified_image || mount.image?.image || '""'}: ${cause.message}`, { reason, cause: error })
}

/** INVALID_ARGUMENT for an image mount that contradicts itself, and for a sub path without an image. */
export function checkImageMount(mount: Mount): void {
  if (mount.image === null) {
    if (mount.image_sub_path !== '') throw invalidArgument(`mount ${mount.container_path}: image_sub_path goes only with an image`)
    return
  }
  const refuse = (message: string): never => { throw imageVolumeError(mount, invalidArgument(message)) }
  if (mount.image.image === '') refuse('image.image is empty')
  if (mount.host_path !== '') refuse(`host_path is ${JSON.stringify(mount.host_path)}: a mount is of a host path or of an image, not of both`)
  if (!mount.readonly) refuse('readonly must be true: images are mounted for reading alone')
  if (mount.propagation === MountPropagation.PROPAGATION_BIDIRECTIONAL) refuse('bidirectional propagation is not for images: nothing can be mounted in one')
  if (mount.image_sub_path.startsWith('/')) refuse(`image_sub_path ${JSON.stringify(mount.image_sub_path)} must be relative to the image's root`)
}

/** The mounts with the images' ids filled in, as ContainerStatus reports them. */
export function withImageRefs(mounts: readonly Mount[], volumes: readonly ImageVolume[]): Mount[] {
  const ids = new Map(volumes.map(({ index, image }) => [index, image.id]))
  return mounts.map((mount, index) => (mount.image === null ? mount : { ...mount, image: { ...mount.image, image_ref: ids.get(index) ?? '' } }))
}

/** Where an image is mounted for a container, until that is removed. */
export function imageVolumePath(layout: Layout, id: string, index: number): string {
  return joinPath(layout.containerImageVolumesDir(id), String(index), 'volume')
}

/** The bind mount of an image in the container. Nothing is ever mounted below it: plain read-only is recursive, and there is nothing to propagate. */
export function imageBindMount(layout: Layout, id: string, index: number, mount: Mount): ResolvedMount {
  return { origin: 'cri', containerPath: mount.container_path, hostPath: imageVolumePath(layout, id, index), readonly: true }
}

function viewKey(id: string, index: number): string {
  return `${id}-image-volume-${index}`
}

/** On the container's record: containerd keeps the views, and what they are views of, as long as it keeps the container. */
export function imageVolumeLabels(id: string, snapshotter: string, volumes: readonly ImageVolume[]): Record<string, string> {
  return Object.fromEntries(volumes.map(({ index }) => [`${gcLabel}${snapshotter}/image-volume-${index}`, viewKey(id, index)]))
}

interface Deps {
  readonly containerd: { readonly snapshots: Pick<SnapshotsService, 'view' | 'remove'> }
  readonly host: Pick<ContainerHost, 'mountImage' | 'unmount' | 'removeTree' | 'withIdmapped'>
  readonly layout: Layout
}

export interface ImageVolumesRequest {
  /** The container's. */
  readonly id: string
  readonly snapshotter: string
  readonly volumes: readonly ImageVolume[]
  /** The file of the pod's user namespace: the images' ids are mapped to it. */
  readonly userns: string | undefined
  /** The SELinux label of the container's files, empty for none: what is asked to be relabelled gets it by its mount, for a shared snapshot cannot be relabelled. */
  readonly mountLabel: string
}

/** Mounts the images. The container's record must be there, with the labels that keep the views. What was made before a failure is the caller's to take back. */
export async function mountImageVolumes(deps: Deps, ctx: Ctx, request: ImageVolumesRequest): Promise<void> {
  const { id, snapshotter, volumes, userns, mountLabel } = request
  await join(ctx.signal, volumes.map(({ index, mount, image }) => async (signal: AbortSignal) => {
    const branch = withSignal(ctx, signal)
    try {
      const mounts = await deps.containerd.snapshots.view(branch, snapshotter, viewKey(id, index), image.chainId)
      signal.throwIfAborted()
      const dir = joinPath(deps.layout.containerImageVolumesDir(id), String(index))
      const mountOn = async (layers: readonly SnapshotMount[]): Promise<void> => {
        const label = mount.selinux_relabel ? mountLabel : ''
        const sealed = snapshotter === 'overlayfs' || label !== '' ? await asFileSystem(layers, joinPath(dir, 'nothing')) : layers
        await deps.host.mountImage(labelledMounts(sealed, label), dir, mount.image_sub_path, branch.signal)
      }
      if (userns === undefined) await mountOn(mounts)
      else await deps.host.withIdmapped({ rootfs: mounts, volumes: [], dir: joinPath(deps.layout.containerIdmapDir(id), `image-${index}`), userns }, mountOn)
    } catch (error) {
      if (signal.aborted) throw error
      throw imageVolumeError(mount, error)
    }
  }))
}

/**
 * An image of one layer as an overlay of that and an empty directory. A bind mount of the layer would be read-only by a flag that a container with CAP_SYS_ADMIN
 * can take away, and then write to what all containers of the image share; and it could not have a label.
 */
async function asFileSystem(mounts: readonly SnapshotMount[], empty: string): Promise<SnapshotMount[]> {
  await mkdir(empty, { recursive: true, mode: 0o755 })
  return mounts.map((mount) => (mount.type === 'bind' ? { ...mount, type: 'overlay', source: 'overlay', options: [`lowerdir=${[mount.source, empty].map((path) => path.replaceAll(/[\\:]/g, '\\$&')).join(':')}`] } : mount))
}

/** Unmounts what a container has of images, and removes its directory under the state directory. Idempotent; also after a crash in the middle. */
export async function removeContainerState(deps: Pick<Deps, 'host' | 'layout'>, id: string): Promise<void> {
  const dir = deps.layout.containerImageVolumesDir(id)
  for (const index of await namesIn(dir)) for (const name of await namesIn(joinPath(dir, index))) await deps.host.unmount(joinPath(dir, index, name))
  await deps.host.removeTree(deps.layout.containerStateDir(id))
}

/** Removes the views of a container's images that its record names. Idempotent. */
export async function removeImageViews(deps: Pick<Deps, 'containerd'>, ctx: Ctx, record: Pick<ContainerRecord, 'labels'>): Promise<void> {
  await Promise.all(Object.entries(record.labels).map(async ([label, key]) => {
    const snapshotter = gcLabelForm.exec(label)?.[1]
    if (snapshotter !== undefined) await deps.containerd.snapshots.remove(ctx, snapshotter, key)
  }))
}

/** The container that mounts an image, undefined when none does. Containers that containerd's own plugin made name it as the request did. */
export function mountedBy(containers: Iterable<Container>, image: Image): Container | undefined {
  const names = new Set([image.id, ...image.references])
  for (const container of containers) {
    if (container.metadata.config.mounts.some(({ image: spec }) => spec !== null && (spec.image_ref === image.id || names.has(spec.image)))) return container
  }
  return undefined
}
