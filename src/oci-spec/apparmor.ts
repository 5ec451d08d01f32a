import { failedPrecondition } from '../errors/cri-error.ts'
import type { SecurityProfile } from '../generated/cri.ts'
import type { HostFacts, SpecSettings } from './input.ts'
import { type ProfileRequest, profileOfMessage, profileOfString } from './security-profile.ts'

/** The profile behind RuntimeDefault, in containerd's name for it. The caller loads it (apparmor_parser) before it makes a container. */
export const DEFAULT_APPARMOR_PROFILE = 'cri-containerd.apparmor.d'

export interface ApparmorInput {
  readonly apparmor: SecurityProfile | null
  /** The deprecated string field. */
  readonly apparmorProfile: string
  readonly privileged: boolean
  /** What holds when the request says nothing. */
  readonly unset: 'runtime-default' | 'unconfined'
  readonly hostFacts: Pick<HostFacts, 'apparmorEnabled' | 'apparmorProfiles' | 'apparmorFault'>
  readonly settings: Pick<SpecSettings, 'disableApparmor'>
}

/**
 * process.apparmorProfile, undefined for none. A privileged container takes a profile only when it names one. Throws FAILED_PRECONDITION
 * when the profile is not loaded or AppArmor is off, INVALID_ARGUMENT for a malformed request.
 */
export function apparmorProfile(input: ApparmorInput): string | undefined {
  const asked = input.apparmor !== null ? profileOfMessage(input.apparmor, 'AppArmor')
    : input.apparmorProfile !== '' ? profileOfString(input.apparmorProfile, 'AppArmor') : undefined
  if (!input.hostFacts.apparmorEnabled || input.settings.disableApparmor) {
    if (asked === undefined || asked.type === 'unconfined') return undefined
    const why = input.settings.disableApparmor ? 'disable_apparmor = true in the configuration' : 'the kernel has it switched off'
    throw failedPrecondition(`an AppArmor profile was asked for, but AppArmor is not available on this node: ${why}`)
  }
  const profile: ProfileRequest = asked ?? { type: input.unset }
  if (profile.type === 'unconfined') return undefined
  if (profile.type === 'localhost') return requireLoaded(profile.name, input.hostFacts)
  if (input.privileged) return undefined
  const { apparmorProfiles: loaded, apparmorFault: fault } = input.hostFacts
  if (loaded === undefined || loaded.has(DEFAULT_APPARMOR_PROFILE)) return DEFAULT_APPARMOR_PROFILE
  if (fault !== undefined) throw failedPrecondition(fault, { reason: 'ApparmorProfile' })
  // A node without apparmor_parser has told its administrator; who asks for the profile must not run without it.
  return asked === undefined ? undefined : requireLoaded(DEFAULT_APPARMOR_PROFILE, input.hostFacts)
}

function requireLoaded(name: string, facts: Pick<HostFacts, 'apparmorProfiles'>): string {
  if (facts.apparmorProfiles === undefined || facts.apparmorProfiles.has(name)) return name
  if (name === DEFAULT_APPARMOR_PROFILE) throw failedPrecondition(`the runtime's default AppArmor profile is not loaded on this node, because apparmor_parser is missing: install the package apparmor there`)
  throw failedPrecondition(`AppArmor profile "${name}" is not loaded on this node: load it with apparmor_parser, then create the container again`)
}
