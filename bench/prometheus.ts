/** Sum and count of a histogram's observations, per set of labels. */
export interface HistogramEntry {
  readonly labels: Readonly<Record<string, string>>
  readonly sum: number
  readonly count: number
}

/** Reads one histogram out of the Prometheus text format (version 0.0.4). Buckets are left out. */
export function readHistogram(text: string, name: string): readonly HistogramEntry[] {
  const entries = new Map<string, { labels: Record<string, string>; sum: number; count: number }>()
  for (const line of text.split('\n')) {
    const [, part, written = '', value] = new RegExp(`^${name}_(sum|count)(?:\\{(.*)\\})? (\\S+)`).exec(line) ?? []
    if (part === undefined) continue
    const labels = Object.fromEntries([...written.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, text]) => [key ?? '', (text ?? '').replaceAll(/\\(.)/g, (_, character: string) => (character === 'n' ? '\n' : character))]))
    const entry = entries.get(written) ?? { labels, sum: 0, count: 0 }
    entries.set(written, entry)
    if (part === 'sum') entry.sum = Number(value)
    else entry.count = Number(value)
  }
  return [...entries.values()]
}

/** What was observed between two readings; entries without a new observation are left out. */
export function histogramDelta(before: readonly HistogramEntry[], after: readonly HistogramEntry[]): readonly HistogramEntry[] {
  const key = ({ labels }: HistogramEntry): string => JSON.stringify(Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1)))
  const earlier = new Map(before.map((entry) => [key(entry), entry]))
  return after.map((entry) => {
    const old = earlier.get(key(entry))
    return { labels: entry.labels, sum: entry.sum - (old?.sum ?? 0), count: entry.count - (old?.count ?? 0) }
  }).filter(({ count }) => count > 0)
}
