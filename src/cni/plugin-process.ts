import type { Socket } from 'node:net'
import { pause } from '../concurrency/deadline.ts'
import { Code, CriError, deadlineExceeded, errnoOf, internal, messageOf } from '../errors/cri-error.ts'
import { spawnProgram } from '../linux/spawn.ts'

const maxStdoutBytes = 4 << 20
const maxStderrBytes = 8 << 10
/** A plugin's own background child may hold its pipes open; what the plugin itself wrote is there as soon as it has ended. */
const pipesAfterExitMs = 500
/** A process that is stuck in the kernel does not even die of SIGKILL. */
const deathMs = 10_000
const busyRetries = 25
const busyPauseMs = 200

/** One run of a plugin. */
export interface PluginRun {
  readonly path: string
  /** The whole environment: `inheritedEnv` and CNI_COMMAND with its companions. */
  readonly env: NodeJS.ProcessEnv
  readonly stdin: string
  /** In milliseconds. After it, and when `signal` aborts, the plugin and all of its process group are killed. */
  readonly timeoutMs: number
  readonly signal: AbortSignal
  /** Names the run in errors: `bridge ADD of network "x"`. */
  readonly what: string
}

/** How a plugin ended. */
export interface PluginExit {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  /** The end of it, at most 8 KiB. */
  readonly stderr: string
}

/**
 * Runs a plugin to its end and returns how it ended, whatever its exit code. Rejects when it cannot be started, prints without end, takes too
 * long or is aborted; in these cases it is dead when this rejects, so that an undo never races with it.
 */
export async function runPluginProcess(run: PluginRun): Promise<PluginExit> {
  for (let attempt = 0; ; attempt += 1) {
    run.signal.throwIfAborted()
    try {
      return await runOnce(run)
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      // An installer is just writing the binary. No event tells when it has closed it.
      if (errnoOf(error) === 'ETXTBSY' && attempt < busyRetries) await pause(busyPauseMs, run.signal)
      else throw cannotStart(run, error)
    }
  }
}

async function runOnce(run: PluginRun): Promise<PluginExit> {
  const child = spawnProgram(run.path, { cwd: '/', env: run.env })
  const stdout: Buffer[] = []
  let stdoutBytes = 0
  let stderr = Buffer.alloc(0)
  let stop: Error | undefined
  const ended = Promise.withResolvers<{ code: number | null; signal: NodeJS.Signals | null }>()
  let death: NodeJS.Timeout | undefined

  const kill = (why: Error): void => {
    if (stop !== undefined) return
    stop = why
    killGroup(child.pid)
    death = setTimeout(() => ended.resolve({ code: null, signal: 'SIGKILL' }), deathMs)
  }
  const onAbort = (): void => kill(aborted(run))
  run.signal.addEventListener('abort', onAbort, { once: true })
  const timeout = setTimeout(() => {
    kill(deadlineExceeded(`CNI plugin ${run.what} did not end within ${run.timeoutMs / 1000} s and was killed; see its log and whether what it depends on is up`, { reason: 'CNI_TIMEOUT' }))
  }, run.timeoutMs)

  child.stdout.on('data', (chunk: Buffer) => {
    stdoutBytes += chunk.length
    if (stdoutBytes <= maxStdoutBytes) stdout.push(chunk)
    else kill(internal(`CNI plugin ${run.what} printed more than ${maxStdoutBytes} bytes and was killed; a result is a small JSON object`, { reason: 'CNI_OUTPUT' }))
  })
  child.stderr.on('data', (chunk: Buffer) => {
    stderr = Buffer.concat([stderr, chunk]).subarray(-maxStderrBytes)
  })
  // A plugin may end without having read its input.
  for (const stream of [child.stdin, child.stdout, child.stderr]) stream.on('error', () => undefined)
  let pipes: NodeJS.Timeout | undefined
  void child.ended.then(async (end) => {
    pipes = setTimeout(() => ended.resolve(end), pipesAfterExitMs)
    await Promise.all([closed(child.stdout), closed(child.stderr)])
    ended.resolve(end)
  })
  child.stdin.end(run.stdin)

  try {
    const exit = await ended.promise
    if (stop !== undefined) throw stop
    return { ...exit, stdout: Buffer.concat(stdout).toString('utf8'), stderr: stderr.toString('utf8') }
  } finally {
    clearTimeout(timeout)
    clearTimeout(pipes)
    clearTimeout(death)
    run.signal.removeEventListener('abort', onAbort)
    child.stdout.destroy()
    child.stderr.destroy()
    child.stdin.destroy()
  }
}

/** The plugin leads a process group of its own: its delegates and tools die with it. */
function killGroup(pid: number): void {
  try {
    process.kill(-pid, 'SIGKILL')
  } catch (error) {
    if (errnoOf(error) !== 'ESRCH') throw error
  }
}

function closed(stream: Socket): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  if (stream.closed) resolve()
  else stream.once('close', resolve)
  return promise
}

/** What plugins get of an environment: they need PATH for iptables and the like, but must not speak to systemd in our name. */
export function inheritedEnv(from: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const ours = /^(CNI_|LISTEN_|NOTIFY_SOCKET$|WATCHDOG_|NODE_)/
  return Object.fromEntries(Object.entries(from).filter(([key]) => !ours.test(key)))
}

function aborted(run: PluginRun): CriError {
  const reason: unknown = run.signal.reason
  const message = `CNI plugin ${run.what} was stopped: ${messageOf(reason)}`
  if (reason instanceof CriError) return new CriError(reason.code, message, { reason: reason.reason, cause: reason })
  const code = reason instanceof Error && reason.name === 'TimeoutError' ? Code.DEADLINE_EXCEEDED : Code.CANCELLED
  return new CriError(code, message, { cause: reason })
}

function cannotStart(run: PluginRun, error: unknown): CriError {
  const remedies: Record<string, string> = {
    EACCES: `; make it executable (chmod 0755 ${run.path}) and see that its file system is not mounted noexec`,
    ENOENT: '; install the CNI plugins again (a script may also name an interpreter that is missing)',
    ENOEXEC: `; is it built for this machine (${process.arch})? A script needs a #! line`,
    ETXTBSY: '; it is being written: let the installation end and try again',
    EAGAIN: '; the node is out of processes (pid limit)',
    ENOMEM: '; the node is out of memory',
  }
  return internal(`cannot start CNI plugin ${run.what} (${run.path}): ${messageOf(error)}${remedies[errnoOf(error) ?? ''] ?? ''}`, { reason: 'CNI_EXEC', cause: error })
}
