import { closeSync } from 'node:fs'
import { Worker, type MessagePort } from 'node:worker_threads'
import { CrashBackoff } from '../concurrency/crash-backoff.ts'
import { Code, CriError, internal, messageOf, unavailable } from '../errors/cri-error.ts'
import type { StreamingSettings } from '../config/settings.ts'
import { Descriptors } from '../linux/descriptors.ts'
import type { Background } from '../observability/background.ts'
import type { Logger } from '../observability/logger.ts'
import type { Metrics } from '../observability/metrics.ts'
import { bindAddress, isLoopback, urlHost } from './address.ts'
import { ByteCounters } from './counters.ts'
import { KeyPairs } from './key-pairs.ts'
import { registerStreamingMetrics, type StreamingMetrics } from './metrics.ts'
import { defaultLimits, type FromWorker, type GoneReason, type StreamEnd, type StreamingLimits, type ToWorker, type WorkerStart } from './protocol.ts'
import { MainStream } from './stream-io.ts'
import { Tokens } from './tokens.ts'
import type { StreamingBackend, StreamingHandle, StreamKind, StreamResult, StreamSession } from './types.ts'

/** How long a port that was ours may take to be free again after a crash, and how long backends may take to settle at the end. */
const settleMs = 5_000
/** Ports that must be free again: the old listener closes with its thread. */
const listenAttempts = 10
const listenRetryMs = 200

export interface StreamingServerOptions {
  readonly settings: StreamingSettings
  readonly log: Logger
  readonly metrics: Metrics
  readonly background: Background
  readonly backend: StreamingBackend
  readonly limits?: Partial<StreamingLimits>
  /** The worker's entry, where it is not the file beside this one (a bundle, a test). */
  readonly entry?: URL
}

interface Running {
  readonly stream: MainStream
  readonly kind: StreamKind
  begun: boolean
}

interface Asked {
  readonly resolve: (result: 'drained' | 'timeout' | undefined) => void
  readonly reject: (error: CriError) => void
}

/**
 * The main thread's handle of the streaming worker. Tokens, and what they mean, are kept here and survive a crash of the worker; after
 * one, running streams are aborted and a new worker listens on the same port.
 */
export class StreamingServer implements StreamingHandle {
  readonly #settings: StreamingSettings
  readonly #log: Logger
  readonly #metrics: StreamingMetrics
  readonly #background: Background
  readonly #backend: StreamingBackend
  readonly #limits: StreamingLimits
  readonly #entry: URL
  readonly #keyPairs: KeyPairs | undefined
  readonly #tokens = new Tokens()
  readonly #counters = new ByteCounters()
  readonly #descriptors = new Descriptors()
  readonly #running = new Map<number, Running>()
  readonly #asked = new Map<number, Asked>()
  readonly #connecting = new Map<number, AbortController>()
  #worker: Worker | undefined
  #gone = Promise.withResolvers<void>()
  /** The port, once the worker listens; a rejection is kept until the next attempt. */
  #listening: Promise<number> | undefined
  #announce: PromiseWithResolvers<number> | undefined
  /** The port that URLs were given out for. */
  #port: number | undefined
  #sequence = 0
  /** This worker came as far as to listen. */
  #listened = false
  readonly #backoff = new CrashBackoff()
  #lastFault: string | undefined
  #listenFailure: CriError | undefined
  /** Ends the pause before the next attempt. */
  #wake: (() => void) | undefined
  #draining = false
  #closing: Promise<void> | undefined
  #idle: PromiseWithResolvers<void> | undefined

  private constructor(options: StreamingServerOptions) {
    this.#settings = options.settings
    this.#log = options.log
    this.#background = options.background
    this.#backend = options.backend
    this.#limits = { ...defaultLimits, ...options.limits }
    this.#entry = options.entry ?? new URL('./worker.ts', import.meta.url)
    this.#metrics = registerStreamingMetrics(options.metrics, this.#counters, () => this.#count())
    const { address, enableTls } = options.settings
    if (enableTls) {
      this.#keyPairs = new KeyPairs({ settings: options.settings, log: options.log, onChange: (tls) => this.#post({ type: 'keyPair', tls }) })
    } else if (!isLoopback(address)) {
      this.#log.warn({ address }, `streams of exec, attach and port-forward are served without TLS on ${address}, where others can read them: set enable_tls_streaming = true, or stream_server_address = "127.0.0.1"`)
    }
  }

  /** Nothing runs before the first `url` or `listen`. */
  static create(options: StreamingServerOptions): StreamingServer {
    return new StreamingServer(options)
  }

  async url(session: StreamSession): Promise<string> {
    this.#refuseWhenDraining()
    const port = await this.#ensure()
    this.#refuseWhenDraining()
    const scheme = this.#settings.enableTls ? 'https' : 'http'
    return `${scheme}://${urlHost(this.#settings.address, port)}/${session.kind}/${this.#tokens.issue(session)}`
  }

  async listen(): Promise<void> {
    await this.#ensure()
  }

  async close(drainMs: number): Promise<void> {
    this.#draining = true
    this.#closing ??= this.#shutdown(drainMs)
    await this.#closing
  }

  /** How many streams of each kind run. */
  #count(): Record<StreamKind, number> {
    const count = { exec: 0, attach: 0, portforward: 0 }
    for (const { kind } of this.#running.values()) count[kind]++
    return count
  }

  #refuseWhenDraining(): void {
    if (this.#draining) throw unavailable('the service is shutting down: no new streams are opened')
  }

  /** The port that the worker listens on; starts it if need be. */
  async #ensure(): Promise<number> {
    const listening = this.#listening ??= this.#start()
    try {
      return await listening
    } catch (error) {
      // The next call tries again: a port may be free by then, a certificate be in place.
      if (this.#listening === listening) this.#listening = undefined
      throw error
    }
  }

  async #start(): Promise<number> {
    let attempt = 0
    for (;;) {
      try {
        const port = await this.#spawn()
        this.#port = port
        return port
      } catch (error) {
        const retry = this.#port !== undefined && error instanceof CriError && error.reason === 'EADDRINUSE' && ++attempt < listenAttempts && !this.#draining
        if (!retry) throw error
        await this.#pause(listenRetryMs)
      }
    }
  }

  async #spawn(): Promise<number> {
    const tls = await this.#keyPairs?.current()
    this.#refuseWhenDraining()
    const { idleTimeoutMs, address, port } = this.#settings
    const start: WorkerStart = {
      address: bindAddress(address),
      port: this.#port ?? port,
      idleTimeoutMs,
      tls,
      limits: this.#limits,
      descriptors: this.#descriptors.memory,
      counters: this.#counters.memory,
    }
    const worker = new Worker(this.#entry, { name: 'cri-shim-streaming', workerData: start, trackUnmanagedFds: false })
    const announce = Promise.withResolvers<number>()
    announce.promise.catch(() => undefined)
    this.#worker = worker
    this.#announce = announce
    this.#listened = false
    this.#backoff.started()
    this.#gone = Promise.withResolvers()
    let failure: unknown
    worker.on('message', (message: FromWorker) => this.#receive(message))
    worker.on('error', (error) => {
      failure ??= error
    })
    worker.once('exit', (exitCode) => this.#exited(failure ?? new Error(this.#lastFault ?? `it ended with code ${exitCode}`)))
    return announce.promise
  }

  /** Ended early by `close`. */
  async #pause(ms: number): Promise<void> {
    const over = Promise.withResolvers<void>()
    const timer = setTimeout(over.resolve, ms)
    this.#wake = over.resolve
    await over.promise
    clearTimeout(timer)
    this.#wake = undefined
  }

  #post(message: ToWorker, transfer: readonly MessagePort[] = []): void {
    this.#worker?.postMessage(message, transfer)
  }

  async #ask(make: (seq: number) => ToWorker): Promise<'drained' | 'timeout' | undefined> {
    if (this.#worker === undefined) throw internal('the streaming thread has failed')
    const seq = ++this.#sequence
    const answer = Promise.withResolvers<'drained' | 'timeout' | undefined>()
    this.#asked.set(seq, answer)
    this.#post(make(seq))
    try {
      return await answer.promise
    } finally {
      this.#asked.delete(seq)
    }
  }

  #receive(message: FromWorker): void {
    switch (message.type) {
      case 'listening':
        this.#listened = true
        this.#announce?.resolve(message.port)
        this.#log.info({ address: bindAddress(this.#settings.address), port: message.port, tls: this.#settings.enableTls }, 'the streaming server listens')
        break
      case 'listenFailed': {
        const { errno, message: text } = message
        const where = urlHost(bindAddress(this.#settings.address), this.#port ?? this.#settings.port)
        // Rejected at its exit, which follows.
        this.#listenFailure = unavailable(`the streaming server cannot listen on ${where}: ${text}; check stream_server_address and stream_server_port`, { reason: errno ?? 'LISTEN' })
        break
      }
      case 'redeem':
        this.#redeem(message.seq, message.kind, message.token)
        break
      case 'begin':
        this.#begin(message.id)
        break
      case 'resize':
        this.#running.get(message.id)?.stream.resized(message.size)
        break
      case 'stdinClosed':
        this.#running.get(message.id)?.stream.stdinEnded()
        break
      case 'gone':
        this.#running.get(message.id)?.stream.end(goneError(message.reason, message.message))
        break
      case 'done':
        if (message.error === undefined) this.#asked.get(message.seq)?.resolve(message.result)
        else this.#asked.get(message.seq)?.reject(internal(message.error))
        break
      case 'over':
        this.#over(message.id, message.transport, message.end)
        break
      case 'connect':
        this.#background.run('port-forward connection', this.#connect(message.id, message.seq, message.port))
        break
      case 'abandon':
        this.#connecting.get(message.seq)?.abort(new CriError(Code.CANCELLED, 'the client has given the connection up'))
        break
      case 'fault':
        this.#lastFault = message.message
        break
      case 'log':
        this.#log[message.level](message.fields, message.message)
        break
    }
  }

  #redeem(seq: number, kind: StreamKind, token: string): void {
    if (this.#draining) {
      this.#post({ type: 'unredeemed', seq, status: 503, text: 'this service is shutting down and opens no new streams; try again in a moment' })
      return
    }
    const session = this.#tokens.redeem(kind, token)
    if (session === undefined) {
      const text = `this ${kind} URL is not valid: it is good for one use within one minute, and was used, has expired or was never given out`
      this.#post({ type: 'unredeemed', seq, status: 404, text })
      return
    }
    const id = ++this.#sequence
    const stream = new MainStream(id, session, { post: (message, transfer) => this.#post(message, transfer), ask: (make) => this.#ask(make) })
    this.#running.set(id, { stream, kind, begun: false })
    this.#post({ type: 'redeemed', seq, id, session })
  }

  #begin(id: number): void {
    const running = this.#running.get(id)
    if (running === undefined || running.begun) return
    running.begun = true
    this.#background.run(`a stream of ${running.kind}`, this.#run(running.stream))
  }

  /** Never rejects: what goes wrong is for the client. */
  async #run(stream: MainStream): Promise<void> {
    const { session, id } = stream
    let result: StreamResult
    try {
      if (session.kind === 'portforward') throw internal('a port-forward is no command')
      result = session.kind === 'exec' ? await this.#backend.exec(session, stream) : await this.#backend.attach(session, stream)
    } catch (error) {
      if (!(error instanceof CriError)) this.#log.error({ err: error, containerId: 'containerId' in session ? session.containerId : undefined }, `${session.kind} failed by a fault of this service`)
      result = { error: messageOf(error) }
    }
    stream.settle()
    this.#post({ type: 'finish', id, result })
  }

  /** Never rejects. */
  async #connect(id: number, seq: number, port: number): Promise<void> {
    const running = this.#running.get(id)
    const session = running?.stream.session
    if (running === undefined || session?.kind !== 'portforward') {
      this.#post({ type: 'refused', seq, message: 'the port-forward is over' })
      return
    }
    const abort = new AbortController()
    this.#connecting.set(seq, abort)
    const worker = this.#worker
    try {
      const fd = await this.#backend.connect(session, port, AbortSignal.any([abort.signal, running.stream.signal]))
      this.#metrics.connection('connected')
      if (this.#worker !== worker || abort.signal.aborted) {
        closeSync(fd)
        return
      }
      this.#descriptors.adopt(fd)
      this.#post({ type: 'connected', seq, fd })
    } catch (error) {
      this.#metrics.connection('refused')
      if (!(error instanceof CriError)) this.#log.error({ err: error, podSandboxId: session.podSandboxId, port }, 'a port-forward connection failed by a fault of this service')
      this.#post({ type: 'refused', seq, message: messageOf(error) })
    } finally {
      this.#connecting.delete(seq)
    }
  }

  #over(id: number, transport: 'spdy' | 'websocket' | 'none', end: StreamEnd): void {
    const running = this.#running.get(id)
    if (running === undefined) return
    this.#running.delete(id)
    this.#metrics.ended(running.kind, transport, end)
    // Connections that are being made for it are of no use any more.
    if (running.kind === 'portforward') running.stream.end(new CriError(Code.CANCELLED, 'the port-forward is over'))
    if (this.#running.size === 0) this.#idle?.resolve()
  }

  /** The thread is gone, its sockets with it: what it had open by number is closed here, and what ran is told. */
  #exited(cause: unknown): void {
    this.#worker = undefined
    this.#descriptors.closeAll()
    const error = internal(`the streaming thread failed: ${messageOf(cause)}`, { reason: 'STREAMING_WORKER', cause })
    const announced = this.#announce
    this.#announce = undefined
    for (const { reject } of this.#asked.values()) reject(error)
    for (const abort of this.#connecting.values()) abort.abort(error)
    for (const [id, running] of this.#running) {
      running.stream.end(error)
      this.#over(id, 'none', 'fault')
    }
    announced?.reject(this.#listenFailure ?? error)
    this.#lastFault = undefined
    this.#listenFailure = undefined
    this.#gone.resolve()
    if (this.#draining) return
    if (announced !== undefined && this.#listened) this.#crashed(error)
  }

  /** It had listened: URLs are given out, so a new one takes the port at once, later when it fails again and again. */
  #crashed(error: CriError): void {
    if (this.#draining) return
    this.#metrics.crashed()
    this.#log.error({ err: error }, 'the streaming thread failed: its streams have ended; starting a new one on the same port')
    const listening = this.#startAfter(this.#backoff.crashed())
    this.#listening = listening
    this.#background.run('starting the streaming server again', this.#watchRestart(listening))
  }

  async #startAfter(delayMs: number): Promise<number> {
    await this.#pause(delayMs)
    return this.#start()
  }

  async #watchRestart(listening: Promise<number>): Promise<void> {
    try {
      await listening
    } catch (error) {
      if (this.#listening === listening) this.#listening = undefined
      if (!this.#draining) throw new Error(`the streaming server could not be started again; the next exec, attach or port-forward tries: ${messageOf(error)}`, { cause: error })
    }
  }

  async #shutdown(drainMs: number): Promise<void> {
    this.#wake?.()
    this.#keyPairs?.close()
    if (this.#worker === undefined) {
      // It may be about to start.
      await this.#listening?.catch(() => undefined)
    }
    const worker = this.#worker
    if (worker === undefined) return
    await this.#whenIdle(drainMs)
    if (this.#running.size > 0) {
      this.#log.info({ streams: this.#running.size }, 'streams that still run are ended')
      this.#post({ type: 'endAll', message: 'the service on the node is shutting down: try again in a moment' })
      await this.#whenIdle(settleMs)
    }
    this.#post({ type: 'shutdown' })
    const timer = setTimeout(() => {
      this.#log.warn('the streaming thread does not end by itself: ending it')
      void worker.terminate()
    }, settleMs)
    await this.#gone.promise
    clearTimeout(timer)
  }

  async #whenIdle(timeoutMs: number): Promise<void> {
    if (this.#running.size === 0) return
    this.#idle = Promise.withResolvers()
    const timer = setTimeout(this.#idle.resolve, timeoutMs)
    await this.#idle.promise
    clearTimeout(timer)
  }
}

const goneCodes = { client_gone: Code.CANCELLED, idle: Code.DEADLINE_EXCEEDED, drained: Code.UNAVAILABLE, fault: Code.INTERNAL } as const

function goneError(reason: GoneReason, message: string): CriError {
  return new CriError(goneCodes[reason], message, { reason })
}
