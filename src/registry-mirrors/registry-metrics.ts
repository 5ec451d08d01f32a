import { Counter, Gauge, Histogram, type Registry } from 'prom-client'
import type { FailureKind } from './failures.ts'
import type { BreakerState } from './host-health.ts'
import type { RegistryHost } from './registry-host.ts'

/** `ok`, why it failed, `broken-off` for a body that did not come to its end, `cancelled` when nobody wanted it any more. */
export type RequestResult = 'ok' | FailureKind | 'broken-off' | 'cancelled'

/** Figures per host as it is configured, never a redirect's target. */
export interface RegistryMetrics {
  /** A question to a host was answered, after `seconds`; of a blob, that is when its first bytes may come. */
  request(host: RegistryHost, result: RequestResult, seconds: number): void
  bytes(host: RegistryHost, count: number): void
}

/** Further hosts than these share one label, `other`: of registries, whose names come from pods, and of all others, which do not give way to what pods name. */
const maxHostLabels = 64
const states: readonly BreakerState[] = ['closed', 'slow', 'open', 'probing', 'held']

/** Registers the figures. `healthStates` is read when somebody asks for them. */
export function registerRegistryMetrics(registry: Registry, healthStates: () => readonly { readonly host: RegistryHost; readonly state: BreakerState }[]): RegistryMetrics {
  const registers = [registry]
  const labels = { named: new Set<string>(), configured: new Set<string>() }
  const labelOf = ({ host, ownRegistry }: RegistryHost): string => {
    const known = ownRegistry ? labels.named : labels.configured
    if (!known.has(host) && known.size >= maxHostLabels) return 'other'
    known.add(host)
    return host
  }
  const requests = new Counter({ name: 'cri_shim_registry_requests_total', help: 'Requests to registries and mirrors, by configured host and result.', labelNames: ['host', 'result'], registers })
  const bytes = new Counter({ name: 'cri_shim_registry_received_bytes_total', help: 'Bytes of blobs received, by configured host.', labelNames: ['host'], registers })
  const seconds = new Histogram({
    name: 'cri_shim_registry_request_seconds', help: 'Time until a registry or mirror answered, redirects and authentication included, by configured host.', labelNames: ['host'],
    buckets: [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60], registers,
  })
  // prom-client keeps it in the registry that it is made for.
  void new Gauge({
    name: 'cri_shim_registry_breaker_state', help: `State of a configured host, 1 for the one that it is in: ${states.join(', ')}.`, labelNames: ['host', 'state'], registers,
    collect() {
      this.reset()
      const worst = new Map<string, BreakerState>()
      for (const { host: configured, state } of healthStates()) {
        const host = labelOf(configured)
        const known = worst.get(host)
        // The same host with two settings shows the state that asks for attention.
        if (known === undefined || states.indexOf(state) > states.indexOf(known)) worst.set(host, state)
      }
      for (const [host, state] of worst) this.set({ host, state }, 1)
    },
  })
  return {
    request(host, result, took) {
      const label = labelOf(host)
      requests.inc({ host: label, result })
      if (result !== 'cancelled' && result !== 'broken-off') seconds.observe({ host: label }, took)
    },
    bytes(host, count) {
      bytes.inc({ host: labelOf(host) }, count)
    },
  }
}

/** For who does not count. */
export const noRegistryMetrics: RegistryMetrics = { request: () => undefined, bytes: () => undefined }
