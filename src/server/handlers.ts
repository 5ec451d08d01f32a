import type { Services } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'

/** Every RPC of RuntimeService and ImageService of CRI v1, by name: no name occurs in both. */
export type Rpcs = Services['runtime.v1.RuntimeService'] & Services['runtime.v1.ImageService']

/** The name of an RPC, `RunPodSandbox`. */
export type Method = keyof Rpcs

/**
 * An answer that is encoded already, such as a List put together from each entry's own cached encoding. It goes out as it is:
 * what is in it is the caller's responsibility. The private field makes the type nominal: no message is ever taken for an encoding.
 */
export class Encoded {
  readonly #bytes: Buffer

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  get bytes(): Buffer {
    return this.#bytes
  }
}

/** Marks `bytes` as the wire form of a whole response message. */
export function encoded(bytes: Buffer): Encoded {
  return new Encoded(bytes)
}

/** What the table says of an RPC that this version does not serve. */
export class Unimplemented {
  readonly #reason: string

  constructor(reason: string) {
    this.#reason = reason
  }

  get reason(): string {
    return this.#reason
  }
}

/** The RPC answers UNIMPLEMENTED with `reason`, which says why and, if there is one, what to use instead. */
export function unimplemented(reason: string): Unimplemented {
  return new Unimplemented(reason)
}

/** Serves an RPC with one answer. Whatever it throws becomes a status; a CriError keeps its code and message. */
export type UnaryHandler<Request, Response> = (ctx: Ctx, request: Request) => Promise<Init<Response> | Encoded>

/**
 * Hands one message to the client and resolves when there is room for the next one. Rejects with the reason of `ctx.signal` once
 * the client is gone, so that a producer which awaits it never fills memory or runs for nobody.
 */
export type Send<Response> = (message: Init<Response> | Encoded) => Promise<void>

/** Serves an RPC with a stream of answers, which ends when the returned promise does. */
export type StreamHandler<Request, Response> = (ctx: Ctx, request: Request, send: Send<Response>) => Promise<void>

/** The handler of one RPC. */
export type Handler<M extends Method> = Rpcs[M]['responseStream'] extends true
  ? StreamHandler<Rpcs[M]['request'], Rpcs[M]['response']>
  : UnaryHandler<Rpcs[M]['request'], Rpcs[M]['response']>

/** One entry for every RPC of both services: a forgotten one does not compile. */
export type HandlerTable = { readonly [M in Method]: Handler<M> | Unimplemented }
