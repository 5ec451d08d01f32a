import { closeSync } from 'node:fs'
import { Socket } from 'node:net'
import { constants } from 'node:os'
import koffi from 'koffi'
import { errnoName } from './errno.ts'

/**
 * posix_spawn(3). Node's own child_process forks: the kernel copies the page tables of the whole process, which takes 2 to 5 ms of the main
 * thread for a service of our size. glibc's posix_spawn shares the memory until the program is loaded (CLONE_VM | CLONE_VFORK) and takes a tenth.
 */
const lib = koffi.load(null)
const posixSpawn = lib.func('posix_spawn', 'int', ['void *', 'str', 'void *', 'void *', 'const char **', 'const char **']) as
  (pid: Buffer, path: string, actions: Buffer, attributes: Buffer, argv: (string | null)[], envp: (string | null)[]) => number
const call = (name: string, ...types: string[]): ((...args: (Buffer | number | string | bigint)[]) => number) => lib.func(name, 'int', types) as (...args: (Buffer | number | string | bigint)[]) => number
const actionsInit = call('posix_spawn_file_actions_init', 'void *')
const actionsDestroy = call('posix_spawn_file_actions_destroy', 'void *')
const addDup2 = call('posix_spawn_file_actions_adddup2', 'void *', 'int', 'int')
const addChdir = call('posix_spawn_file_actions_addchdir_np', 'void *', 'str')
const attributesInit = call('posix_spawnattr_init', 'void *')
const attributesDestroy = call('posix_spawnattr_destroy', 'void *')
const setFlags = call('posix_spawnattr_setflags', 'void *', 'short')
const setPgroup = call('posix_spawnattr_setpgroup', 'void *', 'int')
const setSigdefault = call('posix_spawnattr_setsigdefault', 'void *', 'void *')
const setSigmask = call('posix_spawnattr_setsigmask', 'void *', 'void *')
const pipe2 = call('pipe2', 'void *', 'int')
const waitpid = call('waitpid', 'int', 'void *', 'int')

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

/** How a program ended: one of the two is null. */
export interface ProgramEnd {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

/** A program that runs, leader of a process group of its own, all signals at their defaults. The streams are the caller's to destroy. */
export interface SpawnedProgram {
  readonly pid: number
  readonly stdin: Socket
  readonly stdout: Socket
  readonly stderr: Socket
  readonly ended: Promise<ProgramEnd>
}

/** Starts a program without arguments. Throws an Error with an errno name as its `code`, as child_process does, when it cannot be started. */
export function spawnProgram(path: string, options: SpawnOptions): SpawnedProgram {
  const open: number[] = []
  const pipe = (): readonly [number, number] => {
    const fds = Buffer.alloc(8)
    if (pipe2(fds, O_CLOEXEC) !== 0) throw spawnError(koffi.errno(), path)
    const pair = [fds.readInt32LE(0), fds.readInt32LE(4)] as const
    open.push(...pair)
    return pair
  }
  const take = (fd: number): number => {
    open.splice(open.indexOf(fd), 1)
    return fd
  }
  try {
    const [input, output, errors] = [pipe(), pipe(), pipe()]
    const pid = start(path, options, [input[0], output[1], errors[1]])
    return {
      pid,
      stdin: new Socket({ fd: take(input[1]), readable: false, writable: true }),
      stdout: new Socket({ fd: take(output[0]), readable: true, writable: false }),
      stderr: new Socket({ fd: take(errors[0]), readable: true, writable: false }),
      ended: watch(pid),
    }
  } finally {
    for (const fd of open) closeSync(fd)
  }
}

function start(path: string, { env, cwd }: SpawnOptions, stdio: readonly [number, number, number]): number {
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
    const failure = posixSpawn(pid, path, actions, attributes, [path, null], [...variables, null])
    if (failure !== 0) throw spawnError(failure, path)
    return pid.readInt32LE(0)
  } finally {
    actionsDestroy(actions)
    attributesDestroy(attributes)
  }
}

function spawnError(number: number, path: string): Error {
  const name = errnoName(number)
  return Object.assign(new Error(`spawn ${path} ${name}`), { code: name })
}

/** Programs that have not been waited for. */
const children = new Map<number, (end: ProgramEnd) => void>()
/** Node does not stay alive for a signal listener; it must for a child, as it does for its own. */
let keepAlive: NodeJS.Timeout | undefined
const foreverMs = 2 ** 31 - 1

/** Node has no part in these children: it waits only for those that it forked itself. */
function watch(pid: number): Promise<ProgramEnd> {
  const { promise, resolve } = Promise.withResolvers<ProgramEnd>()
  if (children.size === 0) {
    process.on('SIGCHLD', reap)
    keepAlive = setInterval(reap, foreverMs)
  }
  children.set(pid, resolve)
  // It may have ended before the listener was there.
  reapOne(pid)
  return promise
}

function reap(): void {
  for (const pid of children.keys()) reapOne(pid)
}

function reapOne(pid: number): void {
  const status = Buffer.alloc(4)
  const result = waitpid(pid, status, WNOHANG)
  if (result === 0) return
  const resolve = children.get(pid)
  children.delete(pid)
  if (children.size === 0) {
    process.off('SIGCHLD', reap)
    clearInterval(keepAlive)
  }
  if (result !== pid) {
    // Nobody else waits for it; should it be gone all the same, how it ended is not known.
    resolve?.({ code: null, signal: 'SIGKILL' })
    return
  }
  const word = status.readInt32LE(0)
  const signal = word & 0x7f
  resolve?.(signal === 0 ? { code: (word >> 8) & 0xff, signal: null } : { code: null, signal: signalName(signal) })
}

function signalName(number: number): NodeJS.Signals {
  const found = Object.entries(constants.signals).find(([, value]) => value === number)
  return (found?.[0] ?? `SIG${number}`) as NodeJS.Signals
}
