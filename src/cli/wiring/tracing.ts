import type { OperationHooks } from '../../concurrency/operation.ts'
import type { Settings } from '../../config/settings.ts'
import { messageOf } from '../../errors/cri-error.ts'
import type { Logger } from '../../observability/logger.ts'
import type { Metrics } from '../../observability/metrics.ts'
import { SpanKind, type Tracer } from '../../observability/tracing.ts'
import { tracingSettings } from '../../observability/otlp/settings.ts'

export interface Tracing extends Tracer {
  close(timeoutMs: number): Promise<void>
}

/** How long the last spans may take to reach the collector at a stop, in milliseconds. */
export const tracingCloseMs = 3000

/**
 * The tracer, loaded only when it is switched on. Variables of the environment that are wrong are an error in the log, and nothing is traced: a node must
 * not be without pods for that.
 */
export async function startTracing(settings: Settings['shim']['tracing'], env: NodeJS.ProcessEnv, log: Logger, metrics: Metrics): Promise<Tracing | undefined> {
  try {
    const resolved = tracingSettings(settings, env)
    if (resolved === undefined) return undefined
    for (const remark of resolved.remarks) log.warn(remark)
    const { OtlpTracer } = await import('../../observability/otlp/tracer.ts')
    const tracer = new OtlpTracer({ settings: resolved, log, metrics })
    log.info({ endpoint: resolved.url.host, sampler: resolved.sampler }, 'tracing')
    return tracer
  } catch (error) {
    log.error({ why: messageOf(error) }, 'nothing is traced: the settings of tracing are wrong')
    return undefined
  }
}

/** A span for each step of a long operation. */
export function tracedSteps(tracer: Tracer | undefined): Pick<OperationHooks, 'around'> {
  if (tracer === undefined) return {}
  return {
    around: async (operation, step, work) => {
      const span = tracer.child(step, SpanKind.internal, { 'cri.operation': operation })
      if (span === undefined) return work()
      try {
        const value = await tracer.within(span, work)
        span.end()
        return value
      } catch (error) {
        span.end(messageOf(error))
        throw error
      }
    },
  }
}
