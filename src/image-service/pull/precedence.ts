import { abortable } from '../../concurrency/keyed-mutex.ts'

/** A wait that is no longer says nothing. */
const shortWaitMs = 5
/** Of what counts how a transfer spends its time: what was long ago counts less. */
const memoryMs = 50
/** So long at most one piece is held back: a host that cannot get rid of anything closes its connection. */
const longestHoldMs = 1000
/** A transfer that has not begun loses nothing; but it may be the disk that keeps the one below. */
const longestStartMs = 10_000

/**
 * Which transfers of a pull go first when it is this machine that limits them, not the network: those of the lowest layer, whose unpacking can begin as
 * soon as it is there, and of one layer's ranges the first. The others read only while all below them wait for bytes for more than half of their time: then one
 * more fits in. A network that is slow, or gives only so much to one connection, is used as if this did not exist.
 */
export class Precedence {
  readonly #turns = new Set<Turn>()
  readonly #held = new Set<() => void>()
  readonly #now: () => number

  /** `now`: milliseconds of a clock that only goes forward. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now
  }

  /**
   * A transfer of the layer `rank`, counted from the lowest; a fraction is the place among its ranges. It waits at first; it ends when it is disposed of. It is
   * not held back any more when `urgent` aborts.
   */
  enter(rank: number, urgent?: AbortSignal): Turn {
    const turn = new Turn(rank, {
      urgent,
      isBehind: () => [...this.#turns].some((other) => other.rank < rank && !other.isIdle),
      held: this.#held,
      now: this.#now,
      left: () => this.#turns.delete(turn),
    })
    this.#turns.add(turn)
    return turn
  }
}

interface Others {
  readonly urgent: AbortSignal | undefined
  readonly isBehind: () => boolean
  /** Those that are held back look again when one of these is called. */
  readonly held: Set<() => void>
  readonly now: () => number
  readonly left: () => void
}

/** One transfer among those of its pull. */
export class Turn implements Disposable {
  readonly rank: number
  readonly #others: Others
  #idleTimer: NodeJS.Timeout | undefined
  #isIdle = false
  #isWorking = false
  #sinceMs: number
  #waitedMs = 0
  #workedMs = 0

  constructor(rank: number, others: Others) {
    this.rank = rank
    this.#others = others
    this.#sinceMs = others.now()
    this.#look()
  }

  get isIdle(): boolean {
    return this.#isIdle
  }

  /** Resolves when nobody below has work for this machine: the transfer may begin. Ten seconds at most. */
  async begin(signal: AbortSignal): Promise<void> {
    await this.#come(signal, longestStartMs)
  }

  /** As `begin`, for its next piece. A second at most. */
  async come(signal: AbortSignal): Promise<void> {
    await this.#come(signal, longestHoldMs)
  }

  async #come(signal: AbortSignal, longestMs: number): Promise<void> {
    const { held, isBehind, urgent } = this.#others
    if (urgent?.aborted === true || !isBehind()) return
    const free = Promise.withResolvers<void>()
    const look = (): void => {
      if (!isBehind()) free.resolve()
    }
    held.add(look)
    const timer = setTimeout(free.resolve, longestMs)
    const hurry = (): void => free.resolve()
    urgent?.addEventListener('abort', hurry, { once: true })
    try {
      await abortable(free.promise, signal)
    } finally {
      clearTimeout(timer)
      urgent?.removeEventListener('abort', hurry)
      held.delete(look)
    }
  }

  /** From now on it waits for the network, or for its place among the transfers of the node. */
  waits(): void {
    this.#spent()
    this.#isWorking = false
    this.#look()
  }

  /** Bytes have come. */
  works(): void {
    this.#spent()
    this.#isWorking = true
    this.#look()
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#idleTimer)
    this.#others.left()
    this.#release()
  }

  /** The time until now goes to what it did. */
  #spent(): void {
    const now = this.#others.now()
    const ms = now - this.#sinceMs
    this.#sinceMs = now
    if (this.#isWorking) this.#workedMs += ms
    else this.#waitedMs += ms
    const all = this.#waitedMs + this.#workedMs
    if (all <= memoryMs) return
    this.#waitedMs *= memoryMs / all
    this.#workedMs *= memoryMs / all
  }

  #look(): void {
    clearTimeout(this.#idleTimer)
    const missingMs = Math.max(shortWaitMs, this.#workedMs) - this.#waitedMs
    const wasIdle = this.#isIdle
    this.#isIdle = missingMs <= 0
    if (this.#isIdle && !wasIdle) this.#release()
    else if (!this.#isIdle && !this.#isWorking) {
      this.#idleTimer = setTimeout(() => {
        this.#isIdle = true
        this.#release()
      }, missingMs)
    }
  }

  #release(): void {
    for (const look of this.#others.held) look()
  }
}
