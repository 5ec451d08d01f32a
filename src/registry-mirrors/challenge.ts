/** One challenge of a WWW-Authenticate header (RFC 9110, section 11.6.1). */
export interface Challenge {
  /** In lower case: `bearer`, `basic`. */
  readonly scheme: string
  /** Under lower-case names. */
  readonly parameters: Readonly<Record<string, string>>
}

const token = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+/

/** Nobody's challenges are longer, and reading them keeps everything else waiting. */
const maxLength = 16 * 1024

/** Reads the challenges of one answer; several may share a header. What cannot be read is left out, and what comes after the first 16 KiB. */
export function parseChallenges(headers: readonly string[]): Challenge[] {
  let left = maxLength
  return headers.flatMap((header) => {
    const read = header.slice(0, left)
    left -= read.length
    return parseHeader(read)
  })
}

function parseHeader(header: string): Challenge[] {
  const challenges: { readonly scheme: string; readonly parameters: Record<string, string> }[] = []
  let rest = header
  for (;;) {
    rest = rest.replace(/^[\s,]+/, '')
    const name = token.exec(rest)?.[0]
    if (name === undefined) return challenges
    const after = rest.slice(name.length)
    const equals = /^\s*=\s*/.exec(after)?.[0]
    const current = challenges.at(-1)
    if (equals === undefined || current === undefined) {
      challenges.push({ scheme: name.toLowerCase(), parameters: {} })
      rest = after
      continue
    }
    const [value, length] = parseValue(after.slice(equals.length))
    current.parameters[name.toLowerCase()] ??= value
    rest = after.slice(equals.length + length)
  }
}

function parseValue(text: string): readonly [string, number] {
  const quoted = /^"((?:[^"\\]|\\.)*)"?/s.exec(text)
  if (quoted !== null) return [(quoted[1] ?? '').replace(/\\(.)/gs, '$1'), quoted[0].length]
  // Some registries forget the quotes around a URL.
  const bare = /^[^\s,]*/.exec(text)?.[0] ?? ''
  return [bare, bare.length]
}
