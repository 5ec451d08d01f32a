import type { Timestamp } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'

/** Nanoseconds since 1970, 0n for an absent time stamp (and for Go's zero time, which lies before). */
export function toNanoseconds(timestamp: Timestamp | null): bigint {
  if (timestamp === null) return 0n
  const seconds = BigInt(timestamp.seconds)
  return seconds <= 0n ? 0n : seconds * 1_000_000_000n + BigInt(timestamp.nanos)
}

export function toTimestamp(nanoseconds: bigint): Init<Timestamp> {
  return { seconds: String(nanoseconds / 1_000_000_000n), nanos: Number(nanoseconds % 1_000_000_000n) }
}

/** The wall clock in nanoseconds since 1970, strictly increasing within the process so that creation times order. */
export function nowNanoseconds(): bigint {
  const now = BigInt(Math.round((performance.timeOrigin + performance.now()) * 1000)) * 1000n
  last = now > last ? now : last + 1n
  return last
}

let last = 0n
