import { isUtf8 } from 'node:buffer'
import { createHash } from 'node:crypto'
import type { AuthConfig } from '../generated/cri.ts'
import { abortable } from '../concurrency/keyed-mutex.ts'
import { invalidArgument, messageOf } from '../errors/cri-error.ts'
import { CredentialHelpers, HelperError } from './credential-helper.ts'
import { type DockerConfig, dockerAuthFor, dockerHelperFor, parseDockerConfig, sameHost } from './docker-config.ts'
import { FileCache } from './file-cache.ts'
import { hostName, portOf, withoutSecrets } from './host-url.ts'
import { canonicalRegistry } from './image-ref.ts'
import type { RegistryHost } from './registry-host.ts'
import type { AuthSettings, RegistrySettings } from './settings.ts'

/** What PullImage brings: the pod's pull secret. */
export type PullAuth = Partial<AuthConfig> | null | undefined

export type Credential =
  /**
   * `problem`: why there is none although one was meant to be; for the error when the host wants one. `unreadable`: it is configured and could not be had, so that
   * a host that calls the image unknown may mean that.
   */
  | { readonly kind: 'none'; readonly problem?: string; readonly unreadable?: boolean }
  /** `latin1`: name and password are bytes that are no UTF-8, one character for each. */
  | { readonly kind: 'password'; readonly username: string; readonly password: string; readonly encoding?: 'latin1' }
  /** A refresh token, to be exchanged at the token service. */
  | { readonly kind: 'identity'; readonly token: string }
  /** A bearer token for the registry itself. */
  | { readonly kind: 'registry'; readonly token: string }

export type PasswordCredential = Extract<Credential, { readonly kind: 'password' }>

/** What of a host decides on its credential. */
export type CredentialHost = Pick<RegistryHost, 'host' | 'ownRegistry'>

/** The image whose content is asked for. */
export interface CredentialImage {
  readonly registry: string
  readonly repository: string
}

export interface CredentialsOptions {
  readonly settings: RegistrySettings
  /** The environment of credential helpers. */
  readonly env: Readonly<Record<string, string | undefined>>
  /** Told why a configured credential cannot be had. */
  readonly warn?: (warning: string) => void
  readonly helperTimeoutMs?: number
}

/** A place where a credential for a host is configured. `source` is for people: it names the setting or file, never the credential. */
export type Candidate =
  | { readonly kind: 'known'; readonly source: string; readonly credential: Credential }
  | { readonly kind: 'helper'; readonly source: string; readonly helper: string }
  /** `absent`: a file that is named for many hosts is not there, which may be how it should be: nobody has logged in. */
  | { readonly kind: 'problem'; readonly source: string; readonly problem: string; readonly absent?: boolean }

const none: Credential = { kind: 'none' }

/**
 * Which credential goes to which host. The pod's pull secret goes to the registry that the image is named after (or that the secret's
 * `server_address` names) and to hosts for which `pull_secrets_of` says so. Every other host gets what is configured for it by name, or nothing.
 */
export class Credentials {
  readonly #options: CredentialsOptions
  readonly #helpers: CredentialHelpers
  readonly #files = new FileCache<DockerConfig>(parseDockerConfig)

  constructor(options: CredentialsOptions) {
    this.#options = options
    const { settings, env, helperTimeoutMs } = options
    this.#helpers = new CredentialHelpers({ env, directory: settings.credentialHelperDir ?? '', ...(helperTimeoutMs === undefined ? {} : { timeoutMs: helperTimeoutMs }) })
  }

  /** The credential for one host. Rejects with INVALID_ARGUMENT for a pull secret that cannot be read, or with the signal's reason. */
  async of(host: CredentialHost, image: CredentialImage, auth: PullAuth, signal?: AbortSignal): Promise<Credential> {
    const secret = auth === null || auth === undefined ? none : ofPullAuth(auth)
    if (auth !== null && auth !== undefined && secret.kind !== 'none' && this.#takes(host, image, auth)) return secret
    const problems: { readonly text: string; readonly absent: boolean }[] = []
    for (const candidate of await this.candidates(host, image)) {
      const found = await this.#fetch(candidate, host, signal)
      if (found.kind !== 'none') return found
      if (found.problem === undefined) continue
      problems.push({ text: found.problem, absent: candidate.kind === 'problem' && candidate.absent === true })
      this.#options.warn?.(found.problem.startsWith(candidate.source) ? found.problem : `${candidate.source}: ${found.problem}`)
    }
    const problem = problems.find(({ absent }) => !absent) ?? problems[0]
    if (problem !== undefined) return { kind: 'none', problem: problem.text, ...(problem.absent ? {} : { unreadable: true }) }
    return secret.kind === 'none' ? none : { kind: 'none', problem: notSent(host, image, auth) }
  }

  /** The credential that `of` gave for a host was refused: a helper may know a newer one. */
  async refused(host: CredentialHost, image: CredentialImage): Promise<void> {
    for (const candidate of await this.candidates(host, image)) {
      if (candidate.kind === 'helper') this.#helpers.forget(candidate.helper, serverOf(host))
    }
  }

  /** Whether a pull secret without an address of its own goes to this host: as the image's registry, or because the settings say so. */
  takesPullSecret(host: CredentialHost, image: CredentialImage): boolean {
    return this.#takes(host, image, {})
  }

  /** What is configured for a host, in the order in which it is tried. Runs no helper. */
  async candidates(host: CredentialHost, { repository }: CredentialImage): Promise<Candidate[]> {
    const { settings } = this.#options
    const found: Candidate[] = []
    for (const [name, entry] of ownEntries(settings, host)) {
      const source = `registry.credentials."${withoutSecrets(name)}"`
      addStatic(found, entry, source)
      if ((entry.helper ?? '') !== '') found.push({ kind: 'helper', source: `${source}.helper`, helper: entry.helper ?? '' })
      if ((entry.configFile ?? '') !== '') await this.#addFile(found, { file: entry.configFile ?? '', name }, host, repository)
    }
    for (const [endpoint, entry] of Object.entries(settings.auths)) if (sameHost(endpoint, host.host)) addStatic(found, entry, `registry.auths."${withoutSecrets(endpoint)}"`)
    for (const [name, { auth }] of Object.entries(settings.configs)) if (auth !== undefined && sameHost(name, host.host)) addStatic(found, auth, `registry.configs."${withoutSecrets(name)}".auth`)
    return found
  }

  async #addFile(found: Candidate[], { file, name }: { readonly file: string; readonly name: string }, host: CredentialHost, repository: string): Promise<void> {
    const setting = `registry.credentials."${withoutSecrets(name)}".config_file`
    let config: DockerConfig | undefined
    try {
      config = await this.#files.get(file)
    } catch (error) {
      found.push({ kind: 'problem', source: setting, problem: messageOf(error).includes(file) ? messageOf(error) : `${file} cannot be read: ${messageOf(error)}` })
      return
    }
    if (config === undefined) {
      found.push({ kind: 'problem', source: setting, problem: `${file} does not exist`, absent: name.startsWith('*') })
      return
    }
    // As Docker: a helper for this very host, what is in the file, the helper for all others.
    const helper = dockerHelperFor(config, host.host)
    if (helper !== undefined) found.push({ kind: 'helper', source: `${file} (credHelpers)`, helper })
    const entry = dockerAuthFor(config, host.host, repository)
    if (entry !== undefined) {
      addStatic(found, entry.auth, `${file} (auths."${withoutSecrets(entry.key)}")`)
      if (entry.auth.registryToken !== '') found.push({ kind: 'known', source: `${file} (auths."${withoutSecrets(entry.key)}")`, credential: { kind: 'registry', token: entry.auth.registryToken } })
    }
    if (helper === undefined && config.credsStore !== '') found.push({ kind: 'helper', source: `${file} (credsStore)`, helper: config.credsStore })
  }

  async #fetch(candidate: Candidate, host: CredentialHost, signal: AbortSignal | undefined): Promise<Credential> {
    if (candidate.kind === 'known') return candidate.credential
    if (candidate.kind === 'problem') return { kind: 'none', problem: candidate.problem }
    try {
      const answer = await abortable(this.#helpers.get(candidate.helper, serverOf(host)), signal)
      return answer === undefined ? none : withName(answer.username, answer.secret)
    } catch (error) {
      if (error instanceof HelperError) return { kind: 'none', problem: error.message }
      throw error
    }
  }

  #takes(host: CredentialHost, image: CredentialImage, auth: Partial<AuthConfig>): boolean {
    const address = auth.server_address ?? ''
    if (address === '' ? host.ownRegistry : sameHost(address, host.host)) return true
    const owner = address === '' ? image.registry : address
    return ownEntries(this.#options.settings, host).some(([, entry]) => (entry.pullSecretsOf ?? []).some((registry) => registry === '*' || sameHost(owner, canonicalRegistry(registry.toLowerCase()))))
  }
}

/** Tells credentials apart without keeping them: tokens are cached under it, so that no pod profits from another one's secret. */
export function fingerprint(credential: Credential): string {
  return credential.kind === 'none' ? 'none' : createHash('sha256').update(JSON.stringify(credential)).digest('base64url')
}

/** What a text says in front of the reason why a host got no credential. */
export function withProblem(text: string, credential: Credential): string {
  return credential.kind === 'none' && credential.problem !== undefined ? `${text}: ${credential.problem}` : text
}

/** The settings for a host: its own name, then the longest pattern, then `*`. */
function ownEntries(settings: RegistrySettings, host: CredentialHost): [string, NonNullable<RegistrySettings['credentials']>[string]][] {
  const rank = (name: string): number => (name.startsWith('*') ? name.length : Number.POSITIVE_INFINITY)
  return Object.entries(settings.credentials ?? {})
    .filter(([name]) => (name.startsWith('*') ? (portOf(name) === undefined ? hostName(host.host) : host.host).endsWith(name.slice(1).toLowerCase()) : sameHost(name, host.host)))
    .sort(([a], [b]) => rank(b) - rank(a))
}

function notSent(host: CredentialHost, image: CredentialImage, auth: PullAuth): string {
  const address = auth?.server_address ?? ''
  if (host.ownRegistry) return `the pull secret is for ${withoutSecrets(address)} (its server_address)`
  const owner = address === '' ? image.registry : withoutSecrets(address)
  return `the pull secret is for ${owner} alone; give ${host.host} its own, or pull_secrets_of`
}

function addStatic(found: Candidate[], auth: AuthSettings, source: string): void {
  const { username = '', password = '', identityToken = '', auth: encoded = '' } = auth
  if (identityToken !== '' && namesNobody(username, password)) found.push({ kind: 'known', source, credential: { kind: 'identity', token: identityToken } })
  else if (username !== '') found.push({ kind: 'known', source, credential: withName(username, password) })
  else if (encoded !== '') {
    const credential = decode(encoded)
    found.push(credential === undefined ? { kind: 'problem', source, problem: `${source}: auth is not base64 of username:password` } : { kind: 'known', source, credential })
  }
}

function ofPullAuth(auth: Partial<AuthConfig>): Credential {
  const { username = '', password = '', auth: encoded = '', identity_token: identity = '', registry_token: registry = '' } = auth
  if (username !== '' && (identity === '' || !namesNobody(username, password))) return withName(username, password)
  if (identity !== '') return { kind: 'identity', token: identity }
  if (encoded !== '') {
    const credential = decode(encoded)
    if (credential === undefined) throw invalidArgument('the auth field of the pull secret is not base64 of username:password')
    return credential
  }
  if (registry === '') return none
  if (/[^\x21-\x7e]/.test(registry)) throw invalidArgument('the registry token of the pull secret has characters that no token has')
  return { kind: 'registry', token: registry }
}

/** What is written beside an identity token: no name, docker's stand-in, or a name without a password. */
function namesNobody(username: string, password: string): boolean {
  return username === '' || username === tokenName || password === ''
}

/** The user name that stands for "the secret is an identity token" (docker-credential-helpers). */
const tokenName = '<token>'

function withName(username: string, secret: string): Credential {
  return username === tokenName || username === '' ? { kind: 'identity', token: secret } : { kind: 'password', username, password: secret }
}

function decode(encoded: string): Credential | undefined {
  const bytes = Buffer.from(encoded, 'base64')
  const encoding = isUtf8(bytes) ? 'utf8' : 'latin1'
  const text = bytes.toString(encoding).replace(/\0+$/, '')
  const colon = text.indexOf(':')
  if (colon < 0 || text.length < 2 || !/^[A-Za-z0-9+/_-]+=*\s*$/.test(encoded)) return undefined
  const credential = withName(text.slice(0, colon), text.slice(colon + 1))
  return encoding === 'latin1' && credential.kind === 'password' ? { ...credential, encoding } : credential
}

/** What Basic authentication sends, and what must not be seen of it. */
export function basicAuthorization({ username, password, encoding }: PasswordCredential): string {
  return `Basic ${Buffer.from(`${username}:${password}`, encoding).toString('base64')}`
}

/** Parts of a form (`application/x-www-form-urlencoded`) with a name and a password, in the bytes that they are. */
export function passwordForm({ username, password, encoding }: PasswordCredential): string {
  if (encoding === undefined) return new URLSearchParams({ username, password }).toString()
  const escaped = (text: string): string => Buffer.from(text, encoding).reduce((all, byte) => `${all}%${byte.toString(16).padStart(2, '0')}`, '')
  return `username=${escaped(username)}&password=${escaped(password)}`
}

/** What helpers know a host by. Docker Hub has a name of its own there. */
function serverOf(host: CredentialHost): string {
  return canonicalRegistry(host.host) === 'docker.io' ? 'https://index.docker.io/v1/' : host.host
}
