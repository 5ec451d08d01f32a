import { internal } from '../errors/cri-error.ts'

/** One line of /proc/PID/mountinfo (proc_pid_mountinfo(5)). */
export interface MountInfo {
  readonly mountId: number
  readonly parentId: number
  readonly deviceMajor: number
  readonly deviceMinor: number
  /** The directory of the file system that this mount shows. */
  readonly root: string
  readonly mountPoint: string
  /** Options of this mount. */
  readonly options: readonly string[]
  /** The peer group that this mount is shared in. */
  readonly sharedGroup: number | undefined
  /** The peer group that this mount receives from: it is a slave. */
  readonly masterGroup: number | undefined
  readonly propagation: 'private' | 'shared' | 'slave' | 'shared+slave' | 'unbindable'
  readonly fstype: string
  readonly source: string
  /** Options of the file system. */
  readonly superOptions: readonly string[]
}

/** Parses the text of a mountinfo file, in its order: a later line on the same mount point lies over an earlier one. */
export function parseMountInfo(text: string): MountInfo[] {
  return text.split('\n').filter((line) => line !== '').map(parseLine)
}

function parseLine(line: string): MountInfo {
  const fields = line.split(' ')
  const separator = fields.indexOf('-', 6)
  const [id, parent, device, root, mountPoint, options] = fields
  const [fstype, source, superOptions] = separator === -1 ? [] : fields.slice(separator + 1)
  const [major, minor] = (device ?? '').split(':')
  if (root === undefined || mountPoint === undefined || options === undefined || fstype === undefined || minor === undefined) {
    throw internal(`cannot read this line of mountinfo: ${line}`)
  }
  let sharedGroup: number | undefined
  let masterGroup: number | undefined
  let unbindable = false
  for (const tag of fields.slice(6, separator)) {
    if (tag.startsWith('shared:')) sharedGroup = Number(tag.slice(7))
    else if (tag.startsWith('master:')) masterGroup = Number(tag.slice(7))
    else if (tag === 'unbindable') unbindable = true
  }
  return {
    mountId: Number(id),
    parentId: Number(parent),
    deviceMajor: Number(major),
    deviceMinor: Number(minor),
    root: unescapeOctal(root),
    mountPoint: unescapeOctal(mountPoint),
    options: options.split(','),
    sharedGroup,
    masterGroup,
    propagation: propagationOf(sharedGroup, masterGroup, unbindable),
    fstype,
    source: unescapeOctal(source ?? ''),
    superOptions: (superOptions ?? '').split(',').filter((option) => option !== ''),
  }
}

function propagationOf(shared: number | undefined, master: number | undefined, unbindable: boolean): MountInfo['propagation'] {
  if (unbindable) return 'unbindable'
  if (shared !== undefined) return master === undefined ? 'shared' : 'shared+slave'
  return master === undefined ? 'private' : 'slave'
}

/** Blanks, tabs, newlines and backslashes are written as `\040`. */
function unescapeOctal(value: string): string {
  return value.replaceAll(/\\([0-7]{3})/g, (_, digits: string) => String.fromCodePoint(Number.parseInt(digits, 8)))
}

/** The mount that a path lies on: the last one of the longest mount point that is the path or above it. */
export function mountOf(mounts: readonly MountInfo[], path: string): MountInfo | undefined {
  let best: MountInfo | undefined
  for (const mount of mounts) {
    if (isWithin(path, mount.mountPoint) && (best === undefined || mount.mountPoint.length >= best.mountPoint.length)) best = mount
  }
  return best
}

/** Whether `path` is `dir` or lies below it, by name. */
export function isWithin(path: string, dir: string): boolean {
  return path === dir || path.startsWith(dir.endsWith('/') ? dir : `${dir}/`)
}
