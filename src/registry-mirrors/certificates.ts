import { X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { safeText } from './failures.ts'

// What certificates say, made fit for a terminal and for an error: whoever made one chose its words.

const maxListed = 5

/** `CN=registry.example, O=Example`: the most telling part first. `name`: the subject or issuer of an X509Certificate. */
export function nameOf(name: string | undefined): string {
  const parts = (name ?? '').split('\n').filter((part) => part !== '')
  const ordered = [...parts.filter((part) => part.startsWith('CN=')), ...parts.filter((part) => !part.startsWith('CN='))]
  return ordered.length === 0 ? 'without a name' : safeText(ordered.join(', '), 120)
}

/** The host names and addresses that a certificate is for. */
export function namesOf({ subjectAltName }: X509Certificate): string[] {
  return safeText(subjectAltName ?? '', 1000).split(/, /).map((name) => name.replace(/^[A-Za-z ]+:/, '').trim()).filter((name) => name !== '').slice(0, 20)
}

/** ISO 8601. */
export function isoDate(text: string): string {
  const date = new Date(text)
  return Number.isNaN(date.getTime()) ? safeText(text, 40) : date.toISOString()
}

/** The day alone. */
export function dayOf(text: string): string {
  return isoDate(text).slice(0, 10)
}

/** A certificate and those above it that the host sent, without repeats. */
export function chainOf(certificate: X509Certificate): X509Certificate[] {
  const chain: X509Certificate[] = []
  const known = new Set<string>()
  for (let each: X509Certificate | undefined = certificate; each !== undefined && !known.has(each.fingerprint256) && chain.length < 10; each = each.issuerCertificate) {
    known.add(each.fingerprint256)
    chain.push(each)
  }
  return chain
}

/** The authority that nobody vouches for; undefined for a certificate that is signed by itself. */
export function authorityOf(certificate: X509Certificate): string | undefined {
  const top = chainOf(certificate).at(-1) ?? certificate
  return certificate.subject === certificate.issuer ? undefined : nameOf(top.issuer)
}

/** The certificate of a chain that has expired. */
export function expiredOf(certificate: X509Certificate): X509Certificate | undefined {
  return chainOf(certificate).find((each) => Date.parse(each.validTo) < Date.now())
}

/** Whom PEM files name, at most a few of them. What cannot be read is left out: whoever uses the files says so. */
export async function subjectsOf(files: readonly string[]): Promise<string[]> {
  const found: string[] = []
  for (const file of files) {
    for (const certificate of await certificatesIn(file)) found.push(certificate === undefined ? `something unreadable in ${file}` : nameOf(certificate.subject))
  }
  return found.length > maxListed ? [...found.slice(0, maxListed), `${found.length - maxListed} more`] : found
}

/** The certificates of a PEM file, undefined for one that cannot be read. */
export async function certificatesIn(file: string): Promise<(X509Certificate | undefined)[]> {
  const text = await readFile(file, 'utf8').catch(() => '')
  return [...text.matchAll(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g)].map(([pem]) => {
    try {
      return new X509Certificate(pem)
    } catch {
      return undefined
    }
  })
}
