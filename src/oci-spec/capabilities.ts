import { Code, CriError, invalidArgument } from '../errors/cri-error.ts'
import type { Capability } from '../generated/cri.ts'
import type { HostFacts } from './input.ts'
import type { OciCapabilities } from './types.ts'

/** By number, as in include/uapi/linux/capability.h. */
const KNOWN = [
  'CHOWN', 'DAC_OVERRIDE', 'DAC_READ_SEARCH', 'FOWNER', 'FSETID', 'KILL', 'SETGID', 'SETUID', 'SETPCAP', 'LINUX_IMMUTABLE',
  'NET_BIND_SERVICE', 'NET_BROADCAST', 'NET_ADMIN', 'NET_RAW', 'IPC_LOCK', 'IPC_OWNER', 'SYS_MODULE', 'SYS_RAWIO', 'SYS_CHROOT',
  'SYS_PTRACE', 'SYS_PACCT', 'SYS_ADMIN', 'SYS_BOOT', 'SYS_NICE', 'SYS_RESOURCE', 'SYS_TIME', 'SYS_TTY_CONFIG', 'MKNOD', 'LEASE',
  'AUDIT_WRITE', 'AUDIT_CONTROL', 'SETFCAP', 'MAC_OVERRIDE', 'MAC_ADMIN', 'SYSLOG', 'WAKE_ALARM', 'BLOCK_SUSPEND', 'AUDIT_READ',
  'PERFMON', 'BPF', 'CHECKPOINT_RESTORE',
].map((name) => `CAP_${name}`)

/** What a container has when its request says nothing: containerd's list. */
export const DEFAULT_CAPABILITIES: readonly string[] = [
  'CHOWN', 'DAC_OVERRIDE', 'FSETID', 'FOWNER', 'MKNOD', 'NET_RAW', 'SETGID', 'SETUID', 'SETFCAP', 'SETPCAP', 'NET_BIND_SERVICE',
  'SYS_CHROOT', 'KILL', 'AUDIT_WRITE',
].map((name) => `CAP_${name}`)

type CapabilityFacts = Pick<HostFacts, 'effectiveCapabilities' | 'capLastCap'>

const numberOf = (name: string): number => KNOWN.indexOf(name)
const held = (facts: CapabilityFacts, name: string): boolean => ((facts.effectiveCapabilities >> BigInt(numberOf(name))) & 1n) === 1n

/** Whether the process that starts the runtime may lower an OOM score. */
export function hasCapSysResource(facts: CapabilityFacts): boolean {
  return held(facts, 'CAP_SYS_RESOURCE')
}

/** Everything that can be given: what the kernel knows and the process that starts the runtime holds itself. */
export function allCapabilities(facts: CapabilityFacts): string[] {
  return KNOWN.filter((name, number) => number <= facts.capLastCap && held(facts, name))
}

/** The sets of a privileged container. */
export function privilegedCapabilities(facts: CapabilityFacts): OciCapabilities {
  const all = allCapabilities(facts)
  return { bounding: all, effective: [...all], permitted: [...all] }
}

/**
 * The sets for a request, from those of the base spec: ALL first, then the single additions, then the single drops. Names with and without
 * CAP_, in any case. The inheritable set holds the requested ambient capabilities (the kernel raises no others) and nothing else ever
 * (CVE-2022-24769). Throws INVALID_ARGUMENT for a name that does not exist and FAILED_PRECONDITION for one that cannot be given here.
 */
export function containerCapabilities(request: Capability | null, base: readonly string[], facts: CapabilityFacts): OciCapabilities {
  const { add_capabilities: add = [], drop_capabilities: drop = [], add_ambient_capabilities: ambient = [] } = request ?? {}
  const additions = single([...add, ...ambient])
  const drops = new Set(single(drop).filter((name) => known(name, 'drop')))
  for (const name of additions) requireHeld(name, facts)
  const start = hasAll(drop) ? [] : hasAll([...add, ...ambient]) ? allCapabilities(facts) : base
  const result = [...new Set([...start, ...additions])].filter((name) => !drops.has(name))
  const raised = [...new Set(hasAll(ambient) && !hasAll(drop) ? [...allCapabilities(facts), ...single(ambient)] : single(ambient))].filter((name) => !drops.has(name))
  return {
    bounding: result,
    effective: [...result],
    permitted: [...result],
    ...(raised.length === 0 ? {} : { inheritable: raised, ambient: [...raised] }),
  }
}

const isAll = (name: string): boolean => name.toUpperCase() === 'ALL'
const hasAll = (names: readonly string[]): boolean => names.some(isAll)

function single(names: readonly string[]): string[] {
  return names.filter((name) => !isAll(name)).map((name) => {
    const upper = name.toUpperCase()
    return upper.startsWith('CAP_') ? upper : `CAP_${upper}`
  })
}

function known(name: string, verb: 'add' | 'drop'): true {
  if (numberOf(name) === -1) throw invalidArgument(`unknown capability "${name}" to ${verb}: see capabilities(7) for the names`)
  return true
}

function requireHeld(name: string, facts: CapabilityFacts): void {
  known(name, 'add')
  if (numberOf(name) > facts.capLastCap) throw invalidArgument(`capability "${name}" cannot be added: this node's kernel does not know it`)
  if (held(facts, name)) return
  throw new CriError(
    Code.FAILED_PRECONDITION,
    `capability "${name}" cannot be added: the container runtime service of this node does not have it itself; ` +
      'see CapabilityBoundingSet= of its systemd unit, or do not add it',
    { reason: 'CapabilityNotHeld' },
  )
}
