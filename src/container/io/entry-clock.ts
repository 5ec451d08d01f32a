/** Wall-clock time with the resolution of the monotonic clock: whole seconds and nanoseconds since 1970. */
export class WallClock {
  #anchorMs = 0
  #anchorTicks = 0n
  seconds = 0
  nanos = 0

  /** Reads the time into `seconds` and `nanos`. Steps of the system clock (NTP, an administrator) are followed at once. */
  read(): void {
    const nowMs = Date.now()
    const ticks = process.hrtime.bigint()
    let sinceAnchor = Number(ticks - this.#anchorTicks)
    if (Math.abs(this.#anchorMs + sinceAnchor / 1e6 - nowMs) > 1.5) {
      this.#anchorMs = nowMs
      this.#anchorTicks = ticks
      sinceAnchor = 0
    }
    const anchorSeconds = Math.floor(this.#anchorMs / 1000)
    const nanos = (this.#anchorMs - anchorSeconds * 1000) * 1e6 + sinceAnchor
    const carry = Math.floor(nanos / 1e9)
    this.seconds = anchorSeconds + carry
    this.nanos = nanos - carry * 1e9
  }
}

/** A system clock that was set back further than this is followed; what is less is smoothed over. */
const largestSmoothedSeconds = 10

/**
 * The time stamps of one container's entries, both streams together: each later than the one before (by a nanosecond if need be,
 * so that readers which merge by time keep the order and do not take equal lines for duplicates).
 */
export class EntryClock {
  readonly #wall: WallClock
  seconds = 0
  nanos = -1

  constructor(wall: WallClock) {
    this.#wall = wall
  }

  /** Sets `seconds` and `nanos` to the stamp of the next entry. */
  refresh(): void {
    this.advance()
    this.#wall.read()
    const { seconds, nanos } = this.#wall
    const ahead = this.seconds - seconds
    if (ahead > largestSmoothedSeconds || ahead < 0 || (ahead === 0 && nanos > this.nanos)) {
      this.seconds = seconds
      this.nanos = nanos
    }
  }

  /** On to the next stamp without asking the clock. */
  advance(): void {
    this.nanos++
    if (this.nanos < 1e9) return
    this.nanos = 0
    this.seconds++
  }
}
