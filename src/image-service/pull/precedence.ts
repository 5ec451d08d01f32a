import { abortable } from '../../concurrency/keyed-mutex.ts'

/** From then on whoever waits for the network leaves this machine to the others. */
const idleAfterMs = 5
/** So long at most one piece is held back: a host that cannot get rid of anything closes its connection. */
const longestHoldMs = 1000

/**
 * Which transfers of a pull go first when it is this machine that limits them, not the network: those of the lowest layer, whose unpacking can begin as
 * soon as it is there. The others read only while all below them wait for bytes; a slow network is shared as if this did not exist.
 */
export class Precedence {
  readonly #turns = new Set<Turn>()
  readonly #held = new Set<() => void>()

  /** A transfer of the layer `rank`, counted from the lowest. It waits at first; it ends when it is disposed of. */
  enter(rank: number): Turn {
    const turn = new Turn(rank, {
      isBehind: () => [...this.#turns].some((other) => other.rank < rank && !other.isIdle),
      held: this.#held,
      left: () => this.#turns.delete(turn),
    })
    this.#turns.add(turn)
    return turn
  }
}

interface Others {
  readonly isBehind: () => boolean
  /** Those that are held back look again when one of these is called. */
  readonly held: Set<() => void>
  readonly left: () => void
}

/** One transfer among those of its pull. */
export class Turn implements Disposable {
  readonly rank: number
  readonly #others: Others
  #idleTimer: NodeJS.Timeout | undefined
  #isIdle = false

  constructor(rank: number, others: Others) {
    this.rank = rank
    this.#others = others
    this.waits()
  }

  get isIdle(): boolean {
    return this.#isIdle
  }

  /** Resolves when no lower layer has work for this machine, or after a second. */
  async come(signal: AbortSignal): Promise<void> {
    const { held, isBehind } = this.#others
    if (!isBehind()) return
    const free = Promise.withResolvers<void>()
    const look = (): void => {
      if (!isBehind()) free.resolve()
    }
    held.add(look)
    const timer = setTimeout(free.resolve, longestHoldMs)
    try {
      await abortable(free.promise, signal)
    } finally {
      clearTimeout(timer)
      held.delete(look)
    }
  }

  /** From now on it waits for the network, or for its place among the transfers of the node. */
  waits(): void {
    this.#idleTimer ??= setTimeout(() => {
      this.#isIdle = true
      this.#release()
    }, idleAfterMs)
  }

  /** Bytes have come. */
  works(): void {
    clearTimeout(this.#idleTimer)
    this.#idleTimer = undefined
    this.#isIdle = false
  }

  [Symbol.dispose](): void {
    this.works()
    this.#others.left()
    this.#release()
  }

  #release(): void {
    for (const look of this.#others.held) look()
  }
}
