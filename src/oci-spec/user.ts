import { invalidArgument } from '../errors/cri-error.ts'
import type { Int64Value } from '../generated/cri.ts'
import type { ImageConfig } from './image-config.ts'
import { MAX_ID, idOf } from './integers.ts'

/** Whom to run as, before /etc/passwd and /etc/group are looked into. At most one of uid and username, one of gid and group. All absent: root. */
export interface UserRequest {
  readonly uid?: number
  readonly username?: string
  readonly gid?: number
  readonly group?: string
}

/** The fields of a container's security context that decide on the user; a sandbox's has no user name. */
export interface UserSource {
  readonly run_as_user: Int64Value | null
  readonly run_as_group: Int64Value | null
  readonly run_as_username?: string
}

const MAX_NAME = 256

/**
 * An image's USER: `user`, `uid`, `user:group`, `uid:gid`, `uid:group` or `user:gid`; empty for root. Throws INVALID_ARGUMENT for ids outside
 * 0..2^31-1 and for what only looks like a number, which one program reads as an id and the next as a name (CVE-2024-40635).
 */
export function parseUser(imageUser: string): UserRequest {
  if (imageUser === '') return {}
  const [user = '', group = '', ...rest] = imageUser.split(':')
  if (rest.length > 0) throw invalidArgument(`invalid USER ${quote(imageUser)}: more than one ":"`)
  const who = part(user, imageUser, 'uid')
  const which = part(group, imageUser, 'gid')
  return {
    ...(typeof who === 'number' ? { uid: who } : who === undefined ? (which === undefined ? {} : { uid: 0 }) : { username: who }),
    ...(typeof which === 'number' ? { gid: which } : which === undefined ? {} : { group: which }),
  }
}

/**
 * Whom a request asks for: its user name, else its uid, with its gid; without any, the image's USER. Throws INVALID_ARGUMENT for a group
 * without a user and for ids out of range.
 */
export function userRequest(source: UserSource | null, imageConfig: Pick<ImageConfig, 'User'>): UserRequest {
  const username = source?.run_as_username ?? ''
  const gid = source?.run_as_group ? idOf(source.run_as_group.value, 'run_as_group') : undefined
  const uid = source?.run_as_user ? idOf(source.run_as_user.value, 'run_as_user') : undefined
  if (username === '' && uid === undefined) {
    if (gid !== undefined) throw invalidArgument(`run_as_group ${gid} is given without run_as_user: a group needs a user`)
    return parseUser(imageConfig.User)
  }
  const user = username !== '' ? parseUser(username) : { uid: uid ?? 0 }
  if (gid === undefined) return user
  const { group: _group, ...rest } = user
  return { ...rest, gid }
}

function part(text: string, whole: string, kind: 'uid' | 'gid'): number | string | undefined {
  if (text === '') return undefined
  if (/^(0|[1-9]\d*)$/.test(text)) {
    const id = Number(text)
    if (text.length > 10 || id > MAX_ID) throw invalidArgument(`invalid USER ${quote(whole)}: ${kind} out of range, it must be in 0..${MAX_ID}`)
    return id
  }
  if (/^[+-]?(0[xob][0-9a-f_]*|\d[\d_.,]*(e[+-]?\d+)?)$/i.test(text)) {
    throw invalidArgument(`invalid USER ${quote(whole)}: ${quote(text)} looks like a number but is not a plain decimal ${kind}`)
  }
  // oxlint-disable-next-line no-control-regex -- control characters are what is looked for
  if (text.length > MAX_NAME || /[\s/\u0000-\u001f\u007f]/.test(text)) throw invalidArgument(`invalid USER ${quote(whole)}: ${quote(text)} is not a name`)
  return text
}

const quote = (text: string): string => JSON.stringify(text.length > MAX_NAME ? `${text.slice(0, MAX_NAME)}…` : text)
