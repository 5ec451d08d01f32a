/** One table header or key of a TOML document, in the order of the file. */
export interface TomlLine {
  readonly kind: 'table' | 'key'
  /** From the root, the table's own path included. */
  readonly path: readonly string[]
  /** Counted from 1. */
  readonly line: number
}

/**
 * Where the table headers and keys of a TOML document stand: smol-toml gives values without positions and loses the order of keys that
 * look like numbers. The text is known to parse. Keys inside inline tables are not listed.
 */
export function tomlLines(text: string): TomlLine[] {
  const found: TomlLine[] = []
  let at = 0
  let table: readonly string[] = []

  const lineAt = (end: number): number => text.slice(0, end).split('\n').length

  /** Past a string that begins here. */
  function skipString(): string {
    const quote = text[at] ?? ''
    const delimiter = text.startsWith(quote.repeat(3), at) ? quote.repeat(3) : quote
    const start = at + delimiter.length
    at = start
    while (at < text.length && !text.startsWith(delimiter, at)) at += quote === '"' && text[at] === '\\' ? 2 : 1
    // A multi-line string may end in quotes of its own: """a"""" is a".
    while (delimiter.length === 3 && text[at + 3] === quote) at++
    const inner = text.slice(start, at)
    at += delimiter.length
    return quote === '"' ? unescape(inner) : inner
  }

  function readKey(end: string): string[] {
    const path: string[] = []
    while (at < text.length && text[at] !== end) {
      const char = text[at] ?? ''
      if (char === '"' || char === "'") {
        path.push(skipString())
      } else if (/[A-Za-z0-9_-]/.test(char)) {
        const bare = /^[A-Za-z0-9_-]+/.exec(text.slice(at))?.[0] ?? char
        path.push(bare)
        at += bare.length
      } else {
        at++
      }
    }
    return path
  }

  function skipComment(): void {
    while (at < text.length && text[at] !== '\n') at++
  }

  function skipValue(): void {
    let depth = 0
    while (at < text.length) {
      const char = text[at] ?? ''
      if (char === '"' || char === "'") {
        skipString()
        continue
      }
      if (char === '#') {
        skipComment()
        continue
      }
      if (char === '\n' && depth === 0) return
      if (char === '[' || char === '{') depth++
      if (char === ']' || char === '}') depth--
      at++
    }
  }

  while (at < text.length) {
    const char = text[at] ?? ''
    if (/\s/.test(char) || char === '\uFEFF') {
      at++
    } else if (char === '#') {
      skipComment()
    } else if (char === '[') {
      const line = lineAt(at)
      while (text[at] === '[') at++
      table = readKey(']')
      found.push({ kind: 'table', path: table, line })
      while (text[at] === ']') at++
    } else {
      const line = lineAt(at)
      found.push({ kind: 'key', path: [...table, ...readKey('=')], line })
      at++
      skipValue()
    }
  }
  return found
}

function unescape(text: string): string {
  if (!text.includes('\\')) return text
  try {
    const value: unknown = JSON.parse(`"${text.replace(/\\U([0-9a-fA-F]{8})/g, (_, hex: string) => String.fromCodePoint(Number.parseInt(hex, 16)))}"`)
    return typeof value === 'string' ? value : text
  } catch {
    return text
  }
}
