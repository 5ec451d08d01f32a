import { join } from 'node:path'
import type { ContainerConfig, IDMapping } from '../generated/cri.ts'
import type { IdmapMount } from '../linux/linux.ts'
import type { ResolvedMount } from '../oci-spec/input.ts'
import { idMappings, type UserNamespaceMappings, userNamespaceMappings } from '../oci-spec/user-namespace.ts'
import type { Sandbox } from '../state/records.ts'
import { type Layout, readJson } from '../state/status-file.ts'

/** The mappings of a container whose pod has a user namespace. Throws INVALID_ARGUMENT as userNamespaceMappings(). */
export function mappingsOf(config: ContainerConfig): UserNamespaceMappings | undefined {
  return userNamespaceMappings(config.linux?.security_context?.namespace_options?.userns_options)
}

/** The user namespace of a pod, which its first process holds. */
export function usernsOf(sandbox: Pick<Sandbox, 'pid'>): string {
  return `/proc/${sandbox.pid}/ns/user`
}

/** Where it is written down which volumes have to be id-mapped when the container is started. */
export function idmappedPath(layout: Layout, id: string): string {
  return join(layout.containerDir(id), 'idmapped.json')
}

/**
 * Takes from a container's mounts the id mappings that are those of its pod: instead of the runtime, which cannot, this service maps the ids when the
 * container is started (`idmapped`), and the runtime binds what is then in their place. Other mappings stay as they are.
 */
export function mapHere(mounts: readonly ResolvedMount[], pod: UserNamespaceMappings | undefined, dir: string): { readonly mounts: ResolvedMount[]; readonly idmapped: IdmapMount[] } {
  const idmapped: IdmapMount[] = []
  const result = mounts.map((mount) => {
    if (pod === undefined || !samePairs(mount.uidMappings, pod.uids) || !samePairs(mount.gidMappings, pod.gids)) return mount
    const target = join(dir, `volume-${idmapped.length}`)
    idmapped.push({ source: mount.hostPath, target })
    const { uidMappings: _uids, gidMappings: _gids, ...rest } = mount
    return { ...rest, hostPath: target }
  })
  return { mounts: result, idmapped }
}

function samePairs(mount: readonly IDMapping[] | undefined, pod: UserNamespaceMappings['uids']): boolean {
  return JSON.stringify(idMappings(mount ?? [])) === JSON.stringify(pod)
}

/** What mapHere() gave for a container. A TypeError when the file is not what this service wrote. */
export async function readIdmapped(layout: Layout, id: string): Promise<IdmapMount[]> {
  const value = await readJson(idmappedPath(layout, id))
  if (value === undefined) return []
  if (!Array.isArray(value)) throw new TypeError(`${idmappedPath(layout, id)} is not a list of mounts`)
  return value.map((entry: unknown) => {
    if (typeof entry !== 'object' || entry === null || !('source' in entry) || !('target' in entry) || typeof entry.source !== 'string' || typeof entry.target !== 'string') {
      throw new TypeError(`${idmappedPath(layout, id)} is not a list of mounts`)
    }
    return { source: entry.source, target: entry.target }
  })
}
