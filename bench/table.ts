/** Columns separated by two spaces: the first to the left, the others to the right, `left` columns to the left too. */
export function table(rows: readonly (readonly string[])[], left: readonly number[] = []): string {
  const widths: number[] = []
  for (const row of rows) for (const [at, cell] of row.entries()) widths[at] = Math.max(widths[at] ?? 0, cell.length)
  return rows.map((row) => row.map((cell, at) => (at === 0 || left.includes(at) ? cell.padEnd(widths[at] ?? 0) : cell.padStart(widths[at] ?? 0))).join('  ').trimEnd()).join('\n')
}
