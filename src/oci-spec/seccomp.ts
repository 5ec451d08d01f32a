import { failedPrecondition, internal } from '../errors/cri-error.ts'
import type { SecurityProfile } from '../generated/cri.ts'
import type { HostFacts, SpecSettings } from './input.ts'
import { type ProfileRequest, profileOfMessage, profileOfString } from './security-profile.ts'
import { type SeccompFacts, defaultSeccompProfile } from './seccomp-default.ts'
import { localhostSeccompProfile } from './seccomp-localhost.ts'
import type { OciSeccomp } from './types.ts'

/** The fields of a container's or a sandbox's security context that seccomp depends on. */
export interface SeccompSource {
  readonly seccomp: SecurityProfile | null
  /** The deprecated string field. */
  readonly seccomp_profile_path: string
  readonly privileged: boolean
}

/**
 * The profile that holds for a security context, undefined where nothing is asked for. A privileged container has none. With type
 * `localhost` the caller reads the file `name` (absolute, or below the kubelet's seccomp folder) and passes its text on. Throws
 * INVALID_ARGUMENT for a malformed request, FAILED_PRECONDITION where the kernel has no seccomp.
 */
export function seccompRequest(
  source: SeccompSource | null,
  settings: Pick<SpecSettings, 'unsetSeccompProfile'>,
  facts: Pick<HostFacts, 'seccompEnabled'>,
): ProfileRequest | undefined {
  const asked = source?.seccomp ? profileOfMessage(source.seccomp, 'seccomp')
    : source !== null && source.seccomp_profile_path !== '' ? profileOfString(source.seccomp_profile_path, 'seccomp')
    : settings.unsetSeccompProfile !== '' ? profileOfString(settings.unsetSeccompProfile, 'seccomp') : undefined
  if (source?.privileged === true) return undefined
  if (!facts.seccompEnabled && asked !== undefined && asked.type !== 'unconfined') {
    throw failedPrecondition('a seccomp profile was asked for, but this node\'s kernel has no seccomp (CONFIG_SECCOMP_FILTER)')
  }
  return asked
}

/** linux.seccomp for a request; undefined for none. */
export function seccompProfile(request: ProfileRequest | undefined, localhostText: string | undefined, facts: SeccompFacts): OciSeccomp | undefined {
  if (request === undefined || request.type === 'unconfined') return undefined
  if (request.type === 'runtime-default') return defaultSeccompProfile(facts)
  if (localhostText === undefined) throw internal(`the text of seccomp profile "${request.name}" was not passed on`)
  return localhostSeccompProfile(request.name, localhostText, facts)
}
