import { errnoOf, messageOf } from '../errors/cri-error.ts'
import { authorityOf, certificatesIn, dayOf, expiredOf, nameOf, namesOf, subjectsOf } from './certificates.ts'
import type { Seen } from './dispatch.ts'
import { HostFailure, safeText } from './failures.ts'
import type { RegistryHost } from './registry-host.ts'

/** Of a request that failed before its answer. */
export interface TlsAttempt {
  readonly url: URL
  readonly host: RegistryHost
  /** It went to that host, not to a redirect's target, and took the client certificates along. */
  readonly own: boolean
  readonly seen: Seen
}

const maxName = 80
const resetInGreeting = 'connection reset before TLS was set up: it may not speak TLS'

/** The failure of a request for a reason of TLS, or for the want of it, in words that say what to do. Undefined for all others. */
export async function tlsFailure(error: unknown, attempt: TlsAttempt): Promise<HostFailure | undefined> {
  const errno = errnoOf(error) ?? ''
  const because = (text: string, transient = false): HostFailure => new HostFailure('unreachable', text, { transient, reached: true, cause: error })
  const where = remedyPlace(attempt.host)
  if (attempt.url.protocol === 'http:') return beginsLikeTls(error) ? because(`it speaks TLS${attempt.own ? `: write https:// for it in ${where}` : ''}`) : undefined
  if (isNotTls(error)) {
    if (errno === 'ECONNRESET') return because(resetInGreeting, true)
    return because(`it does not speak TLS${attempt.own ? `: write http:// for it in ${where}` : ''}`)
  }
  if (errno === 'ECONNRESET' && attempt.seen.connected !== true) return because(resetInGreeting, true)
  const alert = alertOf(error)
  if (alert !== undefined) return because(await clientCertificateProblem(alert, attempt) ?? `TLS failed (${alert})`)
  if (certificateErrors.test(errno)) return because(await certificateProblem(errno, attempt))
  return undefined
}

/** Whether TLS failed because the other side does not speak it. */
export function isNotTls(error: unknown): boolean {
  const errno = errnoOf(error) ?? ''
  if (errno === 'EPROTO' || errno.startsWith('ERR_SSL_')) return /wrong version number|packet length too long|http request/i.test(messageOf(error))
  return errno === 'ECONNRESET' && messageOf(error).includes('before secure TLS connection')
}

/** Where the settings of a host are, or may be. */
export function remedyPlace({ source }: Pick<RegistryHost, 'source'>): string {
  return source.endsWith('hosts.toml') ? source : 'a hosts.toml'
}

const certificateErrors = /^(?!ERR_SSL_).*(?:CERT|SELF_SIGNED|UNABLE_TO_|HOSTNAME_MISMATCH)/

/** Where HTTP was expected: an alert or a handshake record (RFC 8446, section 5.1). */
function beginsLikeTls(error: unknown): boolean {
  const packet: unknown = error instanceof Error && 'rawPacket' in error ? error.rawPacket : undefined
  return packet instanceof Uint8Array && (packet[0] === 0x15 || packet[0] === 0x16) && packet[1] === 0x03
}

/** What OpenSSL calls it: `tlsv1 alert unknown ca`. Undefined when it was not TLS that failed. */
function alertOf(error: unknown): string | undefined {
  const errno = errnoOf(error) ?? ''
  if (errno !== 'EPROTO' && !errno.startsWith('ERR_SSL_')) return undefined
  const reason = /SSL routines:[^:]*:([^:]+)/.exec(messageOf(error))?.[1]
  return safeText(reason ?? errno.toLowerCase().replace(/^err_ssl_/, '').replaceAll('_', ' '), 60)
}

async function clientCertificateProblem(alert: string, { host, own }: TlsAttempt): Promise<string | undefined> {
  const said = /alert (certificate required|bad certificate|unsupported certificate|certificate revoked|certificate expired|certificate unknown|unknown ca|access denied|handshake failure)/.exec(alert)?.[1]
  if (said === undefined) return undefined
  const pairs = own ? host.tls.clientPairs : []
  const failed = said === 'handshake failure'
  if (pairs.length > 0) {
    const named = await Promise.all(pairs.slice(0, 2).map(async ({ certFile }) => {
      const [certificate] = await certificatesIn(certFile)
      return certificate === undefined ? certFile : `${certFile} (${clip(nameOf(certificate.subject))}, valid until ${dayOf(certificate.validTo)})`
    }))
    return `${failed ? 'refused the TLS handshake, perhaps because of' : 'does not accept'} the client certificate ${named.join(', ')}${failed ? '' : `, and says "${said}"`}: it must trust the authority that signed it`
  }
  if (failed) return 'refused the TLS handshake; it may want a client certificate'
  return `wants a client certificate${own ? `: name it with client in ${remedyPlace(host)}` : ', and those in a hosts.toml are not sent to another host'}`
}

async function certificateProblem(errno: string, { url, host, seen: { certificate } }: TlsAttempt): Promise<string> {
  if (errno === 'CERT_HAS_EXPIRED') {
    const expired = certificate === undefined ? undefined : expiredOf(certificate)
    const whose = expired === undefined || expired === certificate ? '' : `; that is its authority's, ${clip(nameOf(expired.subject))}`
    return `its certificate has expired${expired === undefined ? '' : ` on ${dayOf(expired.validTo)}${whose}`}`
  }
  if (errno === 'CERT_NOT_YET_VALID' && certificate !== undefined) return `its certificate is not valid before ${dayOf(certificate.validFrom)}: is the clock of this node right?`
  if (errno === 'ERR_TLS_CERT_ALTNAME_INVALID') {
    const names = certificate === undefined ? [] : namesOf(certificate)
    return `its certificate is for another host name${names.length === 0 ? '' : ` than ${url.hostname}: for ${list(names)}`}`
  }
  const place = remedyPlace(host)
  const untrusted = 'its certificate is not trusted'
  if (certificate === undefined) return `${untrusted}: name its authority with ca in ${place}`
  const given = await subjectsOf(host.tls.caFiles)
  const instead = given.length === 0 ? '' : `, and ca names ${list(given)}`
  const authority = authorityOf(certificate)
  if (authority === undefined) return `${untrusted}: it is signed by itself${instead}; name it with ca in ${place}`
  return given.length === 0 ? `${untrusted}: name its authority, ${clip(authority)}, with ca in ${place}` : `${untrusted}: its authority is ${clip(authority)}${instead}: name the right one in ${place}`
}

function list(names: readonly string[]): string {
  const shown = names.slice(0, 2).map(clip).join(', ')
  return names.length > 2 ? `${shown} and more` : shown
}

function clip(text: string): string {
  return text.length > maxName ? `${text.slice(0, maxName - 1)}…` : text
}
