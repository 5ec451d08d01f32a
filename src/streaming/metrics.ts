import { Counter, Gauge } from 'prom-client'
import type { Metrics } from '../observability/metrics.ts'
import type { ByteCounters } from './counters.ts'
import type { StreamEnd, Transport } from './protocol.ts'
import type { StreamKind } from './types.ts'

export interface StreamingMetrics {
  readonly ended: (kind: StreamKind, transport: Transport, end: StreamEnd) => void
  readonly connection: (result: 'connected' | 'refused') => void
  readonly crashed: () => void
}

/** Registers the figures of exec, attach and port-forward. `running` counts them when somebody asks. */
export function registerStreamingMetrics(metrics: Metrics, counters: ByteCounters, running: () => Readonly<Record<StreamKind, number>>): StreamingMetrics {
  const { registry } = metrics
  const registers = [registry]
  const sessions = new Counter({
    name: 'cri_shim_streams_total', help: 'Exec, attach and port-forward streams that have ended, by how.', labelNames: ['kind', 'transport', 'end'], registers,
  })
  const connections = new Counter({
    name: 'cri_shim_port_forward_connections_total', help: 'Connections made into pods for port-forward.', labelNames: ['result'], registers,
  })
  const crashes = new Counter({ name: 'cri_shim_streaming_crashes_total', help: 'Times that the streaming thread failed and was started again.', registers })
  registry.registerMetric(new Gauge({
    name: 'cri_shim_streams_running', help: 'Exec, attach and port-forward streams that run now.', labelNames: ['kind'], registers: [],
    collect() {
      for (const [kind, count] of Object.entries(running())) this.set({ kind }, count)
    },
  }))
  registry.registerMetric(new Counter({
    name: 'cri_shim_stream_bytes_total', help: 'Bytes moved for exec, attach and port-forward: in from the client, out to it.', labelNames: ['kind', 'direction'], registers: [],
    collect() {
      this.reset()
      for (const { kind, direction, bytes } of counters.read()) this.inc({ kind, direction }, bytes)
    },
  }))
  return {
    ended: (kind, transport, end) => sessions.inc({ kind, transport, end }),
    connection: (result) => connections.inc({ result }),
    crashed: () => crashes.inc(),
  }
}
