import { getCompileCacheDir } from 'node:module'
import { dirname } from 'node:path'
import { Worker } from 'node:worker_threads'
import { Code, CriError, deadlineExceeded, internal, messageOf, resourceExhausted, unavailable } from '../errors/cri-error.ts'
import { isWithin } from './mountinfo.ts'
import { CallState } from './ops/context.ts'
import type { OperationArgs, OperationName, OperationResult } from './ops/operations.ts'
import type { WorkerData, WorkerReply, WorkerRequest } from './worker-protocol.ts'

/** What src/linux says about its threads; pino's Logger fits. */
export interface LinuxLog {
  warn(fields: object, message: string): void
  info(fields: object, message: string): void
}

export interface WorkerPoolOptions {
  readonly log: LinuxLog
  /** How many threads there are when all is well. */
  readonly workers: number
  /** How many hung threads may be replaced. */
  readonly maxHung: number
}

export interface PoolCall {
  /** The path or thing that the call is about, for errors. */
  readonly subject: string
  /** Whether a pod had a say in the path: such a call may hang, and never takes the last thread. */
  readonly podChosen: boolean
  readonly timeoutMs: number
  readonly signal?: AbortSignal | undefined
}

interface Job extends PoolCall {
  readonly request: WorkerRequest
  readonly settle: (outcome: { readonly value: unknown } | { readonly error: Error }) => void
  settled: boolean
}

interface Thread {
  readonly worker: Worker
  readonly state: Int32Array
  readonly ready: Promise<void>
  job: Job | undefined
  startedAtMs: number
  hangTimer: NodeJS.Timeout | undefined
  hung: boolean
}

/** What a call may take beyond its deadline before its thread counts as hung: it notices that it was cancelled, or passes its point of no return. */
const graceMs = 1000
/** After so long without any thread coming back from a call, while calls wait, another one is started. */
const growAfterMs = 250
const maxWaiting = 2000

/**
 * Threads for blocking calls. One that hangs in the kernel cannot be ended: it is set aside, another takes its place, and it comes back
 * if the kernel ever answers. Calls on a path that hangs already, or below it, fail at once and cost no thread.
 */
export class WorkerPool {
  readonly #options: WorkerPoolOptions
  readonly #threads = new Set<Thread>()
  readonly #waiting: Job[] = []
  #growTimer: NodeJS.Timeout | undefined
  #lastReplyMs = 0
  #closed = false

  private constructor(options: WorkerPoolOptions) {
    this.#options = options
  }

  static async start(options: WorkerPoolOptions): Promise<WorkerPool> {
    const pool = new WorkerPool(options)
    try {
      await Promise.all(Array.from({ length: options.workers }, () => pool.#spawn().ready))
    } catch (error) {
      await pool.close()
      throw internal(`the threads for system calls do not start: ${messageOf(error)}`, { cause: error })
    }
    return pool
  }

  async call<K extends OperationName>(op: K, call: PoolCall, ...args: OperationArgs<K>): Promise<OperationResult<K>> {
    const what = `${op} ${call.subject}`.trimEnd()
    call.signal?.throwIfAborted()
    this.#refuse(what, call)
    const done = Promise.withResolvers<OperationResult<K>>()
    let timer: NodeJS.Timeout | undefined
    const onAbort = (): void => this.#giveUp(job, abortError(call.signal))
    const job: Job = {
      ...call,
      request: { op, args, what },
      settled: false,
      settle: (outcome) => {
        if (job.settled) return
        job.settled = true
        clearTimeout(timer)
        call.signal?.removeEventListener('abort', onAbort)
        if ('error' in outcome) done.reject(outcome.error)
        else done.resolve(outcome.value as OperationResult<K>)
      },
    }
    timer = setTimeout(() => this.#giveUp(job, this.#deadline(job)), call.timeoutMs)
    call.signal?.addEventListener('abort', onAbort, { once: true })
    this.#waiting.push(job)
    this.#dispatch()
    return done.promise
  }

  /** The calls that hang now, as `statPath /data (for 12 s)`. */
  get hung(): readonly string[] {
    return this.#hungThreads().map((thread) => describe(thread))
  }

  get threadCount(): number {
    return this.#threads.size
  }

  get waiting(): number {
    return this.#waiting.length
  }

  /** Ends the threads once they have finished what they do, but for hung ones: their descriptions are the result. */
  async close(): Promise<readonly string[]> {
    this.#closed = true
    clearTimeout(this.#growTimer)
    for (const job of this.#waiting.splice(0)) job.settle({ error: unavailable(`${job.request.what}: the service stops`) })
    const busy = [...this.#threads].filter((thread) => thread.job !== undefined && !thread.hung)
    await Promise.all(busy.map((thread) => this.#finished(thread)))
    const hung = this.hung
    const threads = [...this.#threads]
    const ended = threads.map((thread) => ({ hangs: thread.hung, end: this.#end(thread) }))
    // To wait for a thread that hangs would be to hang.
    await Promise.all(ended.filter(({ hangs }) => !hangs).map(({ end }) => end))
    return hung
  }

  #refuse(what: string, call: PoolCall): void {
    if (this.#closed) throw unavailable(`${what}: the service stops`)
    const hung = this.#hungThreads()
    if (call.podChosen) {
      const same = hung.find(({ job }) => job?.podChosen === true && isWithin(call.subject, job.subject))
      if (same !== undefined) throw unavailable(`${what}: not tried, because ${describe(same)} hangs: is its network file system or disk gone?`, { reason: 'HUNG' })
    }
    const exhausted = call.podChosen ? hung.length >= this.#options.maxHung : this.#live() === 0 && !this.#hasRoom()
    if (exhausted) throw unavailable(`${what}: not tried, because ${hung.length} calls hang in the kernel: ${hung.map(describe).join(', ')}`, { reason: 'HUNG' })
    if (this.#waiting.length >= maxWaiting) throw resourceExhausted(`${what}: ${maxWaiting} calls wait for a system call thread already; try again later`)
  }

  #hungThreads(): Thread[] {
    return [...this.#threads].filter(({ hung }) => hung)
  }

  #live(): number {
    let live = 0
    for (const { hung } of this.#threads) if (!hung) live += 1
    return live
  }

  #hasRoom(): boolean {
    return this.#threads.size < this.#options.workers + this.#options.maxHung
  }

  #deadline(job: Job): CriError {
    const seconds = job.timeoutMs / 1000
    const running = [...this.#threads].some((thread) => thread.job === job)
    return running
      ? deadlineExceeded(`${job.request.what}: no answer for ${seconds} s: is its network file system or disk gone?`)
      : deadlineExceeded(`${job.request.what}: no system call thread was free for ${seconds} s; busy with ${[...this.#threads].map(describe).join(', ')}`)
  }

  /** The caller waits no longer. A call past its point of no return still gives its result. */
  #giveUp(job: Job, error: Error): void {
    const index = this.#waiting.indexOf(job)
    if (index !== -1) this.#waiting.splice(index, 1)
    const thread = [...this.#threads].find((each) => each.job === job)
    const before = thread === undefined ? CallState.RUNNING : Atomics.compareExchange(thread.state, 0, CallState.RUNNING, CallState.CANCELLED)
    if (before !== CallState.COMMITTED) job.settle({ error })
  }

  #dispatch(): void {
    if (this.#closed) return
    while (this.#live() < this.#options.workers && this.#hasRoom()) this.#spawn()
    for (const thread of this.#threads) {
      if (thread.job !== undefined) continue
      const job = this.#next()
      if (job === undefined) break
      this.#run(thread, job)
    }
    if (this.#waiting.length > 0 && this.#growTimer === undefined) this.#growTimer = setTimeout(() => this.#grow(), growAfterMs)
  }

  /** The oldest call that may run now. Calls on pods' paths leave one thread to the others, unless there is but one. */
  #next(): Job | undefined {
    const running = [...this.#threads].filter(({ hung, job }) => !hung && job?.podChosen === true).length
    const podsMayRun = running < Math.max(1, this.#live() - 1)
    const index = this.#waiting.findIndex(({ podChosen }) => podsMayRun || !podChosen)
    return index === -1 ? undefined : this.#waiting.splice(index, 1)[0]
  }

  #grow(): void {
    this.#growTimer = undefined
    if (this.#closed || this.#waiting.length === 0) return
    // A queue that moves needs no further thread: it would cost more than it brings.
    if (performance.now() - this.#lastReplyMs >= growAfterMs && this.#hasRoom()) this.#spawn()
    this.#dispatch()
  }

  #run(thread: Thread, job: Job): void {
    thread.job = job
    thread.startedAtMs = performance.now()
    Atomics.store(thread.state, 0, CallState.RUNNING)
    thread.hangTimer = setTimeout(() => this.#setAside(thread, job), job.timeoutMs + graceMs)
    thread.worker.ref()
    try {
      thread.worker.postMessage(job.request)
    } catch (error) {
      // An argument that structured clone refuses: our own mistake, the thread never saw it.
      this.#free(thread)
      job.settle({ error: internal(`${job.request.what}: ${messageOf(error)}`, { cause: error }) })
      queueMicrotask(() => this.#dispatch())
    }
  }

  #setAside(thread: Thread, job: Job): void {
    thread.hung = true
    thread.worker.unref()
    job.settle({ error: this.#deadline(job) })
    this.#options.log.warn({ call: job.request.what, hung: this.#hungThreads().length, maxHung: this.#options.maxHung }, 'a system call hangs; its thread is set aside')
    if (this.#live() === 0 && !this.#hasRoom()) {
      for (const waiting of this.#waiting.splice(0)) {
        waiting.settle({ error: unavailable(`${waiting.request.what}: not tried, because every system call thread hangs: ${this.hung.join(', ')}`, { reason: 'HUNG' }) })
      }
    }
    this.#dispatch()
  }

  #free(thread: Thread): void {
    clearTimeout(thread.hangTimer)
    thread.hangTimer = undefined
    thread.job = undefined
    thread.worker.unref()
  }

  #onReply(thread: Thread, reply: Exclude<WorkerReply, { kind: 'ready' }>): void {
    const { job } = thread
    if (job === undefined) return
    this.#lastReplyMs = performance.now()
    if (thread.hung) {
      thread.hung = false
      const seconds = Math.round((performance.now() - thread.startedAtMs) / 1000)
      this.#options.log.info({ call: job.request.what, seconds }, 'a system call that hung has returned')
    }
    this.#free(thread)
    job.settle(reply.kind === 'result' ? { value: reply.value } : { error: fromWire(reply) })
    if (reply.retired) this.#options.log.warn({ call: job.request.what }, 'a system call thread ends, because it could not return to its network namespace')
    if (reply.retired || (this.#waiting.length === 0 && this.#live() > this.#options.workers)) void this.#end(thread)
    this.#dispatch()
  }

  #spawn(): Thread {
    const state = new Int32Array(new SharedArrayBuffer(4))
    const cache = getCompileCacheDir()
    const worker = new Worker(new URL('./worker.ts', import.meta.url), {
      workerData: { state } satisfies WorkerData,
      name: 'syscalls',
      execArgv: [],
      argv: [],
      // With the compile cache a thread need not load the type stripper, which takes 10 MB.
      env: cache === undefined ? {} : { NODE_COMPILE_CACHE: dirname(cache) },
      // Descriptors that operations hand out belong to the process.
      trackUnmanagedFds: false,
      resourceLimits: { maxOldGenerationSizeMb: 128, maxYoungGenerationSizeMb: 4 },
    })
    const ready = Promise.withResolvers<void>()
    ready.promise.catch(() => undefined)
    const thread: Thread = { worker, state, ready: ready.promise, job: undefined, startedAtMs: 0, hangTimer: undefined, hung: false }
    const died = (error: Error): void => {
      const { job } = thread
      const known = this.#threads.delete(thread)
      if (known) this.#free(thread)
      ready.reject(error)
      if (!known && job === undefined) return
      if (known && !this.#closed) this.#options.log.warn({ call: job?.request.what, error: error.message }, 'a system call thread died')
      job?.settle({ error: internal(`${job.request.what}: its thread died: ${error.message}`, { cause: error }) })
      if (this.#waiting.length > 0) this.#dispatch()
    }
    worker.on('message', (reply: WorkerReply) => {
      if (reply.kind === 'ready') ready.resolve()
      else this.#onReply(thread, reply)
    })
    worker.on('error', (error) => died(error instanceof Error ? error : internal(String(error))))
    worker.on('exit', (status) => died(internal(`exit status ${status}`)))
    this.#threads.add(thread)
    return thread
  }

  /** Takes the thread out of the pool and ends it; the promise of a hung one stays open. */
  async #end(thread: Thread): Promise<void> {
    this.#threads.delete(thread)
    clearTimeout(thread.hangTimer)
    await thread.worker.terminate()
  }

  /** Resolves when the thread is free, hangs or has died. */
  async #finished(thread: Thread): Promise<void> {
    const done = Promise.withResolvers<void>()
    const limit = (thread.job?.timeoutMs ?? 0) + graceMs
    const timer = setTimeout(() => done.resolve(), limit)
    thread.worker.once('message', () => done.resolve())
    thread.worker.once('exit', () => done.resolve())
    await done.promise
    clearTimeout(timer)
  }
}

function describe(thread: Thread): string {
  if (thread.job === undefined) return 'nothing'
  return `${thread.job.request.what} (for ${Math.round((performance.now() - thread.startedAtMs) / 1000)} s)`
}

function fromWire(reply: Extract<WorkerReply, { kind: 'error' }>): CriError {
  const { code, reason, message, stack } = reply.error
  const error = new CriError(code, message, { reason })
  // Where it happened in the worker is worth more than where the reply arrived.
  if (stack !== undefined) error.stack = stack
  return error
}

function abortError(signal: AbortSignal | undefined): Error {
  const reason: unknown = signal?.reason
  return reason instanceof Error ? reason : new CriError(Code.CANCELLED, messageOf(reason))
}
