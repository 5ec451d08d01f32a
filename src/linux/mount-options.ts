import { Code, CriError, invalidArgument } from '../errors/cri-error.ts'

const MS = {
  RDONLY: 1,
  NOSUID: 2,
  NODEV: 4,
  NOEXEC: 8,
  SYNCHRONOUS: 16,
  REMOUNT: 32,
  MANDLOCK: 64,
  DIRSYNC: 128,
  NOATIME: 1024,
  NODIRATIME: 2048,
  BIND: 4096,
  REC: 16384,
  UNBINDABLE: 1 << 17,
  PRIVATE: 1 << 18,
  SLAVE: 1 << 19,
  SHARED: 1 << 20,
  RELATIME: 1 << 21,
  STRICTATIME: 1 << 24,
} as const

/** The MS_ flags of mount(2) that the rest of this folder works with. */
export const MountBit = {
  ...MS,
  /** What is a change of propagation and needs a call of its own. */
  PROPAGATION: MS.UNBINDABLE | MS.PRIVATE | MS.SLAVE | MS.SHARED,
  /** What belongs to one mount, not to the file system: a bind mount takes these only from a second call. */
  PER_MOUNT: MS.RDONLY | MS.NOSUID | MS.NODEV | MS.NOEXEC | MS.NOATIME | MS.NODIRATIME | MS.RELATIME | MS.STRICTATIME,
} as const

const setting = {
  ro: MS.RDONLY,
  nosuid: MS.NOSUID,
  nodev: MS.NODEV,
  noexec: MS.NOEXEC,
  sync: MS.SYNCHRONOUS,
  remount: MS.REMOUNT,
  mand: MS.MANDLOCK,
  dirsync: MS.DIRSYNC,
  noatime: MS.NOATIME,
  nodiratime: MS.NODIRATIME,
  relatime: MS.RELATIME,
  strictatime: MS.STRICTATIME,
  bind: MS.BIND,
  rec: MS.REC,
  rbind: MS.BIND | MS.REC,
  private: MS.PRIVATE,
  rprivate: MS.PRIVATE | MS.REC,
  slave: MS.SLAVE,
  rslave: MS.SLAVE | MS.REC,
  shared: MS.SHARED,
  rshared: MS.SHARED | MS.REC,
  unbindable: MS.UNBINDABLE,
  runbindable: MS.UNBINDABLE | MS.REC,
} as const

const clearing: Readonly<Record<string, number>> = {
  rw: MS.RDONLY,
  suid: MS.NOSUID,
  dev: MS.NODEV,
  exec: MS.NOEXEC,
  async: MS.SYNCHRONOUS,
  nomand: MS.MANDLOCK,
  atime: MS.NOATIME,
  diratime: MS.NODIRATIME,
  norelatime: MS.RELATIME,
  nostrictatime: MS.STRICTATIME,
  defaults: 0,
}

/** A mount flag by the word that fstab uses for it. */
export type MountFlag = keyof typeof setting

/** The bits of mount(2) for a list of flags. */
export function mountBits(flags: readonly MountFlag[]): number {
  return flags.reduce((bits, flag) => bits | setting[flag], 0)
}

export interface ParsedMountOptions {
  /** MS_ bits. */
  readonly bits: number
  /** What is left for the file system, in order. */
  readonly data: readonly string[]
}

/** fstab-style options as bits and file system data; a later word wins over an earlier one. What needs more than mount(2) is refused by name. */
export function parseMountOptions(options: readonly string[]): ParsedMountOptions {
  let bits = 0
  const data: string[] = []
  for (const option of options) {
    if (option === 'loop' || option.startsWith('uidmap=') || option.startsWith('gidmap=') || option.startsWith('X-containerd.')) {
      throw new CriError(Code.UNIMPLEMENTED, `mount option "${option}" is not supported: use a snapshotter that does not ask for it`)
    }
    if (Object.hasOwn(setting, option)) bits |= setting[option as MountFlag]
    else if (Object.hasOwn(clearing, option)) bits &= ~(clearing[option] ?? 0)
    else if (option !== '') data.push(option)
  }
  return { bits, data }
}

/** A mount as containerd's snapshot service describes it (containerd.types.Mount). */
export interface ContainerdMount {
  readonly type: string
  readonly source: string
  /** A directory below the target given to mountAll. */
  readonly target?: string | undefined
  readonly options: readonly string[]
}

/**
 * The same mount for reading alone. Two overlays must not share an upper directory (the kernel calls that undefined), so a read-only view
 * has none: the upper directory becomes the topmost lower one.
 */
export function readonlyMount(mount: ContainerdMount): ContainerdMount {
  if (mount.type !== 'overlay') return { ...mount, options: [...mount.options.filter((option) => option !== 'rw'), 'ro'] }
  const upper = mount.options.find((option) => option.startsWith('upperdir='))?.slice('upperdir='.length)
  const options = mount.options
    .filter((option) => !/^(upperdir|workdir)=/.test(option) && option !== 'rw' && option !== 'volatile')
    .map((option) => (upper !== undefined && option.startsWith('lowerdir=') ? `lowerdir=${upper}:${option.slice('lowerdir='.length)}` : option))
  return { ...mount, options: [...options, 'ro'] }
}

/** mount(2) copies one page of options and silently cuts the rest off; the last byte is the terminating NUL. */
export const maxMountData = 4095

export interface FittedMountData {
  readonly data: string
  /** Where relative lower directories begin: the thread's working directory during the call. */
  readonly cwd: string | undefined
}

/** Joins file system options; an overlay whose lower directories do not fit in a page names them relative to their common parent. */
export function fitMountData(type: string, options: readonly string[]): FittedMountData {
  const plain = options.join(',')
  if (Buffer.byteLength(plain) <= maxMountData) return { data: plain, cwd: undefined }
  const lower = type === 'overlay' ? options.find((option) => option.startsWith('lowerdir=')) : undefined
  const dirs = lower === undefined ? [] : splitLower(lower.slice('lowerdir='.length))
  const cwd = commonParent(dirs)
  if (cwd !== undefined) {
    const relative = `lowerdir=${dirs.map((dir) => dir.slice(cwd.length + 1)).join(':')}`
    const data = options.map((option) => (option === lower ? relative : option)).join(',')
    if (Buffer.byteLength(data) <= maxMountData) return { data, cwd }
  }
  const layers = dirs.length > 0 ? `: the image has too many layers (${dirs.length})` : ''
  const length = Buffer.byteLength(plain)
  throw invalidArgument(`the options of a ${type} mount are ${length} bytes long and the kernel takes ${maxMountData}${layers}`, { reason: 'E2BIG' })
}

/** overlayfs separates lower directories by colons; a colon in a name is written `\:`. */
function splitLower(value: string): string[] {
  return value.split(/(?<!\\):/)
}

/** The longest directory above all of `dirs`, undefined when that is the root or one of them is no absolute path. */
function commonParent(dirs: readonly string[]): string | undefined {
  const [first, ...rest] = dirs.map((dir) => dir.split('/').slice(0, -1))
  if (first === undefined || dirs.some((dir) => !dir.startsWith('/') || dir.includes('\\'))) return undefined
  let length = first.length
  for (const parts of rest) {
    let same = 0
    while (same < length && same < parts.length && parts[same] === first[same]) same += 1
    length = same
  }
  return length <= 1 ? undefined : first.slice(0, length).join('/')
}
