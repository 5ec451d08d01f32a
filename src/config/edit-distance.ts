/**
 * The number of insertions, deletions, substitutions and swaps of neighbours that turn one word into the other
 * (optimal string alignment): the distance of typing mistakes.
 */
export function editDistance(a: string, b: string): number {
  let beforeLast: number[] = []
  let last = Array.from({ length: b.length + 1 }, (_, index) => index)
  for (let i = 1; i <= a.length; i++) {
    const row = [i]
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1]
      let best = Math.min((last[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1, (last[j - 1] ?? 0) + (same ? 0 : 1))
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) best = Math.min(best, (beforeLast[j - 2] ?? 0) + 1)
      row.push(best)
    }
    beforeLast = last
    last = row
  }
  return last[b.length] ?? a.length
}

/** A key without the differences that people overlook: case, `_` and `-`. */
export function looseKey(key: string): string {
  return key.toLowerCase().replaceAll(/[_-]/g, '')
}

export interface NearWord {
  readonly word: string
  /** 0: only case, `_` or `-` differ. */
  readonly distance: number
}

/** The candidate nearest to `word`, when it is near enough to be what was meant: at most 3 mistakes and a third of its length. */
export function nearestWord(word: string, candidates: Iterable<string>): NearWord | undefined {
  let best: NearWord | undefined
  const loose = looseKey(word)
  for (const candidate of candidates) {
    const distance = looseKey(candidate) === loose ? 0 : editDistance(word.toLowerCase(), candidate.toLowerCase())
    if (distance > 3 || distance * 3 > Math.max(word.length, candidate.length)) continue
    if (best === undefined || distance < best.distance) best = { word: candidate, distance }
  }
  return best
}
