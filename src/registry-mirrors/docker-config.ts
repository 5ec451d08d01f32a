import { failedPrecondition } from '../errors/cri-error.ts'
import { canonicalRegistry } from './image-ref.ts'
import { isObject } from './json.ts'

/** One entry of `auths`; as in the file, not decoded. */
export interface DockerAuth {
  readonly username: string
  readonly password: string
  readonly auth: string
  readonly identityToken: string
  readonly registryToken: string
}

/** What a Docker `config.json` says about credentials (the file of docker, podman and `kubectl create secret docker-registry`). */
export interface DockerConfig {
  readonly auths: ReadonlyMap<string, DockerAuth>
  /** Helper names by host. */
  readonly credHelpers: ReadonlyMap<string, string>
  /** The helper of all other hosts; empty: none. */
  readonly credsStore: string
}

/** Reads the bytes of such a file. FAILED_PRECONDITION for what is none; the message repeats nothing of it. */
export function parseDockerConfig(bytes: Buffer, file: string): DockerConfig {
  let document: unknown
  try {
    document = JSON.parse(bytes.toString('utf8'))
  } catch {
    // Without its cause, which repeats a part of the file.
    throw failedPrecondition(`${file} is not JSON`)
  }
  if (!isObject(document)) throw failedPrecondition(`${file} is no JSON object`)
  const { auths, credHelpers, credsStore } = document
  const entries = (value: unknown): [string, unknown][] => (isObject(value) ? Object.entries(value) : [])
  return {
    auths: new Map(entries(auths).flatMap(([key, value]) => (isObject(value) ? [[key, authOf(value)] as const] : []))),
    credHelpers: new Map(entries(credHelpers).flatMap(([key, value]) => (typeof value === 'string' && value !== '' ? [[key, value] as const] : []))),
    credsStore: text(credsStore),
  }
}

/** The entry for a repository: the host alone, or (as podman and the kubelet read it) the longest path in front of the repository. */
export function dockerAuthFor(config: DockerConfig, host: string, repository: string): { readonly key: string; readonly auth: DockerAuth } | undefined {
  let best: { readonly key: string; readonly auth: DockerAuth; readonly length: number } | undefined
  for (const [key, auth] of config.auths) {
    if (!sameHost(key, host)) continue
    const scope = pathOf(key)
    if (scope !== '' && repository !== scope && !repository.startsWith(`${scope}/`)) continue
    if (best === undefined || scope.length > best.length) best = { key, auth, length: scope.length }
  }
  return best
}

/** The helper that the file names for a host. */
export function dockerHelperFor(config: DockerConfig, host: string): string | undefined {
  return [...config.credHelpers].find(([key]) => sameHost(key, host))?.[1]
}

/** Whether `https://index.docker.io/v1/`, `registry.example:5000` or `//registry.example/path` names a host: nothing but the host counts, in all names of Docker Hub. */
export function sameHost(written: string, host: string): boolean {
  const name = written.toLowerCase().replace(/^(?:[a-z][a-z0-9+.-]*:)?\/\//, '').replace(/[/?#].*$/s, '').replace(/^.*@/s, '')
  return canonicalRegistry(name) === canonicalRegistry(host)
}

/** Without `/v1/`, `/v2/`, which are the API's. */
function pathOf(key: string): string {
  const path = key.replace(/^(?:[A-Za-z][A-Za-z0-9+.-]*:)?\/\//, '').replace(/^[^/]*\/?/, '').replace(/\/+$/, '')
  return path === 'v1' || path === 'v2' ? '' : path
}

function authOf(entry: Readonly<Record<string, unknown>>): DockerAuth {
  return {
    username: text(entry['username']), password: text(entry['password']), auth: text(entry['auth']), identityToken: text(entry['identitytoken']), registryToken: text(entry['registrytoken']),
  }
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : ''
}
