const NANOSECONDS: Readonly<Record<string, number>> = { ns: 1, us: 1e3, µs: 1e3, μs: 1e3, ms: 1e6, s: 1e9, m: 60e9, h: 3600e9 }
const ELEMENT = /(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)/y
// Go keeps a duration in an int64 of nanoseconds.
const MAX_NANOSECONDS = 2 ** 63

/**
 * Parses a duration as Go's time.ParseDuration does (`1h30m`, `1.5s`, `0`), because that is what containerd's file holds.
 * Returns milliseconds (fractions kept), undefined for what Go would refuse.
 */
export function parseGoDuration(text: string): number | undefined {
  const sign = text.startsWith('-') ? -1 : 1
  const body = text.startsWith('-') || text.startsWith('+') ? text.slice(1) : text
  if (body === '0') return 0
  if (body === '') return undefined
  let nanoseconds = 0
  ELEMENT.lastIndex = 0
  while (ELEMENT.lastIndex < body.length) {
    const match = ELEMENT.exec(body)
    const unit = match === null ? undefined : NANOSECONDS[match[2] ?? '']
    if (match === null || unit === undefined) return undefined
    nanoseconds += Number(match[1]) * unit
  }
  return nanoseconds >= MAX_NANOSECONDS ? undefined : (sign * nanoseconds) / 1e6
}

/** A duration in milliseconds as Go prints it: `5m0s`, `1h0m0s`, `250ms`, `0s`. */
export function formatGoDuration(ms: number): string {
  if (ms === 0) return '0s'
  if (ms < 0) return `-${formatGoDuration(-ms)}`
  if (ms < 1000) return ms >= 1 ? `${decimal(ms)}ms` : ms >= 1e-3 ? `${decimal(ms * 1e3)}us` : `${decimal(ms * 1e6)}ns`
  const hours = Math.floor(ms / 3_600_000)
  const minutes = Math.floor((ms % 3_600_000) / 60_000)
  const seconds = `${decimal((ms % 60_000) / 1000)}s`
  if (hours > 0) return `${hours}h${minutes}m${seconds}`
  return minutes > 0 ? `${minutes}m${seconds}` : seconds
}

function decimal(value: number): string {
  return String(Number(value.toFixed(9)))
}
