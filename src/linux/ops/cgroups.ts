import { type Dirent, readdirSync, readFileSync, rmdirSync } from 'node:fs'
import { posix } from 'node:path'
import { Code, failedPrecondition, notFound } from '../../errors/cri-error.ts'
import type { CgroupMounts, CgroupPaths } from '../cgroups.ts'
import { fromNodeError } from '../errno.ts'
import { isWithin, type MountInfo } from '../mountinfo.ts'
import { absolute, type OpContext } from './context.ts'
import { readMountInfo } from './mounts.ts'

/** A file of a cgroup; undefined when it or the cgroup is not there, or (ENODEV) the cgroup was removed under the open file. */
function readControl(dir: string | undefined, name: string): string | undefined {
  if (dir === undefined) return undefined
  try {
    return readFileSync(posix.join(dir, name), 'latin1').trim()
  } catch (error) {
    const cause = fromNodeError(`read ${dir}/${name}`, error)
    if (cause.code === Code.NOT_FOUND || ['ENODEV', 'ENOTDIR', 'EOPNOTSUPP', 'ENOTSUP'].includes(cause.reason)) return undefined
    throw cause
  }
}

const count = (text: string | undefined): bigint | undefined => (text !== undefined && /^[0-9]+$/.test(text) ? BigInt(text) : undefined)

/** `key value` lines. */
function keyed(text: string | undefined): ReadonlyMap<string, bigint> {
  const values = new Map<string, bigint>()
  for (const line of (text ?? '').split('\n')) {
    const [key, value] = line.split(' ')
    const number = count(value)
    if (key !== undefined && number !== undefined) values.set(key, number)
  }
  return values
}

/** @see Linux.cgroupPathsOf */
export function cgroupPathsOf(_: OpContext, pid: number): CgroupPaths {
  const text = readControl('/proc', `${pid}/cgroup`)
  if (text === undefined) throw notFound(`process ${pid} has ended`, { reason: 'ESRCH' })
  return resolveCgroups(text, readMountInfo())
}

/** The directories for the text of a /proc/PID/cgroup file. */
export function resolveCgroups(text: string, mounts: readonly MountInfo[]): CgroupPaths {
  const v1: Record<string, string> = {}
  let v2: string | undefined
  for (const line of text.split('\n')) {
    const first = line.indexOf(':')
    const second = line.indexOf(':', first + 1)
    if (second === -1) continue
    const controllers = line.slice(first + 1, second)
    const path = line.slice(second + 1)
    if (controllers === '') v2 = directoryOf(mounts.filter(({ fstype }) => fstype === 'cgroup2'), path)
    for (const controller of controllers === '' ? [] : controllers.split(',')) {
      const dir = directoryOf(
        mounts.filter(({ fstype, superOptions }) => fstype === 'cgroup' && superOptions.includes(controller)),
        path,
      )
      if (dir !== undefined) v1[controller] = dir
    }
  }
  return { v1, v2 }
}

/** A hierarchy may be mounted several times, and may show only a part; the first mount that shows the path is taken. */
function directoryOf(mounts: readonly MountInfo[], path: string): string | undefined {
  const mount = mounts.find(({ root }) => isWithin(path, root))
  return mount === undefined ? undefined : posix.join(mount.mountPoint, mount.root === '/' ? path : path.slice(mount.root.length))
}

/** Which hierarchies are mounted where, from mountinfo. */
export function cgroupMounts(mounts: readonly MountInfo[]): CgroupMounts {
  const v1: Record<string, string> = {}
  // What a container or a chroot mounted elsewhere comes after the host's own place.
  const hostFirst = mounts.toSorted((a, b) => Number(!isWithin(a.mountPoint, '/sys/fs/cgroup')) - Number(!isWithin(b.mountPoint, '/sys/fs/cgroup')))
  const v2 = hostFirst.find(({ fstype }) => fstype === 'cgroup2')?.mountPoint
  const plain = new Set(['rw', 'ro', 'xattr', 'clone_children', 'cpuset_v2_mode', 'noprefix', 'seclabel'])
  for (const { fstype, superOptions, mountPoint } of hostFirst) {
    if (fstype !== 'cgroup') continue
    for (const option of superOptions) {
      if (!plain.has(option) && !option.startsWith('release_agent=') && v1[option] === undefined) v1[option] = mountPoint
    }
  }
  // A v1 hierarchy without controllers (name=systemd) alone does not make a host v1.
  const controllers = Object.keys(v1).some((name) => !name.startsWith('name='))
  return { mode: controllers ? (v2 === undefined ? 'v1' : 'hybrid') : 'v2', v1, v2 }
}

/** @see Linux.oomKillCount */
export function oomKillCount(_: OpContext, paths: CgroupPaths): number | undefined {
  const memory = paths.v1['memory']
  const text = memory === undefined ? readControl(paths.v2, 'memory.events') : readControl(memory, 'memory.oom_control')
  const value = keyed(text).get('oom_kill')
  return value === undefined ? undefined : Number(value)
}

/** @see Linux.removeCgroup */
export function removeCgroup(context: OpContext, paths: CgroupPaths): void {
  const mounts = cgroupMounts(readMountInfo())
  const roots = new Set([...Object.values(mounts.v1), ...(mounts.v2 === undefined ? [] : [mounts.v2]), '/'])
  const dirs = new Set([...Object.values(paths.v1), ...(paths.v2 === undefined ? [] : [paths.v2])].map(absolute))
  for (const dir of dirs) {
    if (roots.has(dir)) throw failedPrecondition(`${dir} is the root of a cgroup hierarchy and is not removed`)
  }
  for (const dir of dirs) removeCgroupDir(context, dir, 0)
}

/** Children first. rmdir takes only a cgroup without processes, so nothing that runs can be hit. */
function removeCgroupDir(context: OpContext, dir: string, depth: number): void {
  context.throwIfCancelled()
  let entries: Dirent[]
  try {
    entries = readdirSync(dir, { withFileTypes: true })
  } catch (error) {
    const cause = fromNodeError(`read ${dir}`, error)
    if (cause.code === Code.NOT_FOUND || cause.reason === 'ENODEV') return
    throw cause
  }
  for (const entry of entries) if (entry.isDirectory() && depth < 64) removeCgroupDir(context, posix.join(dir, entry.name), depth + 1)
  try {
    rmdirSync(dir)
  } catch (error) {
    const cause = fromNodeError(`remove cgroup ${dir}`, error)
    if (cause.code === Code.NOT_FOUND) return
    const pids = (readControl(dir, 'cgroup.procs') ?? '').split('\n').filter((pid) => pid !== '')
    throw cause.reason === 'EBUSY' && pids.length > 0
      ? failedPrecondition(`cgroup ${dir} is not removed: processes ${pids.slice(0, 10).join(', ')} are in it`, { reason: 'EBUSY', cause })
      : cause
  }
}
