import { createHash } from 'node:crypto'
import type { AuthConfig } from '../generated/cri.ts'
import { invalidArgument } from '../errors/cri-error.ts'
import { canonicalRegistry } from './image-ref.ts'
import type { RegistryHost } from './registry-host.ts'
import type { AuthSettings, RegistrySettings } from './settings.ts'

/** What PullImage brings: the pod's pull secret. */
export type PullAuth = Partial<AuthConfig> | null | undefined

export type Credential =
  | { readonly kind: 'none' }
  | { readonly kind: 'password'; readonly username: string; readonly password: string }
  /** A refresh token, to be exchanged at the token service. */
  | { readonly kind: 'identity'; readonly token: string }
  /** A bearer token for the registry itself. */
  | { readonly kind: 'registry'; readonly token: string }

const none: Credential = { kind: 'none' }

/**
 * The credential for one host. The pull secret goes to the image's own registry, or to the host that its `server_address` names, and to
 * no other: mirrors have theirs in registry.configs or registry.auths. Throws INVALID_ARGUMENT for a secret that cannot be read.
 */
export function credentialFor(host: RegistryHost, auth: PullAuth, settings: RegistrySettings): Credential {
  if (auth !== null && auth !== undefined && belongs(auth, host)) {
    const credential = ofPullAuth(auth)
    if (credential.kind !== 'none') return credential
  }
  return configured(host, settings)
}

/** Tells credentials apart without keeping them: tokens are cached under it, so that no pod profits from another one's secret. */
export function fingerprint(credential: Credential): string {
  return credential.kind === 'none' ? 'none' : createHash('sha256').update(JSON.stringify(credential)).digest('base64url')
}

function belongs(auth: Partial<AuthConfig>, host: RegistryHost): boolean {
  const address = auth.server_address ?? ''
  return address === '' ? host.ownRegistry : sameHost(address, host.host)
}

function ofPullAuth(auth: Partial<AuthConfig>): Credential {
  const { username = '', password = '', auth: encoded = '', identity_token: identity = '', registry_token: registry = '' } = auth
  if (username !== '') return { kind: 'password', username, password }
  if (identity !== '') return { kind: 'identity', token: identity }
  if (encoded !== '') return decode(encoded, 'the auth field of the pull secret')
  return registry === '' ? none : { kind: 'registry', token: registry }
}

function configured(host: RegistryHost, settings: RegistrySettings): Credential {
  const auths = Object.entries(settings.auths).find(([endpoint]) => sameHost(endpoint, host.host))
  const configs = Object.entries(settings.configs).find(([name, config]) => config.auth !== undefined && sameHost(name, host.host))
  const found: AuthSettings | undefined = auths?.[1] ?? configs?.[1].auth
  if (found === undefined) return none
  const { username = '', password = '', identityToken = '', auth: encoded = '' } = found
  if (username !== '') return { kind: 'password', username, password }
  if (identityToken !== '') return { kind: 'identity', token: identityToken }
  return encoded === '' ? none : decode(encoded, `auth of ${host.host} in the registry settings`)
}

function decode(encoded: string, what: string): Credential {
  const plain = Buffer.from(encoded, 'base64').toString('utf8').replace(/\0+$/, '')
  const colon = plain.indexOf(':')
  if (colon < 1 || !/^[A-Za-z0-9+/_-]+=*\s*$/.test(encoded)) throw invalidArgument(`${what} is not base64 of username:password`)
  return { kind: 'password', username: plain.slice(0, colon), password: plain.slice(colon + 1) }
}

/** `https://index.docker.io/v1/`, `registry.example:5000` or `//registry.example`: only the host counts. */
function sameHost(written: string, host: string): boolean {
  const name = written.toLowerCase().replace(/^(?:[a-z][a-z0-9+.-]*:)?\/\//, '').replace(/[/?#].*$/s, '').replace(/^.*@/s, '')
  return canonicalRegistry(name) === canonicalRegistry(host)
}
