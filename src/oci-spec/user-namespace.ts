import { invalidArgument } from '../errors/cri-error.ts'
import { type IDMapping, NamespaceMode, type UserNamespace } from '../generated/cri.ts'
import type { IdRange } from '../linux/linux.ts'
import type { ResolvedUser } from './input.ts'
import type { OciIdMapping } from './types.ts'

export interface UserNamespaceMappings {
  readonly uids: OciIdMapping[]
  readonly gids: OciIdMapping[]
}

/** The mappings of a pod with a user namespace of its own, undefined for one in the node's. Throws INVALID_ARGUMENT for anything else. */
export function userNamespaceMappings(options: UserNamespace | null | undefined): UserNamespaceMappings | undefined {
  // Kubelets that know no user namespaces send none.
  if (options === null || options === undefined) return undefined
  if (options.mode === NamespaceMode.NODE) {
    if (options.uids.length > 0 || options.gids.length > 0) throw invalidArgument('user namespace: mode NODE goes without id mappings')
    return undefined
  }
  if (options.mode !== NamespaceMode.POD) throw invalidArgument(`user namespace: mode ${options.mode} is not supported: only POD and NODE are`)
  const [uids, gids] = [mapping(options.uids, 'uid'), mapping(options.gids, 'gid')]
  if (uids[0]?.size !== gids[0]?.size) throw invalidArgument(`user namespace: the uid mapping has length ${uids[0]?.size} and the gid mapping ${gids[0]?.size}: they must be the same`)
  return { uids, gids }
}

/** The mappings as src/linux takes them. */
export function idRanges({ uids, gids }: UserNamespaceMappings): { readonly uids: IdRange[]; readonly gids: IdRange[] } {
  const ranges = (mappings: readonly OciIdMapping[]): IdRange[] => mappings.map(({ containerID, hostID, size }) => ({ containerId: containerID, hostId: hostID, size }))
  return { uids: ranges(uids), gids: ranges(gids) }
}

/** Who a user of the namespace is on the node. INVALID_ARGUMENT for one that is not mapped. */
export function hostIds(mappings: UserNamespaceMappings, user: { readonly uid: number; readonly gid: number }): { readonly uid: number; readonly gid: number } {
  return { uid: hostId(mappings.uids, user.uid, 'uid'), gid: hostId(mappings.gids, user.gid, 'gid') }
}

/** Throws INVALID_ARGUMENT unless every id of a process exists in the namespace. */
export function requireMapped(mappings: UserNamespaceMappings | undefined, { uid, gid, additionalGids }: ResolvedUser): void {
  if (mappings === undefined) return
  for (const group of [gid, ...additionalGids]) hostIds(mappings, { uid, gid: group })
}

function hostId(mappings: readonly OciIdMapping[], id: number, kind: string): number {
  for (const { containerID, hostID, size } of mappings) if (id >= containerID && id < containerID + size) return hostID + id - containerID
  const range = mappings.map(({ containerID, size }) => `${containerID} to ${containerID + size - 1}`).join(', ')
  throw invalidArgument(`${kind} ${id} does not exist in the pod's user namespace, which has ${range}: run as another user, or give the pod more ids`)
}

/** Throws INVALID_ARGUMENT unless a container's user namespace is that of its pod. */
export function requireSameUserNamespace(sandbox: UserNamespaceMappings | undefined, container: UserNamespaceMappings | undefined): void {
  const same = (a: readonly OciIdMapping[] | undefined, b: readonly OciIdMapping[] | undefined): boolean =>
    a?.length === b?.length && (a ?? []).every((one, index) => {
      const other = b?.[index]
      return one.containerID === other?.containerID && one.hostID === other.hostID && one.size === other.size
    })
  if (same(sandbox?.uids, container?.uids) && same(sandbox?.gids, container?.gids)) return
  throw invalidArgument('user namespace: the container\'s mappings differ from those of its pod; they share one namespace')
}

/** Id mappings of the wire in the spec's names. */
export function idMappings(mappings: readonly IDMapping[]): OciIdMapping[] {
  return mappings.map(({ container_id: containerID, host_id: hostID, length: size }) => ({ containerID, hostID, size }))
}

function mapping(mappings: readonly IDMapping[], kind: string): OciIdMapping[] {
  // As containerd and the kubelet agree on: one line each.
  if (mappings.length !== 1) throw invalidArgument(`user namespace: exactly one ${kind} mapping is supported, not ${mappings.length}`)
  const result = idMappings(mappings)
  for (const { containerID, hostID, size } of result) {
    if (containerID !== 0) throw invalidArgument(`user namespace: the ${kind} mapping begins at ${containerID}: ${kind} 0 of the container must be mapped`)
    if (size < 1) throw invalidArgument(`user namespace: the ${kind} mapping has length ${size}: it must be at least 1`)
    if (hostID + size > 2 ** 32 || containerID + size > 2 ** 32) throw invalidArgument(`user namespace: the ${kind} mapping goes beyond the largest ${kind}`)
  }
  return result
}
