import type { Logger } from './logger.ts'

/** What travels with one RPC, or with one piece of background work, down to every containerd call. */
export interface Ctx {
  /** One id for the whole request, in every log line of it. */
  readonly requestId: string
  /** Writes `requestId` and what the request is about. */
  readonly log: Logger
  /** Aborts when the client is gone, its deadline has passed or the service shuts down. */
  readonly signal: AbortSignal
}

let counter = 0

/** A short id, unique in this process. */
export function newRequestId(): string {
  counter = (counter + 1) % 0x7fffffff
  return `${process.pid.toString(36)}-${counter.toString(36)}`
}

/** A context for work that no client asked for. */
export function backgroundCtx(log: Logger, what: string, signal: AbortSignal = new AbortController().signal): Ctx {
  const requestId = newRequestId()
  return { requestId, log: log.child({ requestId, task: what }), signal }
}

/** The same request under another signal (undo after a cancelled call, a step with its own deadline). */
export function withSignal(ctx: Ctx, signal: AbortSignal): Ctx {
  return { requestId: ctx.requestId, log: ctx.log, signal }
}
