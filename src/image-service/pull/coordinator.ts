import { createHash } from 'node:crypto'
import { abortable } from '../../concurrency/keyed-mutex.ts'
import { Code, CriError } from '../../errors/cri-error.ts'
import { type Ctx, withSignal } from '../../observability/context.ts'
import type { PulledImage, Puller, PullRequest } from './puller.ts'

interface RunningPull {
  readonly result: Promise<PulledImage>
  readonly stop: AbortController
  waiting: number
}

/**
 * Concurrent pulls of one image with the same credentials are one pull: each caller waits for it, and it ends early only when the last
 * of them is gone.
 */
export class PullCoordinator {
  readonly #puller: Pick<Puller, 'pull'>
  /** Those that a caller may join. */
  readonly #running = new Map<string, RunningPull>()
  /** All, those that are being ended because nobody waits for them included. */
  readonly #unfinished = new Set<RunningPull>()
  #closed: CriError | undefined

  constructor(puller: Pick<Puller, 'pull'>) {
    this.#puller = puller
  }

  get running(): number {
    return this.#running.size
  }

  async pull(ctx: Ctx, request: PullRequest): Promise<PulledImage> {
    ctx.signal.throwIfAborted()
    if (this.#closed !== undefined) throw this.#closed
    const key = keyOf(request)
    const pull = this.#running.get(key) ?? this.#begin(key, ctx, request)
    pull.waiting += 1
    try {
      return await abortable(pull.result, ctx.signal)
    } finally {
      pull.waiting -= 1
      if (pull.waiting === 0) {
        pull.stop.abort(new CriError(Code.CANCELLED, `pulling ${request.ref.toString()}: nobody waits for it any more`))
        // A caller that comes now begins anew instead of joining what is being ended.
        if (this.#running.get(key) === pull) this.#running.delete(key)
      }
    }
  }

  #begin(key: string, ctx: Ctx, request: PullRequest): RunningPull {
    const stop = new AbortController()
    const result = this.#puller.pull(withSignal(ctx, stop.signal), request).finally(() => {
      this.#unfinished.delete(pull)
      if (this.#running.get(key) === pull) this.#running.delete(key)
    })
    result.catch(() => undefined)
    const pull: RunningPull = { result, stop, waiting: 0 }
    this.#running.set(key, pull)
    this.#unfinished.add(pull)
    return pull
  }

  /** Ends what runs and waits for it; what was downloaded stays for the next try. */
  async close(): Promise<void> {
    this.#closed ??= new CriError(Code.UNAVAILABLE, 'cri-shim is shutting down', { reason: 'Shutdown' })
    for (const { stop } of this.#unfinished) stop.abort(this.#closed)
    await Promise.allSettled([...this.#unfinished].map(({ result }) => result))
  }
}

function keyOf(request: PullRequest): string {
  const secret = createHash('sha256').update(JSON.stringify(request.auth ?? null)).digest('base64url')
  return [request.ref.toString(), request.snapshotter, String(request.pinned), secret].join('\n')
}
