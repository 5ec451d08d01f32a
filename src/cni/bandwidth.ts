import { invalidArgument } from '../errors/cri-error.ts'
import { parseQuantity } from './quantity.ts'
import type { CniBandwidth } from './types.ts'

const least = 1000n
const most = 10n ** 15n
/** No limit on bursts in effect: the most that the kernel's token bucket filter takes. */
const burstBits = 2 ** 32 - 1

/**
 * The pod's rates from its annotations `kubernetes.io/ingress-bandwidth` and `kubernetes.io/egress-bandwidth`, undefined when it has neither.
 * INVALID_ARGUMENT for what is no quantity or not within 1k to 1P bits per second.
 */
export function bandwidthFromAnnotations(annotations: Readonly<Record<string, string>>): CniBandwidth | undefined {
  const ingressRate = rateOf(annotations, 'kubernetes.io/ingress-bandwidth')
  const egressRate = rateOf(annotations, 'kubernetes.io/egress-bandwidth')
  if (ingressRate === undefined && egressRate === undefined) return undefined
  return {
    ingressRate: ingressRate ?? 0,
    ingressBurst: ingressRate === undefined ? 0 : burstBits,
    egressRate: egressRate ?? 0,
    egressBurst: egressRate === undefined ? 0 : burstBits,
  }
}

function rateOf(annotations: Readonly<Record<string, string>>, key: string): number | undefined {
  if (!Object.hasOwn(annotations, key)) return undefined
  const text = annotations[key] ?? ''
  const value = parseQuantity(text)
  if (value === undefined) throw invalidArgument(`annotation ${key}: ${JSON.stringify(text)} is not a quantity; write bits per second such as 10M or 1G`)
  if (value < least) throw invalidArgument(`annotation ${key}: ${JSON.stringify(text)} is less than 1 kbit/s; write bits per second such as 10M or 1G`)
  if (value > most) throw invalidArgument(`annotation ${key}: ${JSON.stringify(text)} is more than 1 Pbit/s; write bits per second such as 10M or 1G`)
  return Number(value)
}
