import { invalidArgument } from '../../errors/cri-error.ts'

/** Whether a new trace is recorded, by its id; and whether a caller's own decision goes before. */
export interface Sampler {
  readonly followsCaller: boolean
  root(traceId: string): boolean
}

export const samplers = ['always_on', 'always_off', 'traceidratio', 'parentbased_always_on', 'parentbased_always_off', 'parentbased_traceidratio'] as const

/** The samplers of OTEL_TRACES_SAMPLER; `argument` is the ratio of those that take one, 1 when it is empty. INVALID_ARGUMENT for any other name or ratio. */
export function samplerOf(name: string, argument: string): Sampler {
  if (!(samplers as readonly string[]).includes(name)) throw invalidArgument(`the trace sampler ${JSON.stringify(name)} is not known here: one of ${samplers.join(', ')}`)
  const followsCaller = name.startsWith('parentbased_')
  if (name.endsWith('always_on')) return { followsCaller, root: () => true }
  if (name.endsWith('always_off')) return { followsCaller, root: () => false }
  const ratio = argument === '' ? 1 : Number(argument)
  if (!(ratio >= 0 && ratio <= 1)) throw invalidArgument(`the ratio of the trace sampler must be between 0 and 1, not ${JSON.stringify(argument)}`)
  // The low 56 bits of the id are the random ones (W3C Trace Context, level 2): every service that samples by ratio takes the same traces.
  const bound = BigInt(Math.round(ratio * 2 ** 53)) << 3n
  return { followsCaller, root: (traceId) => BigInt(`0x${traceId.slice(18)}`) < bound }
}
