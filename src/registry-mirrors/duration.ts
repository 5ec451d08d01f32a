const unitMs: Readonly<Record<string, number>> = { h: 3_600_000, m: 60_000, s: 1000, ms: 1, us: 1e-3, 'µs': 1e-3, 'μs': 1e-3, ns: 1e-6 }

/** Milliseconds of a duration as Go writes it (`1m30s`, `500ms`, `1.5h`, `0`), undefined when it is none. */
export function parseDurationMs(text: string): number | undefined {
  const match = /^([+-]?)(.*)$/s.exec(text)
  const sign = match?.[1] === '-' ? -1 : 1
  const rest = match?.[2] ?? ''
  if (rest === '0') return 0
  if (!/^(?:(?:\d+\.?\d*|\.\d+)(?:h|ms|m|s|us|µs|μs|ns))+$/.test(rest)) return undefined
  let total = 0
  for (const part of rest.matchAll(/(\d+\.?\d*|\.\d+)(h|ms|m|s|us|µs|μs|ns)/g)) {
    total += Number(part[1]) * (unitMs[part[2] ?? ''] ?? Number.NaN)
  }
  return sign * total
}
