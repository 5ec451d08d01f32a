import type { Timestamp } from '../generated/containerd.ts'

/** Nanoseconds since 1970, 0n for an absent time stamp (and for Go's zero time, which lies before). */
export function toNanoseconds(timestamp: Timestamp | null): bigint {
  if (timestamp === null) return 0n
  const seconds = BigInt(timestamp.seconds)
  return seconds <= 0n ? 0n : seconds * 1_000_000_000n + BigInt(timestamp.nanos)
}

/** Date.now() is whole milliseconds, and so is the moment at which the two clocks were last compared. */
const toleranceNs = 1_500_000n
/** A system clock that was set back further than this is followed; what is less is smoothed over. */
const largestSmoothedNs = 10_000_000_000n

let anchorNs = 0n
let anchorTicks = 0n
let last = 0n

/**
 * The wall clock in nanoseconds since 1970, strictly increasing within the process so that creation times order. The monotonic clock gives
 * what lies between two milliseconds and no more: it stands still while the machine is suspended, and knows nothing of NTP.
 */
export function nowNanoseconds(): bigint {
  const wall = BigInt(Date.now()) * 1_000_000n
  const ticks = process.hrtime.bigint()
  const smooth = anchorNs + ticks - anchorTicks
  if (smooth < wall - toleranceNs || smooth > wall + toleranceNs) {
    anchorNs = wall
    anchorTicks = ticks
  }
  const now = anchorNs + ticks - anchorTicks
  last = now > last || last - now > largestSmoothedNs ? now : last + 1n
  return last
}
