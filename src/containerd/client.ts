import * as grpc from '@grpc/grpc-js'
import { Code, CriError, messageOf } from '../errors/cri-error.ts'
import type { Services } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import { containerdProtos, serviceDefinition } from '../generated/protos.ts'
import type { Ctx } from '../observability/context.ts'
import type { Metrics } from '../observability/metrics.ts'
import { type Span, SpanKind, type Tracer } from '../observability/tracing.ts'
import { UploadConnection, type UploadHandlers } from './upload.ts'

export type ServiceName = keyof Services
export type MethodName<S extends ServiceName> = keyof Services[S] & string
type Shape<S extends ServiceName, M extends MethodName<S>> = Services[S][M] extends { request: infer Q; response: infer R } ? { request: Q; response: R } : never
export type RequestOf<S extends ServiceName, M extends MethodName<S>> = Shape<S, M>['request']
export type ResponseOf<S extends ServiceName, M extends MethodName<S>> = Shape<S, M>['response']

export interface CallOptions {
  /** How long the call may take, in milliseconds. Default: 120,000. */
  readonly timeoutMs?: number
  /** The lease that what the call creates belongs to, so that garbage collection leaves it alone. Default: none. */
  readonly lease?: string | undefined
  /**
   * Sees the call through when the context's signal aborts. For what makes or deletes something: containerd would go on with a cancelled call for a
   * while, and what is taken back meanwhile would not find it. Default: false, the call is cancelled.
   */
  readonly throughout?: boolean
}

export interface ContainerdClientOptions {
  /** `unix:///run/containerd/containerd.sock` */
  readonly address: string
  /** The containerd namespace of every call. Default: `k8s.io`. */
  readonly namespace?: string
  readonly metrics: Metrics
  /** Default: nothing is traced. */
  readonly tracer?: Tracer | undefined
}

/** An upload whose messages are objects, or encoded already. */
export interface TypedUpload<Request> {
  send(request: Init<Request> | Buffer): void
  finish(): void
  cancel(): void
}

const defaultTimeoutMs = 120_000

/** Large lists and manifests go through; content travels in pieces of 1 to 4 MiB. */
const channelOptions: grpc.ChannelOptions = {
  'grpc.max_receive_message_length': 256 * 1024 * 1024,
  'grpc.max_send_message_length': 64 * 1024 * 1024,
  'grpc.use_local_subchannel_pool': 1,
  // A socket of this machine costs nothing to try, and the shims' word of what ended meanwhile comes within a second of containerd's return.
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.min_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 100,
}

/** The status codes of a containerd answer that mean the same in ours; anything else is INTERNAL. */
const passedOn = new Set<number>(Object.values(Code))

/**
 * Calls to containerd's gRPC API, typed by service and method. Failures are CriErrors that carry containerd's own status code and
 * say which call on what failed.
 */
export class ContainerdClient {
  readonly address: string
  readonly namespace: string
  readonly #control: grpc.Client
  /** Content travels on a connection of its own, so that a pull's flow control never delays a task call. */
  readonly #bulk: grpc.Client
  /** Uploads have one of their own again, with less copying. */
  readonly #uploads: UploadConnection
  readonly #metrics: Metrics
  readonly #tracer: Tracer | undefined
  readonly #definitions = new Map<ServiceName, grpc.ServiceDefinition>()

  constructor(options: ContainerdClientOptions) {
    this.address = options.address
    this.namespace = options.namespace ?? 'k8s.io'
    this.#uploads = new UploadConnection(options.address.replace(/^unix:(\/\/)?/, ''))
    this.#metrics = options.metrics
    this.#tracer = options.tracer
    this.#control = new grpc.Client(options.address, grpc.credentials.createInsecure(), channelOptions)
    this.#bulk = new grpc.Client(options.address, grpc.credentials.createInsecure(), channelOptions)
  }

  #definition(service: ServiceName, method: string): grpc.MethodDefinition<unknown, unknown> {
    let methods = this.#definitions.get(service)
    if (methods === undefined) {
      methods = serviceDefinition(containerdProtos(), service) as unknown as grpc.ServiceDefinition
      this.#definitions.set(service, methods)
    }
    const found = methods[method]
    if (found === undefined) throw new TypeError(`no method ${service}.${method} in the wire contracts`)
    return found as grpc.MethodDefinition<unknown, unknown>
  }

  /** What goes with a call beside the request. */
  #headers(lease: string | undefined, span: Span | undefined): Record<string, string> {
    const headers: Record<string, string> = { 'containerd-namespace': this.namespace }
    if (lease !== undefined) headers['containerd-lease'] = lease
    if (span !== undefined) {
      headers['traceparent'] = span.headers.traceparent
      if (span.headers.tracestate !== undefined) headers['tracestate'] = span.headers.tracestate
    }
    return headers
  }

  #metadata(options: CallOptions | undefined, span: Span | undefined): grpc.Metadata {
    const metadata = new grpc.Metadata()
    for (const [name, value] of Object.entries(this.#headers(options?.lease, span))) metadata.set(name, value)
    return metadata
  }

  #span(service: string, method: string, about: string): Span | undefined {
    return this.#tracer?.child(`containerd ${shortName(service, method)}`, SpanKind.client, { 'rpc.system': 'grpc', 'rpc.service': service, 'rpc.method': method, 'containerd.about': about })
  }

  /** One request, one answer. `about` names the thing for the error message. */
  async call<S extends ServiceName, M extends MethodName<S>>(
    ctx: Ctx, service: S, method: M, request: Init<RequestOf<S, M>>, about: string, options?: CallOptions,
  ): Promise<ResponseOf<S, M>> {
    ctx.signal.throwIfAborted()
    const definition = this.#definition(service, method)
    const name = shortName(service, method)
    const timeoutMs = options?.timeoutMs ?? defaultTimeoutMs
    const started = performance.now()
    const span = this.#span(service, method, about)
    const { promise, resolve, reject } = Promise.withResolvers<ResponseOf<S, M>>()
    const call = this.#control.makeUnaryRequest(
      definition.path, definition.requestSerialize, definition.responseDeserialize, request, this.#metadata(options, span),
      { deadline: Date.now() + timeoutMs },
      (error, response) => {
        ctx.signal.removeEventListener('abort', cancel)
        span?.end(error?.details)
        const seconds = (performance.now() - started) / 1000
        this.#metrics.containerdSeconds.observe({ method: name, code: error === null ? 'OK' : grpc.status[error.code] ?? String(error.code) }, seconds)
        if (ctx.log.isLevelEnabled('debug')) ctx.log.debug({ containerd: name, about, ms: Math.round(seconds * 10_000) / 10, code: error?.code ?? 0 }, 'containerd call')
        if (error === null) resolve(response)
        else if (ctx.signal.aborted && error.code === grpc.status.CANCELLED) reject(abortReason(ctx.signal, `containerd ${name} (${about})`))
        else reject(this.#translate(error, name, about, timeoutMs))
      },
    )
    const cancel = (): void => call.cancel()
    if (options?.throughout !== true) ctx.signal.addEventListener('abort', cancel, { once: true })
    return promise
  }

  /** One request, a stream of answers. Leaving the loop early cancels the call. No deadline unless one is given: an event stream lives long. */
  async *serverStream<S extends ServiceName, M extends MethodName<S>>(
    ctx: Ctx, service: S, method: M, request: Init<RequestOf<S, M>>, about: string, options?: CallOptions,
  ): AsyncGenerator<ResponseOf<S, M>, void, undefined> {
    ctx.signal.throwIfAborted()
    const definition = this.#definition(service, method)
    const name = shortName(service, method)
    const span = this.#span(service, method, about)
    const bulk = service === 'containerd.services.content.v1.Content'
    const call = (bulk ? this.#bulk : this.#control).makeServerStreamRequest(
      definition.path, definition.requestSerialize, definition.responseDeserialize, request, this.#metadata(options, span),
      options?.timeoutMs === undefined ? {} : { deadline: Date.now() + options.timeoutMs },
    )
    const cancel = (): void => call.cancel()
    ctx.signal.addEventListener('abort', cancel, { once: true })
    try {
      for await (const message of call) yield message as ResponseOf<S, M>
    } catch (error) {
      span?.end(messageOf(error))
      if (ctx.signal.aborted) throw abortReason(ctx.signal, `containerd ${name} (${about})`)
      throw this.#translate(error, name, about, options?.timeoutMs)
    } finally {
      ctx.signal.removeEventListener('abort', cancel)
      call.cancel()
      span?.end()
    }
  }

  /** A stream both ways for large data (Content.Write). The caller finishes or cancels it; errors arrive untranslated, `translate` is for them. */
  upload<S extends ServiceName, M extends MethodName<S>>(service: S, method: M, options: CallOptions, handlers: { readonly answer: (message: ResponseOf<S, M>) => void; readonly end: UploadHandlers['end'] }): TypedUpload<RequestOf<S, M>> {
    const definition = this.#definition(service, method)
    const span = this.#span(service, method, options.lease ?? '')
    const upload = this.#uploads.begin(definition.path, this.#headers(options.lease, span), {
      answer: (message) => handlers.answer(definition.responseDeserialize(message)),
      end: (error) => {
        span?.end(error?.details)
        handlers.end(error)
      },
    })
    return { send: (request) => upload.send(Buffer.isBuffer(request) ? request : definition.requestSerialize(request)), finish: () => upload.finish(), cancel: () => upload.cancel() }
  }

  /** A thrown gRPC failure as a CriError. */
  translate(error: unknown, service: ServiceName, method: string, about: string): CriError {
    return this.#translate(error, shortName(service, method), about, undefined)
  }

  #translate(error: unknown, name: string, about: string, timeoutMs: number | undefined): CriError {
    if (error instanceof CriError) return error
    if (!isServiceError(error)) return CriError.from(error, `containerd ${name} (${about})`)
    // Content.Write, for an ingest that has a writer.
    if (error.code === grpc.status.UNAVAILABLE && / locked for /.test(error.details)) {
      return new CriError(Code.UNAVAILABLE, `containerd ${name} (${about}): ${error.details}`, { reason: 'Locked', cause: error })
    }
    if (error.code === grpc.status.UNAVAILABLE && !isAnswer(error)) {
      return new CriError(Code.UNAVAILABLE, `containerd does not answer on ${this.address} (${name}, ${about}): ${withoutEmptyNote(error.details)}; is it running?`, { reason: 'ContainerdUnavailable', cause: error })
    }
    if (error.code === grpc.status.DEADLINE_EXCEEDED && timeoutMs !== undefined) {
      return new CriError(Code.DEADLINE_EXCEEDED, `containerd ${name} (${about}) gave no answer within ${timeoutMs / 1000} s`, { reason: 'ContainerdTimeout', cause: error })
    }
    const code = passedOn.has(error.code) && error.code !== grpc.status.UNKNOWN ? error.code as Code : Code.INTERNAL
    // The connection to the shim broke under the call: the shim has ended.
    const reason = code === Code.INTERNAL && error.details.includes('ttrpc: closed') ? { reason: 'ShimGone' } : {}
    return new CriError(code, `containerd ${name} (${about}): ${error.details}`, { ...reason, cause: error })
  }

  /** Resolves when containerd accepts connections; DEADLINE_EXCEEDED as UNAVAILABLE when it does not in time. */
  async waitForReady(timeoutMs: number): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.#control.waitForReady(Date.now() + timeoutMs, (error) => {
      if (error === undefined) resolve()
      else reject(new CriError(Code.UNAVAILABLE, `containerd does not answer on ${this.address} within ${timeoutMs / 1000} s: is it running?`, { reason: 'ContainerdUnavailable', cause: error }))
    })
    return promise
  }

  close(): void {
    this.#control.close()
    this.#bulk.close()
    this.#uploads.close()
  }
}

/** grpc-js ends such a message in the note of a name's resolution, also when there is none. */
function withoutEmptyNote(details: string): string {
  return details.replace(/\.? Resolution note: *$/, '')
}

/** Why a call was given up, with what it was about unless that is for the client to know. */
function abortReason(signal: AbortSignal, what: string): unknown {
  return signal.reason instanceof CriError ? signal.reason : CriError.from(signal.reason, what)
}

function isServiceError(error: unknown): error is grpc.ServiceError {
  return error instanceof Error && 'code' in error && typeof error.code === 'number' && 'details' in error
}

/** Whether containerd is there and has said so itself: with the header of an answer, and before 2.0 with the name of its error class at the end. A plugin outside of it may be away. */
function isAnswer(error: grpc.ServiceError): boolean {
  const { metadata }: { readonly metadata?: grpc.Metadata } = error
  return error.details.endsWith(': unavailable') || (metadata?.get('content-type').length ?? 0) > 0
}

/** `containerd.services.tasks.v1.Tasks` + `Create` → `Tasks.Create` */
function shortName(service: string, method: string): string {
  return `${service.slice(service.lastIndexOf('.') + 1)}.${method}`
}
