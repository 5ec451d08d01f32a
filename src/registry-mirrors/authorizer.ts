import type { IncomingMessage } from 'node:http'
import { abortable } from '../concurrency/keyed-mutex.ts'
import type { Logger } from '../observability/logger.ts'
import { discardBody, readBody } from './body-reader.ts'
import { type Challenge, parseChallenges } from './challenge.ts'
import { basicAuthorization, type Credential, fingerprint, passwordForm, withProblem } from './credentials.ts'
import { readDetail } from './error-detail.ts'
import { failureOfError, HostFailure, retryAfter, safeText } from './failures.ts'
import { hostName } from './host-url.ts'
import { keepNewest } from './newest.ts'
import type { RegistryHost } from './registry-host.ts'
import { secretsInHeaders, secretsInQuery, secretsOf } from './secrets.ts'
import type { Transport } from './transport.ts'

interface Token {
  readonly value: string
  /** By the clock that nobody sets. */
  readonly givenAtMs: number
  readonly expiresAtMs: number
  /** A refresh token that takes the place of the one that was used. */
  readonly refreshToken?: string
}

/** Who asks whom for what. */
export interface AuthScope {
  readonly host: RegistryHost
  readonly repository: string
  readonly credential: Credential
  /** It is a host that nobody configured. */
  readonly foreign?: boolean
  /** Told that the credential was refused. */
  readonly refused?: () => void
  readonly signal: AbortSignal
  readonly log: Logger
}

const maxTokens = 1000
/** Servers take some 8 to 32 KiB of headers; a registry that anybody may name must not fill the memory with what it calls tokens. */
const maxTokenLength = 32 * 1024
const maxAnswerBytes = 256 * 1024
const tokenTimeoutMs = 60_000
/** The token specification's lifetime when the service names none, and the least that it may name. */
const defaultLifetimeMs = 60_000
/** A token that was given within this time says what is allowed now. */
const freshMs = 10_000
/** Nobody means more. */
const maxLifetimeMs = 7 * 24 * 3_600_000

/**
 * Answers a registry's challenges: Basic, and Bearer through a token service (the distribution project's token and oauth2
 * specifications). Tokens are kept per host, repository and credential until shortly before they expire.
 */
export class Authorizer {
  readonly #transport: Transport
  readonly #idleTimeoutMs: number
  readonly #tokens = new Map<string, Token>()
  readonly #asking = new Map<string, Promise<Token>>()
  readonly #refreshTokens = new Map<string, string>()
  readonly #closing = new AbortController()

  constructor(transport: Transport, idleTimeoutMs: number) {
    this.#transport = transport
    this.#idleTimeoutMs = idleTimeoutMs
  }

  /** The Authorization header that worked before for the same thing, undefined when the registry has to be asked what it wants. */
  known(scope: AuthScope): string | undefined {
    if (scope.credential.kind === 'registry') return `Bearer ${scope.credential.token}`
    const token = this.#tokens.get(keyOf(scope))
    return token !== undefined && token.expiresAtMs > performance.now() ? token.value : undefined
  }

  /**
   * The Authorization header that answers a 401. `sent` is what that request carried; a token of ours that was refused is not used
   * again. Throws a HostFailure saying why there is no answer.
   */
  async answer(response: IncomingMessage, sent: string | undefined, scope: AuthScope): Promise<string> {
    const key = keyOf(scope)
    const current = this.#tokens.get(key)
    if (current !== undefined && current.value === sent) this.#tokens.delete(key)
    // Somebody else has a newer one by now.
    else if (current !== undefined && current.expiresAtMs > performance.now()) return current.value
    const token = await abortable(this.#ask(key, response, scope), scope.signal)
    return token.value
  }

  /**
   * A 403 to what `sent` carried. A token says what was allowed when it was given, and some registries mean by 403 that it has run out: it is not used
   * again. True when it was not given just now, so that another one may help.
   */
  denied(sent: string | undefined, scope: AuthScope): boolean {
    const key = keyOf(scope)
    const current = this.#tokens.get(key)
    if (current === undefined || current.value !== sent || !Number.isFinite(current.expiresAtMs)) return false
    this.#tokens.delete(key)
    return performance.now() - current.givenAtMs > freshMs
  }

  /** Token requests under way fail. */
  close(): void {
    this.#closing.abort(new HostFailure('unreachable', 'the service is shutting down'))
    this.#tokens.clear()
    this.#refreshTokens.clear()
  }

  /** One question for all that want the same token at once; it does not end with the one that happened to ask first. */
  #ask(key: string, response: IncomingMessage, scope: AuthScope): Promise<Token> {
    const asking = this.#asking.get(key)
    if (asking !== undefined) return asking
    const signal = AbortSignal.any([this.#closing.signal, AbortSignal.timeout(tokenTimeoutMs)])
    const challenges = parseChallenges(response.headersDistinct['www-authenticate'] ?? [])
    const started = this.#obtain(challenges, { ...scope, signal }).then((token) => {
      keepNewest(this.#tokens, key, token, maxTokens)
      return token
    }).finally(() => this.#asking.delete(key))
    this.#asking.set(key, started)
    return started
  }

  async #obtain(challenges: readonly Challenge[], scope: AuthScope): Promise<Token> {
    const { credential } = scope
    const bearer = challenges.find((challenge) => challenge.scheme === 'bearer')
    if (bearer !== undefined && credential.kind !== 'registry') return this.#bearerToken(bearer, scope)
    const basic = challenges.find((challenge) => challenge.scheme === 'basic')
    if (basic !== undefined && credential.kind === 'password') {
      return { value: basicAuthorization(credential), givenAtMs: performance.now(), expiresAtMs: Number.POSITIVE_INFINITY }
    }
    if (credential.kind === 'registry') throw new HostFailure('unauthenticated', 'the registry token was refused')
    if (basic !== undefined) throw new HostFailure('unauthenticated', credential.kind === 'none' ? withProblem('needs a user name and password, and none is given', credential) : 'takes a user name and password, not an identity token')
    const schemes = challenges.slice(0, 3).map(({ scheme }) => scheme.slice(0, 20)).join(', ')
    throw new HostFailure('unauthenticated', withProblem(`401 unauthorized, without a challenge that is understood${schemes === '' ? '' : ` (${schemes})`}`, credential))
  }

  async #bearerToken(challenge: Challenge, scope: AuthScope): Promise<Token> {
    const realm = realmOf(challenge, scope)
    const service = challenge.parameters['service'] ?? ''
    const wanted = challenge.parameters['scope'] ?? ''
    const scopes = wanted === '' ? [`repository:${scope.repository}:pull`] : wanted.split(' ').filter((part) => part !== '')
    const { credential } = scope
    if (credential.kind === 'identity') return this.#refresh(realm, { service, scope: scopes.join(' ') }, credential.token, scope)
    const url = new URL(realm)
    if (service !== '') url.searchParams.set('service', service)
    for (const part of scopes) url.searchParams.append('scope', part)
    const authorization = credential.kind === 'password' ? basicAuthorization(credential) : undefined
    const response = await this.#send(url, { method: 'GET', authorization }, scope)
    // A token service that knows only the oauth2 way.
    if (credential.kind === 'password' && (response.statusCode === 404 || response.statusCode === 405)) {
      await discardBody(response)
      const form = new URLSearchParams({ service, scope: scopes.join(' '), client_id: 'cri-shim', grant_type: 'password' })
      return this.#post(realm, `${form.toString()}&${passwordForm(credential)}`, scope)
    }
    return this.#readToken(response, realm, scope)
  }

  /** Exchanges a refresh token. A service may replace it with every use; the one that was given first is what is tried last. */
  async #refresh(realm: URL, form: Readonly<Record<string, string>>, given: string, scope: AuthScope): Promise<Token> {
    const key = `${realm.origin}${realm.pathname} ${fingerprint(scope.credential)}`
    const exchange = async (token: string): Promise<Token> => {
      const got = await this.#post(realm, new URLSearchParams({ ...form, client_id: 'cri-shim', grant_type: 'refresh_token', refresh_token: token }).toString(), scope, [token])
      if (got.refreshToken !== undefined && got.refreshToken !== token) keepNewest(this.#refreshTokens, key, got.refreshToken, maxTokens)
      return got
    }
    const newer = this.#refreshTokens.get(key)
    if (newer === undefined) return exchange(given)
    try {
      return await exchange(newer)
    } catch (error) {
      if (!(error instanceof HostFailure) || (error.kind !== 'unauthenticated' && error.kind !== 'denied')) throw error
      this.#refreshTokens.delete(key)
      return exchange(given)
    }
  }

  async #post(realm: URL, body: string, scope: AuthScope, secrets: readonly string[] = []): Promise<Token> {
    return this.#readToken(await this.#send(realm, { method: 'POST', body }, scope), realm, scope, secrets)
  }

  async #send(url: URL, what: { readonly method: 'GET' | 'POST'; readonly authorization?: string | undefined; readonly body?: string }, scope: AuthScope): Promise<IncomingMessage> {
    try {
      const answer = await this.#transport.send(scope.host, {
        ...what, url, believed: true, foreign: scope.foreign ?? false, signal: scope.signal, log: scope.log,
        headers: { accept: 'application/json', ...(what.body === undefined ? {} : { 'content-type': 'application/x-www-form-urlencoded; charset=utf-8' }) },
      })
      return answer.response
    } catch (error) {
      throw atService(url, failureOfError(error))
    }
  }

  async #readToken(response: IncomingMessage, realm: URL, scope: AuthScope, secrets: readonly string[] = []): Promise<Token> {
    const status = response.statusCode ?? 0
    if (status < 200 || status > 299) {
      const sent = [...secrets, ...secretsOf(scope.credential), ...secretsInHeaders(scope.host.headers), ...secretsInQuery(realm)]
      throw refused(response, realm, scope, await readDetail(response, this.#idleTimeoutMs, sent))
    }
    let body: unknown
    try {
      body = JSON.parse((await readBody(response, maxAnswerBytes, this.#idleTimeoutMs)).toString('utf8'))
    } catch (error) {
      throw error instanceof SyntaxError ? atService(realm, new HostFailure('server', 'its answer is not JSON')) : atService(realm, failureOfError(error))
    }
    const { token, access_token: access, expires_in: expires, refresh_token: refresh } = (typeof body === 'object' && body !== null ? body : {}) as Record<string, unknown>
    const value = typeof token === 'string' && token !== '' ? token : access
    if (typeof value !== 'string' || value === '' || /[^\x21-\x7e]/.test(value)) throw atService(realm, new HostFailure('server', 'its answer has no token'))
    if (value.length > maxTokenLength) throw atService(realm, new HostFailure('server', `its token has ${value.length} characters, the limit is ${maxTokenLength}`))
    const lifetimeMs = Math.min(Math.max(typeof expires === 'number' && expires > 0 ? expires * 1000 : 0, defaultLifetimeMs), maxLifetimeMs)
    // A token is not used in its last tenth, nor in its last ten seconds: it has to live until the request arrives.
    const givenAtMs = performance.now()
    return {
      value: `Bearer ${value}`, givenAtMs, expiresAtMs: givenAtMs + lifetimeMs - Math.max(lifetimeMs / 10, 10_000),
      ...(typeof refresh === 'string' && refresh !== '' && refresh.length <= maxTokenLength ? { refreshToken: refresh } : {}),
    }
  }
}

/** What a 401 means after its challenge was met. */
export function stillUnauthorized(scope: AuthScope): HostFailure {
  scope.refused?.()
  return scope.credential.kind === 'none'
    ? new HostFailure('unauthenticated', withProblem('401 unauthorized: the image does not exist or needs credentials, and none are given', scope.credential))
    : new HostFailure('denied', '401 unauthorized: the image does not exist or the credentials do not allow to pull it')
}

/** Whether an answer says where a token can be had. */
export function offersToken(response: IncomingMessage): boolean {
  return parseChallenges(response.headersDistinct['www-authenticate'] ?? []).some(({ scheme }) => scheme === 'bearer')
}

function keyOf(scope: AuthScope): string {
  return `${scope.host.url} ${scope.repository} ${fingerprint(scope.credential)}`
}

function realmOf(challenge: Challenge, scope: AuthScope): URL {
  const realm = challenge.parameters['realm']
  const url = realm !== undefined && URL.canParse(realm) ? new URL(realm) : undefined
  if (url === undefined || (url.protocol !== 'https:' && url.protocol !== 'http:')) {
    throw new HostFailure('server', 'its 401 names no token service (realm)')
  }
  url.username = ''
  url.password = ''
  // What hosts.toml adds as headers is sent there too, as containerd does: it often is the credential.
  const secret = scope.credential.kind !== 'none' || Object.keys(scope.host.headers).some((name) => /auth|token|key|cookie/i.test(name))
  // A registry that is spoken to in plain HTTP may have its tokens from the same machine in the same way, not from elsewhere.
  if (secret && url.protocol === 'http:' && (scope.host.protocol === 'https' || hostName(url.host) !== hostName(scope.host.host))) {
    throw new HostFailure('server', `its token service ${safeText(url.host, 80)} is plain HTTP: credentials are not sent there`)
  }
  return url
}

function refused(response: IncomingMessage, realm: URL, scope: AuthScope, detail: string): HostFailure {
  const status = response.statusCode ?? 0
  const said = detail === '' ? '' : ` (${detail})`
  if (status === 401 || status === 403 || (status === 400 && scope.credential.kind !== 'none')) {
    scope.refused?.()
    const text = scope.credential.kind === 'none' ? 'gives no token without credentials' : 'refused the credentials'
    return atService(realm, new HostFailure(status === 403 ? 'denied' : 'unauthenticated', withProblem(`${text} (${status})${said}`, scope.credential)))
  }
  const wait = retryAfter(response.headers)
  return atService(realm, new HostFailure(status === 429 ? 'limited' : 'server', `answered ${status}${said}`, { transient: status === 429 || status >= 500, ...(wait === undefined ? {} : { retryAfterMs: wait }) }))
}

function atService(realm: URL, failure: HostFailure): HostFailure {
  return failure.with(`token service ${safeText(realm.host, 80)}: ${failure.message}`, { connected: true })
}
