import path from 'node:path'
import { apiHost, isLoopback, parseHostUrl, withoutSecrets } from './host-url.ts'
import type { RegistrySettings, TlsSettings } from './settings.ts'

/** A hosts.toml to be written. */
export interface MigratedFile {
  /** Below the directory that config_path names: `docker.io/hosts.toml`. */
  readonly path: string
  readonly text: string
}

export interface Migration {
  readonly files: readonly MigratedFile[]
  /** What a hosts.toml cannot say, and what else is to be done, a paragraph each. Holds no secret. */
  readonly notes: readonly string[]
}

interface Entry {
  readonly url: string
  readonly host: string
  readonly lines: readonly string[]
}

/** The hosts.toml files that mean what registry.mirrors and registry.configs.*.tls say. */
export function migrateRegistries(settings: RegistrySettings): Migration {
  const notes: string[] = []
  const withTls = Object.keys(settings.configs).filter((host) => hasTls(settings.configs[host]?.tls))
  // A registry with a directory of its own does not look into _default: it takes the endpoints of `*` along.
  const keys = [...Object.keys(settings.mirrors).map((name) => [`registry.mirrors."${withoutSecrets(name)}"`, name] as const), ...withTls.map((host) => [`registry.configs."${withoutSecrets(host)}".tls`, host === 'registry-1.docker.io' ? 'docker.io' : host] as const)]
  const names = new Set(keys.filter(([source, name]) => isUsed(source, name, notes)).map(([, name]) => name))
  const files = [...names].sort().map((name) => fileOf(name, settings, notes))
  notes.push(...credentialNotes(settings))
  return { files, notes }
}

/** Whether any image has this registry. A name that none has would make a directory that is never looked into, or one elsewhere. */
function isUsed(source: string, name: string, notes: string[]): boolean {
  if (name === '*') return true
  const address = parseHostUrl(name)
  const host = typeof address === 'string' ? undefined : canonicalHost(address.host)
  if (host === name.toLowerCase()) return true
  const meant = host === undefined ? '' : `; for images called ${host}/… the name is ${quoted(host)}`
  notes.push(`${source} was never used, and is left out: no image's registry is called like that${meant}.`)
  return false
}

/** index.docker.io in an image's name means docker.io. */
function canonicalHost(host: string): string {
  return host === 'index.docker.io' ? 'docker.io' : host
}

function fileOf(registry: string, settings: RegistrySettings, notes: string[]): MigratedFile {
  const any = registry === '*'
  const key = Object.hasOwn(settings.mirrors, registry) ? registry : '*'
  const mirrored = Object.hasOwn(settings.mirrors, key)
  const entries = (settings.mirrors[key]?.endpoints ?? []).flatMap((endpoint) => entryOf(endpoint, `registry.mirrors."${key}"`, settings, notes))
  const own = any ? '' : apiHost(registry)
  const listed = !any && entries.some(({ host }) => host === registry.toLowerCase() || host === own)
  const server = listed ? entries.at(-1) : undefined
  const lines = [`# Replaces ${[...mirrored ? [`registry.mirrors."${key}"`] : [], ...!any && hasTls(tlsOf(settings, registry)) ? ['registry.configs'] : []].join(' and ') || 'the settings of this registry'}.`]
  // Of `*` it is not known which registry it is, and on this machine it is not known whether it speaks TLS: the default is right.
  if (server !== undefined) lines.push(`server = ${quoted(server.url)}`, ...server.lines)
  else if (!any) {
    if (!isLoopback(own)) lines.push(`server = ${quoted(`https://${own}`)}`)
    lines.push(...tlsLines(tlsOf(settings, registry), `registry.configs."${registry}"`, notes))
  }
  for (const entry of server === undefined ? entries : entries.slice(0, -1)) {
    lines.push('', `[host.${quoted(entry.url)}]`, ...['capabilities = ["pull", "resolve"]', ...entry.lines].map((line) => `  ${line}`))
  }
  return { path: `${any ? '_default' : registry}/hosts.toml`, text: `${lines.join('\n')}\n` }
}

function entryOf(endpoint: string, source: string, settings: RegistrySettings, notes: string[]): Entry[] {
  const shown = withoutSecrets(endpoint)
  const address = parseHostUrl(endpoint)
  if (typeof address === 'string') {
    notes.push(`${source}: the endpoint "${shown}" is left out: ${address}`)
    return []
  }
  if (address.hasCredentials) notes.push(`${source}: the user name and password in "${shown}" were never used. Write them to [plugins."io.cri-shim.v1".registry.credentials.${quoted(address.host)}].`)
  const plain = address.protocol === 'http'
  const host = apiHost(address.host)
  if (host !== address.host) notes.push(`${source}: ${address.host} serves no registry API; ${host} is written in its place.`)
  return [{
    host,
    url: `${plain ? 'http' : 'https'}://${host}${address.path}`,
    lines: [
      ...address.path === '' || address.path.endsWith('/v2') ? [] : ['override_path = true'],
      // In plain HTTP there is nothing to verify, and in a hosts.toml TLS settings would say that there may be.
      ...plain ? [] : tlsLines(settings.configs[address.host]?.tls, `registry.configs."${address.host}"`, notes),
    ],
  }]
}

function tlsOf(settings: RegistrySettings, registry: string): TlsSettings | undefined {
  return settings.configs[apiHost(registry)]?.tls ?? settings.configs[registry]?.tls
}

function hasTls(tls: TlsSettings | undefined): boolean {
  return tls !== undefined && ((tls.caFile ?? '') !== '' || (tls.certFile ?? '') !== '' || tls.insecureSkipVerify === true)
}

function tlsLines(tls: TlsSettings | undefined, source: string, notes: string[]): string[] {
  const { caFile = '', certFile = '', keyFile = '', insecureSkipVerify = false } = tls ?? {}
  for (const file of [caFile, certFile, keyFile]) {
    const note = `${source}.tls: "${file}" is a relative path, which a hosts.toml takes from its own directory. Write the absolute one.`
    if (file !== '' && !path.isAbsolute(file) && !notes.includes(note)) notes.push(note)
  }
  return [
    ...caFile === '' ? [] : [`ca = ${quoted(caFile)}`],
    ...certFile === '' ? [] : [`client = ${keyFile === '' ? quoted(certFile) : `[[${quoted(certFile)}, ${quoted(keyFile)}]]`}`],
    ...insecureSkipVerify ? ['skip_verify = true'] : [],
  ]
}

function credentialNotes(settings: RegistrySettings): string[] {
  const found = [
    ...Object.entries(settings.configs).flatMap(([name, { auth }]) => (auth === undefined ? [] : [{ source: `registry.configs."${withoutSecrets(name)}".auth`, name, auth }])),
    ...Object.entries(settings.auths).map(([name, auth]) => ({ source: `registry.auths."${withoutSecrets(name)}"`, name, auth })),
  ].filter(({ auth }) => Object.values(auth).some((value) => value !== ''))
  return found.map(({ source, name, auth }) => {
    const address = parseHostUrl(name)
    const host = typeof address === 'string' ? withoutSecrets(name) : address.host
    const keys = ([['username', 'username'], ['password', 'password'], ['auth', 'auth'], ['identityToken', 'identitytoken']] as const).filter(([field]) => (auth[field] ?? '') !== '')
    const example = [`[plugins."io.cri-shim.v1".registry.credentials.${quoted(host)}]`, ...keys.map(([, key]) => `  ${key} = "…"`)].join('\n')
    return `${source}: a hosts.toml has no place for user names and passwords. It goes on working where it is; the place that stays is\n${example}`
  })
}

/** JSON's escapes are TOML's, but for DEL, which TOML wants escaped as well. */
function quoted(text: string): string {
  return JSON.stringify(text).replaceAll('\u007f', '\\u007f')
}
