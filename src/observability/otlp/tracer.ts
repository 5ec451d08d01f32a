import { AsyncLocalStorage } from 'node:async_hooks'
import { randomBytes } from 'node:crypto'
import diagnostics from 'node:diagnostics_channel'
import type { ClientRequest, IncomingMessage } from 'node:http'
import { messageOf } from '../../errors/cri-error.ts'
import type { Logger } from '../logger.ts'
import type { Metrics } from '../metrics.ts'
import { type Attribute, type CallerHeaders, type Span, SpanKind, type TraceHeaders, type Tracer } from '../tracing.ts'
import { SpanExporter } from './exporter.ts'
import { type Sampler, samplerOf } from './sampler.ts'
import type { TracingSettings } from './settings.ts'

export interface OtlpTracerOptions {
  readonly settings: TracingSettings
  readonly log: Logger
  readonly metrics: Metrics
  /** Default: 2048 spans, 5000 ms; see ExporterOptions. */
  readonly maxQueued?: number
  readonly delayMs?: number
}

const maxAttributeLength = 1024

/** The trace that a span belongs to. */
interface Context {
  readonly traceId: string
  readonly spanId: string
  readonly sampled: boolean
  readonly traceState: string
}

/** The wall clock by the monotonic one: the spans of one trace must not overlap the wrong way when the clock is set. */
class Clock {
  readonly #offsetNs = BigInt(Date.now()) * 1_000_000n - process.hrtime.bigint()

  now(): bigint {
    return this.#offsetNs + process.hrtime.bigint()
  }
}

class OtlpSpan implements Span {
  readonly context: Context
  /** A request's clock serves all of it. */
  readonly clock: Clock
  readonly #parentSpanId: string
  readonly #name: string
  readonly #kind: SpanKind
  readonly #exporter: SpanExporter
  readonly #startNs: bigint
  #attributes: Record<string, Attribute>
  #ended = false

  constructor(exporter: SpanExporter, clock: Clock, context: Context, parentSpanId: string, name: string, kind: SpanKind, attributes: Readonly<Record<string, Attribute>>) {
    this.#exporter = exporter
    this.clock = clock
    this.context = context
    this.#parentSpanId = parentSpanId
    this.#name = name
    this.#kind = kind
    this.#attributes = { ...attributes }
    this.#startNs = clock.now()
  }

  get headers(): TraceHeaders {
    const { traceId, spanId, sampled, traceState } = this.context
    return { traceparent: `00-${traceId}-${spanId}-${sampled ? '01' : '00'}`, ...(traceState === '' ? {} : { tracestate: traceState }) }
  }

  set(attributes: Readonly<Record<string, Attribute>>): void {
    this.#attributes = { ...this.#attributes, ...attributes }
  }

  end(failure?: string): void {
    if (this.#ended) return
    this.#ended = true
    const { traceId, spanId, sampled, traceState } = this.context
    if (!sampled) return
    for (const [key, value] of Object.entries(this.#attributes)) if (typeof value === 'string' && value.length > maxAttributeLength) this.#attributes[key] = `${value.slice(0, maxAttributeLength - 1)}…`
    this.#exporter.add({
      traceId, spanId, traceState, parentSpanId: this.#parentSpanId, name: this.#name, kind: this.#kind, startNs: this.#startNs, endNs: this.clock.now(),
      attributes: this.#attributes, failure: failure?.slice(0, maxAttributeLength),
    })
  }
}

/** Spans by OTLP. Every request that Node's HTTP client sends in traced work (that is: to registries) has a span too; they are told nothing of the trace. */
export class OtlpTracer implements Tracer {
  readonly #exporter: SpanExporter
  readonly #sampler: Sampler
  readonly #current = new AsyncLocalStorage<OtlpSpan | undefined>()
  readonly #requests = new WeakMap<ClientRequest, Span>()
  readonly #unsubscribe: (() => void)[] = []

  /** INVALID_ARGUMENT for a sampler that is none. */
  constructor(options: OtlpTracerOptions) {
    const { settings, log, metrics } = options
    this.#sampler = samplerOf(settings.sampler, settings.samplerArg)
    this.#exporter = new SpanExporter({
      url: settings.url, headers: settings.headers, resource: settings.resource, timeoutMs: settings.timeoutMs, log, metrics, untraced: (work) => this.#current.run(undefined, work),
      ...(options.maxQueued === undefined ? {} : { maxQueued: options.maxQueued }), ...(options.delayMs === undefined ? {} : { delayMs: options.delayMs }),
    })
    this.#follow('http.client.request.created', ({ request }) => this.#begin(request))
    this.#follow('http.client.response.finish', ({ request, response }) => this.#answered(request, response))
    this.#follow('http.client.request.error', ({ request, error }) => this.#requests.get(request)?.end(messageOf(error)))
  }

  request(name: string, caller: CallerHeaders, attributes: Readonly<Record<string, Attribute>>): Span {
    const parent = contextOf(caller)
    const traceId = parent?.traceId ?? randomId(16)
    const sampled = parent !== undefined && this.#sampler.followsCaller ? parent.sampled : this.#sampler.root(traceId)
    const context = { traceId, spanId: randomId(8), sampled, traceState: parent?.traceState ?? '' }
    return new OtlpSpan(this.#exporter, new Clock(), context, parent?.spanId ?? '', name, SpanKind.server, attributes)
  }

  child(name: string, kind: SpanKind, attributes: Readonly<Record<string, Attribute>> = {}): Span | undefined {
    const parent = this.#current.getStore()
    if (parent === undefined) return undefined
    return new OtlpSpan(this.#exporter, parent.clock, { ...parent.context, spanId: randomId(8) }, parent.context.spanId, name, kind, attributes)
  }

  within<T>(span: Span, work: () => T): T {
    return span instanceof OtlpSpan ? this.#current.run(span, work) : work()
  }

  /** Sends what waits, for `timeoutMs` at most. */
  async close(timeoutMs: number): Promise<void> {
    for (const unsubscribe of this.#unsubscribe.splice(0)) unsubscribe()
    await this.#exporter.close(timeoutMs)
  }

  #follow(channel: string, listener: (message: { request: ClientRequest; response: IncomingMessage; error: unknown }) => void): void {
    const onMessage = (message: unknown): void => listener(message as Parameters<typeof listener>[0])
    diagnostics.subscribe(channel, onMessage)
    this.#unsubscribe.push(() => void diagnostics.unsubscribe(channel, onMessage))
  }

  #begin(request: ClientRequest): void {
    // The query may hold a signature: only the path is told.
    const path = request.path.split('?', 1)[0] ?? ''
    const span = this.child(`HTTP ${request.method}`, SpanKind.client, { 'http.request.method': request.method, 'server.address': request.host, 'url.path': path, 'url.scheme': request.protocol.replace(':', '') })
    if (span !== undefined) this.#requests.set(request, span)
  }

  #answered(request: ClientRequest, response: IncomingMessage): void {
    const span = this.#requests.get(request)
    const status = response.statusCode ?? 0
    span?.set({ 'http.response.status_code': status })
    span?.end(status >= 400 ? `HTTP status ${status}` : undefined)
  }
}

function randomId(bytes: number): string {
  const id = randomBytes(bytes).toString('hex')
  return /^0+$/.test(id) ? randomId(bytes) : id
}

/** Undefined for headers that are missing or not valid: a new trace begins then, as the recommendation says. */
function contextOf({ traceparent, tracestate }: CallerHeaders): Context | undefined {
  const [, version, traceId = '', spanId = '', flags = '', more] = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/.exec(traceparent?.trim() ?? '') ?? []
  if (version === undefined || version === 'ff' || (version === '00' && more !== undefined) || /^0+$/.test(traceId) || /^0+$/.test(spanId)) return undefined
  return { traceId, spanId, sampled: (Number.parseInt(flags, 16) & 1) === 1, traceState: tracestate !== undefined && tracestate.length <= 512 ? tracestate : '' }
}
