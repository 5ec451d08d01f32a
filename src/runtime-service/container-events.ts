import { Counter, Gauge } from 'prom-client'
import { nowNanoseconds } from '../containerd/timestamp.ts'
import { resourceExhausted } from '../errors/cri-error.ts'
import { type ContainerEventResponse, ContainerEventType } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import { criProtos, messageCodec } from '../generated/protos.ts'
import type { Logger } from '../observability/logger.ts'
import type { Metrics } from '../observability/metrics.ts'
import type { Container, Sandbox } from '../state/records.ts'
import { containersOf, containerStatusMessage } from './container-message.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { EventSubscription, type QueueLimits } from './event-subscription.ts'
import { sandboxStatusMessage } from './pod-sandbox-status.ts'

export interface ContainerEventsOptions {
  readonly deps: Pick<RuntimeServiceDeps, 'sandboxes' | 'containers' | 'images'>
  readonly log: Logger
  readonly metrics: Metrics
  /** How far a subscriber may fall behind, and how much is kept while there is none. Default: 1000 events, 8 MiB. */
  readonly limits?: QueueLimits
  /** How long events are kept for a subscriber that may come (back), in milliseconds. Default: 300,000, as containerd's plugin does. */
  readonly keepMs?: number
  /** Default: 256. */
  readonly maxSubscribers?: number
}

const { CONTAINER_CREATED_EVENT: created, CONTAINER_STARTED_EVENT: started, CONTAINER_STOPPED_EVENT: stopped, CONTAINER_DELETED_EVENT: deleted } = ContainerEventType

const typeNames: Readonly<Record<number, string>> = { [created]: 'created', [started]: 'started', [stopped]: 'stopped', [deleted]: 'deleted' }

/** What happened, while the records of the whole pod are not there yet. */
interface Deferred {
  readonly type: ContainerEventType
  readonly id: string
  readonly sandboxId: string
}

/** What happened while nobody listened. */
interface Kept extends Deferred {
  readonly createdAt: string
  /** The sandbox's last record, when it is its removal. */
  readonly removed: Sandbox | undefined
}

const hasEnded = (sandbox: Sandbox): boolean => sandbox.state === 'notready' && sandbox.pid === 0

/**
 * The events that a change of a sandbox's record stands for. At the first load nothing was made or started, but what is found ended is told (again):
 * whoever was told by an earlier process may not have heard.
 */
export function eventsOfSandbox(before: Sandbox | undefined, after: Sandbox | undefined, loading: boolean): readonly ContainerEventType[] {
  if (after === undefined) return [deleted]
  if (before === undefined) {
    if (hasEnded(after)) return loading ? [stopped] : [created, stopped]
    return loading ? [] : [created, started]
  }
  return hasEnded(after) && !hasEnded(before) ? [stopped] : []
}

/** The same for a container. Why it ended may become known later (the out-of-memory killer): then it is told again. */
export function eventsOfContainer(before: Container | undefined, after: Container | undefined, loading: boolean): readonly ContainerEventType[] {
  if (after === undefined) return [deleted]
  const { state, reason, exitCode } = after.status
  const ended = state === 'exited' || state === 'unknown'
  if (before === undefined) {
    if (ended) return loading ? [stopped] : [created, stopped]
    if (loading) return []
    return state === 'running' ? [created, started] : [created]
  }
  if (before.status.state !== state) return ended ? [stopped] : state === 'running' ? [started] : []
  return ended && (before.status.reason !== reason || before.status.exitCode !== exitCode) ? [stopped] : []
}

/**
 * Makes the events of GetContainerEvents out of what changes in the stores, in that order, each encoded once for everybody. A pod's status and those of
 * its containers are in every event as they are at that moment: the kubelet takes its whole picture of the pod from it. While nobody subscribes
 * nothing is made, but for a while after the start and after the last subscriber has left, so that who comes back has missed nothing.
 */
export class ContainerEvents {
  readonly #deps: ContainerEventsOptions['deps']
  readonly #log: Logger
  readonly #limits: QueueLimits
  readonly #keepMs: number
  readonly #maxSubscribers: number
  readonly #subscriptions = new Set<EventSubscription>()
  readonly #total: Counter<'type'>
  readonly #discarded: Counter<'why'>
  #deferred: Deferred[] | undefined = []
  /** What waits for the next subscriber; undefined when nobody is expected. */
  #kept: Kept[] | undefined
  #forget: NodeJS.Timeout | undefined

  constructor(options: ContainerEventsOptions) {
    this.#deps = options.deps
    this.#log = options.log
    this.#limits = options.limits ?? { events: 1000, bytes: 8 * 1024 * 1024 }
    this.#keepMs = options.keepMs ?? 300_000
    this.#maxSubscribers = options.maxSubscribers ?? 256
    const registers = [options.metrics.registry]
    this.#total = new Counter({ name: 'cri_shim_container_events_total', help: 'Container events that were sent, or kept for a subscriber that may come.', labelNames: ['type'], registers })
    this.#discarded = new Counter({ name: 'cri_shim_container_events_discarded_total', help: 'Container events that a subscriber missed: it was too slow and was told so, or nobody came for them in time.', labelNames: ['why'], registers })
    const subscriptions = this.#subscriptions
    options.metrics.registry.registerMetric(new Gauge({ name: 'cri_shim_container_event_subscribers', help: 'Clients that follow container events now.', registers: [], collect() { this.set(subscriptions.size) } }))
    this.#keep()
    const { sandboxes, containers } = options.deps
    sandboxes.listen((before, after) => {
      const sandbox = after ?? before
      if (sandbox !== undefined) this.#publish(eventsOfSandbox(before, after, this.#deferred !== undefined), sandbox.id, sandbox.id, sandbox)
    })
    containers.listen((before, after) => {
      const container = after ?? before
      if (container !== undefined) this.#publish(eventsOfContainer(before, after, this.#deferred !== undefined), container.id, container.metadata.sandboxId)
    })
  }

  /** The stores say what is there: events go out from now on, first those of what had ended meanwhile. */
  loaded(): void {
    const deferred = this.#deferred ?? []
    this.#deferred = undefined
    for (const { type, id, sandboxId } of deferred) this.#publish([type], id, sandboxId)
  }

  /** RESOURCE_EXHAUSTED when there are too many. To be closed. */
  subscribe(): EventSubscription {
    if (this.#subscriptions.size >= this.#maxSubscribers) {
      throw resourceExhausted(`${this.#subscriptions.size} clients follow container events already, which is the limit; end those that are not needed`)
    }
    const subscription = new EventSubscription(this.#limits)
    for (const event of this.#kept ?? []) {
      const bytes = this.#encode(event)
      if (bytes !== undefined) this.#discarded.inc({ why: 'nobody came' }, subscription.keep(bytes))
    }
    clearTimeout(this.#forget)
    this.#kept = undefined
    this.#subscriptions.add(subscription)
    subscription.onClose = () => {
      this.#subscriptions.delete(subscription)
      if (this.#subscriptions.size === 0) this.#keep()
    }
    return subscription
  }

  close(): void {
    clearTimeout(this.#forget)
    this.#kept = undefined
  }

  #keep(): void {
    clearTimeout(this.#forget)
    this.#kept = []
    this.#forget = setTimeout(() => {
      this.#discarded.inc({ why: 'nobody came' }, this.#kept?.length ?? 0)
      this.#kept = undefined
    }, this.#keepMs).unref()
  }

  /** `removed` is the sandbox's last record, for the events of one that is not in the store any more. */
  #publish(types: readonly ContainerEventType[], id: string, sandboxId: string, removed?: Sandbox): void {
    for (const type of types) {
      if (this.#deferred !== undefined) {
        this.#deferred.push({ type, id, sandboxId })
        continue
      }
      const event = { type, id, sandboxId, createdAt: String(nowNanoseconds()), removed }
      const kept = this.#subscriptions.size === 0 ? this.#kept : undefined
      if (kept !== undefined && kept.push(event) > this.#limits.events) {
        kept.shift()
        this.#discarded.inc({ why: 'nobody came' })
      }
      const bytes = this.#subscriptions.size === 0 ? undefined : this.#encode(event)
      if (bytes !== undefined) this.#send(bytes)
      if (kept !== undefined || bytes !== undefined) this.#total.inc({ type: typeNames[type] ?? String(type) })
    }
  }

  /** Undefined for what cannot be told: a kubelet breaks down at an event without a pod, and one about a pod that is gone is over, but for its removal. */
  #encode({ type, id, sandboxId, createdAt, removed }: Kept): Buffer | undefined {
    const { sandboxes, containers, images } = this.#deps
    const sandbox = sandboxes.get(sandboxId) ?? (type === deleted ? removed : undefined)
    if (sandbox === undefined) return undefined
    try {
      const event: Init<ContainerEventResponse> = {
        container_id: id, container_event_type: type, created_at: createdAt,
        pod_sandbox_status: sandboxStatusMessage(sandbox),
        containers_statuses: containersOf(containers, sandboxId).map((container) => containerStatusMessage(container, images)),
      }
      return messageCodec(criProtos(), 'runtime.v1.ContainerEventResponse').serialize(event)
    } catch (error) {
      // Whoever changed the record has nothing to do with it.
      this.#log.error({ err: error, container: id, type }, 'an event of a container cannot be told; the kubelet sees the change at its next relist')
      return undefined
    }
  }

  #send(event: Buffer): void {
    for (const subscription of this.#subscriptions) {
      const behind = subscription.waiting
      if (subscription.push(event)) continue
      this.#subscriptions.delete(subscription)
      this.#discarded.inc({ why: 'slow subscriber' }, behind + 1)
      this.#log.warn({ behind }, 'a client that follows container events does not read them: its stream was ended')
    }
    if (this.#subscriptions.size === 0) this.#keep()
  }
}
