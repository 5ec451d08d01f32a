import { invalidArgument } from '../errors/cri-error.ts'
import { SupplementalGroupsPolicy } from '../generated/cri.ts'
import type { Int64 } from '../generated/int64.ts'
import type { ResolvedUser } from './input.ts'
import { MAX_ID, idOf } from './integers.ts'
import type { UserRequest } from './user.ts'

/** Bounds on the image's /etc/passwd and /etc/group (CVE-2026-47262): in characters and in lines. The caller reads no more than MAX_USER_FILE_BYTES + 1. */
export const MAX_USER_FILE_BYTES = 10 * 1024 * 1024
const MAX_LINES = 200_000
/** NGROUPS_MAX of the kernel. */
const MAX_GROUPS = 65_536

interface PasswdEntry { readonly name: string; readonly uid: number; readonly gid: number; readonly home: string }
interface GroupEntry { readonly name: string; readonly gid: number; readonly members: string }

/**
 * The ids behind a request, with the image's /etc/passwd and /etc/group (undefined: no such file). A uid without an entry runs with gid 0.
 * With policy Merge the groups that /etc/group lists the user in are added; with Strict only the requested ones. The primary group is always
 * among the additional ones. Throws INVALID_ARGUMENT for an unknown name, ids out of range and files beyond all bounds.
 */
export function resolveUser(
  request: UserRequest,
  passwdText: string | undefined,
  groupText: string | undefined,
  supplementalGroups: readonly Int64[],
  policy: SupplementalGroupsPolicy,
): ResolvedUser {
  if (policy !== SupplementalGroupsPolicy.Merge && policy !== SupplementalGroupsPolicy.Strict) throw invalidArgument(`unknown supplemental_groups_policy ${policy}`)
  const entry = findUser(request, passwdText)
  const uid = entry?.uid ?? request.uid ?? 0
  const gid = request.gid ?? (request.group === undefined ? entry?.gid ?? 0 : findGroup(request.group, groupText))
  const username = entry?.name ?? request.username
  const gids = new Set([gid, ...supplementalGroups.map((group) => idOf(group, 'supplemental_groups'))])
  if (policy === SupplementalGroupsPolicy.Merge && username !== undefined) {
    for (const group of groups(groupText)) {
      if (group.name !== username && isMember(group.members, username)) gids.add(group.gid)
      if (gids.size > MAX_GROUPS) throw invalidArgument(`user "${username}" is in more than ${MAX_GROUPS} groups of the image's /etc/group; rebuild the image`)
    }
  }
  const home = entry?.home
  return {
    uid,
    gid,
    additionalGids: [...gids].sort((a, b) => a - b),
    ...(username === undefined ? {} : { username }),
    ...(home !== undefined && home.startsWith('/') && !home.includes('\0') ? { home } : {}),
  }
}

function findUser(request: UserRequest, text: string | undefined): PasswdEntry | undefined {
  if (request.username === undefined) {
    const uid = request.uid ?? 0
    return users(text).find((entry) => entry.uid === uid)
  }
  const found = users(text).find((entry) => entry.name === request.username)
  if (found === undefined) {
    throw invalidArgument(`no users found named "${request.username}" in the image's /etc/passwd: add the user to the image, or set runAsUser to a number`, { reason: 'UserNotFound' })
  }
  return found
}

function findGroup(name: string, text: string | undefined): number {
  const found = groups(text).find((entry) => entry.name === name)
  if (found === undefined) {
    throw invalidArgument(`no groups found named "${name}" in the image's /etc/group: add the group to the image, or set runAsGroup to a number`, { reason: 'GroupNotFound' })
  }
  return found.gid
}

/** passwd(5), first entry first. A line whose ids are no plain numbers in range says nothing: read as 0 it would make root of anybody. */
function* users(text: string | undefined): Generator<PasswdEntry> {
  for (const line of lines(text, '/etc/passwd')) {
    const [name = '', , uidText = '', gidText = '', , home = ''] = line.split(':', 6)
    const uid = plainId(uidText)
    const gid = plainId(gidText)
    if (name !== '' && uid !== undefined && gid !== undefined) yield { name, uid, gid, home }
  }
}

/** group(5) */
function* groups(text: string | undefined): Generator<GroupEntry> {
  for (const line of lines(text, '/etc/group')) {
    const [name = '', , gidText = '', members = ''] = line.split(':', 4)
    const gid = plainId(gidText)
    if (name !== '' && gid !== undefined) yield { name, gid, members }
  }
}

function* lines(text: string | undefined, file: string): Generator<string> {
  if (text === undefined) return
  if (text.length > MAX_USER_FILE_BYTES) throw invalidArgument(`the image's ${file} exceeds ${MAX_USER_FILE_BYTES} bytes; rebuild the image`)
  let count = 0
  for (let start = 0; start < text.length;) {
    const newline = text.indexOf('\n', start)
    const end = newline === -1 ? text.length : newline
    count += 1
    if (count > MAX_LINES) throw invalidArgument(`the image's ${file} exceeds ${MAX_LINES} lines; rebuild the image`)
    const line = text.slice(start, end).trim()
    if (line !== '' && !line.startsWith('#')) yield line
    start = end + 1
  }
}

function plainId(text: string): number | undefined {
  if (!/^\d{1,10}$/.test(text)) return undefined
  const id = Number(text)
  return id <= MAX_ID ? id : undefined
}

function isMember(members: string, username: string): boolean {
  return members.includes(username) && members.split(',').includes(username)
}
