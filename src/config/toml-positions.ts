/** Where a key or table header stands; line and column count from 1. */
export interface Position {
  readonly line: number
  readonly column: number
}

const SEPARATOR = '\u0000'

/** Positions of the keys of one TOML document, by their full path (array elements by index). */
export class TomlPositions {
  readonly #positions = new Map<string, Position>()
  /** Of tables that only the headers of tables inside of them name: the first of those. */
  readonly #implied = new Map<string, Position>()

  /** The position of a key, of the first header that implies it, of its nearest parent that has one, else the top of the file. */
  near(path: readonly string[]): Position {
    for (let length = path.length; length > 0; length--) {
      const part = path.slice(0, length)
      const position = this.get(part) ?? this.#implied.get(part.join(SEPARATOR))
      if (position !== undefined) return position
    }
    return { line: 1, column: 1 }
  }

  get(path: readonly string[]): Position | undefined {
    return this.#positions.get(path.join(SEPARATOR))
  }

  /** The first mention wins: a table is found at its header, not at the header of its child. */
  set(path: readonly string[], position: Position): void {
    const key = path.join(SEPARATOR)
    if (!this.#positions.has(key)) this.#positions.set(key, position)
    for (let length = path.length - 1; length > 0; length--) {
      const parent = path.slice(0, length).join(SEPARATOR)
      if (this.#implied.has(parent)) return
      this.#implied.set(parent, position)
    }
  }
}

/**
 * Finds every key of a TOML document that a parser has accepted already: table headers, arrays of tables, dotted and quoted keys,
 * inline tables, elements of arrays. What it does not understand it skips to the end of the line.
 */
export function scanTomlPositions(text: string): TomlPositions {
  return new Scanner(text).scan()
}

const BARE_KEY = /[A-Za-z0-9_-]/
const ESCAPES: Readonly<Record<string, string>> = { b: '\b', t: '\t', n: '\n', f: '\f', r: '\r', e: '\u001b', '"': '"', '\\': '\\' }

class Scanner {
  readonly #text: string
  readonly #positions = new TomlPositions()
  /** Offsets of the line starts. */
  readonly #lines: number[] = [0]
  /** How many elements each array of tables has so far. */
  readonly #tableArrays = new Map<string, number>()
  #at = 0

  constructor(text: string) {
    this.#text = text
    for (let index = text.indexOf('\n'); index !== -1; index = text.indexOf('\n', index + 1)) this.#lines.push(index + 1)
  }

  scan(): TomlPositions {
    let table: readonly string[] = []
    for (;;) {
      this.#skipBlank()
      if (this.#at >= this.#text.length) return this.#positions
      if (this.#text[this.#at] === '[') table = this.#header() ?? table
      else this.#pair(table)
      this.#skipLine()
    }
  }

  /** `[a."b".c]` or `[[a.b]]`: the path of the table that follows. */
  #header(): readonly string[] | undefined {
    const array = this.#text.startsWith('[[', this.#at)
    this.#at += array ? 2 : 1
    this.#skipSpace()
    const start = this.#at
    const keys = this.#dottedKey()
    if (keys === undefined) return undefined
    const path: string[] = []
    for (const [index, key] of keys.entries()) {
      path.push(key)
      const name = path.join(SEPARATOR)
      if (index === keys.length - 1 && array) {
        const next = this.#tableArrays.get(name) ?? 0
        this.#positions.set(path, this.#position(start))
        this.#tableArrays.set(name, next + 1)
        path.push(String(next))
      } else {
        const count = this.#tableArrays.get(name)
        if (count !== undefined) path.push(String(count - 1))
      }
    }
    this.#positions.set(path, this.#position(start))
    return path
  }

  #pair(table: readonly string[]): void {
    const start = this.#at
    const keys = this.#dottedKey()
    if (keys === undefined || this.#text[this.#at] !== '=') return
    this.#at++
    for (let length = 1; length <= keys.length; length++) this.#positions.set([...table, ...keys.slice(0, length)], this.#position(start))
    this.#skipSpace()
    this.#value([...table, ...keys])
  }

  #value(path: readonly string[]): void {
    const text = this.#text
    const quote = text[this.#at]
    if (quote === '"' || quote === "'") this.#string(quote)
    else if (quote === '[') this.#array(path)
    else if (quote === '{') this.#inlineTable(path)
    else while (this.#at < text.length && !/[,\]}#\n]/.test(text[this.#at] ?? '')) this.#at++
  }

  #array(path: readonly string[]): void {
    this.#at++
    for (let index = 0; ; index++) {
      this.#skipBlank()
      if (this.#closes(']')) return
      const start = this.#at
      this.#positions.set([...path, String(index)], this.#position(start))
      this.#value([...path, String(index)])
      this.#skipBlank()
      if (this.#text[this.#at] === ',') this.#at++
      else if (this.#closes(']') || this.#at === start) return
    }
  }

  #inlineTable(path: readonly string[]): void {
    this.#at++
    for (;;) {
      this.#skipBlank()
      if (this.#closes('}')) return
      const start = this.#at
      this.#pair(path)
      this.#skipBlank()
      if (this.#text[this.#at] === ',') this.#at++
      else if (this.#closes('}') || this.#at === start) return
    }
  }

  /** Steps over the closing bracket, or notices the end of the file. */
  #closes(bracket: string): boolean {
    if (this.#at >= this.#text.length) return true
    if (this.#text[this.#at] !== bracket) return false
    this.#at++
    return true
  }

  /** Ends behind the key and the blanks after it. */
  #dottedKey(): string[] | undefined {
    const keys: string[] = []
    for (;;) {
      this.#skipSpace()
      const key = this.#simpleKey()
      if (key === undefined) return undefined
      keys.push(key)
      this.#skipSpace()
      if (this.#text[this.#at] !== '.') return keys
      this.#at++
    }
  }

  #simpleKey(): string | undefined {
    const quote = this.#text[this.#at]
    if (quote === '"' || quote === "'") {
      const start = this.#at + 1
      this.#string(quote)
      const raw = this.#text.slice(start, this.#at - 1)
      return quote === '"' ? unescapeBasic(raw) : raw
    }
    const start = this.#at
    while (BARE_KEY.test(this.#text[this.#at] ?? '')) this.#at++
    return this.#at === start ? undefined : this.#text.slice(start, this.#at)
  }

  /** Steps over a string of any of the four kinds. */
  #string(quote: string): void {
    const text = this.#text
    const long = text.startsWith(quote.repeat(3), this.#at)
    const end = long ? quote.repeat(3) : quote
    this.#at += end.length
    while (this.#at < text.length && !text.startsWith(end, this.#at)) {
      if (!long && text[this.#at] === '\n') return
      this.#at += quote === '"' && text[this.#at] === '\\' ? 2 : 1
    }
    this.#at += end.length
    // A multi-line string may end in up to two quotes of its own.
    if (long && text[this.#at] === quote) this.#at += text[this.#at + 1] === quote ? 2 : 1
  }

  #skipSpace(): void {
    while (this.#text[this.#at] === ' ' || this.#text[this.#at] === '\t') this.#at++
  }

  /** Blanks, line ends and comments. */
  #skipBlank(): void {
    while (this.#at < this.#text.length) {
      const char = this.#text[this.#at]
      if (char === '#') this.#skipLine()
      else if (char === ' ' || char === '\t' || char === '\r' || char === '\n') this.#at++
      else return
    }
  }

  #skipLine(): void {
    const end = this.#text.indexOf('\n', this.#at)
    this.#at = end === -1 ? this.#text.length : end + 1
  }

  #position(offset: number): Position {
    let low = 0
    let high = this.#lines.length - 1
    while (low < high) {
      const middle = Math.ceil((low + high) / 2)
      if ((this.#lines[middle] ?? 0) <= offset) low = middle
      else high = middle - 1
    }
    return { line: low + 1, column: offset - (this.#lines[low] ?? 0) + 1 }
  }
}

function unescapeBasic(raw: string): string {
  return raw.replaceAll(/\\(?:u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|x([0-9A-Fa-f]{2})|(.))/g, (whole, u?: string, long?: string, x?: string, char?: string) => {
    const code = u ?? long ?? x
    return code === undefined ? (ESCAPES[char ?? ''] ?? whole) : String.fromCodePoint(Number.parseInt(code, 16))
  })
}
