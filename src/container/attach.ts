import { MessageChannel } from 'node:worker_threads'
import { abortable } from '../concurrency/keyed-mutex.ts'
import { CriError, failedPrecondition, isNotFound, messageOf } from '../errors/cri-error.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import type { Container } from '../state/records.ts'
import type { AttachSession, StreamIo, StreamResult, TerminalSize } from '../streaming/types.ts'
import type { ContainerDeps } from './deps.ts'

export type AttachDeps = Pick<ContainerDeps, 'containerd' | 'containers' | 'io' | 'stdin' | 'settings'>

/** FAILED_PRECONDITION unless somebody can attach to it now. */
export function checkAttachable(container: Container): void {
  if (container.status.state !== 'running') throw failedPrecondition(`container ${container.id} is ${container.status.state}: only a running container can be attached to; what it printed is in its log`, { reason: 'NotRunning' })
}

/**
 * Connects a client to a running container until the container's output is at its end, the client is gone, or it has closed its input. As in
 * containerd, the end of a client's input ends the container's when that has `stdin_once` and no terminal, and detaches the client otherwise;
 * detaching never ends a container. `ctx.signal` is the service's.
 */
export async function attachStream(deps: AttachDeps, ctx: Ctx, container: Container, session: AttachSession, io: StreamIo): Promise<StreamResult> {
  checkAttachable(container)
  const { id } = container
  const { tty, stdin_once: stdinOnce } = container.metadata.config
  const over = new AbortController()
  const signal = AbortSignal.any([ctx.signal, io.signal, over.signal])
  const input = session.stdin ? deps.stdin.path(id) : undefined
  const stopWriting = input === undefined ? undefined : deps.stdin.write(id, () => io.closeStdin())
  const endsInput = input !== undefined && stdinOnce && !tty
  try {
    const output = await outputOf(deps, container, session, io, signal)
    if (tty) io.onResize((size) => void resize(deps, withSignal(ctx, signal), id, size))
    const ends: Promise<'end' | 'lost' | 'detached'>[] = [output.over]
    if (input !== undefined) {
      await io.openFifos({ stdin: input })
      io.started()
      ends.push(io.stdinClosed.then(async () => {
        if (!endsInput) return 'detached' as const
        await endInput(deps, ctx, id)
        return new Promise<never>(() => undefined)
      }))
    }
    const how = await abortable(Promise.race(ends), signal)
    if (how === 'lost') return { error: `the connection to the output of container ${id} broke by a fault of cri-shim; the container goes on and its log is complete: attach again` }
    if (how === 'end') await abortable(io.drained(deps.settings.drainExecSyncIoTimeoutMs), signal)
    return { exitCode: 0 }
  } catch (error) {
    // The service's end is none of the client's input.
    if (endsInput && io.signal.aborted && !ctx.signal.aborted) await endInput(deps, ctx, id)
    throw error
  } finally {
    stopWriting?.()
    over.abort()
  }
}

/** What tells that the container's output is at its end; for a client that wants none, that the container has ended. */
async function outputOf(deps: AttachDeps, container: Container, session: AttachSession, io: StreamIo, signal: AbortSignal): Promise<{ readonly over: Promise<'end' | 'lost'> }> {
  const { id } = container
  const stderr = session.stderr && !container.metadata.config.tty
  if (!session.stdout && !stderr) {
    const ended = deps.containers.until(id, (now) => now.status.state !== 'running', signal)
    ended.catch(() => undefined)
    return { over: ended.then(() => 'end' as const) }
  }
  const { port1, port2 } = new MessageChannel()
  try {
    const { over } = await deps.io.attach(id, { stdout: session.stdout, stderr }, port1)
    io.attachOutput(port2)
    // Gone: the streaming side has closed the port because the client is, which the signal says better.
    return { over: over.then((how) => (how === 'gone' ? new Promise<never>(() => undefined) : how)) }
  } catch (error) {
    port2.close()
    if (isNotFound(error)) throw failedPrecondition(`container ${id} cannot be attached to: another service started it and has its output; its log is in that service's place`, { reason: 'NoOutput', cause: error })
    throw CriError.from(error, `container ${id} cannot be attached to`)
  }
}

/** The container gets the end of its input once what was written is read, whoever else is attached. */
async function endInput(deps: AttachDeps, ctx: Ctx, id: string): Promise<void> {
  deps.stdin.end(id)
  try {
    await deps.containerd.tasks.closeStdin(ctx, id)
  } catch (error) {
    // It may have ended meanwhile.
    if (!isNotFound(error) && deps.containers.get(id)?.status.state === 'running') ctx.log.warn({ err: error, container: id }, `cannot end the input of a container: ${messageOf(error)}`)
  }
}

/** The last size counts, whichever client it is of. */
async function resize(deps: AttachDeps, ctx: Ctx, id: string, size: TerminalSize): Promise<void> {
  try {
    await deps.containerd.tasks.resizePty(ctx, id, '', size)
  } catch (error) {
    if (!isNotFound(error) && !ctx.signal.aborted) ctx.log.info({ err: error, container: id, ...size }, 'cannot resize the terminal of a container')
  }
}
