import { randomBytes } from 'node:crypto'
import { resourceExhausted } from '../errors/cri-error.ts'
import type { StreamKind, StreamSession } from './types.ts'

/** As containerd's request cache has it. */
const lifetimeMs = 60_000
const maxWaiting = 1000
/** 128 bits: nobody finds one by trying within its minute. */
const tokenBytes = 16

interface Waiting {
  readonly session: StreamSession
  readonly expiresAtMs: number
}

/** The calls that were given a URL and whose client has not come yet. A token is good once. */
export class Tokens {
  readonly #now: () => number
  /** In the order of issue, which is the order of expiry. */
  readonly #waiting = new Map<string, Waiting>()

  /** `now`: a clock in milliseconds that never goes back. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now
  }

  /** RESOURCE_EXHAUSTED when too many wait already. */
  issue(session: StreamSession): string {
    this.#expire()
    if (this.#waiting.size >= maxWaiting) {
      throw resourceExhausted(`${maxWaiting} streams were asked for within the last minute and not begun, which is the limit; try again in a minute`)
    }
    const token = randomBytes(tokenBytes).toString('base64url')
    this.#waiting.set(token, { session, expiresAtMs: this.#now() + lifetimeMs })
    return token
  }

  /** The session that the token stands for, which is used up by this; undefined when there is none of that kind, or it came too late. */
  redeem(kind: StreamKind, token: string): StreamSession | undefined {
    const waiting = this.#waiting.get(token)
    if (waiting === undefined) return undefined
    this.#waiting.delete(token)
    if (this.#now() >= waiting.expiresAtMs || waiting.session.kind !== kind) return undefined
    return waiting.session
  }

  get size(): number {
    this.#expire()
    return this.#waiting.size
  }

  #expire(): void {
    const now = this.#now()
    for (const [token, { expiresAtMs }] of this.#waiting) {
      if (now < expiresAtMs) return
      this.#waiting.delete(token)
    }
  }
}
