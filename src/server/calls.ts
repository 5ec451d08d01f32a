import type { Logger } from '../observability/logger.ts'
import { type Ctx, newRequestId } from '../observability/context.ts'
import type { Metrics } from '../observability/metrics.ts'
import type { Span, Tracer } from '../observability/tracing.ts'
import { Code, CriError } from '../errors/cri-error.ts'
import { REGISTRY_UNAVAILABLE } from '../errors/registry-unavailable.ts'
import { type Audit, auditSubject } from './audit.ts'
import { type CallIds, requestIds } from './call-ids.ts'
import type { Method } from './handlers.ts'
import { isEndless, isRead } from './methods.ts'
import type { Peer } from './peers.ts'
import { type RpcStatus, causesOf, statusName } from './status.ts'

/** The part of a grpc-js server call that a call's life depends on. */
export interface ClientSide {
  readonly cancelled: boolean
  readonly metadata: { get(name: string): readonly (string | Buffer)[] }
  getDeadline(): Date | number
  on(event: 'cancelled', listener: () => void): unknown
}

export interface CallsDeps {
  readonly log: Logger
  readonly metrics: Metrics
  /** Default: nothing is traced. */
  readonly tracer?: Tracer | undefined
  /** Default: nothing is audited. */
  readonly audit?: Audit | undefined
  /** Who calls, for the audit log. */
  readonly peerOf?: ((metadata: ClientSide['metadata']) => Promise<Peer | undefined>) | undefined
}

/**
 * A client gives up at its own deadline, a moment before ours (which began when the request arrived): a cancellation this close to
 * the deadline, in milliseconds, is the deadline.
 */
const deadlineSlackMs = 50

function text(value: string | Buffer | undefined): string | undefined {
  return typeof value === 'string' ? value : undefined
}

function idAttributes(ids: CallIds): CallIds {
  return Object.fromEntries(Object.entries(ids).map(([key, value]) => [`cri.${key}`, value]))
}

function requestSpan(tracer: Tracer, method: Method, client: ClientSide, request: object, requestId: string): Span {
  const caller = { traceparent: text(client.metadata.get('traceparent')[0]), tracestate: text(client.metadata.get('tracestate')[0]) }
  const service = /Image(?!.*Sandbox)/.test(method) ? 'ImageService' : 'RuntimeService'
  return tracer.request(`runtime.v1.${service}/${method}`, caller, { 'rpc.system': 'grpc', 'rpc.service': `runtime.v1.${service}`, 'rpc.method': method, 'cri.requestId': requestId, ...idAttributes(requestIds(request)) })
}

/** One RPC that runs: its context, and its line in the log and in the metrics when it ends. */
export class Call {
  readonly method: Method
  readonly ctx: Ctx
  readonly #abort = new AbortController()
  readonly #deps: CallsDeps
  readonly #startedMs = performance.now()
  readonly #onEnd: (call: Call) => void
  readonly #span: Span | undefined
  readonly #audited: { readonly subject: object; readonly peer: Promise<Peer | undefined> | undefined } | undefined
  #ended = false

  constructor(deps: CallsDeps, method: Method, client: ClientSide, request: object, onEnd: (call: Call) => void) {
    this.method = method
    this.#deps = deps
    this.#onEnd = onEnd
    const requestId = newRequestId()
    this.ctx = { requestId, log: deps.log.child({ requestId, method, ...requestIds(request) }), signal: this.#abort.signal }
    deps.metrics.rpcInFlight.inc({ method })
    this.#span = deps.tracer === undefined ? undefined : requestSpan(deps.tracer, method, client, request, requestId)
    const subject = deps.audit === undefined ? undefined : auditSubject(deps.audit, method, request)
    this.#audited = subject === undefined ? undefined : { subject, peer: deps.peerOf?.(client.metadata) }
    const gone = (): void => this.abort(this.#goneReason(client))
    client.on('cancelled', gone)
    if (client.cancelled) gone()
  }

  #goneReason(client: ClientSide): CriError {
    const late = Date.now() - Number(client.getDeadline())
    return late >= -deadlineSlackMs
      ? new CriError(Code.DEADLINE_EXCEEDED, `${this.method}: the client's deadline has passed`)
      : new CriError(Code.CANCELLED, `${this.method}: cancelled by the client`)
  }

  /** Aborts the context's signal, unless the call has ended. The first reason counts. */
  abort(reason: CriError): void {
    if (!this.#ended) this.#abort.abort(reason)
  }

  /** Runs the handler, or part of it, so that what it does is part of the call's trace. */
  within<T>(work: () => T): T {
    return this.#span === undefined || this.#deps.tracer === undefined ? work() : this.#deps.tracer.within(this.#span, work)
  }

  /** Records how the call ended. `error` is what was thrown, if anything was; `ids` are those that the answer brought. */
  end(status: RpcStatus, error?: unknown, ids: CallIds = {}): void {
    if (this.#ended) return
    this.#ended = true
    const durationMs = performance.now() - this.#startedMs
    const code = statusName(status.code)
    this.#deps.metrics.rpcInFlight.dec({ method: this.method })
    this.#deps.metrics.rpcSeconds.observe({ method: this.method, code }, durationMs / 1000)
    this.#write(status, error, { ...ids, code, durationMs: Math.round(durationMs * 1000) / 1000 })
    this.#span?.set({ 'rpc.grpc.status_code': status.code, ...idAttributes(ids) })
    this.#span?.end(status.code === 0 ? undefined : status.details)
    if (this.#audited !== undefined) void this.#audit(this.#audited, status, ids, durationMs)
    this.#onEnd(this)
  }

  async #audit({ subject, peer }: { readonly subject: object; readonly peer: Promise<Peer | undefined> | undefined }, status: RpcStatus, ids: CallIds, durationMs: number): Promise<void> {
    const caller = await peer ?? null
    const failure = status.code === 0 ? {} : { error: status.details }
    this.#deps.audit?.write({ action: this.method, requestId: this.ctx.requestId, caller, ...subject, ...ids, result: statusName(status.code), ...failure, durationMs: Math.round(durationMs) })
  }

  #write(status: RpcStatus, error: unknown, fields: object): void {
    const log = this.ctx.log
    if (status.code === 0) {
      if (isRead(this.method)) log.debug(fields, 'call done')
      else log.info(fields, 'call done')
      return
    }
    const failure = { ...fields, error: status.details, ...(error === undefined ? {} : { causes: causesOf(error) }) }
    const isOurs = status.code === Code.INTERNAL || status.code === Code.DATA_LOSS || (status.code === Code.UNKNOWN && !(error instanceof CriError && error.reason === REGISTRY_UNAVAILABLE))
    if (isOurs) {
      log.error({ ...failure, stack: error instanceof Error ? error.stack : undefined }, 'call failed')
    } else if (this.#isOrdinary(status.code)) log.debug(failure, 'call refused')
    else log.warn(failure, 'call failed')
  }

  /** Failures that belong to the normal life of a node and would only fill the log: the client asks on until it gets another answer. */
  #isOrdinary(code: number): boolean {
    if (code === Code.UNIMPLEMENTED) return true
    if (isEndless(this.method) && (code === Code.CANCELLED || code === Code.UNAVAILABLE)) return true
    return isRead(this.method) && (code === Code.NOT_FOUND || code === Code.UNAVAILABLE)
  }
}

/** The RPCs that run now. */
export class Calls {
  readonly #deps: CallsDeps
  readonly #running = new Set<Call>()
  #idle: PromiseWithResolvers<void> | undefined

  constructor(deps: CallsDeps) {
    this.#deps = deps
  }

  begin(method: Method, client: ClientSide, request: object): Call {
    const call = new Call(this.#deps, method, client, request, (ended) => {
      this.#running.delete(ended)
      if (this.#running.size === 0) {
        this.#idle?.resolve()
        this.#idle = undefined
      }
    })
    this.#running.add(call)
    return call
  }

  get size(): number {
    return this.#running.size
  }

  /** The names of what runs, each with its number when there are several: `PullImage, RunPodSandbox ×3`. */
  describe(): string {
    const counts = new Map<Method, number>()
    for (const call of this.#running) counts.set(call.method, (counts.get(call.method) ?? 0) + 1)
    return [...counts].map(([method, count]) => (count === 1 ? method : `${method} ×${count}`)).join(', ')
  }

  /** Aborts the signals of those that `which` picks; default: all. */
  abort(reason: CriError, which: (call: Call) => boolean = () => true): void {
    for (const call of this.#running) if (which(call)) call.abort(reason)
  }

  /** Resolves when nothing runs. */
  async idle(): Promise<void> {
    if (this.#running.size === 0) return
    this.#idle ??= Promise.withResolvers()
    await this.#idle.promise
  }
}
