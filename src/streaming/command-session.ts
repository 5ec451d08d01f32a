import type { Writable } from 'node:stream'
import type { MessagePort } from 'node:worker_threads'
import { messageOf } from '../errors/cri-error.ts'
import type { CommandClient } from './command-client.ts'
import { FifoSink, FifoSource } from './fifo-ends.ts'
import type { GoneReason, StreamEnd } from './protocol.ts'
import { pump } from './pump.ts'
import { remoteStatus } from './remote-status.ts'
import { ResizeParser } from './resize.ts'
import { watchIdle, type WorkerDeps, type WorkerSession } from './worker-session.ts'
import type { AttachOutputAck, AttachOutputMessage, AttachSession, ExecSession, StreamFifos, StreamResult, TerminalSize } from './types.ts'

/** One of the two outputs. Its end is complete when the client's connection has taken everything. */
interface Output {
  readonly target: Writable | undefined
  readonly finished: Promise<void>
  end(): void
}

function outputTo(target: Writable | undefined): Output {
  const finished = Promise.withResolvers<void>()
  if (target === undefined) return { target, finished: finished.promise, end: () => finished.resolve() }
  target.once('finish', finished.resolve)
  target.once('close', finished.resolve)
  return {
    target,
    finished: finished.promise,
    end: () => {
      if (target.destroyed) finished.resolve()
      else if (!target.writableEnded) target.end()
    },
  }
}

/** One exec or attach in the worker: moves bytes between the client and FIFOs (or another thread's port) as the main thread says. */
export class CommandSession implements WorkerSession {
  readonly #id: number
  readonly #session: ExecSession | AttachSession
  readonly #client: CommandClient
  readonly #deps: WorkerDeps
  readonly #sources: FifoSource[] = []
  readonly #stdout: Output
  readonly #stderr: Output
  /** What throws the output away from then on. */
  readonly #discards: (() => void)[] = []
  #sink: FifoSink | undefined
  #port: MessagePort | undefined
  /** The outputs that something is still read for. */
  #pending: Promise<unknown>[] = []
  #gone: GoneReason | undefined
  #finishing = false
  #movedAtMs = 0
  readonly #stopIdle: () => void
  #newSize: TerminalSize | undefined

  /** The client has its streams: tells main to begin. */
  constructor(id: number, session: ExecSession | AttachSession, client: CommandClient, deps: WorkerDeps) {
    this.#id = id
    this.#session = session
    this.#client = client
    this.#deps = deps
    this.#stdout = outputTo(client.stdout)
    this.#stderr = outputTo(client.stderr)
    this.#stopIdle = watchIdle(deps.idleTimeoutMs, () => client.lastActivityMs, (message) => this.end('idle', message))
    deps.post({ type: 'begin', id })
    const sizes = new ResizeParser()
    client.onResize((bytes) => {
      const latest = sizes.push(bytes).at(-1)
      if (latest !== undefined) this.#resize(latest)
    })
    void client.closed.then(() => {
      if (!this.#finishing) this.end('client_gone', 'the client has closed its connection')
    })
  }

  /** Opens FIFOs and pumps; throws a CriError with what was opened closed again. */
  open(fifos: StreamFifos): void {
    const { descriptors } = this.#deps
    const made: (FifoSource | FifoSink)[] = []
    const make = <T extends FifoSource | FifoSink>(End: new (path: string, open: typeof descriptors) => T, path: string | undefined): T | undefined => {
      if (path === undefined || path === '') return undefined
      const end = new End(path, descriptors)
      made.push(end)
      return end
    }
    let sink, stdout, stderr
    try {
      sink = make(FifoSink, fifos.stdin)
      stdout = make(FifoSource, fifos.stdout)
      stderr = make(FifoSource, fifos.stderr)
    } catch (error) {
      for (const end of made) end.destroy()
      throw error
    }
    if (sink !== undefined) this.#pumpInput(sink)
    if (stdout !== undefined) this.#pumpOutput(stdout, this.#stdout)
    if (stderr !== undefined) this.#pumpOutput(stderr, this.#stderr)
  }

  started(): void {
    this.#sink?.release()
    for (const source of this.#sources) source.release()
  }

  closeStdin(): void {
    this.#sink?.destroy()
    this.#client.stdin?.resume()
  }

  /** Output that another thread reads; see AttachOutputMessage. */
  attach(port: MessagePort): void {
    if (this.#gone !== undefined || this.#finishing) {
      port.close()
      return
    }
    this.#port = port
    const count = this.#deps.counters.adder(this.#session.kind, 'out')
    const end = Promise.withResolvers<void>()
    this.#pending.push(end.promise.then(() => Promise.all([this.#stdout.finished, this.#stderr.finished])))
    const ended = (): void => {
      this.#stdout.end()
      this.#stderr.end()
      end.resolve()
    }
    const write = (target: Writable | undefined, bytes: Buffer, ack: number): void => {
      const acknowledge = (): void => {
        this.#movedAtMs = performance.now()
        if (ack > 0) port.postMessage({ acked: ack } satisfies AttachOutputAck)
      }
      if (target === undefined || target.destroyed || target.writableEnded) return acknowledge()
      count(bytes.length)
      target.write(bytes, acknowledge)
    }
    port.on('message', (message: AttachOutputMessage) => {
      if ('end' in message) ended()
      else if ('skipped' in message) {
        const text = `\r\n[${message.skipped} bytes of output were left out because this client was too slow; the container's log has them]\r\n`
        write(this.#stderr.target ?? this.#stdout.target, Buffer.from(text), 0)
      } else {
        const { bytes, stream } = message
        write((stream === 1 ? this.#stdout : this.#stderr).target, Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength), bytes.byteLength)
      }
    })
    // The other side is gone without an end: nothing more comes.
    port.once('close', ended)
  }

  /** `timeout` when nothing has moved for so long. */
  async drained(timeoutMs: number): Promise<'drained' | 'timeout'> {
    const timeout = Promise.withResolvers<'timeout'>()
    this.#movedAtMs = performance.now()
    let timer: NodeJS.Timeout
    const check = (): void => {
      const left = this.#movedAtMs + timeoutMs - performance.now()
      if (left <= 0) timeout.resolve('timeout')
      else timer = setTimeout(check, left + 1)
    }
    timer = setTimeout(check, timeoutMs)
    try {
      return await Promise.race([Promise.all(this.#pending).then(() => 'drained' as const), timeout.promise])
    } finally {
      clearTimeout(timer)
    }
  }

  /** The backend has settled: the client gets what was read, then the status. Everything is closed afterwards. */
  async finish(result: StreamResult): Promise<void> {
    if (this.#finishing) return
    this.#finishing = true
    this.#stopIdle()
    try {
      this.#release()
      await this.#farewell(result)
    } catch (error) {
      this.#deps.log('error', { session: this.#id }, `ending a stream failed: ${messageOf(error)}`)
      this.#client.destroy()
    }
    this.#deps.over(this.#id, this.#client.transport, this.#gone ?? endOf(this.#session.kind, result))
  }

  /** It cannot go on: the main thread is told, and the client too if it is still there. */
  end(reason: GoneReason, message: string): void {
    if (this.#gone !== undefined || this.#finishing) return
    this.#gone = reason
    this.#stopIdle()
    // The process goes on for a while maybe: it must neither wait for input nor for a reader.
    this.#sink?.destroy()
    this.#client.stdin?.resume()
    for (const discard of this.#discards) discard()
    this.#port?.close()
    this.#deps.post({ type: 'gone', id: this.#id, reason, message })
    if (reason === 'client_gone') this.#client.destroy()
    else this.#farewell({ error: message }).catch(() => this.#client.destroy())
  }

  #pumpInput(sink: FifoSink): void {
    this.#sink = sink
    const { socket } = sink
    // The process has closed its input or is gone (EPIPE): the rest is thrown away, as a shell's pipe would.
    socket.on('error', () => sink.release())
    const { stdin } = this.#client
    if (this.#gone !== undefined) return sink.destroy()
    if (stdin === undefined) {
      void sink.released.then(() => socket.end())
      return
    }
    let complete = false
    const count = this.#deps.counters.adder(this.#session.kind, 'in')
    stdin.on('data', (piece: Buffer) => {
      count(piece.length)
      if (socket.destroyed || socket.writableEnded) return
      if (!socket.write(piece)) stdin.pause()
    })
    socket.on('drain', () => stdin.resume())
    socket.once('close', () => {
      stdin.resume()
      if (complete) this.#deps.post({ type: 'stdinClosed', id: this.#id })
    })
    stdin.once('end', () => {
      complete = this.#gone === undefined && !this.#finishing
      if (socket.destroyed) {
        if (complete) this.#deps.post({ type: 'stdinClosed', id: this.#id })
      } else {
        void sink.released.then(() => socket.end())
      }
    })
  }

  #pumpOutput(source: FifoSource, output: Output): void {
    this.#sources.push(source)
    const { socket } = source
    const end = Promise.withResolvers<void>()
    this.#pending.push(end.promise.then(() => output.finished))
    const ended = (): void => {
      output.end()
      end.resolve()
    }
    socket.once('error', (error) => {
      this.#deps.log('warn', { session: this.#id }, `reading output failed: ${messageOf(error)}`)
      ended()
    })
    socket.once('end', ended)
    socket.once('close', ended)
    const { target } = output
    if (target === undefined || this.#gone !== undefined) {
      socket.resume()
      return
    }
    const count = this.#deps.counters.adder(this.#session.kind, 'out')
    const hooks = {
      onRead: (bytes: number): void => {
        this.#movedAtMs = performance.now()
        count(bytes)
      },
      onWritten: (): void => {
        this.#movedAtMs = performance.now()
      },
    }
    this.#discards.push(pump(socket, target, hooks))
  }

  /** Only the latest size of a turn crosses the threads. */
  #resize(size: TerminalSize): void {
    const scheduled = this.#newSize !== undefined
    this.#newSize = size
    if (scheduled) return
    setImmediate(() => {
      if (this.#newSize !== undefined) this.#deps.post({ type: 'resize', id: this.#id, size: this.#newSize })
      this.#newSize = undefined
    })
  }

  #release(): void {
    this.#sink?.destroy()
    for (const source of this.#sources) source.destroy()
    this.#port?.close()
    this.#client.stdin?.resume()
  }

  #farewellDone: Promise<void> | undefined

  /** Ends the outputs, sends the status and waits until the connection is closed, for a bounded time. */
  async #farewell(result: StreamResult): Promise<void> {
    this.#farewellDone ??= this.#sayFarewell(result)
    await this.#farewellDone
  }

  async #sayFarewell(result: StreamResult): Promise<void> {
    if (this.#gone === 'client_gone') {
      await this.#client.closed
      return
    }
    const timer = setTimeout(() => this.#client.destroy(), this.#deps.limits.finishMs)
    try {
      this.#stdout.end()
      this.#stderr.end()
      await Promise.race([Promise.all([this.#stdout.finished, this.#stderr.finished]), this.#client.closed])
      const { kind } = this.#session
      await Promise.race([this.#client.finish(remoteStatus(kind, result, kind === 'exec' ? this.#session.command : [])), this.#client.closed])
      await this.#client.closed
    } finally {
      clearTimeout(timer)
    }
  }
}

function endOf(kind: 'exec' | 'attach', result: StreamResult): StreamEnd {
  if ('error' in result) return 'error'
  return result.exitCode === 0 || kind === 'attach' ? 'success' : 'exit_code'
}
