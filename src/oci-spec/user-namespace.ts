import { invalidArgument } from '../errors/cri-error.ts'
import { type IDMapping, NamespaceMode, type UserNamespace } from '../generated/cri.ts'
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
  return { uids: mapping(options.uids, 'uid'), gids: mapping(options.gids, 'gid') }
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
  // One line each: that is all that a remapped snapshot can express.
  if (mappings.length !== 1) throw invalidArgument(`user namespace: exactly one ${kind} mapping is supported, not ${mappings.length}`)
  const result = idMappings(mappings)
  for (const { containerID, hostID, size } of result) {
    if (size < 1) throw invalidArgument(`user namespace: the ${kind} mapping has length ${size}: it must be at least 1`)
    if (hostID + size > 2 ** 32 || containerID + size > 2 ** 32) throw invalidArgument(`user namespace: the ${kind} mapping goes beyond the largest ${kind}`)
  }
  return result
}
