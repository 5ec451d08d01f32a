import { readdir, readlink, stat } from 'node:fs/promises'
import path from 'node:path'
import { errnoOf, failedPrecondition, messageOf } from '../errors/cri-error.ts'
import type { FileCache } from './file-cache.ts'
import { apiHost, defaultProtocol, type HostAddress, isLoopback, isOwnRegistry, parseHostUrl, portOf, withoutSecrets } from './host-url.ts'
import { brokenFile, type HostEntry, type HostsFile, type HostSettings, maxFileBytes, tooLarge } from './hosts-file.ts'
import { allCapabilities, defaultDialTimeoutMs, type HostTls, lenientTls, noTls, type Protocol, type RegistryHost } from './registry-host.ts'
import type { RegistrySettings, TlsSettings } from './settings.ts'

export interface ResolveHostsOptions {
  readonly settings: RegistrySettings
  /** Keeps hosts.toml files that were read: `new FileCache((bytes, file) => parseHostsFile(bytes, file))`. */
  readonly files: FileCache<HostsFile>
  /** Told what is odd in the configuration, each line with its place. */
  readonly warn?: (warning: string) => void
}

/**
 * Where a registry's content is asked for, in order: mirrors, then `server` or the registry itself. Reads certs.d (containerd's
 * docs/hosts.md) or the deprecated registry.mirrors, and no network. Throws FAILED_PRECONDITION naming the file that cannot be used.
 */
export async function resolveHosts(registryHost: string, options: ResolveHostsOptions): Promise<RegistryHost[]> {
  const { settings } = options
  if (settings.configPath.length === 0) return hostsOfMirrors(registryHost, settings)
  const dir = await findHostDir(settings.configPath, registryHost)
  if (dir === undefined) return [registryItself(registryHost, undefined, 'default')]

  const name = path.join(dir, 'hosts.toml')
  const file = await readHostsFile(name, options.files)
  if (file === undefined) return [registryItself(registryHost, await certificatesOf(dir), dir)]
  for (const warning of file.warnings) options.warn?.(warning)
  const hosts = file.hosts.map((entry) => hostOf(registryHost, entry, name))
  return withoutRepeats([...hosts, lastOf(registryHost, file, name)])
}

/** `server`, or the registry itself. Where the file says nothing of its own about it, it is what it is as one of the hosts. */
function lastOf(registryHost: string, file: HostsFile, source: string): RegistryHost {
  const { server, root } = file
  if (server !== undefined) return hostOf(registryHost, { ...server, ...settingsAmong(file.hosts, server.address, apiRootOf(server), server) }, source)
  const host = apiHost(registryHost)
  return registryItself(registryHost, settingsAmong(file.hosts, { protocol: defaultProtocol(host), host }, '/v2', root), source)
}

/** Certificates belong to an address, headers to a path of it. */
function settingsAmong(hosts: readonly HostEntry[], address: Pick<HostAddress, 'protocol' | 'host'>, apiRoot: string, own: HostSettings): HostSettings {
  const same = hosts.filter((entry) => entry.address.protocol === address.protocol && entry.address.host === address.host)
  const tls = own.tls ?? same.find((entry) => entry.tls !== undefined)?.tls
  const dialTimeoutMs = own.dialTimeoutMs ?? same.find((entry) => entry.dialTimeoutMs !== undefined)?.dialTimeoutMs
  const named = Object.keys(own.headers).length === 0 ? same.find((entry) => apiRootOf(entry) === apiRoot) : undefined
  return { ...own, headers: named?.headers ?? own.headers, ...(tls === undefined ? {} : { tls }), ...(dialTimeoutMs === undefined ? {} : { dialTimeoutMs }) }
}

/** The directories that are looked for under one entry of config_path, in order. */
export function hostDirNames(registryHost: string): string[] {
  const port = portOf(registryHost)
  const underscored = port === undefined ? [] : [`${registryHost.slice(0, registryHost.lastIndexOf(':'))}_${registryHost.slice(registryHost.lastIndexOf(':') + 1)}_`]
  return [...underscored, registryHost, '_default']
}

async function findHostDir(roots: readonly string[], registryHost: string): Promise<string | undefined> {
  for (const root of roots) {
    for (const name of hostDirNames(registryHost)) {
      const dir = path.join(root, name)
      try {
        if (!(await stat(dir)).isDirectory()) throw failedPrecondition(`${dir} is not a directory: it must be one, with a hosts.toml in it`)
        return dir
      } catch (error) {
        if (errnoOf(error) !== 'ENOENT') throw brokenDir(dir, error)
        await refuseDanglingLink(dir)
      }
    }
  }
  return undefined
}

/** Undefined when the file is missing or empty: Docker's certificate layout applies then. */
async function readHostsFile(name: string, files: FileCache<HostsFile>): Promise<HostsFile | undefined> {
  try {
    const { size } = await stat(name)
    if (size === 0) return undefined
    if (size > maxFileBytes) throw tooLarge(name, size)
    return await files.get(name)
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') {
      await refuseDanglingLink(name)
      return undefined
    }
    throw errnoOf(error) === undefined ? error : brokenFile(name, undefined, `cannot be read: ${messageOf(error)}`, error)
  }
}

/** Somebody meant a file to be there: without it, images would come from elsewhere in silence. */
async function refuseDanglingLink(name: string): Promise<void> {
  const target = await readlink(name).catch(() => undefined)
  if (target !== undefined) throw brokenFile(name, undefined, `it is a link to ${target}, which does not exist`)
}

/** Docker's layout: *.crt are authorities, *.cert with *.key client certificates. */
async function certificatesOf(dir: string): Promise<HostSettings> {
  let names: string[]
  try {
    const entries = await readdir(dir, { withFileTypes: true })
    names = entries.filter((entry) => !entry.isDirectory()).map((entry) => entry.name).sort()
  } catch (error) {
    throw brokenDir(dir, error)
  }
  const present = new Set(names)
  const caFiles = names.filter((name) => name.endsWith('.crt')).map((name) => path.join(dir, name))
  const clientPairs = names.filter((name) => name.endsWith('.cert')).map((name) => {
    const key = `${name.slice(0, -'.cert'.length)}.key`
    return { certFile: path.join(dir, name), ...(present.has(key) ? { keyFile: path.join(dir, key) } : {}) }
  })
  const tls = caFiles.length === 0 && clientPairs.length === 0 ? {} : { tls: { caFiles, clientPairs, skipVerify: false } }
  return { headers: {}, overridePath: false, ...tls }
}

function hostOf(registryHost: string, entry: HostEntry, source: string): RegistryHost {
  const { address } = entry
  return makeHost(registryHost, address.host, { protocol: protocolOf(address, entry.tls), apiRoot: apiRootOf(entry), settings: entry, source })
}

function apiRootOf({ address, overridePath }: HostEntry): string {
  return overridePath || address.path.endsWith('/v2') ? address.path : `${address.path}/v2`
}

/** The registry as the image names it: what the root of a hosts.toml without `server` is about, and what is asked when nothing is configured. */
function registryItself(registryHost: string, settings: HostSettings | undefined, source: string): RegistryHost {
  const host = apiHost(registryHost)
  const protocol = defaultProtocol(host)
  // containerd takes any certificate from this machine itself; authorities that somebody configured are still believed alone.
  const lenient = isLoopback(host) && protocol !== 'http' && settings?.tls === undefined
  const tls = lenient ? lenientTls : (settings?.tls ?? noTls)
  // Without `server`, containerd gives the registry all capabilities and its standard path, whatever the root of the file says.
  const rest: HostSettings = {
    headers: settings?.headers ?? {}, overridePath: false, tls,
    ...(settings?.dialTimeoutMs === undefined ? {} : { dialTimeoutMs: settings.dialTimeoutMs }),
  }
  return makeHost(registryHost, host, { protocol, apiRoot: '/v2', settings: rest, source })
}

interface HostParts {
  readonly protocol: Protocol
  readonly apiRoot: string
  readonly settings: HostSettings
  readonly source: string
}

function makeHost(registryHost: string, host: string, parts: HostParts): RegistryHost {
  const { protocol, apiRoot, settings, source } = parts
  return {
    url: `${protocol === 'http' ? 'http' : 'https'}://${host}${apiRoot}`,
    protocol,
    host,
    apiRoot,
    capabilities: new Set(settings.capabilities ?? allCapabilities),
    tls: settings.tls ?? noTls,
    headers: settings.headers,
    dialTimeoutMs: settings.dialTimeoutMs ?? defaultDialTimeoutMs,
    ownRegistry: isOwnRegistry(registryHost, host, protocol),
    source,
  }
}

/** `http://` with TLS settings is a contradiction; as in containerd TLS is tried first then. */
function protocolOf(address: HostAddress, tls: HostTls | undefined): Protocol {
  return address.protocol === 'http' && tls !== undefined && portOf(address.host) !== undefined && portOf(address.host) !== 80 ? 'https-or-http' : address.protocol
}

/** registry.mirrors: the endpoints of the registry or of `*`, then the registry itself. */
function hostsOfMirrors(registryHost: string, settings: RegistrySettings): RegistryHost[] {
  const key = Object.hasOwn(settings.mirrors, registryHost) ? registryHost : '*'
  const endpoints = Object.hasOwn(settings.mirrors, key) ? (settings.mirrors[key]?.endpoints ?? []) : []
  const source = `registry.mirrors."${key}"`
  const hosts = endpoints.map((endpoint) => {
    const address = parseHostUrl(endpoint)
    if (typeof address === 'string') throw failedPrecondition(`${source}: endpoint "${withoutSecrets(endpoint)}": ${address}`)
    const protocol = address.protocol
    const own = tlsOfConfig(settings, address.host)
    return makeHost(registryHost, address.host, {
      protocol,
      apiRoot: address.path === '' ? '/v2' : address.path,
      settings: { headers: {}, overridePath: true, tls: own ?? (protocol === 'https-or-http' ? lenientTls : noTls) },
      source,
    })
  })
  if (hosts.some((host) => host.host === registryHost.toLowerCase() || host.host === apiHost(registryHost))) return withoutRepeats(hosts)
  const tls = tlsOfConfig(settings, apiHost(registryHost)) ?? tlsOfConfig(settings, registryHost)
  const itself = registryItself(registryHost, tls === undefined ? undefined : { headers: {}, overridePath: false, tls }, tls === undefined ? 'default' : 'registry.configs')
  return withoutRepeats([...hosts, itself])
}

function tlsOfConfig(settings: RegistrySettings, host: string): HostTls | undefined {
  const tls: TlsSettings | undefined = Object.hasOwn(settings.configs, host) ? settings.configs[host]?.tls : undefined
  if (tls === undefined) return undefined
  const certFile = tls.certFile === '' ? undefined : tls.certFile
  const keyFile = tls.keyFile === '' ? undefined : tls.keyFile
  return {
    caFiles: tls.caFile === undefined || tls.caFile === '' ? [] : [tls.caFile],
    clientPairs: certFile === undefined ? [] : [keyFile === undefined ? { certFile } : { certFile, keyFile }],
    skipVerify: tls.insecureSkipVerify ?? false,
  }
}

/** A `server` that repeats a host would only be asked the same question twice. Hosts with the same URL that are asked for other things stay. */
function withoutRepeats(hosts: readonly RegistryHost[]): RegistryHost[] {
  return hosts.filter((host, index) => !hosts.slice(0, index).some((earlier) => earlier.url === host.url && sameUse(earlier, host)))
}

function sameUse(a: RegistryHost, b: RegistryHost): boolean {
  const settings = (host: RegistryHost): string => JSON.stringify([host.capabilities.has('pull'), host.capabilities.has('resolve'), host.tls, host.headers, host.protocol, host.dialTimeoutMs])
  return settings(a) === settings(b)
}

function brokenDir(dir: string, error: unknown): Error {
  if (errnoOf(error) === undefined && error instanceof Error) return error
  return failedPrecondition(`${dir}: cannot be read: ${messageOf(error)}`, { reason: 'BROKEN_HOSTS_FILE', cause: error })
}
