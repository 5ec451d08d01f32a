import { invalidArgument } from '../errors/cri-error.ts'
import { hasCapSysResource } from './capabilities.ts'
import type { HostFacts, SpecSettings } from './input.ts'

/**
 * process.oomScoreAdj for a wanted value: never lower than the starting process's own with `restrict_oom_score_adj` or without
 * CAP_SYS_RESOURCE, where the kernel would refuse it and the runtime fail. Throws INVALID_ARGUMENT outside -1000..1000.
 */
export function oomScoreAdj(
  wanted: number,
  facts: Pick<HostFacts, 'ownOomScoreAdj' | 'effectiveCapabilities' | 'capLastCap'>,
  settings: Pick<SpecSettings, 'restrictOomScoreAdj'>,
): number {
  if (wanted < -1000 || wanted > 1000) throw invalidArgument(`oom_score_adj is ${wanted}: it must be in -1000..1000`)
  const restricted = settings.restrictOomScoreAdj || !hasCapSysResource(facts)
  return restricted ? Math.max(wanted, facts.ownOomScoreAdj) : wanted
}
