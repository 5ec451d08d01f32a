import { readdirSync, readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { Code, CriError, failedPrecondition, invalidArgument, notFound } from '../../errors/cri-error.ts'
import { errnoError, fromNodeError } from '../errno.ts'
import { check, lastErrno, libc, K, withFd } from '../libc.ts'
import { isWithin } from '../mountinfo.ts'
import type { OpContext } from './context.ts'

export interface ProcessStat {
  readonly pid: number
  readonly comm: string
  /** One letter: R, S, D, Z (zombie), X (dead)… */
  readonly state: string
  readonly parentPid: number
  readonly processGroup: number
  readonly session: number
  /** When it started, in clock ticks since boot: with the pid, this names a process for good. */
  readonly startTimeTicks: bigint
}

/** Parses /proc/PID/stat. The command may hold blanks and parentheses, so it ends at the last one. */
export function parseProcessStat(text: string): ProcessStat {
  const open = text.indexOf('(')
  const close = text.lastIndexOf(')')
  const fields = text.slice(close + 2).split(' ')
  const [state, parentPid, processGroup, session] = fields
  const startTime = fields[19]
  if (open === -1 || close === -1 || state === undefined || session === undefined || startTime === undefined) throw notFound(`cannot read process state "${text}"`)
  return {
    pid: Number(text.slice(0, open)),
    comm: text.slice(open + 1, close),
    state,
    parentPid: Number(parentPid),
    processGroup: Number(processGroup),
    session: Number(session),
    startTimeTicks: BigInt(startTime),
  }
}

/** @see Linux.processStat */
export function processStat(_: OpContext, pid: number): ProcessStat | undefined {
  const text = readProc(`/proc/${checkedPid(pid)}/stat`)
  return text === undefined ? undefined : parseProcessStat(text)
}

/** A file of /proc/PID, undefined when the process is gone: ENOENT on open, ESRCH on read. */
function readProc(path: string): string | undefined {
  try {
    return readFileSync(path, 'latin1')
  } catch (error) {
    const cause = fromNodeError(`read ${path}`, error)
    if (cause.code === Code.NOT_FOUND) return undefined
    throw cause
  }
}

/** 0 and negative numbers would mean process groups, 1 the machine's init. */
function checkedPid(pid: number): number {
  if (!Number.isSafeInteger(pid) || pid <= 1) throw invalidArgument(`${pid} is not the pid of a process that may be signalled`)
  return pid
}

function signalNumber(signal: number | NodeJS.Signals): number {
  const value = typeof signal === 'number' ? signal : constants.signals[signal]
  if (!Number.isInteger(value) || value < 0 || value > 64) throw invalidArgument(`${signal} is not a signal`)
  return value
}

export interface SendSignalOptions {
  /** Send only if the process that has the pid now started then (ProcessStat.startTimeTicks): a recycled pid is not hit. */
  readonly startTimeTicks?: bigint | undefined
}

/** @see Linux.sendSignal */
export function sendSignal(_: OpContext, pid: number, signal: number | NodeJS.Signals, options: SendSignalOptions = {}): void {
  const value = signalNumber(signal)
  withFd(check(`signal process ${pid}`, libc.pidfdOpen(checkedPid(pid), 0)), (fd) => {
    // The descriptor is taken first: what is read about the pid now is about the process that gets the signal, or the send fails.
    if (options.startTimeTicks !== undefined) {
      const text = readProc(`/proc/${pid}/stat`)
      if (text === undefined || parseProcessStat(text).startTimeTicks !== options.startTimeTicks) {
        throw notFound(`process ${pid} has ended; another one has its pid now`, { reason: 'ESRCH' })
      }
    }
    check(`send signal ${signal} to process ${pid}`, libc.pidfdSendSignal(fd, value, null, 0))
  })
}

export interface KillSessionRequest {
  /** The leader: of what is killed, this is the pid, the process group or the session. */
  readonly pid: number
  /** A process of the container, normally its init: only what is in its cgroup, or below, is killed. */
  readonly containerPid?: number | undefined
  /** Instead of containerPid: only what these cgroup.procs files list is killed. */
  readonly cgroupProcsFiles?: readonly string[] | undefined
  /** How long to wait for the killed to be gone. Default: 5,000. */
  readonly waitMs?: number | undefined
}

export interface KillSessionResult {
  /** How many processes got SIGKILL. */
  readonly killed: number
  /** Those that were still there at the end: stuck in the kernel, mostly on a dead disk or network file system. */
  readonly remaining: readonly number[]
}

/** @see Linux.killSession */
export function killSession(context: OpContext, request: KillSessionRequest): KillSessionResult {
  const leader = checkedPid(request.pid)
  const deadline = performance.now() + (request.waitMs ?? 5000)
  const belongs = membership(request)
  const killed = new Set<string>()
  for (;;) {
    context.throwIfCancelled()
    const found = findSession(leader, belongs)
    const left = deadline - performance.now()
    if (found.length === 0 || left <= 0) return { killed: killed.size, remaining: found.map(({ pid }) => pid) }
    const fds: number[] = []
    try {
      for (const process of found) {
        const fd = libc.pidfdOpen(process.pid, 0)
        if (fd === -1) {
          if (lastErrno() === 'ESRCH') continue
          throw errnoError(`open process ${process.pid}`, lastErrno())
        }
        fds.push(fd)
        // Between listing and opening the pid may have gone to somebody else.
        const again = readProc(`/proc/${process.pid}/stat`)
        if (again === undefined || parseProcessStat(again).startTimeTicks !== process.startTimeTicks) continue
        if (libc.pidfdSendSignal(fd, constants.signals.SIGKILL, null, 0) !== -1) killed.add(`${process.pid}@${process.startTimeTicks}`)
        else if (lastErrno() !== 'ESRCH') throw errnoError(`kill process ${process.pid}`, lastErrno())
      }
      waitForExit(context, fds, left)
    } finally {
      for (const fd of fds) libc.close(fd)
    }
  }
}

function membership(request: KillSessionRequest): (pid: number) => boolean {
  if (request.cgroupProcsFiles !== undefined) {
    const files = request.cgroupProcsFiles
    return (pid) => files.some((file) => readProc(file)?.split('\n').includes(String(pid)) ?? false)
  }
  if (request.containerPid === undefined) throw invalidArgument('killSession needs containerPid or cgroupProcsFiles')
  const text = readProc(`/proc/${checkedPid(request.containerPid)}/cgroup`)
  if (text === undefined) throw notFound(`the container's process ${request.containerPid} has ended, so its cgroup is not known`, { reason: 'ESRCH' })
  const own = readProc('/proc/self/cgroup') ?? ''
  // A hierarchy in which the container has no cgroup of its own says nothing about what belongs to it.
  const shared = new Set(own.split('\n'))
  const lines = text.split('\n').filter((line) => line !== '' && !line.endsWith(':/') && !shared.has(line))
  if (lines.length === 0) throw failedPrecondition(`process ${request.containerPid} has no cgroup of its own, so what belongs to it cannot be told`)
  const wanted = new Map(lines.map((line) => splitCgroupLine(line)))
  return (pid) => {
    const theirs = new Map((readProc(`/proc/${pid}/cgroup`) ?? '').split('\n').map(splitCgroupLine))
    return [...wanted].every(([hierarchy, path]) => isWithin(theirs.get(hierarchy) ?? '', path))
  }
}

/** `4:memory:/a/b` → hierarchy `4:memory`, path `/a/b`. */
function splitCgroupLine(line: string): [string, string] {
  const colon = line.indexOf(':', line.indexOf(':') + 1)
  return [line.slice(0, colon), line.slice(colon + 1)]
}

/**
 * The living processes of the session or group. The kernel keeps the number of a leader that has died reserved as long as somebody is in
 * its group or session, so the number cannot mean another one meanwhile.
 */
function findSession(leader: number, belongs: (pid: number) => boolean): ProcessStat[] {
  const found: ProcessStat[] = []
  for (const name of readdirSync('/proc')) {
    if (!/^[0-9]+$/.test(name)) continue
    const text = readProc(`/proc/${name}/stat`)
    if (text === undefined) continue
    const stat = parseProcessStat(text)
    if (stat.pid !== leader && stat.session !== leader && stat.processGroup !== leader) continue
    if (stat.state !== 'Z' && stat.state !== 'X' && stat.pid !== process.pid && belongs(stat.pid)) found.push(stat)
  }
  return found
}

/** Waits until every process has ended (a pidfd becomes readable then), or for `waitMs`. */
function waitForExit(context: OpContext, fds: readonly number[], waitMs: number): void {
  const end = performance.now() + waitMs
  for (const fd of fds) {
    const poll = Buffer.alloc(8)
    poll.writeInt32LE(fd, 0)
    poll.writeInt16LE(K.POLLIN, 4)
    for (;;) {
      context.throwIfCancelled()
      const left = end - performance.now()
      if (left <= 0) return
      // In slices, so that a caller that gives up is noticed.
      const ready = libc.poll(poll, 1, Math.ceil(Math.min(left, 250)))
      if (ready > 0) break
      if (ready === -1 && lastErrno() !== 'EINTR') throw new CriError(Code.INTERNAL, `wait for a killed process: ${lastErrno()}`)
    }
  }
}
