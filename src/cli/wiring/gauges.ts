import { Gauge } from 'prom-client'
import type { IoWorker } from '../../container/io/client.ts'
import type { BoundedQueue } from '../../concurrency/bounded-queue.ts'
import type { Background } from '../../observability/background.ts'
import type { Metrics } from '../../observability/metrics.ts'

export interface GaugeSources {
  readonly sandboxes: { readonly size: number }
  readonly containers: { readonly size: number }
  readonly images: { readonly size: number }
  readonly pulls: { readonly running: number }
  readonly background: Background
  readonly io: IoWorker
  /** Whether calls are answered. */
  readonly ready: () => boolean
  /** By name. */
  readonly queues: Readonly<Record<string, BoundedQueue>>
}

/** Figures that are read when somebody asks for the metrics, not kept. */
export function registerGauges(metrics: Metrics, sources: GaugeSources): void {
  const { registry } = metrics
  const gauge = (name: string, help: string, read: () => number): void => {
    registry.registerMetric(new Gauge({ name, help, registers: [], collect() { this.set(read()) } }))
  }
  gauge('cri_shim_ready', 'Whether calls are answered: 0 while starting and while containerd is away.', () => (sources.ready() ? 1 : 0))
  gauge('cri_shim_pod_sandboxes', 'Pod sandboxes that are known.', () => sources.sandboxes.size)
  gauge('cri_shim_containers', 'Containers that are known.', () => sources.containers.size)
  gauge('cri_shim_images', 'Images that are known.', () => sources.images.size)
  gauge('cri_shim_pulls_in_flight', 'Image pulls that run now.', () => sources.pulls.running)
  gauge('cri_shim_background_tasks', 'Background tasks that run now.', () => sources.background.size)
  registry.registerMetric(new Gauge({
    name: 'cri_shim_container_output', help: 'Container output since the start: bytes, entries and what went wrong, by figure.', labelNames: ['figure'], registers: [],
    collect() {
      for (const [figure, value] of Object.entries(sources.io.stats())) this.set({ figure }, value)
    },
  }))
  registry.registerMetric(new Gauge({
    name: 'cri_shim_queue_entries', help: 'Entries that run or wait in a queue.', labelNames: ['queue', 'state'], registers: [],
    collect() {
      for (const [queue, entries] of Object.entries(sources.queues)) {
        this.set({ queue, state: 'running' }, entries.running)
        this.set({ queue, state: 'waiting' }, entries.waiting)
      }
    },
  }))
}
