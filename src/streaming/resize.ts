import type { TerminalSize } from './types.ts'

/** Far more than one size takes. */
const maxPendingBytes = 4096
/** One flat object; a size has nothing in it that contains braces. */
const objectPattern = /\s*(\{[^{}]*\})/y
const limit = 65_535

/** Finds the sizes `{"Width":w,"Height":h}` in what a client sends, however it is cut into pieces. What is no size ends it, as with containerd. */
export class ResizeParser {
  #pending = ''
  #broken = false

  /** The sizes that are complete with these bytes; sizes of zero are left out. */
  push(bytes: Uint8Array): TerminalSize[] {
    if (this.#broken) return []
    if (this.#pending.length + bytes.length > maxPendingBytes && this.#pending !== '') return this.#end([])
    let text = this.#pending + Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('latin1')
    const sizes: TerminalSize[] = []
    let from = 0
    for (;;) {
      objectPattern.lastIndex = from
      const found = objectPattern.exec(text)
      if (found === null) break
      from = objectPattern.lastIndex
      const size = parseSize(found[1] ?? '')
      if (size === undefined) return this.#end(sizes)
      if (size.width > 0 && size.height > 0) sizes.push(size)
    }
    text = text.slice(from).trimStart()
    if (text.length > maxPendingBytes || (text !== '' && !text.startsWith('{'))) return this.#end(sizes)
    this.#pending = text
    return sizes
  }

  #end(sizes: TerminalSize[]): TerminalSize[] {
    this.#broken = true
    this.#pending = ''
    return sizes
  }
}

/** As Go's decoder takes it: names in any case, what is missing is 0, both below 65536. */
function parseSize(json: string): TerminalSize | undefined {
  let parsed: unknown
  try {
    parsed = JSON.parse(json)
  } catch {
    return undefined
  }
  const size = { width: 0, height: 0 }
  for (const [key, value] of Object.entries(parsed as object)) {
    const name = key.toLowerCase()
    if (name !== 'width' && name !== 'height') continue
    if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > limit) return undefined
    size[name] = value
  }
  return size
}
