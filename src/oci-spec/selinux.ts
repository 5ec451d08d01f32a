import { failedPrecondition, internal, invalidArgument } from '../errors/cri-error.ts'
import type { SELinuxOption } from '../generated/cri.ts'
import type { HostFacts, SelinuxLabels } from './input.ts'

const LEVEL = /^s\d+(-s\d+)?(:c\d{1,4}(\.c\d{1,4})?(,c\d{1,4}(\.c\d{1,4})?)*)?$/

/** An SELinux label: `user:role:type`, and the level (`s0:c1,c2`) where the policy has levels. */
export interface SelinuxContext {
  readonly user: string
  readonly role: string
  readonly type: string
  readonly level: string
}

/** What the policy gives containers: the labels in its file of container contexts. */
export interface SelinuxPolicy {
  readonly process: SelinuxContext
  readonly file: SelinuxContext
  /** For processes of virtual machines; that of other containers where the policy has none. */
  readonly kvmProcess: SelinuxContext
}

/** Undefined for a text that is no label. */
export function parseContext(label: string): SelinuxContext | undefined {
  const [user = '', role = '', type = '', ...level] = label.split(':')
  return user === '' || role === '' || type === '' ? undefined : { user, role, type, level: level.join(':') }
}

export function formatContext({ user, role, type, level }: SelinuxContext): string {
  return [user, role, type, ...(level === '' ? [] : [level])].join(':')
}

/** A policy's contexts (/usr/share/containers/selinux/contexts, or lxc_contexts): lines `key = "label"`. Undefined when they say nothing of containers. */
export function parsePolicyContexts(text: string): SelinuxPolicy | undefined {
  const labels = new Map<string, SelinuxContext>()
  for (const line of text.split('\n').map((each) => each.trim())) {
    const at = line.indexOf('=')
    if (line.startsWith('#') || line.startsWith(';') || at === -1) continue
    const context = parseContext(line.slice(at + 1).trim().replace(/^"|"$/g, ''))
    if (context !== undefined) labels.set(line.slice(0, at).trim(), context)
  }
  const [process, file] = [labels.get('process'), labels.get('file')]
  return process === undefined || file === undefined ? undefined : { process, file, kvmProcess: labels.get('kvm_process') ?? process }
}

/** Throws INVALID_ARGUMENT for malformed options, also where SELinux is off. */
export function checkSelinuxOptions(options: SELinuxOption | null): void {
  if (options === null) return
  if (options.level !== '' && !LEVEL.test(options.level)) throw invalidArgument(`SELinux level "${options.level}" is malformed: it looks like s0:c1,c2`)
  for (const part of [options.user, options.role, options.type]) {
    if (!/^[\w.-]*$/.test(part)) throw invalidArgument(`SELinux option "${part}" is malformed: letters, digits, "_", "-" and "." only`)
  }
}

export interface LabelInput {
  readonly policy: SelinuxPolicy
  readonly options: SELinuxOption | null
  /** The process label of the pod, for a container; empty for the pod itself. */
  readonly podLabel: string
  /** Gives a level that nobody else has. Called only when neither the request nor the pod has one. */
  readonly allocateLevel: () => string
  /** Whether the runtime runs containers in virtual machines. */
  readonly virtualMachines: boolean
}

export interface AllocatedLabels extends SelinuxLabels {
  /** The process label by which pods share a level and levels are reserved again after a restart. It is kept also for privileged ones, which do not run under it. */
  readonly recorded: string
}

/**
 * The labels of a pod or container. Without options a container has those of its pod. With options the policy's are the base; a level is the
 * request's, else the pod's (so that its containers share volumes), else a new one. Throws INVALID_ARGUMENT for malformed options.
 */
export function selinuxLabels({ policy, options, podLabel, allocateLevel, virtualMachines }: LabelInput): AllocatedLabels {
  checkSelinuxOptions(options)
  const pod = parseContext(podLabel)
  const given = options !== null && [options.user, options.role, options.type, options.level].some((part) => part !== '')
  const base = !given && pod !== undefined ? pod : policy.process
  const level = options?.level !== undefined && options.level !== '' ? options.level : pod !== undefined ? pod.level : policy.process.level === '' ? '' : allocateLevel()
  const process = {
    user: options?.user === undefined || options.user === '' ? base.user : options.user,
    role: options?.role === undefined || options.role === '' ? base.role : options.role,
    type: options?.type === undefined || options.type === '' ? base.type : options.type,
    level,
  }
  // The type of a virtual machine's process is its policy's own, whatever was asked for: qemu would not run under that of a container.
  const running = virtualMachines ? { ...process, type: policy.kvmProcess.type } : process
  const inherited = given ? undefined : pod
  const user = options?.user === undefined || options.user === '' ? (inherited ?? policy.file).user : options.user
  return { recorded: formatContext(process), processLabel: formatContext(running), mountLabel: formatContext({ ...policy.file, user, level: level === '' ? policy.file.level : level }) }
}

/**
 * Throws INVALID_ARGUMENT for malformed options and INTERNAL when SELinux is on and no labels were allocated: without one, a process would run
 * with the rights of the runtime.
 */
export function requireLabels(options: SELinuxOption | null, labels: SelinuxLabels | undefined, facts: Pick<HostFacts, 'selinuxEnabled'>): void {
  checkSelinuxOptions(options)
  if (facts.selinuxEnabled && (labels === undefined || labels.processLabel === '')) throw internal('SELinux is enabled, but no label was allocated')
}

/** The policy, or FAILED_PRECONDITION with what to do about there being none. */
export function requirePolicy(policy: SelinuxPolicy | undefined): SelinuxPolicy {
  if (policy !== undefined) return policy
  throw failedPrecondition('SELinux is on, but its policy says nothing of containers: install the package container-selinux, or set enable_selinux = false', { reason: 'NoSelinuxPolicy' })
}

/** Where pods and containers get their labels from. */
export interface SelinuxLabeler {
  /** The labels of a pod (`podLabel` empty) or container; undefined where SELinux is off. The level belongs to `id` until it is released. */
  labels(request: { readonly id: string; readonly options: SELinuxOption | null; readonly podLabel: string; readonly handler: string }): AllocatedLabels | undefined
  /** What could not be made after all needs no level. */
  release(id: string): void
  /** Gives a volume, with everything in it, a container's mount label. Nothing for an empty one. */
  relabel(path: string, mountLabel: string): Promise<void>
}
