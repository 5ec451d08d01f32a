import { Counter, Gauge, Histogram, Registry } from 'prom-client'

const secondsBuckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120]

/** Every metric that more than one folder writes. A folder's own metrics live beside its code and register here. */
export interface Metrics {
  readonly registry: Registry
  /** Seconds per RPC, by method and status code. */
  readonly rpcSeconds: Histogram<'method' | 'code'>
  /** RPCs that run now, by method. */
  readonly rpcInFlight: Gauge<'method'>
  /** Seconds per named step of a long operation. */
  readonly stepSeconds: Histogram<'operation' | 'step' | 'result'>
  /** Seconds per containerd call, by service/method and status code. */
  readonly containerdSeconds: Histogram<'method' | 'code'>
  /** Background work that failed, by task. */
  readonly backgroundFailures: Counter<'task'>
}

/** A registry of its own: several services side by side in one test process do not see each other's. */
export function createMetrics(): Metrics {
  const registry = new Registry()
  const registers = [registry]
  return {
    registry,
    rpcSeconds: new Histogram({ name: 'cri_shim_rpc_seconds', help: 'Duration of a CRI call in seconds.', labelNames: ['method', 'code'], buckets: secondsBuckets, registers }),
    rpcInFlight: new Gauge({ name: 'cri_shim_rpc_in_flight', help: 'CRI calls that run now.', labelNames: ['method'], registers }),
    stepSeconds: new Histogram({ name: 'cri_shim_step_seconds', help: 'Duration of one step of a long operation in seconds.', labelNames: ['operation', 'step', 'result'], buckets: secondsBuckets, registers }),
    containerdSeconds: new Histogram({ name: 'cri_shim_containerd_call_seconds', help: 'Duration of a call to containerd in seconds.', labelNames: ['method', 'code'], buckets: secondsBuckets, registers }),
    backgroundFailures: new Counter({ name: 'cri_shim_background_failures_total', help: 'Background work that failed.', labelNames: ['task'], registers }),
  }
}
