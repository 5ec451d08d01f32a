import koffi from 'koffi'
import { errnoName } from './errno.ts'

/**
 * posix_spawn(3). Node's own child_process forks: the kernel copies the page tables of the whole process, which takes 2 to 5 ms of the main
 * thread for a service of our size. glibc's posix_spawn shares the memory until the program is loaded (CLONE_VM | CLONE_VFORK) and takes a tenth.
 */
const lib = koffi.load(null)
const posixSpawn = lib.func('posix_spawn', 'int', ['void *', 'str', 'void *', 'void *', 'const char **', 'const char **']) as
  (pid: Buffer, path: string, actions: Buffer, attributes: Buffer, argv: (string | null)[], envp: (string | null)[]) => number
const bind = (name: string, ...types: string[]): ((...args: (Buffer | number | string | bigint)[]) => number) => lib.func(name, 'int', types) as (...args: (Buffer | number | string | bigint)[]) => number
const actionsInit = bind('posix_spawn_file_actions_init', 'void *')
const actionsDestroy = bind('posix_spawn_file_actions_destroy', 'void *')
const addDup2 = bind('posix_spawn_file_actions_adddup2', 'void *', 'int', 'int')
const addChdir = bind('posix_spawn_file_actions_addchdir_np', 'void *', 'str')
const attributesInit = bind('posix_spawnattr_init', 'void *')
const attributesDestroy = bind('posix_spawnattr_destroy', 'void *')
const setFlags = bind('posix_spawnattr_setflags', 'void *', 'short')
const setPgroup = bind('posix_spawnattr_setpgroup', 'void *', 'int')
const setSigdefault = bind('posix_spawnattr_setsigdefault', 'void *', 'void *')
const setSigmask = bind('posix_spawnattr_setsigmask', 'void *', 'void *')
const pipe2 = bind('pipe2', 'void *', 'int')
const waitpid = bind('waitpid', 'int', 'void *', 'int')

const O_CLOEXEC = 0o2000000
const WNOHANG = 1
const POSIX_SPAWN_SETPGROUP = 0x02
const POSIX_SPAWN_SETSIGDEF = 0x04
const POSIX_SPAWN_SETSIGMASK = 0x08
/** Larger than glibc's structures (80 and 336 bytes) and its sigset_t (128). */
const structBytes = 1024
const sigsetBytes = 128

export interface SpawnOptions {
  /** The whole environment. */
  readonly env: Readonly<Record<string, string | undefined>>
  readonly cwd: string
}

/**
 * Starts a program, leader of a process group of its own, all signals at their defaults, with these three descriptors as its stdin, stdout and
 * stderr; gives its pid, for which the caller has to wait. Throws an Error with an errno name as its `code`, as child_process does.
 */
export function startProgram(path: string, args: readonly string[], { env, cwd }: SpawnOptions, stdio: readonly [number, number, number]): number {
  const [actions, attributes, pid] = [Buffer.alloc(structBytes), Buffer.alloc(structBytes), Buffer.alloc(4)]
  actionsInit(actions)
  attributesInit(attributes)
  try {
    // The pipes' own descriptors are above 2 (Node holds 0 to 2), so none of these is one of the others' source.
    for (const [target, fd] of stdio.entries()) addDup2(actions, fd, target)
    addChdir(actions, cwd)
    setFlags(attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK)
    setPgroup(attributes, 0)
    setSigdefault(attributes, Buffer.alloc(sigsetBytes, 0xff))
    setSigmask(attributes, Buffer.alloc(sigsetBytes))
    const variables = Object.entries(env).flatMap(([key, value]) => (value === undefined ? [] : [`${key}=${value}`]))
    const failure = posixSpawn(pid, path, actions, attributes, [path, ...args, null], [...variables, null])
    if (failure !== 0) throw spawnError(failure, path)
    return pid.readInt32LE(0)
  } finally {
    actionsDestroy(actions)
    attributesDestroy(attributes)
  }
}

export function spawnError(number: number, path: string): Error {
  const name = errnoName(number)
  return Object.assign(new Error(`spawn ${path} ${name}`), { code: name })
}

/** A pipe that no program inherits by accident: the end to read from, the end to write to. */
export function openPipe(what: string): readonly [number, number] {
  const fds = Buffer.alloc(8)
  if (pipe2(fds, O_CLOEXEC) !== 0) throw spawnError(koffi.errno(), what)
  return [fds.readInt32LE(0), fds.readInt32LE(4)]
}

/**
 * The wait status (waitpid(2)) of a child that has ended, undefined while it runs (with `block` it is waited for), null when it is nobody's child of ours.
 */
export function reapChild(pid: number, block = false): number | undefined | null {
  const status = Buffer.alloc(4)
  for (;;) {
    const result = waitpid(pid, status, block ? 0 : WNOHANG)
    if (result === pid) return status.readInt32LE(0)
    if (result === 0) return undefined
    if (errnoName(koffi.errno()) !== 'EINTR') return null
  }
}
