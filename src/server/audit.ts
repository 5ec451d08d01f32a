import { NamespaceMode, type NamespaceOption, type PodSandboxMetadata } from '../generated/cri.ts'
import type { Method, Rpcs } from './handlers.ts'
import type { Peer } from './peers.ts'

/** Names of a pod or container, for who reads the audit log. */
export type AuditNames = Readonly<Record<string, string>>

/** Where the lines go, and what is known of the ids in requests. */
export interface Audit {
  write(line: Readonly<Record<string, unknown>>): void
  /** Namespace, pod, container, ids. A shortened or unknown id is given back as it is. */
  describeContainer(id: string): AuditNames
  describePod(id: string): AuditNames
  /** Whether the commands of exec are written down. */
  readonly commands: boolean
  /** Who is at the other end of a connection. */
  readonly lookUp: (fd: number) => Promise<Peer>
}

/** The bound of a command in a line, in characters. */
const maxCommandLength = 16_384

/**
 * What a line says about a call, from its request alone: nothing of env, credentials or URLs. Undefined for a call that is not audited: of pods only
 * privileged ones and those with a namespace of the node, of containers the privileged.
 */
export function auditSubject(audit: Audit, method: Method, message: object): Readonly<Record<string, unknown>> | undefined {
  switch (method) {
    case 'Exec': case 'ExecSync': {
      const { container_id: id, cmd, tty = false } = message as Omit<Rpcs['Exec']['request'], 'tty'> & { readonly tty?: boolean }
      return { ...audit.describeContainer(id), ...commandOf(audit, cmd), ...(tty ? { tty } : {}) }
    }
    case 'Attach': {
      const { container_id: id, stdin } = message as Rpcs['Attach']['request']
      return { ...audit.describeContainer(id), stdin }
    }
    case 'PortForward': {
      const { pod_sandbox_id: id, port } = message as Rpcs['PortForward']['request']
      return { ...audit.describePod(id), ports: port }
    }
    case 'RunPodSandbox': {
      const { config, runtime_handler: handler } = message as Rpcs['RunPodSandbox']['request']
      const security = config?.linux?.security_context
      const hostNamespaces = namespacesOfNode(security?.namespace_options)
      const privileged = security?.privileged === true
      if (!privileged && hostNamespaces.length === 0) return undefined
      return { ...podNames(config?.metadata), privileged, hostNamespaces, ...(handler === '' ? {} : { runtimeHandler: handler }) }
    }
    case 'CreateContainer': {
      const { config, sandbox_config: pod, pod_sandbox_id: id } = message as Rpcs['CreateContainer']['request']
      if (config?.linux?.security_context?.privileged !== true) return undefined
      return { ...audit.describePod(id), ...podNames(pod?.metadata), container: config.metadata?.name ?? '', image: config.image?.image ?? '', privileged: true }
    }
    case 'PullImage': {
      const { image, sandbox_config: pod } = message as Rpcs['PullImage']['request']
      return { ...podNames(pod?.metadata), image: image?.image ?? '' }
    }
    case 'RemoveImage':
      return { image: (message as Rpcs['RemoveImage']['request']).image?.image ?? '' }
    default:
      return undefined
  }
}

/** The command as a line shows it; nothing when commands are switched off. */
export function commandOf(audit: Pick<Audit, 'commands'>, command: readonly string[]): { readonly command?: readonly string[]; readonly commandCut?: true } {
  if (!audit.commands) return {}
  const shown: string[] = []
  let room = maxCommandLength
  for (const word of command) {
    if (word.length > room) return { command: [...shown, `${word.slice(0, room)}…`], commandCut: true }
    shown.push(word)
    room -= word.length
  }
  return { command: shown }
}

function podNames(metadata: PodSandboxMetadata | null | undefined): AuditNames {
  return metadata === null || metadata === undefined ? {} : { namespace: metadata.namespace, pod: metadata.name, podUid: metadata.uid }
}

function namespacesOfNode(options: NamespaceOption | null | undefined): string[] {
  if (options === null || options === undefined) return []
  return (['network', 'pid', 'ipc'] as const).filter((kind) => options[kind] === NamespaceMode.NODE)
}
