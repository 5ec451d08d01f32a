import { randomUUID } from 'node:crypto'
import { pause } from '../concurrency/deadline.ts'
import { unavailable } from '../errors/cri-error.ts'
import type { Messages } from '../generated/containerd.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import { baseName, packAny, unpackAny } from './any.ts'
import type { ContainerdClient } from './client.ts'

const service = 'containerd.services.events.v1.Events'

/** The events that this service follows, by message name. */
const followed = [
  'containerd.events.TaskExit',
  'containerd.events.TaskDelete',
  'containerd.events.TaskOOM',
  'containerd.services.images.v1.ImageCreate',
  'containerd.services.images.v1.ImageUpdate',
  'containerd.services.images.v1.ImageDelete',
] as const satisfies readonly (keyof Messages)[]
type Followed = (typeof followed)[number]

/** One event of containerd. */
export type ContainerdEvent = { readonly [N in Followed]: { readonly name: N; readonly topic: string; readonly message: Messages[N] } }[Followed]

/** containerd's event stream of one namespace. */
export class EventsService {
  readonly #client: ContainerdClient

  constructor(client: ContainerdClient) {
    this.#client = client
  }

  /**
   * Every followed event from now on. The first that it yields is `synced`: containerd has taken the subscription, so what happens
   * after that will be seen and what happened before can be asked for. (Subscribe itself answers nothing until there is an event,
   * so an event of our own is published until it comes back.) Ends by throwing when the stream is lost.
   */
  async *subscribe(ctx: Ctx): AsyncGenerator<ContainerdEvent | { readonly name: 'synced' }, void, undefined> {
    const namespace = this.#client.namespace
    const probe = `/cri-shim/subscribed/${randomUUID()}`
    const filters = [`namespace==${namespace},topic~="^/tasks/(exit|delete|oom)$"`, `namespace==${namespace},topic~="^/images/"`, `namespace==${namespace},topic=="${probe}"`]
    const stop = new AbortController()
    const stream = this.#client.serverStream(withSignal(ctx, AbortSignal.any([ctx.signal, stop.signal])), service, 'Subscribe', { filters }, 'events')
    const probing = new AbortController()
    const probes = this.#probe(withSignal(ctx, AbortSignal.any([ctx.signal, probing.signal])), probe).catch((error: unknown) => stop.abort(error))
    try {
      for await (const envelope of stream) {
        if (envelope.topic === probe) {
          const first = !probing.signal.aborted
          // Before the yield: whoever reads this may be busy for long before asking for the next event.
          probing.abort()
          if (first) yield { name: 'synced' }
          continue
        }
        const name = followed.find((known) => envelope.event !== null && baseName(envelope.event.type_url) === known)
        if (name === undefined) continue
        const message = unpackAny(name, envelope.event)
        if (message !== undefined) yield { name, topic: envelope.topic, message } as ContainerdEvent
      }
      throw unavailable(`containerd on ${this.#client.address} ended the event stream`, { reason: 'ContainerdUnavailable' })
    } finally {
      probing.abort()
      await probes
    }
  }

  /** Publishes until told to stop: containerd may take the first ones before it has taken the subscription. */
  async #probe(ctx: Ctx, topic: string): Promise<void> {
    while (!ctx.signal.aborted) {
      try {
        await this.#client.call(ctx, service, 'Publish', { topic, event: packAny('google.protobuf.Empty', {}) }, 'event', { timeoutMs: 10_000 })
        await pause(20, ctx.signal)
      } catch (error) {
        if (!ctx.signal.aborted) throw error
      }
    }
  }
}
