import { invalidArgument } from '../errors/cri-error.ts'
import { NamespaceMode, type NamespaceOption } from '../generated/cri.ts'
import type { OciNamespace, OciNamespaceType } from './types.ts'

const modeName = (mode: number): string => Object.entries(NamespaceMode).find(([, value]) => value === mode)?.[0] ?? String(mode)

/** Throws INVALID_ARGUMENT for modes that have no meaning for a pod. */
export function requireSandboxModes(options: NamespaceOption | null): void {
  requireSharedModes(options)
  const pid = options?.pid ?? NamespaceMode.POD
  if (pid !== NamespaceMode.POD && pid !== NamespaceMode.CONTAINER && pid !== NamespaceMode.NODE) throw invalidArgument(`pod: pid namespace mode ${modeName(pid)} is not supported`)
}

export interface ContainerNamespacesInput {
  readonly base: readonly OciNamespace[]
  readonly sandbox: NamespaceOption | null
  readonly container: NamespaceOption | null
  readonly sandboxPid: number
  readonly targetPid: number | undefined
  readonly netnsPath: string | undefined
  readonly userNamespace: boolean
  readonly cgroupNamespace: boolean
}

/**
 * The namespaces of a container: those of its sandbox, joined through the pause process, with a PID namespace of its own, of the pod, or of
 * a target. It is the sandbox that decides whether the network, IPC and PID namespaces are the node's. Throws INVALID_ARGUMENT when the
 * container asks for the node's and its sandbox has none of it, and for modes without a meaning.
 */
export function containerNamespaces(input: ContainerNamespacesInput): OciNamespace[] {
  const { base, sandbox, container, sandboxPid, targetPid, netnsPath } = input
  requireSharedModes(container)
  for (const kind of ['network', 'ipc', 'pid'] as const) {
    if (container?.[kind] === NamespaceMode.NODE && sandbox?.[kind] !== NamespaceMode.NODE) {
      throw invalidArgument(`container: ${kind} namespace mode NODE, but its pod does not use the node's ${kind} namespace`)
    }
  }
  const ofSandbox = (file: string): string => `/proc/${sandboxPid}/ns/${file}`
  // Who is root in a user namespace alone may not join what is the node's; to be in it a container just has none of its own.
  const shared = (type: OciNamespaceType, file: string, mode: number | undefined): OciNamespace[] =>
    (input.userNamespace && mode === NamespaceMode.NODE ? withoutNamespace(result, type) : withNamespace(result, { type, path: ofSandbox(file) }))
  let result: OciNamespace[] = [...base]
  result = shared('ipc', 'ipc', sandbox?.ipc)
  result = shared('uts', 'uts', sandbox?.network)
  const pidMode = container?.pid ?? NamespaceMode.POD
  result = pidMode === NamespaceMode.POD || pidMode === NamespaceMode.NODE ? shared('pid', 'pid', sandbox?.pid) : withNamespace(result, ownPidNamespace(pidMode, targetPid))
  result = netnsPath === undefined ? withoutNamespace(result, 'network') : withNamespace(result, { type: 'network', path: netnsPath })
  if (!result.some(({ type }) => type === 'mount')) result = withNamespace(result, { type: 'mount' })
  if (input.cgroupNamespace) result = withNamespace(result, { type: 'cgroup' })
  return input.userNamespace ? withNamespace(result, { type: 'user', path: ofSandbox('user') }) : result
}

function ownPidNamespace(mode: number, targetPid: number | undefined): OciNamespace {
  switch (mode) {
    case NamespaceMode.CONTAINER: return { type: 'pid' }
    case NamespaceMode.TARGET:
      if (targetPid === undefined || targetPid <= 0) throw invalidArgument('container: pid namespace mode TARGET needs the target_id of a running container of the same pod')
      return { type: 'pid', path: `/proc/${targetPid}/ns/pid` }
    default: throw invalidArgument(`container: pid namespace mode ${modeName(mode)} is not supported`)
  }
}

/** A list with a namespace put in place of the one of its type, or added. */
export function withNamespace(namespaces: readonly OciNamespace[], namespace: OciNamespace): OciNamespace[] {
  return namespaces.some(({ type }) => type === namespace.type)
    ? namespaces.map((existing) => (existing.type === namespace.type ? namespace : existing))
    : [...namespaces, namespace]
}

/** A list without a type: the process stays in the namespace that the runtime is in. */
export function withoutNamespace(namespaces: readonly OciNamespace[], type: OciNamespaceType): OciNamespace[] {
  return namespaces.filter((namespace) => namespace.type !== type)
}

function requireSharedModes(options: NamespaceOption | null): void {
  for (const kind of ['network', 'ipc'] as const) {
    const mode = options?.[kind] ?? NamespaceMode.POD
    if (mode !== NamespaceMode.POD && mode !== NamespaceMode.NODE) {
      throw invalidArgument(`${kind} namespace mode ${modeName(mode)} is not supported: a pod's containers share it (POD) or use the node's (NODE)`)
    }
  }
  if (options !== null && options.target_id !== '' && options.pid !== NamespaceMode.TARGET) {
    throw invalidArgument(`target_id "${options.target_id}" goes only with pid namespace mode TARGET`)
  }
}
