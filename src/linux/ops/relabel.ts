import { fstatSync, lstatSync } from 'node:fs'
import { failedPrecondition, invalidArgument } from '../../errors/cri-error.ts'
import { errnoError, naming } from '../errno.ts'
import { cString, K, lastErrno, libc, openat2, openPath, withFd } from '../libc.ts'
import { absolute, type OpContext } from './context.ts'
import { forEachEntry } from './trees.ts'

/** Directories of the machine itself: with another label on them the machine would not start again. The list of go-selinux (chcon). */
const machine = new Set([
  '/', '/bin', '/boot', '/dev', '/etc', '/etc/passwd', '/etc/pki', '/etc/shadow', '/home', '/lib', '/lib64', '/media', '/opt', '/proc', '/root', '/run', '/sbin', '/srv', '/sys',
  '/tmp', '/usr', '/var', '/var/lib', '/var/log',
])
const deepest = 512

export interface RelabelOptions {
  /** The extended attribute. Default: `security.selinux`. */
  readonly attribute?: string | undefined
}

/** @see Linux.relabelTree */
export function relabelTree(context: OpContext, path: string, label: string, options: RelabelOptions = {}): void {
  const target = absolute(path)
  if (machine.has(target)) throw invalidArgument(`${target} belongs to the machine itself: it is not given an SELinux label of a container; mount a directory below it`, { reason: 'RelabelRefused' })
  const relabel = new Relabel(context, target, cString(options.attribute ?? 'security.selinux'), Buffer.from(label))
  // The very inode that the name leads to now; a symbolic link itself is labelled, not what it points to.
  withFd(openPath(`open ${target}`, target, K.O_PATH | K.O_NOFOLLOW), (fd) => {
    const stat = naming(`stat ${target}`, () => fstatSync(fd))
    relabel.one(cString(`/proc/thread-self/fd/${fd}`), true)
    if (!stat.isDirectory()) return
    withFd(openPath(`open ${target}`, `/proc/thread-self/fd/${fd}`, K.O_RDONLY | K.O_DIRECTORY), (dir) => relabel.entries(dir, 0))
  })
}

class Relabel {
  readonly #context: OpContext
  readonly #target: string
  readonly #attribute: Uint8Array
  readonly #label: Buffer
  /** One byte longer than the label: a longer one that is there is another. */
  readonly #found: Buffer

  constructor(context: OpContext, target: string, attribute: Uint8Array, label: Buffer) {
    this.#context = context
    this.#target = target
    this.#attribute = attribute
    this.#label = label
    this.#found = Buffer.alloc(label.length + 1)
  }

  /** Labels one file, unless it has the label already. File systems without labels are left as they are. */
  one(path: Uint8Array, follow: boolean): void {
    const length = (follow ? libc.getxattr : libc.lgetxattr)(path, this.#attribute, this.#found, this.#found.length)
    // The kernel may count the NUL at the end.
    if (length === this.#label.length && this.#found.subarray(0, length).equals(this.#label)) return
    if (length === this.#label.length + 1 && this.#found[length - 1] === 0 && this.#found.subarray(0, length - 1).equals(this.#label)) return
    if ((follow ? libc.setxattr : libc.lsetxattr)(path, this.#attribute, this.#label, this.#label.length, 0) !== -1) return
    const reason = lastErrno()
    if (reason === 'ENOENT' || reason === 'EOPNOTSUPP') return
    throw errnoError(`give ${this.#target} the SELinux label ${this.#label.toString()}`, reason)
  }

  /** Everything in an open directory and below, also on other mounts: a container sees those too. */
  entries(dir: number, depth: number): void {
    if (depth > deepest) throw failedPrecondition(`${this.#target} is deeper than ${deepest} directories: it is not given an SELinux label`, { reason: 'TooDeep' })
    const here = Buffer.from(`/proc/thread-self/fd/${dir}/`)
    forEachEntry(dir, this.#target, (name) => {
      this.#context.throwIfCancelled()
      const path = Buffer.concat([here, name])
      const stat = lstatSync(path, { throwIfNoEntry: false })
      if (stat === undefined) return
      this.one(cString(path), false)
      if (!stat.isDirectory()) return
      const child = openat2(dir, name, K.O_RDONLY | K.O_DIRECTORY | K.O_NOFOLLOW, K.RESOLVE_NO_SYMLINKS)
      if (child !== -1) withFd(child, () => this.entries(child, depth + 1))
      else if (lastErrno() !== 'ENOENT' && lastErrno() !== 'ENOTDIR') throw errnoError(`open a directory in ${this.#target}`, lastErrno())
    })
  }
}
