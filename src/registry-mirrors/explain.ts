import { stat } from 'node:fs/promises'
import path from 'node:path'
import { errnoOf, messageOf } from '../errors/cri-error.ts'
import type { Ctx } from '../observability/context.ts'
import { type CredentialImage, Credentials } from './credentials.ts'
import { failureOfError, HostFailure } from './failures.ts'
import { FileCache } from './file-cache.ts'
import { type HostsFile, parseHostsFile } from './hosts-file.ts'
import { isLoopback } from './host-url.ts'
import type { ImageRef } from './image-ref.ts'
import type { RegistryClient } from './registry-client.ts'
import type { Capability, RegistryHost } from './registry-host.ts'
import { hostDirNames, resolveHosts } from './resolve-hosts.ts'
import type { RegistrySettings } from './settings.ts'
import { TlsLoader } from './tls-material.ts'

/**
 * A place that was looked at for a registry's hosts. `shadowed`: it is there and not read, since an earlier one counts. `certificates`: a
 * directory without hosts.toml, whose certificate files (Docker's layout) count.
 */
export interface LookedAt {
  readonly path: string
  readonly state: 'not there' | 'read' | 'certificates' | 'shadowed'
}

export interface ExplainedHost {
  /** Scheme, authority and API root. */
  readonly url: string
  readonly capabilities: readonly Capability[]
  /** Where it is configured: a file, a setting, `default`. */
  readonly source: string
  /** What is asked for the image's manifest. */
  readonly manifestUrl: string
  /** Places that a credential may come from, in the order in which they are tried; empty: anonymous. */
  readonly credentials: readonly string[]
  /** Names of the headers that its file adds. */
  readonly headers: readonly string[]
  readonly tls: { readonly ca: readonly string[]; readonly client: readonly string[]; readonly skipVerify: boolean }
  /** Tags, digests: what of this image it is asked for. */
  readonly askedFor: string
  readonly dialTimeoutMs: number
  readonly warnings: readonly string[]
}

/** How an image would be pulled. */
export interface Explanation {
  readonly image: string
  readonly registry: string
  readonly lookedAt: readonly LookedAt[]
  /** In the order in which they are asked; empty when there is a problem. */
  readonly hosts: readonly ExplainedHost[]
  readonly warnings: readonly string[]
  /** Why every pull from this registry fails: a broken file, with its line. */
  readonly problem?: string
}

export interface ExplainOptions {
  readonly settings: RegistrySettings
  readonly env: Readonly<Record<string, string | undefined>>
}

/** What one host answered about the image. */
export interface Probe {
  readonly url: string
  /** `200`, or why not. */
  readonly status: string
  readonly ok: boolean
  readonly ms: number
  readonly digest?: string
  readonly mediaType?: string
}

/** Finds out how an image would be pulled, by the files as they are now, without asking any host or running any credential helper. */
export async function explain(ref: ImageRef, options: ExplainOptions): Promise<{ readonly explanation: Explanation; readonly hosts: readonly RegistryHost[] }> {
  const { settings, env } = options
  const image = ref.toString()
  const lookedAt = await lookAt(settings.configPath, ref.registry)
  const warnings: string[] = []
  let hosts: RegistryHost[]
  try {
    hosts = await resolveHosts(ref.registry, { settings, files: new FileCache<HostsFile>((bytes, file) => parseHostsFile(bytes.toString('utf8'), file)), warn: (warning) => warnings.push(warning) })
  } catch (error) {
    return { explanation: { image, registry: ref.registry, lookedAt, hosts: [], warnings, problem: messageOf(error) }, hosts: [] }
  }
  if (settings.configPath.length === 0 && Object.keys(settings.mirrors).length > 0) warnings.push('registry.mirrors is deprecated: "cri-shim mirrors migrate" prints the hosts.toml files that replace it')
  const kinds = [...ref.digest === undefined ? [['resolve', 'resolve tags']] as const : [], ['pull', 'serve content'] as const] as const
  for (const [capability, what] of kinds) {
    if (!hosts.some((host) => host.capabilities.has(capability) && host.capabilities.has('pull'))) warnings.push(`no host may ${what}: give one of them the capability "${capability}"`)
  }
  const tls = new TlsLoader(env)
  const credentials = new Credentials({ settings, env })
  const explained = await Promise.all(hosts.map((host) => explainHost(host, ref, { tls, credentials })))
  return { explanation: { image, registry: ref.registry, lookedAt, hosts: explained, warnings }, hosts }
}

/**
 * Asks each host for the image's manifest as a pull would, with the credentials that are configured, all at once. A host that is not asked for tags is
 * asked for the digest that the first other one gave.
 */
export async function probe(client: RegistryClient, ref: ImageRef, hosts: readonly RegistryHost[], ctx: Ctx): Promise<Probe[]> {
  const resolves = (host: RegistryHost): boolean => ref.digest !== undefined || (host.capabilities.has('resolve') && host.capabilities.has('pull'))
  const first = await Promise.all(hosts.map(async (host) => (resolves(host) ? ask(client, ref, host, ctx) : undefined)))
  const digest = first.find((each) => each?.digest !== undefined)?.digest
  return Promise.all(hosts.map(async (host, index) => {
    const answered = first[index]
    if (answered !== undefined) return answered
    if (digest === undefined) return { url: host.url, ok: false, status: 'not asked: it has no capability "resolve", and no other host told the digest', ms: 0 }
    return ask(client, { ...ref, digest, toString: () => `${ref.name}@${digest}` }, host, ctx)
  }))
}

async function ask(client: RegistryClient, ref: ImageRef, host: RegistryHost, ctx: Ctx): Promise<Probe> {
  const started = performance.now()
  const answer = (rest: Omit<Probe, 'url' | 'ms'>): Probe => ({ url: host.url, ms: Math.round(performance.now() - started), ...rest })
  try {
    const { digest, mediaType } = await client.resolveAt(host, ref, null, ctx)
    return answer({ ok: true, status: '200', digest, mediaType })
  } catch (error) {
    ctx.signal.throwIfAborted()
    return answer({ ok: false, status: failureOfError(error, host).message })
  }
}

async function lookAt(roots: readonly string[], registry: string): Promise<LookedAt[]> {
  const places: LookedAt[] = []
  let found = false
  for (const dir of roots.flatMap((root) => hostDirNames(registry).map((name) => path.join(root, name)))) {
    if (!(await exists(dir))) places.push({ path: dir, state: 'not there' })
    else if (found) places.push({ path: dir, state: 'shadowed' })
    else {
      const file = path.join(dir, 'hosts.toml')
      // An empty file is like none.
      const size = await stat(file).then((info) => info.size, (error: unknown) => (errnoOf(error) === 'ENOENT' ? 0 : 1))
      places.push(size > 0 ? { path: file, state: 'read' } : { path: dir, state: 'certificates' })
      found = true
    }
  }
  return places
}

async function exists(file: string): Promise<boolean> {
  try {
    await stat(file)
    return true
  } catch (error) {
    // What cannot be looked at is there, as far as anybody knows: reading it says why not.
    return errnoOf(error) !== 'ENOENT'
  }
}

async function explainHost(host: RegistryHost, ref: ImageRef, { tls, credentials }: { readonly tls: TlsLoader; readonly credentials: Credentials }): Promise<ExplainedHost> {
  const warnings: string[] = []
  const sources = await credentialSources(host, ref, credentials, warnings)
  const authorization = Object.keys(host.headers).some((name) => name.toLowerCase() === 'authorization')
  const secret = sources.length > 0 || authorization
  if (host.protocol === 'http' && secret) warnings.push('its credential is sent over plain HTTP')
  if (host.protocol === 'http' && ref.digest === undefined && host.capabilities.has('resolve') && !isLoopback(host.host)) warnings.push('what it says of tags comes over plain HTTP, where anybody on the way can change it: capabilities = ["pull"] asks it for content alone, which is verified')
  if (host.protocol === 'https-or-http') warnings.push('TLS is tried first, then plain HTTP')
  if (host.tls.skipVerify && host.protocol === 'https') warnings.push('its certificate is not verified (skip_verify)')
  if (host.protocol !== 'http') {
    try {
      await tls.load(host.tls, true)
    } catch (error) {
      if (!(error instanceof HostFailure)) throw error
      warnings.push(`it is passed over: ${error.message}`)
    }
  }
  const [resolve, pull] = [host.capabilities.has('resolve'), host.capabilities.has('pull')]
  const object = ref.digest ?? (resolve && pull ? ref.tag ?? 'latest' : 'DIGEST')
  const query = host.ownRegistry ? '' : `?ns=${ref.registry}`
  return {
    url: host.url, capabilities: [...host.capabilities], source: host.source,
    manifestUrl: `${host.url}/${ref.repository}/manifests/${object}${query}`,
    credentials: [...sources, ...authorization ? [`Authorization header in ${host.source}`] : []],
    headers: Object.keys(host.headers),
    tls: { ca: host.tls.caFiles, client: host.tls.clientPairs.map(({ certFile }) => certFile), skipVerify: host.tls.skipVerify },
    askedFor: !pull ? 'nothing' : resolve ? 'tags and content' : 'content by digest',
    dialTimeoutMs: host.dialTimeoutMs, warnings,
  }
}

async function credentialSources(host: RegistryHost, image: CredentialImage, credentials: Credentials, warnings: string[]): Promise<string[]> {
  const sources: string[] = credentials.takesPullSecret(host, image) ? ['the pod\'s pull secret, when it has one'] : []
  for (const candidate of await credentials.candidates(host, image)) {
    if (candidate.kind === 'problem') warnings.push(`no credential from ${candidate.problem}`)
    else if (candidate.kind === 'known') sources.push(candidate.source)
    else sources.push(`${candidate.source}: credential helper ${candidate.helper} (not run)`)
  }
  return sources
}
