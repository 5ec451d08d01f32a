import type { Ctx } from '../observability/context.ts'
import type { ContainerEvents } from './container-events.ts'

/**
 * GetContainerEvents: every event from now on, until the client leaves. A client that does not read is told RESOURCE_EXHAUSTED once too much waits
 * for it: it has to list then, and to subscribe again.
 */
export async function getContainerEvents({ events }: { readonly events: Pick<ContainerEvents, 'subscribe'> }, ctx: Ctx, send: (event: Buffer) => Promise<void>): Promise<void> {
  const subscription = events.subscribe()
  try {
    await subscription.forward(send, ctx.signal)
  } finally {
    subscription.close()
  }
}
