/** A value that a span carries. */
export type Attribute = string | number | boolean

/** What kind of work a span is, in OTLP's numbers. */
export const SpanKind = { internal: 1, server: 2, client: 3 } as const
export type SpanKind = (typeof SpanKind)[keyof typeof SpanKind]

/** W3C Trace Context, as it travels in headers and gRPC metadata. */
export interface TraceHeaders {
  readonly traceparent: string
  readonly tracestate?: string | undefined
}

/** The same from a client, who may have sent neither. */
export interface CallerHeaders {
  readonly traceparent: string | undefined
  readonly tracestate: string | undefined
}

/** One piece of work that is timed. */
export interface Span {
  /** What is told to whoever is called within it. */
  readonly headers: TraceHeaders
  set(attributes: Readonly<Record<string, Attribute>>): void
  /** Once; `failure` says why it failed. */
  end(failure?: string): void
}

/**
 * Traces work. The whole of it is only there when tracing is switched on: who measures holds `Tracer | undefined`, and without it pays for a comparison. The
 * span that work belongs to travels with the asynchronous context, so that steps side by side and what they call find their own.
 */
export interface Tracer {
  /** Begins a request: below the caller's span when it sent one. */
  request(name: string, caller: CallerHeaders, attributes: Readonly<Record<string, Attribute>>): Span
  /** Begins a piece of the current work; undefined when none is current (background work). */
  child(name: string, kind: SpanKind, attributes?: Readonly<Record<string, Attribute>>): Span | undefined
  /** Runs `work` with `span` as the current one. */
  within<T>(span: Span, work: () => T): T
}
