import type { Credential } from './credentials.ts'
import { basicAuthorization } from './credentials.ts'
import type { Headers } from './registry-host.ts'

// A registry may repeat what it was sent, in clear or in some other form, and what it writes ends in the events of pods.

/** Longer texts than anybody shows are not looked through. */
const maxTextLength = 2000
/** A piece of a secret of this length is one. */
const pieceLength = 12
/** What is shorter says nothing when letters and digits alone are compared. */
const tellingLength = 6

/** What of a credential must not be seen. */
export function secretsOf(credential: Credential): string[] {
  if (credential.kind === 'none') return []
  return credential.kind === 'password' ? [credential.password, ...secretsInAuthorization(basicAuthorization(credential))] : [credential.token]
}

/** What of an Authorization header must not be seen. */
export function secretsInAuthorization(authorization: string | undefined): string[] {
  const [, scheme = '', rest = ''] = /^(?:(\S+) +)?(\S.*)$/s.exec(authorization ?? '') ?? []
  if (scheme.toLowerCase() !== 'basic') return rest === '' ? [] : [rest]
  const decoded = Buffer.from(rest, 'base64').toString('utf8')
  return [rest, decoded.slice(decoded.indexOf(':') + 1)]
}

/** What of the headers of a host's settings must not be seen. */
export function secretsInHeaders(headers: Headers): string[] {
  return Object.entries(headers).filter(([name]) => /auth|token|key|secret|cookie|pass|cred/i.test(name)).flatMap(([, values]) => values.flatMap(secretsInAuthorization))
}

/** What signs a URL may be in any part of its query. */
export function secretsInQuery(url: URL): string[] {
  return [...url.searchParams.values()].filter((value) => value.length >= pieceLength)
}

/** The text with an ellipsis for each secret; empty when one is in it in a form that cannot be cut out: split, encoded, or a part of it. */
export function hideSecrets(text: string, secrets: readonly string[]): string {
  const known = secrets.filter((secret) => secret !== '')
  let hidden = text.slice(0, maxTextLength)
  for (const form of known.flatMap(formsOf).sort((a, b) => b.length - a.length)) {
    if (!hidden.includes(form)) continue
    // To cut out every "a" would tell what the password is.
    if (form.length < 4) return ''
    hidden = hidden.replaceAll(form, '…')
  }
  const readings = readingsOf(hidden)
  return known.some((secret) => readings.some((reading) => tells(reading, secret))) ? '' : hidden
}

function formsOf(secret: string): string[] {
  const bytes = Buffer.from(secret)
  return [secret, encodeURIComponent(secret.toWellFormed()), new URLSearchParams({ a: secret }).toString().slice(2), JSON.stringify(secret).slice(1, -1), bytes.toString('base64'), bytes.toString('base64').replace(/=+$/, ''), bytes.toString('base64url'), bytes.toString('hex')]
}

/** What somebody could make of a text: as it is, without percent signs, and what is in base64 or hexadecimal. */
function readingsOf(text: string): string[] {
  const percent = text.replaceAll(/(?:%[0-9a-f]{2})+/gi, (codes) => Buffer.from(codes.replaceAll('%', ''), 'hex').toString('utf8'))
  const words = percent.match(/[A-Za-z0-9+/_-]{8,}/g) ?? []
  return [text, percent, ...words.flatMap((word) => [Buffer.from(word, 'base64').toString('utf8'), ...(/^(?:[0-9a-f]{2})+$/i.test(word) ? [Buffer.from(word, 'hex').toString('utf8')] : [])])]
}

function tells(text: string, secret: string): boolean {
  for (let at = 0; at + pieceLength <= secret.length; at++) if (text.includes(secret.slice(at, at + pieceLength))) return true
  const bare = bareOf(secret)
  return bare.length >= tellingLength && bareOf(text).includes(bare)
}

function bareOf(text: string): string {
  return text.replaceAll(/[^\p{L}\p{N}]/gu, '').toLowerCase()
}
