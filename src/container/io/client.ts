import { type MessagePort, Worker } from 'node:worker_threads'
import { CrashBackoff } from '../../concurrency/crash-backoff.ts'
import { Code, CriError, deadlineExceeded, internal, messageOf, notFound, unavailable } from '../../errors/cri-error.ts'
import type { Logger } from '../../observability/logger.ts'
import { Counters, type CounterName } from './counters.ts'
import { Descriptors } from '../../linux/descriptors.ts'
import type { AttachSpec, CapturedOutput, FromWorker, LogSpec, Request, Responses, ToWorker, WorkerMemory } from './protocol.ts'

/** A call that has no answer by then: the thread hangs in a write to a disk that does not answer. */
const defaultCallTimeoutMs = 30_000
const defaultCloseTimeoutMs = 10_000

export interface IoWorkerOptions {
  readonly log: Logger
  /** The worker died and a new one takes over; for a metric or a health check. */
  readonly onCrash?: (error: CriError) => void
  /** How long a call may take before DEADLINE_EXCEEDED. Default 30 s. */
  readonly callTimeoutMs?: number
  /** How long `close` lets the thread finish before it is ended. Default 10 s. */
  readonly closeTimeoutMs?: number
  /** The worker's entry, where it is not the file beside this one (a bundle, a test). */
  readonly entry?: URL
}

export interface OpenLogOptions {
  readonly id: string
  readonly stdoutFifo: string | undefined
  /** Undefined for a terminal: all its output comes on stdout. */
  readonly stderrFifo: string | undefined
  /** Undefined: the output is read and thrown away. The last component is not followed when it is a symlink. */
  readonly logPath: string | undefined
  /** `max_container_log_line_size`: bytes of content per entry, 0 or less for no limit (16 MiB all the same). */
  readonly maxLineBytes: number
  /**
   * The container runs already (after a restart of this service): a log file that cannot be opened is logged, its output dropped and
   * counted, and opening tried again while the container writes, instead of an error. FIFOs must be there in any case.
   */
  readonly recover?: boolean
}

export interface CaptureOptions {
  readonly id: string
  readonly stdoutFifo: string | undefined
  readonly stderrFifo: string | undefined
  /** Bytes kept per stream. */
  readonly limitBytes: number
}

export interface CaptureResult {
  readonly stdout: Buffer
  readonly stderr: Buffer
  /** More than `limitBytes` came; the rest was dropped. */
  readonly truncated: { readonly stdout: boolean, readonly stderr: boolean }
  /** Something (a background child) still held a pipe open at the timeout. */
  readonly timedOut: boolean
}

/** The output of one exec process. */
export interface Capture {
  /** The process has the FIFOs open (Tasks.Exec and Start have returned), or never will: end of file may come. */
  started(): void
  /** Once, after the process has exited: waits for end of file at most `drainTimeoutMs`, then closes. Errors: INTERNAL after a crash of the worker. */
  result(options: { readonly drainTimeoutMs: number }): Promise<CaptureResult>
  /** Closes without a result; nothing to do after `result`. */
  close(): Promise<void>
}

/** One client that gets a container's output. */
export interface Attachment {
  /** `end`: all output is on its way to the client. `gone`: the client has closed its port. `lost`: the worker died, and what came since went only to the log. */
  readonly over: Promise<'end' | 'gone' | 'lost'>
}

export interface IoStats extends Readonly<Record<CounterName, number>> {
  /** Containers whose output is open, those at their end included until `closeLog`. */
  readonly logs: number
  readonly captures: number
  /** Clients that are attached. */
  readonly attached: number
  readonly crashes: number
}

interface LogEntry {
  readonly handle: number
  readonly spec: LogSpec
  started: boolean
  ended: boolean
  readonly end: PromiseWithResolvers<void>
}

interface PendingCall {
  readonly what: string
  readonly resolve: (value: CapturedOutput | undefined) => void
  readonly reject: (error: CriError) => void
}

/**
 * The main thread's handle of the worker thread that pumps container output. Calls are typed messages. When the worker dies, calls that wait
 * fail with INTERNAL, captures are lost, a new worker starts and every log is opened again; the FIFOs' contents survive in the kernel,
 * so nothing is lost but the beginning of a line whose end had not come (and the piece in hand at that moment).
 */
export class IoWorker implements AsyncDisposable {
  readonly #log: Logger
  readonly #onCrash: ((error: CriError) => void) | undefined
  readonly #callTimeoutMs: number
  readonly #closeTimeoutMs: number
  readonly #entry: URL
  readonly #counters = new Counters()
  readonly #descriptors = new Descriptors()
  readonly #logs = new Map<string, LogEntry>()
  readonly #captures = new Set<number>()
  readonly #attached = new Map<number, (how: 'end' | 'gone' | 'lost') => void>()
  readonly #pending = new Map<number, PendingCall>()
  #worker: Worker | undefined
  #ready = Promise.withResolvers<void>()
  #gone = Promise.withResolvers<void>()
  #sequence = 0
  #crashes = 0
  readonly #backoff = new CrashBackoff()
  #restart: NodeJS.Timeout | undefined
  #closing: Promise<void> | undefined

  private constructor(options: IoWorkerOptions) {
    this.#log = options.log
    this.#onCrash = options.onCrash
    this.#callTimeoutMs = options.callTimeoutMs ?? defaultCallTimeoutMs
    this.#closeTimeoutMs = options.closeTimeoutMs ?? defaultCloseTimeoutMs
    this.#entry = options.entry ?? new URL('./io-worker.ts', import.meta.url)
  }

  /** Resolves when the thread runs. Errors: INTERNAL when it does not come up. */
  static async start(options: IoWorkerOptions): Promise<IoWorker> {
    const io = new IoWorker(options)
    io.#spawn()
    try {
      await io.#ready.promise
    } catch (error) {
      await io.close()
      throw error
    }
    return io
  }

  /**
   * Opens a container's FIFOs and log file and pumps from now on. End of file is kept away until `started`.
   * Errors: ALREADY_EXISTS; FAILED_PRECONDITION or RESOURCE_EXHAUSTED when a file cannot be opened; everything is closed again then.
   */
  async openLog(options: OpenLogOptions): Promise<void> {
    const { id, stdoutFifo, stderrFifo, logPath, maxLineBytes, recover = false } = options
    if (this.#logs.has(id)) throw new CriError(Code.ALREADY_EXISTS, `the output of container ${id} is open already`)
    const spec = { id, stdoutFifo, stderrFifo, logPath, maxLineBytes, recover }
    const entry: LogEntry = { handle: this.#next(), spec, started: false, ended: false, end: Promise.withResolvers() }
    this.#logs.set(id, entry)
    try {
      await this.#call(`opening the output of container ${id}`, { type: 'openLog', handle: entry.handle, spec })
    } catch (error) {
      this.#forget(id, entry)
      // It may have been opened after the deadline, or by the next worker.
      this.#post({ type: 'abandon', handle: entry.handle })
      throw error
    }
  }

  /** The task has the FIFOs open (Tasks.Create has returned), or is known to be gone: end of file may come. */
  started(id: string): void {
    const entry = this.#logs.get(id)
    if (entry === undefined || entry.started) return
    entry.started = true
    this.#post({ type: 'started', handle: entry.handle })
  }

  /**
   * ReopenContainerLog: the kubelet has renamed the file. What was read so far is in the old file, all else goes to a new one at the
   * old path. Errors: NOT_FOUND; the old file stays in use when the new one cannot be opened.
   */
  async reopenLog(id: string): Promise<void> {
    const entry = this.#logs.get(id)
    if (entry === undefined) throw notFound(`the output of container ${id} is not open: the container does not run`)
    await this.#call(`reopening the log of container ${id}`, { type: 'reopenLog', handle: entry.handle })
  }

  /**
   * After the exit: resolves when all streams are at their end and written, `timeout` when something still holds a FIFO open.
   * Implies `started`. Goes on through a crash of the worker. `eof` for what is not open.
   */
  async drained(id: string, timeoutMs: number): Promise<'eof' | 'timeout'> {
    const entry = this.#logs.get(id)
    if (entry === undefined) return 'eof'
    this.started(id)
    const timeout = Promise.withResolvers<'timeout'>()
    const timer = setTimeout(() => timeout.resolve('timeout'), timeoutMs)
    try {
      return await Promise.race([entry.end.promise.then(() => 'eof' as const), timeout.promise])
    } finally {
      clearTimeout(timer)
    }
  }

  /** Closes a container's descriptors; an unfinished line is written as a P entry. Idempotent. */
  async closeLog(id: string): Promise<void> {
    const entry = this.#logs.get(id)
    if (entry === undefined) return
    this.#forget(id, entry)
    await this.#call(`closing the output of container ${id}`, { type: 'closeLog', handle: entry.handle })
  }

  /**
   * Output of a container from now on goes to `port` too (transferred; AttachOutputMessage), until its end or until the port is closed.
   * Errors: NOT_FOUND when its output is not open; the port is closed then.
   */
  async attach(id: string, spec: AttachSpec, port: MessagePort): Promise<Attachment> {
    const entry = this.#logs.get(id)
    if (entry === undefined) {
      port.close()
      throw notFound(`the output of container ${id} is not read by this service`)
    }
    const client = this.#next()
    const { promise, resolve } = Promise.withResolvers<'end' | 'gone' | 'lost'>()
    this.#attached.set(client, resolve)
    try {
      await this.#call(`attaching to container ${id}`, { type: 'attach', handle: entry.handle, client, spec: { stdout: spec.stdout, stderr: spec.stderr }, port }, this.#callTimeoutMs, [port])
    } catch (error) {
      this.#attached.delete(client)
      port.close()
      throw error
    }
    return { over: promise }
  }

  /** Opens an exec process's FIFOs and reads from now on. Errors as of `openLog`. */
  async capture(options: CaptureOptions): Promise<Capture> {
    const { id, stdoutFifo, stderrFifo, limitBytes } = options
    const handle = this.#next()
    const abandon = (): void => {
      if (this.#captures.delete(handle)) this.#post({ type: 'abandon', handle })
    }
    const close = async (): Promise<void> => {
      if (!this.#captures.delete(handle)) return
      await this.#call(`closing the output of exec ${id}`, { type: 'closeCapture', handle })
    }
    this.#captures.add(handle)
    try {
      await this.#call(`opening the output of exec ${id}`, { type: 'openCapture', handle, spec: { id, stdoutFifo, stderrFifo, limitBytes } })
    } catch (error) {
      abandon()
      throw error
    }
    return {
      started: () => {
        if (this.#captures.has(handle)) this.#post({ type: 'started', handle })
      },
      result: async ({ drainTimeoutMs }) => {
        if (!this.#captures.has(handle)) throw internal(`the output of exec ${id} is lost: it was closed, or the log worker had to be restarted`)
        try {
          const what = `reading the output of exec ${id}`
          const output = await this.#call(what, { type: 'captureResult', handle, drainTimeoutMs }, drainTimeoutMs + this.#callTimeoutMs)
          this.#captures.delete(handle)
          return { ...output, stdout: Buffer.from(output.stdout), stderr: Buffer.from(output.stderr) }
        } catch (error) {
          abandon()
          throw error
        }
      },
      close,
    }
  }

  /** Totals since the start, read without asking the worker. */
  stats(): IoStats {
    return { logs: this.#logs.size, captures: this.#captures.size, attached: this.#attached.size, crashes: this.#crashes, ...this.#counters.read() }
  }

  /** Writes unfinished lines (P entries), closes every descriptor and ends the thread. Containers go on; what they write waits in their FIFOs. */
  async close(): Promise<void> {
    this.#closing ??= this.#shutdown()
    await this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #shutdown(): Promise<void> {
    clearTimeout(this.#restart)
    const worker = this.#worker
    if (worker === undefined) return
    this.#post({ type: 'shutdown' })
    const timer = setTimeout(() => {
      this.#log.warn('the log worker does not end by itself: ending it')
      void worker.terminate()
    }, this.#closeTimeoutMs)
    await this.#gone.promise
    clearTimeout(timer)
  }

  #next(): number {
    return ++this.#sequence
  }

  #forget(id: string, entry: LogEntry): void {
    if (this.#logs.get(id) === entry) this.#logs.delete(id)
    entry.end.resolve()
  }

  #post(message: ToWorker, transfer: MessagePort[] = []): void {
    this.#worker?.postMessage(message, transfer)
  }

  async #call<R extends Request>(what: string, request: R, timeoutMs = this.#callTimeoutMs, transfer: MessagePort[] = []): Promise<Responses[R['type']]> {
    if (this.#closing !== undefined) throw unavailable(`${what}: the service is shutting down`)
    if (this.#worker === undefined) throw unavailable(`${what}: the log worker is being restarted, try again`)
    const seq = this.#next()
    const call = Promise.withResolvers<CapturedOutput | undefined>()
    const timer = setTimeout(() => {
      call.reject(deadlineExceeded(`${what} took longer than ${timeoutMs / 1000} s: look for a disk that does not answer (kernel log, df on the log directory)`))
    }, timeoutMs)
    this.#pending.set(seq, { what, resolve: call.resolve, reject: call.reject })
    this.#post({ type: 'call', seq, request }, transfer)
    try {
      return await call.promise as Responses[R['type']]
    } finally {
      clearTimeout(timer)
      this.#pending.delete(seq)
    }
  }

  #spawn(): void {
    const memory: WorkerMemory = { descriptors: this.#descriptors.memory, counters: this.#counters.memory }
    const worker = new Worker(this.#entry, { name: 'cri-shim-io', workerData: memory, trackUnmanagedFds: false })
    this.#worker = worker
    this.#backoff.started()
    this.#gone = Promise.withResolvers()
    let failure: unknown
    worker.on('message', (message: FromWorker) => this.#receive(message))
    worker.on('error', (error) => {
      failure ??= error
    })
    worker.once('exit', (exitCode) => this.#exited(failure ?? new Error(`it ended with code ${exitCode}`)))
  }

  #receive(message: FromWorker): void {
    switch (message.type) {
      case 'ready':
        this.#ready.resolve()
        break
      case 'answer':
        this.#pending.get(message.seq)?.resolve(message.value)
        break
      case 'failure':
        this.#pending.get(message.seq)?.reject(new CriError(message.code, message.message, { reason: message.reason }))
        break
      case 'ended':
        for (const entry of this.#logs.values()) {
          if (entry.handle !== message.handle) continue
          entry.ended = true
          entry.end.resolve()
        }
        break
      case 'detached':
        this.#attached.get(message.client)?.(message.how)
        this.#attached.delete(message.client)
        break
      case 'log':
        this.#log[message.level](message.fields, message.message)
        break
    }
  }

  /** The thread is gone, its sockets with it: what it had open by number is closed here. */
  #exited(cause: unknown): void {
    this.#worker = undefined
    this.#descriptors.closeAll()
    this.#gone.resolve()
    for (const resolve of this.#attached.values()) resolve('lost')
    this.#attached.clear()
    if (this.#closing !== undefined) {
      this.#failPending((what) => unavailable(`${what}: the service is shutting down`))
      return
    }
    const error = internal(`the log worker failed: ${messageOf(cause)}`, { reason: 'IO_WORKER', cause })
    this.#crashes++
    this.#captures.clear()
    this.#failPending((what) => internal(`${what}: the log worker failed: ${messageOf(cause)}`, { reason: 'IO_WORKER', cause }))
    this.#ready.promise.catch(() => undefined)
    this.#ready.reject(error)
    this.#ready = Promise.withResolvers()
    this.#log.error({ err: error, logs: this.#logs.size }, 'the log worker failed: starting a new one and opening all logs again')
    const delayMs = this.#backoff.crashed()
    if (delayMs === 0) this.#respawn()
    else this.#restart = setTimeout(() => this.#respawn(), delayMs)
    this.#onCrash?.(error)
  }

  #failPending(errorOf: (what: string) => CriError): void {
    for (const call of this.#pending.values()) call.reject(errorOf(call.what))
    this.#pending.clear()
  }

  #respawn(): void {
    if (this.#closing !== undefined) return
    this.#spawn()
    for (const [id, entry] of this.#logs) {
      const { handle, ended } = entry
      // What had ended has no FIFOs to read, only a log to reopen.
      const spec = { ...entry.spec, recover: true, ...(ended ? { stdoutFifo: undefined, stderrFifo: undefined } : {}) }
      this.#call(`opening the output of container ${id} again`, { type: 'openLog', handle, spec }).catch((error: unknown) => {
        if (this.#worker === undefined || this.#closing !== undefined) return
        this.#log.error({ err: error, container: id }, `the output of container ${id} is lost: ${messageOf(error)}`)
        entry.ended = true
        entry.end.resolve()
      })
      if (entry.started) this.#post({ type: 'started', handle })
    }
  }
}
