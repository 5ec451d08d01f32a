import { createHash, timingSafeEqual } from 'node:crypto'

const hexLength: Readonly<Record<string, number>> = { sha256: 64, sha384: 96, sha512: 128 }

/** What is wrong with a digest, undefined when it is one that content can be verified with (sha256, sha384, sha512, lower-case hex). */
export function digestProblem(text: string): string | undefined {
  const colon = text.indexOf(':')
  if (colon < 1) return `digest "${clip(text)}" has no algorithm: it is written sha256:<64 hex digits>`
  const algorithm = text.slice(0, colon)
  const hex = text.slice(colon + 1)
  const length = Object.hasOwn(hexLength, algorithm) ? hexLength[algorithm] : undefined
  if (length === undefined) return `digest algorithm "${clip(algorithm)}" is not supported: use sha256, sha384 or sha512`
  if (!/^[0-9a-fA-F]*$/.test(hex)) return `${algorithm} digest has a character that is no hex digit`
  if (hex.length !== length) return `${algorithm} digest has ${hex.length} hex digits instead of ${length}`
  if (hex !== hex.toLowerCase()) return `${algorithm} digest must be written in lower case`
  return undefined
}

/** The digest of bytes, with the algorithm of `like` (a valid digest; default sha256). */
export function digestOf(bytes: Buffer, like = 'sha256:'): string {
  const algorithm = like.slice(0, like.indexOf(':'))
  return `${algorithm}:${createHash(algorithm).update(bytes).digest('hex')}`
}

/** Whether bytes are what a valid digest says. */
export function matchesDigest(bytes: Buffer, digest: string): boolean {
  const actual = Buffer.from(digestOf(bytes, digest))
  const wanted = Buffer.from(digest)
  return actual.length === wanted.length && timingSafeEqual(actual, wanted)
}

function clip(text: string): string {
  return text.length > 80 ? `${text.slice(0, 80)}…` : text
}

/** Enough of a digest to know it by: its algorithm and twelve digits. */
export function shortDigest(digest: string): string {
  return digest.slice(0, digest.indexOf(':') + 13)
}
