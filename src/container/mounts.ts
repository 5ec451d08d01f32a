import { isAbsolute, join, normalize } from 'node:path'
import { CriError, failedPrecondition, invalidArgument, isNotFound } from '../errors/cri-error.ts'
import { type Mount, MountPropagation } from '../generated/cri.ts'
import type { ResolvedMount } from '../oci-spec/input.ts'
import type { ContainerHost } from './deps.ts'
import { checkImageMount } from './image-volumes.ts'

/**
 * The request's bind mounts with their host paths made sure of: created as a directory when missing (as the kubelet relies on), symlinks
 * followed, the wanted propagation checked against the mount that the path is on. Images are what `imageMount` makes of them.
 */
export async function resolveMounts(host: ContainerHost, mounts: readonly Mount[], imageMount: (mount: Mount, index: number) => ResolvedMount): Promise<ResolvedMount[]> {
  return Promise.all(mounts.map(async (mount, index) => {
    checkImageMount(mount)
    if (!isAbsolute(mount.container_path)) throw invalidArgument(`mount: container_path ${JSON.stringify(mount.container_path)} must be an absolute path`)
    if (mount.image !== null) return imageMount(mount, index)
    if (mount.host_path === '') throw invalidArgument(`mount ${mount.container_path}: host_path is empty`)
    if (!isAbsolute(mount.host_path)) throw invalidArgument(`mount ${mount.container_path}: host_path ${JSON.stringify(mount.host_path)} must be an absolute path`)
    if (mount.container_path.includes('\0') || mount.host_path.includes('\0')) throw invalidArgument('mount paths must not contain a NUL byte')
    const hostPath = await resolveOrCreate(host, mount)
    await checkPropagation(host, mount, hostPath)
    return {
      origin: 'cri' as const, containerPath: mount.container_path, hostPath, readonly: mount.readonly, recursiveReadOnly: mount.recursive_read_only,
      propagation: mount.propagation, uidMappings: mount.uidMappings, gidMappings: mount.gidMappings, relabel: mount.selinux_relabel,
    }
  }))
}

async function resolveOrCreate(host: ContainerHost, mount: Mount): Promise<string> {
  try {
    return await host.resolvePath(mount.host_path)
  } catch (error) {
    if (!isNotFound(error)) throw CriError.from(error, `mount ${mount.container_path}`)
  }
  try {
    await host.mkdirAll(mount.host_path, 0o755)
    return await host.resolvePath(mount.host_path)
  } catch (error) {
    throw CriError.from(error, `mount ${mount.container_path}: host path ${mount.host_path} does not exist (or is a symbolic link to nothing) and cannot be made`)
  }
}

async function checkPropagation(host: ContainerHost, mount: Mount, hostPath: string): Promise<void> {
  const { propagation } = mount
  if (propagation === MountPropagation.PROPAGATION_PRIVATE) return
  if (propagation !== MountPropagation.PROPAGATION_BIDIRECTIONAL && propagation !== MountPropagation.PROPAGATION_HOST_TO_CONTAINER) {
    throw invalidArgument(`mount ${mount.container_path}: ${propagation} is no mount propagation mode`)
  }
  const { propagation: actual, mountPoint } = await host.propagationOf(hostPath)
  if (propagation === MountPropagation.PROPAGATION_BIDIRECTIONAL && actual !== 'shared') {
    throw failedPrecondition(`mount ${mount.container_path}: bidirectional propagation needs a shared mount, and ${hostPath} is on ${mountPoint}, which is ${actual}; run "mount --make-rshared ${mountPoint}" on the node`, { reason: 'Propagation' })
  }
  if (propagation === MountPropagation.PROPAGATION_HOST_TO_CONTAINER && actual === 'private') {
    throw failedPrecondition(`mount ${mount.container_path}: propagation from the host needs a shared or slave mount, and ${hostPath} is on ${mountPoint}, which is private; run "mount --make-rshared ${mountPoint}" on the node`, { reason: 'Propagation' })
  }
}

/** No image needs more; each is a directory and a mount of every container. */
const maxImageDefinedVolumes = 256

/**
 * The volumes that an image declares and the request does not mount: each a directory of the container's own. INVALID_ARGUMENT for a path
 * that is not one inside the container.
 */
export function imageVolumes(volumes: readonly string[], mounts: readonly Mount[], containerDir: string): { readonly containerPath: string; readonly hostPath: string }[] {
  if (volumes.length > maxImageDefinedVolumes) throw invalidArgument(`the image declares ${volumes.length} volumes; the limit is ${maxImageDefinedVolumes}`)
  const taken = new Set(mounts.map((mount) => normalize(mount.container_path).replace(/(.)\/$/, '$1')))
  return volumes.map((path) => normalize(isAbsolute(path) ? path : `/${path}`).replace(/(.)\/$/, '$1')).filter((path, index, all) => {
    if (path === '/' || path.includes('\0')) throw invalidArgument(`the image declares the volume ${JSON.stringify(path)}, which is no directory inside a container`)
    return !taken.has(path) && all.indexOf(path) === index
  }).map((containerPath, index) => ({ containerPath, hostPath: join(containerDir, 'volumes', String(index)) }))
}
