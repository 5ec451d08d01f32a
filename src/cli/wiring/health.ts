import type { IntrospectionService } from '../../containerd/introspection.ts'
import { messageOf } from '../../errors/cri-error.ts'
import { type Ctx, withSignal } from '../../observability/context.ts'

/** How long containerd may take to say its version until it counts as not answering, in milliseconds. */
const answerMs = 3000
/** How long an answer counts, in milliseconds: however many ask, containerd is asked once in a while. */
const validMs = 1000

/** Whether the service is alive: its event loop turns (or nobody would answer), and containerd answers. */
export class Health {
  readonly #introspection: Pick<IntrospectionService, 'version'>
  readonly #ctx: Ctx
  #last: { readonly problem: Promise<string | undefined>; validUntilMs: number } | undefined

  constructor(introspection: Pick<IntrospectionService, 'version'>, ctx: Ctx) {
    this.#introspection = introspection
    this.#ctx = ctx
  }

  /** What is wrong, undefined when nothing is. Never rejects. */
  async problem(): Promise<string | undefined> {
    if (this.#last === undefined || performance.now() > this.#last.validUntilMs) {
      // Until it has ended everybody waits for this one.
      const last = { problem: this.#ask(), validUntilMs: Infinity }
      this.#last = last
      void last.problem.then(() => { last.validUntilMs = performance.now() + validMs })
    }
    return this.#last.problem
  }

  async #ask(): Promise<string | undefined> {
    const timeout = AbortSignal.timeout(answerMs)
    try {
      await this.#introspection.version(withSignal(this.#ctx, AbortSignal.any([this.#ctx.signal, timeout])))
      return undefined
    } catch (error) {
      return timeout.aborted ? `containerd did not answer within ${answerMs / 1000} s` : messageOf(error)
    }
  }
}
