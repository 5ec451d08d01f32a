import { internal, invalidArgument } from '../errors/cri-error.ts'
import type { SELinuxOption } from '../generated/cri.ts'
import type { HostFacts, SelinuxLabels } from './input.ts'

const LEVEL = /^s\d(-s\d)?(:c\d{1,4}(\.c\d{1,4})?(,c\d{1,4}(\.c\d{1,4})?)*)?$/

/**
 * The options for allocating a label, as `user:…`, `role:…`, `type:…`, `level:…`; empty when the request has none. Throws INVALID_ARGUMENT
 * for a malformed part, also where SELinux is off.
 */
export function selinuxLabelOptions(options: SELinuxOption | null): string[] {
  if (options === null) return []
  if (options.level !== '' && !LEVEL.test(options.level)) throw invalidArgument(`SELinux level "${options.level}" is malformed: it looks like s0:c1,c2`)
  for (const part of [options.user, options.role, options.type]) {
    if (!/^[\w.-]*$/.test(part)) throw invalidArgument(`SELinux option "${part}" is malformed: letters, digits, "_", "-" and "." only`)
  }
  return (['user', 'role', 'type', 'level'] as const).filter((key) => options[key] !== '').map((key) => `${key}:${options[key]}`)
}

/**
 * Throws INVALID_ARGUMENT for malformed options and INTERNAL when SELinux is on and no labels were allocated: without one, a process would run
 * with the rights of the runtime.
 */
export function requireLabels(options: SELinuxOption | null, labels: SelinuxLabels | undefined, facts: Pick<HostFacts, 'selinuxEnabled'>): void {
  selinuxLabelOptions(options)
  if (facts.selinuxEnabled && (labels === undefined || labels.processLabel === '')) throw internal('SELinux is enabled, but no label was allocated')
}
