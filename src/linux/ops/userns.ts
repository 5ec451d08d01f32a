import { mkdirSync, readSync, writeFileSync, writeSync } from 'node:fs'
import { posix } from 'node:path'
import { Code, CriError, failedPrecondition, invalidArgument, messageOf } from '../../errors/cri-error.ts'
import { fromNodeError, naming } from '../errno.ts'
import { check, K, libc, openPath, withFd } from '../libc.ts'
import { openPipe, reapChild, startProgram } from '../posix-spawn.ts'
import { absolute, type OpContext } from './context.ts'
import { bringLoopbackUp, insideNetns } from './netns.ts'
import { deletePinned, isPinned, type NamespaceKind, networkNamespace, openMountPoint, pinNamespace, unpinNamespace, userNamespace } from './pinned-namespaces.ts'

/** A range of ids, as /proc/PID/uid_map has it. */
export interface IdRange {
  readonly containerId: number
  readonly hostId: number
  readonly size: number
}

export interface UserNamespaceRequest {
  readonly uids: readonly IdRange[]
  readonly gids: readonly IdRange[]
  /** Where to mount a network namespace that belongs to it, with `lo` up; undefined for none. */
  readonly netns?: string | undefined
}

const helperTimeoutMs = 10_000
const helperPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/** @see Linux.createUserNamespace */
export function createUserNamespace(context: OpContext, path: string, request: UserNamespaceRequest): void {
  const target = absolute(path)
  const maps = { uid_map: idMap(request.uids, 'uid'), gid_map: idMap(request.gids, 'gid') }
  withMountPoint(target, userNamespace, (pinUser) => {
    const netns = request.netns === undefined ? undefined : absolute(request.netns)
    const make = (pinNetwork?: (source: string) => void): void => inHelper(netns !== undefined, (pid) => {
      for (const [file, text] of Object.entries(maps)) naming(`map the ids of the user namespace (${text.trim()})`, () => writeFileSync(`/proc/${pid}/${file}`, text))
      pinUser(`/proc/${pid}/ns/user`)
      if (netns === undefined || pinNetwork === undefined) return
      pinNetwork(`/proc/${pid}/ns/net`)
      insideNetns(context, netns, bringLoopbackUp)
    })
    if (netns === undefined) make()
    else withMountPoint(netns, networkNamespace, make)
    context.commit()
  })
}

/** @see Linux.deleteUserNamespace */
export function deleteUserNamespace(context: OpContext, path: string): void {
  deletePinned(context, absolute(path), userNamespace)
}

/** @see Linux.userNamespaceExists */
export function userNamespaceExists(_: OpContext, path: string): boolean {
  return isPinned(absolute(path), userNamespace)
}

/** Runs `work` with the descriptor of a user namespace of these ids that ends with it. */
export function withUserNamespace<T>(uids: readonly IdRange[], gids: readonly IdRange[], work: (fd: number) => T): T {
  return inHelper(false, (pid) => {
    writeFileSync(`/proc/${pid}/uid_map`, idMap(uids, 'uid'))
    writeFileSync(`/proc/${pid}/gid_map`, idMap(gids, 'gid'))
    return withFd(openPath(`open /proc/${pid}/ns/user`, `/proc/${pid}/ns/user`, K.O_RDONLY), work)
  })
}

function idMap(ranges: readonly IdRange[], kind: string): string {
  if (ranges.length === 0) throw invalidArgument(`a user namespace needs a ${kind} mapping`)
  for (const range of ranges) {
    for (const value of [range.containerId, range.hostId, range.size]) {
      if (!Number.isInteger(value) || value < 0 || value > 0xffff_ffff) throw invalidArgument(`${kind} mapping: ${value} is no ${kind}`)
    }
  }
  return ranges.map(({ containerId, hostId, size }) => `${containerId} ${hostId} ${size}\n`).join('')
}

/** Makes the file that a namespace is mounted on, and takes it and the mount away again when `work` fails. */
function withMountPoint(target: string, kind: NamespaceKind, work: (pin: (source: string) => void) => void): void {
  naming(`make ${posix.dirname(target)}`, () => mkdirSync(posix.dirname(target), { recursive: true, mode: 0o755 }))
  const file = openMountPoint(target, kind)
  let mounted = false
  try {
    work((source) => {
      pinNamespace(source, target, kind)
      mounted = true
    })
  } catch (error) {
    unpinNamespace(target, mounted)
    throw error
  } finally {
    libc.close(file)
  }
}

/**
 * Runs `work` with the pid of a process in new namespaces. Only a process with a single thread can make a user namespace, which Node is not: util-linux's
 * (or busybox's) unshare makes it, and a `cat` in it lives until its input ends. The kernel makes the user namespace first, so that the network namespace is its own.
 */
function inHelper<T>(network: boolean, work: (pid: number) => T): T {
  const open = new Set<number>()
  const pipe = (): readonly [number, number] => {
    const ends = openPipe('unshare')
    for (const end of ends) open.add(end)
    return ends
  }
  const close = (fd: number): void => {
    if (open.delete(fd)) libc.close(fd)
  }
  let pid = 0
  try {
    const [input, output, errors] = [pipe(), pipe(), pipe()]
    const ours = [input[1], output[0], errors[0]]
    const stdio = [input[0], output[1], errors[1]] as const
    pid = startUnshare(network, stdio)
    for (const end of stdio) close(end)
    if (!answers(input[1], output[0])) throw refusal(errors[0])
    const result = work(pid)
    for (const end of ours) close(end)
    return result
  } finally {
    for (const fd of open) libc.close(fd)
    if (pid !== 0) endHelper(pid)
  }
}

function startUnshare(network: boolean, stdio: readonly [number, number, number]): number {
  const args = ['-U', ...(network ? ['-n'] : []), 'cat']
  for (const dir of helperPath.split(':')) {
    try {
      return startProgram(`${dir}/unshare`, args, { env: { PATH: helperPath, LC_ALL: 'C' }, cwd: '/' }, stdio)
    } catch (error) {
      if (fromNodeError('start unshare', error).reason !== 'ENOENT') throw fromNodeError(`start ${dir}/unshare`, error)
    }
  }
  throw failedPrecondition(`user namespaces need the program unshare, which is in none of ${helperPath}; install util-linux`, { reason: 'ENOENT' })
}

/** Whether the `cat` is there: then unshare has done its work. */
function answers(input: number, output: number): boolean {
  try {
    writeSync(input, '\n')
  } catch {
    return false
  }
  const poll = Buffer.alloc(8)
  poll.writeInt32LE(output, 0)
  poll.writeInt16LE(K.POLLIN, 4)
  if (check('wait for the new namespaces', libc.poll(poll, 1, helperTimeoutMs)) === 0) throw new CriError(Code.DEADLINE_EXCEEDED, `unshare has not made the namespaces within ${helperTimeoutMs / 1000} s`)
  return readSync(output, Buffer.alloc(1)) === 1
}

function refusal(errors: number): CriError {
  const text = Buffer.alloc(1024)
  let said: string
  try {
    said = text.toString('utf8', 0, readSync(errors, text)).trim()
  } catch (error) {
    said = messageOf(error)
  }
  const remedy = /No space left/.test(said) ? '; raise the sysctl user.max_user_namespaces' : /Invalid argument|Operation not permitted/.test(said) ? '; this kernel has no user namespaces, or does not allow them' : ''
  return failedPrecondition(`cannot make a user namespace: ${said === '' ? 'unshare gave no reason' : said}${remedy}`, { reason: 'UserNamespaceRefused' })
}

function endHelper(pid: number): void {
  try {
    // Not reaped yet, so the number is still its own.
    process.kill(pid, 'SIGKILL')
  } finally {
    reapChild(pid, true)
  }
}
