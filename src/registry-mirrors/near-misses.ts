import { readdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { editDistance, nearestWord } from '../config/edit-distance.ts'
import { errnoOf } from '../errors/cri-error.ts'
import { hostName, portOf } from './host-url.ts'
import { hostDirNames } from './resolve-hosts.ts'

/** Something that is there, was probably meant for a registry, and is not read. `why` ends with what to do. */
export interface NearMiss {
  readonly path: string
  readonly why: string
}

export interface NearMissOptions {
  /** The directories of config_path. */
  readonly roots: readonly string[]
  readonly registry: string
  /** The directory that decides about the registry; absent: none was found. */
  readonly directory?: string | undefined
  /** Certificate files that its hosts.toml names. */
  readonly named?: readonly string[]
  /** Directories where others look for hosts.toml files; those that config_path does not name are told of. */
  readonly usualRoots?: readonly string[]
}

/** Where containerd's own default and Docker's documentation put registry settings. */
export const usualRoots: readonly string[] = ['/etc/containerd/certs.d', '/etc/docker/certs.d']

interface Found {
  readonly name: string
  readonly isDirectory: boolean
  /** A symbolic link to nothing. */
  readonly dangling: boolean
}

const maxListed = 20
const hubNames = new Set(['docker.io', 'registry-1.docker.io', 'index.docker.io', 'registry.docker.io', 'hub.docker.com', 'registry.hub.docker.com', 'www.docker.io', 'docker.com', 'dockerhub'])
/** Registries whose names are one letter from each other's. */
const wellKnown = new Set(['docker.io', 'gcr.io', 'ghcr.io', 'nvcr.io', 'mcr.io', 'quay.io', 'k8s.gcr.io', 'us.gcr.io', 'eu.gcr.io', 'asia.gcr.io', 'registry.k8s.io', 'lscr.io'])

/** Looks for settings that somebody meant for this registry and that do not count. Never throws: what cannot be listed has none. */
export async function nearMisses(options: NearMissOptions): Promise<NearMiss[]> {
  const { roots, registry, directory } = options
  const found: NearMiss[] = []
  for (const root of roots) found.push(...await inRoot(root, registry, directory))
  if (directory !== undefined) found.push(...await inDirectory(directory, options.named ?? []))
  for (const root of options.usualRoots ?? []) {
    if (roots.includes(root)) continue
    for (const at of hostDirNames(registry).map((name) => path.join(root, name))) {
      if ((await list(at)).length > 0) found.push({ path: at, why: `config_path does not name ${root}: add it there, or move this to a directory that it names` })
    }
  }
  return found.slice(0, maxListed)
}

/** Directories and files beside the one that is looked for. */
async function inRoot(root: string, registry: string, directory: string | undefined): Promise<NearMiss[]> {
  const wanted = hostDirNames(registry)
  const found: NearMiss[] = []
  for (const entry of await list(root)) {
    const at = path.join(root, entry.name)
    if (wanted.includes(entry.name)) {
      if (entry.dangling) found.push({ path: at, why: 'it is a symbolic link to something that does not exist: mend the link' })
      continue
    }
    if (/^https?:$/i.test(entry.name)) {
      // Somebody wrote mkdir -p "certs.d/https://docker.io".
      for (const inner of await list(at)) {
        if (isFor(inner.name, registry)) found.push({ path: path.join(at, inner.name), why: `a directory is named after the host, without https://: ${move(root, registry)}` })
      }
      continue
    }
    const why = entry.isDirectory || entry.dangling ? whyNotDirectory(entry.name, root, registry, directory) : whyNotFile(entry.name, root, registry)
    if (why !== undefined) found.push({ path: at, why })
  }
  return found
}

function whyNotFile(name: string, root: string, registry: string): string | undefined {
  if (name === 'hosts.toml') return `it lies in config_path itself: ${move(root, registry, 'hosts.toml')}, or ${path.join(root, '_default/hosts.toml')} for every registry without a directory`
  const stem = /^(.+)\.(?:toml|tml|conf)$/i.exec(name)?.[1]
  if (stem === undefined || !isFor(stem, registry)) return undefined
  return `each registry has a directory: ${move(root, registry, 'hosts.toml')}`
}

function whyNotDirectory(name: string, root: string, registry: string, directory: string | undefined): string | undefined {
  const bare = withoutScheme(name)
  if (bare !== name && isFor(bare, registry)) return `a directory is named after the host, without https://: ${move(root, registry)}`
  const hasOwn = directory !== undefined && path.basename(directory) !== '_default'
  if (registry === 'docker.io' && hubNames.has(hostName(bare.toLowerCase().replace(/_(\d+)_?$/, ':$1')))) return `images of Docker Hub are called docker.io/…, and the directory is too: ${hasOwn ? `${directory} counts for them` : move(root, registry)}`
  if (bare.trim().toLowerCase() === registry.toLowerCase()) return `names are taken letter by letter: ${move(root, registry)}`
  if (/^(?:_*defaults?_*|\*)$/i.test(name)) return directory === undefined ? 'the directory for every registry without one of its own is called _default: rename it' : undefined
  const [theirs, ours] = [splitName(bare), splitName(registry)]
  if (theirs.host === ours.host && theirs.port !== ours.port && hasOwn) return undefined
  if (theirs.host === ours.host) {
    if (theirs.port === ours.port) return `the port is written ${hostDirNames(registry).slice(0, -1).join(' or ')}: rename it`
    return `it is about images called ${theirs.host}${theirs.port === undefined ? '' : `:${theirs.port}`}/…, ${ours.port === undefined ? 'with that port' : theirs.port === undefined ? 'without a port' : 'with another port'}`
  }
  return !hasOwn && isMisspelt(theirs.host, ours.host) ? `is it misspelt? For this registry it would be ${path.join(root, registry)}` : undefined
}

/** Whether a name with or without a scheme, in any case, is this registry's. */
function isFor(name: string, registry: string): boolean {
  const bare = withoutScheme(name).trim().toLowerCase()
  const [theirs, ours] = [splitName(bare), splitName(registry)]
  return (registry === 'docker.io' && hubNames.has(bare)) || (theirs.host === ours.host && theirs.port === ours.port)
}

function withoutScheme(name: string): string {
  return name.replace(/^https?(?::|%3a)?[_/%-]+(?:2f)?(?:%2f)?/i, '')
}

/** `host`, `host:5000`, `host_5000_` and what people write for them. */
function splitName(name: string): { readonly host: string; readonly port: string | undefined } {
  const text = name.trim().toLowerCase()
  const port = portOf(text)
  if (port !== undefined) return { host: text.slice(0, text.lastIndexOf(':')), port: String(port) }
  const [, host, written] = /^(.+?)[_-](\d{2,5})_?$/.exec(text) ?? []
  return host !== undefined && written !== undefined ? { host, port: written } : { host: text, port: undefined }
}

function isMisspelt(name: string, registry: string): boolean {
  if (wellKnown.has(name) || Math.min(name.length, registry.length) < 6) return false
  // harbor1 and harbor2 are two machines.
  if (name.replaceAll(/\d/g, '') === registry.replaceAll(/\d/g, '')) return false
  return editDistance(name, registry) <= 2
}

function move(root: string, registry: string, file = ''): string {
  return `move it to ${path.join(root, hostDirNames(registry)[0] ?? registry, file)}`
}

/** Files in the directory that counts. */
async function inDirectory(directory: string, named: readonly string[]): Promise<NearMiss[]> {
  const entries = await list(directory)
  const names = new Set(entries.map(({ name }) => name))
  const file = entries.find(({ name }) => name === 'hosts.toml')
  const read = file !== undefined && !file.dangling && (await stat(path.join(directory, 'hosts.toml')).then(({ size }) => size > 0, () => true))
  const found: NearMiss[] = []
  for (const { name, isDirectory, dangling } of entries) {
    const at = path.join(directory, name)
    const why = dangling ? 'it is a symbolic link to something that does not exist: mend the link' : isDirectory ? undefined : whyNotInside(name, read, names)
    if (why !== undefined && !named.includes(at)) found.push({ path: at, why })
  }
  return found
}

function whyNotInside(name: string, read: boolean, names: ReadonlySet<string>): string | undefined {
  if (name === 'hosts.toml') return undefined
  if (/\.(?:toml|tml)$/i.test(name)) return `the file must be called hosts.toml: ${read ? 'write what it says there' : 'rename it'}`
  if (!read && (/^hosts?(?:[._-]|$)/i.test(name) || nearestWord(name, ['hosts.toml']) !== undefined)) return 'the file must be called hosts.toml: rename it'
  const kind = /\.(crt|cert|key|pem)$/.exec(name)?.[1]
  if (kind === undefined) return undefined
  if (read) return `beside a hosts.toml, certificate files count when it names them: ${kind === 'crt' || kind === 'pem' ? `ca = ${JSON.stringify(name)}` : 'client = [["CERT", "KEY"]]'}`
  if (kind === 'pem') return 'without a hosts.toml, authorities are called *.crt, client certificates *.cert with *.key: rename it'
  if (kind === 'key' && !names.has(name.replace(/key$/, 'cert'))) return `there is no ${name.replace(/key$/, 'cert')} that it belongs to`
  return undefined
}

async function list(directory: string): Promise<Found[]> {
  try {
    const entries = await readdir(directory, { withFileTypes: true })
    return await Promise.all(entries.slice(0, 2000).sort((a, b) => (a.name < b.name ? -1 : 1)).map(async (entry) => {
      const link = entry.isSymbolicLink() ? await stat(path.join(directory, entry.name)).catch((error: unknown) => errnoOf(error)) : undefined
      return { name: entry.name, isDirectory: entry.isDirectory() || (typeof link === 'object' && link.isDirectory()), dangling: link === 'ENOENT' }
    }))
  } catch {
    return []
  }
}
