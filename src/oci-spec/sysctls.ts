import { invalidArgument } from '../errors/cri-error.ts'
import { type NamespaceOption, NamespaceMode } from '../generated/cri.ts'
import type { SpecSettings } from './input.ts'

const IPC_SYSCTLS = new Set([
  'kernel.msgmax', 'kernel.msgmnb', 'kernel.msgmni', 'kernel.sem', 'kernel.shmall', 'kernel.shmmax', 'kernel.shmmni', 'kernel.shm_rmid_forced',
])
const COMPONENT = '[a-z0-9](?:[-_a-z0-9]*[a-z0-9])?'
const NAME = new RegExp(`^${COMPONENT}(?:[./]${COMPONENT})+$`)
/** Printable ASCII and tabs without "+", which helpers of other runtimes take for a separator (CVE-2022-0811). */
const VALUE = /^[\t\x20-\x2a\x2c-\x7e]+$/
const PORT_START = 'net.ipv4.ip_unprivileged_port_start'
const PING_RANGE = 'net.ipv4.ping_group_range'

export interface SysctlsInput {
  readonly sysctls: Readonly<Record<string, string>>
  readonly namespaces: NamespaceOption | null
  readonly userNamespace: boolean
  readonly inUserNamespace: boolean
  readonly settings: Pick<SpecSettings, 'enableUnprivilegedPorts' | 'enableUnprivilegedIcmp'>
}

/**
 * linux.sysctl of a pod: the requested ones, and those that enable_unprivileged_ports and enable_unprivileged_icmp set where the request does
 * not. Only sysctls of a namespace that the pod has to itself are let through: any other would change the node. Throws INVALID_ARGUMENT.
 */
export function podSysctls({ sysctls, namespaces, userNamespace, inUserNamespace, settings }: SysctlsInput): Record<string, string> {
  const hostNetwork = namespaces?.network === NamespaceMode.NODE
  const hostIpc = namespaces?.ipc === NamespaceMode.NODE
  const result: Record<string, string> = {}
  for (const [name, value] of Object.entries(sysctls)) {
    if (!NAME.test(name) || name.length > 253) throw invalidArgument(`sysctl "${name}": this is not the name of a sysctl`)
    if (!VALUE.test(value)) throw invalidArgument(`sysctl "${name}": the value has characters that are not allowed (printable ASCII without "+")`)
    const dotted = dotForm(name)
    const namespace = IPC_SYSCTLS.has(dotted) || dotted.startsWith('fs.mqueue.') ? 'ipc' : dotted.startsWith('net.') ? 'network' : undefined
    if (namespace === undefined) throw invalidArgument(`sysctl "${name}" belongs to the whole node, not to a pod: set it on the node, or leave it out`)
    if ((namespace === 'ipc' && hostIpc) || (namespace === 'network' && hostNetwork)) {
      throw invalidArgument(`sysctl "${name}" cannot be set: the pod shares the node's ${namespace} namespace, so it would change the node`)
    }
    result[name] = value
  }
  if (hostNetwork) return result
  const given = new Set(Object.keys(result).map(dotForm))
  if (settings.enableUnprivilegedPorts && !given.has(PORT_START)) result[PORT_START] = '0'
  if (settings.enableUnprivilegedIcmp && !given.has(PING_RANGE) && !userNamespace && !inUserNamespace) result[PING_RANGE] = '0 2147483647'
  return result
}

/** sysctl(8): in a name whose first separator is a slash, slashes separate and dots belong to the parts (`net/ipv4/conf/eth0.1/forwarding`). */
function dotForm(name: string): string {
  if (name.charAt(name.search(/[./]/)) === '.') return name
  return name.replace(/[./]/g, (separator) => (separator === '/' ? '.' : '/'))
}
