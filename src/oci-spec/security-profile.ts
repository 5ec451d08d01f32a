import { invalidArgument } from '../errors/cri-error.ts'
import { type SecurityProfile, SecurityProfile_ProfileType } from '../generated/cri.ts'

/** A request for a seccomp or AppArmor profile, from either of the two ways in which CRI expresses it. */
export type ProfileRequest =
  | { readonly type: 'unconfined' }
  | { readonly type: 'runtime-default' }
  /** `name`: a file for seccomp, a loaded profile for AppArmor. */
  | { readonly type: 'localhost'; readonly name: string }

const LOCALHOST = 'localhost/'

/** The message form. Throws INVALID_ARGUMENT when type and reference do not fit together. */
export function profileOfMessage(profile: SecurityProfile, kind: 'seccomp' | 'AppArmor'): ProfileRequest {
  const type = profile.profile_type
  if (type === SecurityProfile_ProfileType.Localhost) {
    const name = profile.localhost_ref.startsWith(LOCALHOST) ? profile.localhost_ref.slice(LOCALHOST.length) : profile.localhost_ref
    return localhost(name, kind)
  }
  if (profile.localhost_ref !== '') throw invalidArgument(`${kind} profile: localhost_ref "${profile.localhost_ref}" goes only with the type Localhost`)
  if (type === SecurityProfile_ProfileType.RuntimeDefault) return { type: 'runtime-default' }
  if (type === SecurityProfile_ProfileType.Unconfined) return { type: 'unconfined' }
  throw invalidArgument(`${kind} profile: unknown profile type ${type}`)
}

/** The string form (deprecated fields, `unset_seccomp_profile`). Throws INVALID_ARGUMENT for any other string. */
export function profileOfString(profile: string, kind: 'seccomp' | 'AppArmor'): ProfileRequest {
  if (profile === 'runtime/default' || profile === 'docker/default') return { type: 'runtime-default' }
  if (profile === 'unconfined') return { type: 'unconfined' }
  if (profile.startsWith(LOCALHOST)) return localhost(profile.slice(LOCALHOST.length), kind)
  throw invalidArgument(`${kind} profile "${profile}" is none of runtime/default, unconfined and localhost/NAME`)
}

function localhost(name: string, kind: string): ProfileRequest {
  if (name === '') throw invalidArgument(`${kind} profile: the type Localhost needs a localhost_ref`)
  return { type: 'localhost', name }
}
