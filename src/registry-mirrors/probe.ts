import type { Ctx } from '../observability/context.ts'
import type { PullAuth } from './credentials.ts'
import { failureOfError } from './failures.ts'
import type { ImageRef } from './image-ref.ts'
import { type PeerCertificate, peerCertificate } from './peer-certificate.ts'
import type { RegistryClient } from './registry-client.ts'
import type { RegistryHost } from './registry-host.ts'

/** What one host answered about the image. */
export interface Probe {
  readonly url: string
  /** `200`, or why not. */
  readonly status: string
  readonly ok: boolean
  readonly ms: number
  readonly digest?: string
  readonly mediaType?: string
  /** How long it asks to be left alone. */
  readonly retryAfterMs?: number
  /** Absent for plain HTTP, and when no TLS connection came about. */
  readonly certificate?: PeerCertificate
}

export interface ProbeOptions {
  readonly ctx: Ctx
  /** For the certificates that hosts present: proxy variables and SSL_CERT_FILE. */
  readonly env: Readonly<Record<string, string | undefined>>
  /** Stands for the pod's pull secret, and goes where that would go. */
  readonly auth?: PullAuth
}

/**
 * Asks each host for the image's manifest as a pull would, with the credentials that are configured, all at once. A host that is not asked for tags is
 * asked for the digest that the first other one gave.
 */
export async function probe(client: RegistryClient, ref: ImageRef, hosts: readonly RegistryHost[], { ctx, env, auth = null }: ProbeOptions): Promise<Probe[]> {
  const ask = async (subject: ImageRef, host: RegistryHost): Promise<Probe> => withCertificate(host, askHost(client, subject, host, auth, ctx), { env, signal: ctx.signal })
  const resolves = (host: RegistryHost): boolean => ref.digest !== undefined || (host.capabilities.has('resolve') && host.capabilities.has('pull'))
  const first = await Promise.all(hosts.map(async (host) => (resolves(host) ? ask(ref, host) : undefined)))
  const digest = first.find((each) => each?.digest !== undefined)?.digest
  return Promise.all(hosts.map(async (host, index) => {
    const answered = first[index]
    if (answered !== undefined) return answered
    if (digest === undefined) return { url: host.url, ok: false, status: 'not asked: it has no capability "resolve", and no other host told the digest', ms: 0 }
    return ask({ ...ref, digest, toString: () => `${ref.name}@${digest}` }, host)
  }))
}

async function askHost(client: RegistryClient, ref: ImageRef, host: RegistryHost, auth: PullAuth, ctx: Ctx): Promise<Probe> {
  const started = performance.now()
  const answer = (rest: Omit<Probe, 'url' | 'ms'>): Probe => ({ url: host.url, ms: Math.round(performance.now() - started), ...rest })
  try {
    const { digest, mediaType } = await client.resolveAt(host, ref, auth, ctx)
    return answer({ ok: true, status: '200', digest, mediaType })
  } catch (error) {
    ctx.signal.throwIfAborted()
    const { message, retryAfterMs } = failureOfError(error)
    return answer({ ok: false, status: message, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) })
  }
}

/** Asked at the same time over another connection, so that the latency is the question's own. */
async function withCertificate(host: RegistryHost, asked: Promise<Probe>, options: { readonly env: ProbeOptions['env']; readonly signal: AbortSignal }): Promise<Probe> {
  if (host.protocol !== 'http') {
    const [probed, certificate] = await Promise.all([asked, peerCertificate(host, options)])
    return certificate === undefined ? probed : { ...probed, certificate }
  }
  const probed = await asked
  // What a server that speaks TLS says to plain HTTP: 400, a reset, or something that is no HTTP.
  if (probed.ok || !/^400|reset|not answer in HTTP/.test(probed.status) || probed.status.includes('it speaks TLS') || await peerCertificate(host, options) === undefined) return probed
  return { ...probed, status: `${probed.status.replace(/ \(if it speaks TLS.*/, '')}; it speaks TLS: write https:// for it` }
}
