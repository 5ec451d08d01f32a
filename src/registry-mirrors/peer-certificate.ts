import type { X509Certificate } from 'node:crypto'
import https from 'node:https'
import type { TLSSocket } from 'node:tls'
import { errnoOf } from '../errors/cri-error.ts'
import { authorityOf, dayOf, expiredOf, isoDate, nameOf, namesOf, subjectsOf } from './certificates.ts'
import { HostFailure } from './failures.ts'
import { hostName } from './host-url.ts'
import { proxyFor, proxyProblem } from './proxy.ts'
import { noTls, type RegistryHost } from './registry-host.ts'
import { remedyPlace } from './tls-failures.ts'
import { TlsLoader } from './tls-material.ts'

/** The certificate that a host presents. All texts are the host's own words, made fit for a terminal. */
export interface PeerCertificate {
  readonly subject: string
  readonly issuer: string
  /** ISO 8601. */
  readonly validFrom: string
  readonly validTo: string
  /** The host names and addresses that it is for. */
  readonly names: readonly string[]
  /** Why it is not trusted with this host's settings, and what to do. */
  readonly problem?: string
}

export interface PeerCertificateOptions {
  /** Proxy variables and SSL_CERT_FILE. */
  readonly env: Readonly<Record<string, string | undefined>>
  readonly signal: AbortSignal
  /** How long it may take, in milliseconds. Default: 5,000. */
  readonly timeoutMs?: number
}

/**
 * The certificate that a host presents, trusted or not. Asks for nothing and sends no credential but the host's client certificate: the connection is
 * closed when it stands. Undefined when the host does not speak TLS, or not in time.
 */
export async function peerCertificate(host: RegistryHost, options: PeerCertificateOptions): Promise<PeerCertificate | undefined> {
  const { env, signal, timeoutMs = 5000 } = options
  const loader = new TlsLoader(env)
  const load = (tls: RegistryHost['tls']): Promise<HostFailure | Awaited<ReturnType<TlsLoader['load']>>> => loader.load(tls, true).catch((error: unknown) => {
    if (error instanceof HostFailure) return error
    throw error
  })
  // Files that cannot be used are told of elsewhere; here they must not hide the certificate.
  const loaded = await load(host.tls)
  const material = loaded instanceof HostFailure ? await load(noTls) : loaded
  if (material instanceof HostFailure) return undefined
  if (!URL.canParse(host.url)) return undefined
  const url = new URL(host.url.replace(/^http:/, 'https:'))
  const proxy = proxyFor(url, env)
  if (proxy !== undefined && proxyProblem(proxy) !== undefined) return undefined
  const agent = new https.Agent({ secureContext: material.secureContext, rejectUnauthorized: false, ...(proxy === undefined ? {} : { proxyEnv: { HTTPS_PROXY: proxy } }) })
  const seen = await new Promise<{ readonly certificate: X509Certificate; readonly errno: string | undefined } | undefined>((resolve) => {
    const request = https.request(url, { agent, method: 'HEAD', signal: AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]) })
    const look = (socket: TLSSocket): void => {
      const certificate = socket.getPeerX509Certificate()
      const reason: unknown = socket.authorizationError
      resolve(certificate === undefined ? undefined : { certificate, errno: typeof reason === 'string' ? reason : errnoOf(reason) })
      request.destroy()
    }
    request.once('socket', (socket) => {
      const secure = socket as TLSSocket & { readonly secureConnecting?: boolean }
      // Through a proxy the socket may arrive with its handshake done.
      if (secure.secureConnecting === false && !secure.connecting) look(secure)
      else secure.once('secureConnect', () => look(secure))
    })
    // What is wrong with the connection is told by who asks for the image.
    request.on('error', () => resolve(undefined))
    request.once('close', () => resolve(undefined))
  })
  agent.destroy()
  if (seen === undefined) return undefined
  const described = describe(seen.certificate)
  const problem = seen.errno === undefined || host.tls.skipVerify || loaded instanceof HostFailure ? undefined : await problemOf(seen.errno, seen.certificate, host)
  return problem === undefined ? described : { ...described, problem }
}

function describe(certificate: X509Certificate): PeerCertificate {
  return {
    subject: nameOf(certificate.subject), issuer: nameOf(certificate.issuer), validFrom: isoDate(certificate.validFrom), validTo: isoDate(certificate.validTo), names: namesOf(certificate),
  }
}

async function problemOf(errno: string, certificate: X509Certificate, host: RegistryHost): Promise<string> {
  const file = remedyPlace(host)
  if (errno === 'CERT_HAS_EXPIRED') {
    const expired = expiredOf(certificate)
    const which = expired === undefined || expired === certificate ? `it has expired on ${dayOf(certificate.validTo)}` : `the authority ${nameOf(expired.subject)} has expired on ${dayOf(expired.validTo)}`
    return `${which}: whoever runs the host must renew it`
  }
  if (errno === 'CERT_NOT_YET_VALID') return `it is not valid before ${dayOf(certificate.validFrom)}: is the clock of this node right?`
  const names = namesOf(certificate)
  if (errno === 'ERR_TLS_CERT_ALTNAME_INVALID') return `it is for ${names.length === 0 ? nameOf(certificate.subject) : names.join(', ')}, not for ${hostName(host.host)}: write one of its names in the URL`
  const given = await subjectsOf(host.tls.caFiles)
  const instead = given.length === 0 ? '' : `; ca names ${given.join(', ')} instead`
  const authority = authorityOf(certificate)
  if (authority === undefined) return `it is signed by itself, and nobody says that it is to be trusted${instead}: put the certificate into a file and name that with ca in ${file}`
  const chain = authority === nameOf(certificate.issuer) ? '' : ' (it sends the certificates up to there)'
  return `the authority ${authority} is not trusted${chain}${instead}: name the authority's certificate with ca in ${file}`
}
