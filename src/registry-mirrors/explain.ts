import { readdir, readlink, stat } from 'node:fs/promises'
import path from 'node:path'
import { errnoOf, messageOf } from '../errors/cri-error.ts'
import { type CredentialImage, Credentials } from './credentials.ts'
import { HostFailure } from './failures.ts'
import { FileCache } from './file-cache.ts'
import { type HostsFile, parseHostsFile } from './hosts-file.ts'
import { apiHost, isLoopback, withoutSecrets } from './host-url.ts'
import type { ImageRef } from './image-ref.ts'
import { type NearMiss, nearMisses, usualRoots } from './near-misses.ts'
import { proxyFor, proxyProblem } from './proxy.ts'
import { type Capability, noTls, type RegistryHost } from './registry-host.ts'
import { hostDirNames, resolveHosts } from './resolve-hosts.ts'
import type { RegistrySettings } from './settings.ts'
import { TlsLoader } from './tls-material.ts'

/**
 * A place that was looked at for a registry's hosts. `shadowed`: it is there and not read, since an earlier one counts. `certificates`: a
 * directory without hosts.toml, whose certificate files (Docker's layout) count. `empty`: a directory that decides without saying anything.
 * `broken`: it decides and cannot be used.
 */
export interface LookedAt {
  readonly path: string
  readonly state: 'not there' | 'read' | 'broken' | 'certificates' | 'empty' | 'shadowed'
}

export interface ExplainedHost {
  /** Scheme, authority and API root. */
  readonly url: string
  readonly capabilities: readonly Capability[]
  /** Where it is configured: a file, a setting, `default`. */
  readonly source: string
  /** Where in that file, when it is a hosts.toml that names the host. */
  readonly line?: number
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
  /** The HTTP proxy by the environment, without its credentials; absent: directly. */
  readonly proxy?: string
  /** Why it is never asked: a certificate file that cannot be used, no fitting capability. */
  readonly unusable?: string
  readonly warnings: readonly string[]
}

/** How an image would be pulled. */
export interface Explanation {
  readonly image: string
  readonly registry: string
  readonly lookedAt: readonly LookedAt[]
  /** What is there, was probably meant for this registry, and does not count. */
  readonly nearMisses: readonly NearMiss[]
  /** In the order in which they are asked; empty when a file is broken. */
  readonly hosts: readonly ExplainedHost[]
  readonly warnings: readonly string[]
  /** Why every pull of this image fails: a broken file, with its line, or hosts of which none can be asked. */
  readonly problem?: string
}

export interface ExplainOptions {
  readonly settings: RegistrySettings
  readonly env: Readonly<Record<string, string | undefined>>
  /** Default: containerd's and Docker's directories. */
  readonly usualRoots?: readonly string[]
}

/** Finds out how an image would be pulled, by the files as they are now, without asking any host or running any credential helper. */
export async function explain(ref: ImageRef, options: ExplainOptions): Promise<{ readonly explanation: Explanation; readonly hosts: readonly RegistryHost[] }> {
  const { settings, env } = options
  const about = { image: ref.toString(), registry: ref.registry }
  const { places, directory } = await lookAt(settings.configPath, ref.registry)
  const files = new FileCache<HostsFile>((bytes, file) => parseHostsFile(bytes, file))
  const missed = (hosts: readonly RegistryHost[]): Promise<NearMiss[]> => nearMisses({
    roots: settings.configPath, registry: ref.registry, directory, usualRoots: options.usualRoots ?? usualRoots,
    named: hosts.flatMap(({ tls: { caFiles, clientPairs } }) => [...caFiles, ...clientPairs.flatMap(({ certFile, keyFile }) => [certFile, keyFile ?? certFile])]),
  })
  const warnings: string[] = []
  let hosts: RegistryHost[]
  try {
    hosts = await resolveHosts(ref.registry, { settings, files, warn: (warning) => warnings.push(warning) })
  } catch (error) {
    const lookedAt = places.map((place) => (place.state === 'read' || place.state === 'certificates' ? { ...place, state: 'broken' as const } : place))
    return { explanation: { ...about, lookedAt, nearMisses: await missed([]), hosts: [], warnings, problem: messageOf(error) }, hosts: [] }
  }
  if (settings.configPath.length === 0 && Object.keys(settings.mirrors).length > 0) warnings.push('registry.mirrors is deprecated: "cri-shim mirrors migrate" prints the hosts.toml files that replace it')
  const tools = { tls: new TlsLoader(env), credentials: new Credentials({ settings, env }), env, lines: linesOf(hosts, directory === undefined ? undefined : await files.get(path.join(directory, 'hosts.toml')).catch(() => undefined)) }
  const explained = await Promise.all(hosts.map((host) => explainHost(host, ref, tools)))
  for (const host of hosts) {
    const own = host.ownRegistry || host.tls !== noTls ? undefined : await directoryOf(host.host, settings.configPath)
    if (own !== undefined && own !== directory) warnings.push(`${own} is about images called ${host.host}/…: what it says does not count for ${host.host} as a mirror; certificates of a mirror go below its [host."…"] line`)
  }
  const problem = whyNobody(ref, hosts, explained)
  return { explanation: { ...about, lookedAt: places, nearMisses: await missed(hosts), hosts: explained, warnings, ...(problem === undefined ? {} : { problem }) }, hosts }
}

function whyNobody(ref: ImageRef, hosts: readonly RegistryHost[], explained: readonly ExplainedHost[]): string | undefined {
  for (const [capability, what] of [...ref.digest === undefined ? [['resolve', 'resolve tags'] as const] : [], ['pull', 'serve content'] as const]) {
    if (!hosts.some((host) => host.capabilities.has(capability) && host.capabilities.has('pull'))) return `no host may ${what}: give one of them the capability "${capability}"${capability === 'resolve' ? ' beside "pull"' : ''}`
  }
  const reasons = explained.map(({ url, unusable }) => (unusable === undefined ? undefined : `${url}: ${unusable}`)).filter((reason) => reason !== undefined)
  return reasons.length === explained.length ? `no host can be asked: ${reasons.join('; ')}` : undefined
}

/** The line of each host in the file that names it. */
function linesOf(hosts: readonly RegistryHost[], file: HostsFile | undefined): ReadonlyMap<RegistryHost, number> {
  const lines = new Map<RegistryHost, number>()
  const left = file === undefined ? [] : [...file.hosts, ...file.server === undefined ? [] : [file.server]]
  for (const host of hosts) {
    const index = left.findIndex(({ address }) => address.host === host.host && (host.apiRoot === address.path || host.apiRoot === `${address.path}/v2`))
    const [entry] = index < 0 ? [] : left.splice(index, 1)
    if (entry !== undefined) lines.set(host, entry.line)
  }
  return lines
}

async function directoryOf(host: string, roots: readonly string[]): Promise<string | undefined> {
  for (const dir of roots.flatMap((root) => hostDirNames(host).slice(0, -1).map((name) => path.join(root, name)))) if (await exists(dir)) return dir
  return undefined
}

async function lookAt(roots: readonly string[], registry: string): Promise<{ readonly places: LookedAt[]; readonly directory: string | undefined }> {
  const places: LookedAt[] = []
  let directory: string | undefined
  for (const dir of roots.flatMap((root) => hostDirNames(registry).map((name) => path.join(root, name)))) {
    if (!(await exists(dir))) places.push({ path: dir, state: 'not there' })
    else if (directory !== undefined) places.push({ path: dir, state: 'shadowed' })
    else {
      directory = dir
      places.push(await lookInto(dir))
    }
  }
  return { places, directory }
}

async function lookInto(dir: string): Promise<LookedAt> {
  const file = path.join(dir, 'hosts.toml')
  try {
    // An empty file is like none.
    if ((await stat(file)).size > 0) return { path: file, state: 'read' }
  } catch (error) {
    // Not a directory: that is the problem.
    if (errnoOf(error) === 'ENOTDIR') return { path: dir, state: 'broken' }
    // A link that leads nowhere is no missing file.
    if (errnoOf(error) !== 'ENOENT' || await readlink(file).then(() => true, () => false)) return { path: file, state: 'broken' }
  }
  const names = await readdir(dir).catch(() => [])
  return { path: dir, state: names.some((name) => /\.(?:crt|cert)$/.test(name)) ? 'certificates' : 'empty' }
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

interface Tools {
  readonly tls: TlsLoader
  readonly credentials: Credentials
  readonly env: ExplainOptions['env']
  readonly lines: ReadonlyMap<RegistryHost, number>
}

async function explainHost(host: RegistryHost, ref: ImageRef, { tls, credentials, env, lines }: Tools): Promise<ExplainedHost> {
  const warnings: string[] = []
  const sources = await credentialSources(host, ref, credentials, warnings)
  const authorization = Object.keys(host.headers).some((name) => name.toLowerCase() === 'authorization')
  const secret = sources.length > 0 || authorization
  if (host.protocol === 'http' && secret) warnings.push('its credential is sent over plain HTTP')
  if (host.protocol === 'http' && ref.digest === undefined && host.capabilities.has('resolve') && !isLoopback(host.host)) warnings.push('what it says of tags comes over plain HTTP, where anybody on the way can change it: capabilities = ["pull"] asks it for content alone, which is verified')
  if (host.protocol === 'https-or-http') warnings.push('TLS is tried first, then plain HTTP')
  if (host.tls.skipVerify && host.protocol === 'https') warnings.push('its certificate is not verified (skip_verify)')
  const [resolve, pull] = [host.capabilities.has('resolve'), host.capabilities.has('pull')]
  if (apiHost(host.host) !== host.host) warnings.push(`it serves no registry API: write https://${apiHost(host.host)}`)
  const example = `${host.url}/${ref.repository}/manifests/…`
  if (/\/v2\/.*\/v2$/.test(host.apiRoot)) warnings.push(`/v2 is added to a path that has one already (${example}): override_path = true takes the path as it is written`)
  else if (!/(?:^|\/)v2(?:\/|$)/.test(host.apiRoot)) warnings.push(`its requests have no /v2 (${example}), where registries serve their API: write it at the end of the URL, or leave out override_path`)
  // An image may be named after 1.2.b.3, which is no host name for a URL.
  const isUrl = URL.canParse(host.url)
  const proxy = host.protocol === 'https-or-http' || !isUrl ? undefined : proxyFor(new URL(host.url), env)
  const unusable = !pull ? `without the capability "pull" it is asked for nothing` : !isUrl ? `${host.host} is not a host name` : await unusableTls(host, tls) ?? unusableProxy(proxy)
  const object = ref.digest ?? (resolve && pull ? ref.tag ?? 'latest' : 'DIGEST')
  const query = host.ownRegistry ? '' : `?ns=${ref.registry}`
  const line = lines.get(host)
  return {
    url: host.url, capabilities: [...host.capabilities], source: host.source, ...(line === undefined ? {} : { line }),
    manifestUrl: `${host.url}/${ref.repository}/manifests/${object}${query}`,
    credentials: [...sources, ...authorization ? [`Authorization header in ${host.source}`] : []],
    headers: Object.keys(host.headers),
    tls: { ca: host.tls.caFiles, client: host.tls.clientPairs.map(({ certFile }) => certFile), skipVerify: host.tls.skipVerify },
    askedFor: !pull ? 'nothing' : resolve ? 'tags and content' : 'content by digest',
    dialTimeoutMs: host.dialTimeoutMs, ...(proxy === undefined ? {} : { proxy: withoutSecrets(proxy) }), ...(unusable === undefined ? {} : { unusable }), warnings,
  }
}

async function unusableTls(host: RegistryHost, tls: TlsLoader): Promise<string | undefined> {
  if (host.protocol === 'http') return undefined
  try {
    await tls.load(host.tls, true)
    return undefined
  } catch (error) {
    if (!(error instanceof HostFailure)) throw error
    return error.message
  }
}

function unusableProxy(proxy: string | undefined): string | undefined {
  return proxy === undefined ? undefined : proxyProblem(proxy)
}

async function credentialSources(host: RegistryHost, image: CredentialImage, credentials: Credentials, warnings: string[]): Promise<string[]> {
  const sources: string[] = credentials.takesPullSecret(host, image) ? ['the pod\'s pull secret, when it has one'] : []
  for (const candidate of await credentials.candidates(host, image)) {
    if (candidate.kind === 'problem') warnings.push(`no credential: ${candidate.problem}`)
    else if (candidate.kind === 'known') sources.push(candidate.source)
    else sources.push(`${candidate.source}: credential helper ${candidate.helper} (not run)`)
  }
  return sources
}
