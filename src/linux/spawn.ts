import { closeSync } from 'node:fs'
import { Socket } from 'node:net'
import { constants } from 'node:os'
import { openPipe, reapChild, type SpawnOptions, startProgram } from './posix-spawn.ts'

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
    const pair = openPipe(path)
    open.push(...pair)
    return pair
  }
  const take = (fd: number): number => {
    open.splice(open.indexOf(fd), 1)
    return fd
  }
  try {
    const [input, output, errors] = [pipe(), pipe(), pipe()]
    const pid = startProgram(path, [], options, [input[0], output[1], errors[1]])
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
  const word = reapChild(pid)
  if (word === undefined) return
  const resolve = children.get(pid)
  children.delete(pid)
  if (children.size === 0) {
    process.off('SIGCHLD', reap)
    clearInterval(keepAlive)
  }
  if (word === null) {
    // Nobody else waits for it; should it be gone all the same, how it ended is not known.
    resolve?.({ code: null, signal: 'SIGKILL' })
    return
  }
  const signal = word & 0x7f
  resolve?.(signal === 0 ? { code: (word >> 8) & 0xff, signal: null } : { code: null, signal: signalName(signal) })
}

function signalName(number: number): NodeJS.Signals {
  const found = Object.entries(constants.signals).find(([, value]) => value === number)
  return (found?.[0] ?? `SIG${number}`) as NodeJS.Signals
}
