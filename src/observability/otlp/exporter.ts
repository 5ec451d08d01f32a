import http from 'node:http'
import https from 'node:https'
import { Counter } from 'prom-client'
import { messageOf } from '../../errors/cri-error.ts'
import type { Logger } from '../logger.ts'
import type { Metrics } from '../metrics.ts'
import type { Attribute } from '../tracing.ts'

/** A span that has ended. */
export interface EndedSpan {
  readonly traceId: string
  readonly spanId: string
  readonly parentSpanId: string
  readonly traceState: string
  readonly name: string
  readonly kind: number
  /** Nanoseconds since 1970. */
  readonly startNs: bigint
  readonly endNs: bigint
  readonly attributes: Readonly<Record<string, Attribute>>
  /** Why it failed; undefined when it did not. */
  readonly failure: string | undefined
}

export interface ExporterOptions {
  readonly url: URL
  readonly headers: Readonly<Record<string, string>>
  readonly resource: Readonly<Record<string, string>>
  readonly timeoutMs: number
  readonly log: Logger
  readonly metrics: Metrics
  /** Runs what must not be traced itself. */
  readonly untraced: <T>(work: () => T) => T
  /** Default: 2048, as OTEL_BSP_MAX_QUEUE_SIZE has it. */
  readonly maxQueued?: number
  /** The longest time until an ended span is sent, in milliseconds. Default: 5000. */
  readonly delayMs?: number
}

const maxBatch = 512
/** How often a batch is tried that the collector could not take at the moment, and the first wait between, in milliseconds. */
const attempts = 4
const firstRetryMs = 500
const maxAnswerBytes = 64 * 1024
/** What the specification of OTLP/HTTP calls retryable. */
const retryable: ReadonlySet<number> = new Set([429, 502, 503, 504])

/**
 * Sends ended spans to a collector by OTLP over HTTP in JSON, in batches, one at a time. What a collector that is away does not take is thrown away and
 * counted; its failures are logged once, until it takes spans again.
 */
export class SpanExporter {
  readonly #options: ExporterOptions
  readonly #maxQueued: number
  readonly #spans: Counter<'result'>
  readonly #agent: http.Agent
  readonly #closing = new AbortController()
  #queue: EndedSpan[] = []
  #timer: NodeJS.Timeout | undefined
  #sending: Promise<void> | undefined
  #failing = false

  constructor(options: ExporterOptions) {
    this.#options = options
    this.#maxQueued = options.maxQueued ?? 2048
    this.#spans = new Counter({ name: 'cri_shim_tracing_spans_total', help: 'Spans that ended: exported, dropped because the queue was full, or failed to be exported.', labelNames: ['result'], registers: [options.metrics.registry] })
    const Agent = options.url.protocol === 'https:' ? https.Agent : http.Agent
    this.#agent = new Agent({ keepAlive: true, maxSockets: 1 })
  }

  add(span: EndedSpan): void {
    if (this.#queue.length >= this.#maxQueued) {
      this.#spans.inc({ result: 'dropped' })
      return
    }
    this.#queue.push(span)
    if (this.#queue.length >= maxBatch) void this.#send()
    else this.#timer ??= setTimeout(() => void this.#send(), this.#options.delayMs ?? 5000).unref()
  }

  /** Sends what waits, for `timeoutMs` at most; the rest is lost. */
  async close(timeoutMs: number): Promise<void> {
    const deadline = setTimeout(() => this.#closing.abort(new Error('cri-shim is shutting down')), timeoutMs)
    try {
      await this.#send()
    } finally {
      clearTimeout(deadline)
      clearTimeout(this.#timer)
      this.#agent.destroy()
    }
  }

  /** Never rejects. */
  async #send(): Promise<void> {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#sending ??= this.#drain().finally(() => { this.#sending = undefined })
    await this.#sending
  }

  async #drain(): Promise<void> {
    while (this.#queue.length > 0) {
      const batch = this.#queue.slice(0, maxBatch)
      try {
        const rejected = await this.#post(Buffer.from(JSON.stringify(exportRequest(batch, this.#options.resource))))
        this.#spans.inc({ result: 'exported' }, batch.length - rejected)
        this.#spans.inc({ result: 'failed' }, rejected)
        if (this.#failing) this.#options.log.info({ endpoint: this.#options.url.host }, 'the collector takes spans again')
        this.#failing = false
      } catch (error) {
        this.#spans.inc({ result: 'failed' }, batch.length)
        if (!this.#failing) this.#options.log.error({ endpoint: this.#options.url.host, why: messageOf(error) }, 'spans cannot be sent to the collector: they are dropped (and counted in cri_shim_tracing_spans_total) until it takes them again')
        this.#failing = true
      }
      // It stays in the queue while it is sent, so that the bound counts it.
      this.#queue.splice(0, batch.length)
    }
  }

  /** Resolves with how many spans the collector refused. */
  async #post(body: Buffer): Promise<number> {
    for (let attempt = 1, waitMs = firstRetryMs; ; attempt++, waitMs *= 2) {
      let again: unknown
      try {
        const { status, text, retryAfterMs } = await this.#postOnce(body)
        if (status >= 200 && status < 300) return rejectedSpans(text)
        const failure = new Error(`HTTP status ${status}`)
        if (!retryable.has(status)) throw failure
        again = failure
        waitMs = Math.max(waitMs, retryAfterMs)
      } catch (error) {
        if (!(error instanceof Error && 'code' in error)) throw error
        again = error
      }
      if (attempt >= attempts || this.#closing.signal.aborted || waitMs > 30_000) throw again
      const waited = Promise.withResolvers<void>()
      const timer = setTimeout(waited.resolve, waitMs).unref()
      this.#closing.signal.addEventListener('abort', () => waited.resolve(), { once: true })
      await waited.promise
      clearTimeout(timer)
    }
  }

  async #postOnce(body: Buffer): Promise<{ readonly status: number; readonly text: string; readonly retryAfterMs: number }> {
    const { url, headers, timeoutMs, untraced } = this.#options
    const signal = AbortSignal.any([this.#closing.signal, AbortSignal.timeout(timeoutMs)])
    const { request } = url.protocol === 'https:' ? https : http
    return untraced(async () => new Promise((resolve, reject) => {
      const sent = request(url, { method: 'POST', agent: this.#agent, signal, headers: { ...headers, 'content-type': 'application/json', 'content-length': body.length } }, (response) => {
        let text = ''
        response.setEncoding('utf8')
        response.on('data', (chunk: string) => { if (text.length < maxAnswerBytes) text += chunk })
        response.once('end', () => resolve({ status: response.statusCode ?? 0, text, retryAfterMs: (Number(response.headers['retry-after']) || 0) * 1000 }))
        response.once('error', reject)
      })
      sent.once('error', reject)
      sent.end(body)
    }))
  }
}

/** ExportTraceServiceResponse.partial_success. */
function rejectedSpans(text: string): number {
  try {
    const { partialSuccess } = JSON.parse(text) as { partialSuccess?: { rejectedSpans?: string | number } }
    return Number(partialSuccess?.rejectedSpans ?? 0) || 0
  } catch {
    return 0
  }
}

/** ExportTraceServiceRequest in OTLP's JSON: ids in hexadecimal, 64-bit integers as strings. */
function exportRequest(spans: readonly EndedSpan[], resource: Readonly<Record<string, string>>): object {
  return {
    resourceSpans: [{
      resource: { attributes: keyValues(resource) },
      scopeSpans: [{
        scope: { name: 'cri-shim' },
        spans: spans.map((span) => ({
          traceId: span.traceId, spanId: span.spanId, parentSpanId: span.parentSpanId, traceState: span.traceState, name: span.name, kind: span.kind,
          startTimeUnixNano: String(span.startNs), endTimeUnixNano: String(span.endNs), attributes: keyValues(span.attributes),
          status: span.failure === undefined ? {} : { code: 2, message: span.failure },
        })),
      }],
    }],
  }
}

function keyValues(attributes: Readonly<Record<string, Attribute>>): object[] {
  return Object.entries(attributes).map(([key, value]) => ({ key, value: valueOf(value) }))
}

function valueOf(value: Attribute): object {
  if (typeof value === 'string') return { stringValue: value }
  if (typeof value === 'boolean') return { boolValue: value }
  return Number.isSafeInteger(value) ? { intValue: String(value) } : { doubleValue: value }
}
