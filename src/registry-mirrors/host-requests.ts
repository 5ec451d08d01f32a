import type { IncomingMessage } from 'node:http'
import type { Logger } from '../observability/logger.ts'
import { type Authorizer, type AuthScope, offersToken, stillUnauthorized } from './authorizer.ts'
import { discardBody } from './body-reader.ts'
import { type Credential, type Credentials, type PullAuth, withProblem } from './credentials.ts'
import type { ConnectLead } from './dispatch.ts'
import { readDetail } from './error-detail.ts'
import { failureOfStatus, HostFailure } from './failures.ts'
import type { ImageRef } from './image-ref.ts'
import type { Headers, RegistryHost } from './registry-host.ts'
import { secretsInAuthorization, secretsInHeaders, secretsInQuery, secretsOf } from './secrets.ts'
import { type Answer, atTarget, type Transport } from './transport.ts'

/** For which image, with which pull secret. */
export interface Asking {
  readonly ref: ImageRef
  readonly auth: PullAuth
  readonly signal: AbortSignal
  readonly log: Logger
  readonly connectLead?: ConnectLead | undefined
}

/** What is asked of a host about the image. */
export interface Question {
  readonly method: 'GET' | 'HEAD'
  /** Below the repository: `manifests/latest`. */
  readonly object: string
  readonly headers: Readonly<Record<string, string>>
  /** The answer is taken for true: it must not come in plain HTTP when the question went over TLS. */
  readonly believed?: boolean
}

/** Any answer. */
export interface Answered {
  readonly response: IncomingMessage
  /** What the answer says if it is a refusal, with what the registry wrote about it. */
  readonly refusal: (detail: string) => HostFailure
  /** What was sent, or is known to whoever answered, and must not be seen. */
  readonly secrets: () => readonly string[]
}

export interface HostRequestsDeps {
  readonly transport: Transport
  readonly authorizer: Authorizer
  readonly credentials: Credentials
  /** Sent to every host. */
  readonly headers: Headers
  readonly stallTimeoutMs: number
}

/** Requests to one host, with the credential that is for it. They reject with a HostFailure, a CriError that no other host would change, or the signal's reason. */
export class HostRequests {
  readonly #transport: Transport
  readonly #authorizer: Authorizer
  readonly #credentials: Credentials
  readonly #headers: Headers
  readonly #stallTimeoutMs: number

  constructor({ transport, authorizer, credentials, headers, stallTimeoutMs }: HostRequestsDeps) {
    this.#transport = transport
    this.#authorizer = authorizer
    this.#credentials = credentials
    this.#headers = headers
    this.#stallTimeoutMs = stallTimeoutMs
  }

  /** A 2xx answer; anything else is a HostFailure with what the registry wrote about it. */
  async ask(host: RegistryHost, asking: Asking, question: Question): Promise<IncomingMessage> {
    const { response, refusal, secrets } = await this.answer(host, asking, question)
    const status = response.statusCode ?? 0
    if (status === 200 || status === 206) return response
    const detail = await readDetail(response, this.#stallTimeoutMs, secrets())
    asking.signal.throwIfAborted()
    throw refusal(detail)
  }

  /** Any answer, after the registry's challenge was met. */
  async answer(host: RegistryHost, asking: Asking, question: Question): Promise<Answered> {
    const { signal, log, ref, auth, connectLead } = asking
    const credential = await this.#credentials.of(host, ref, auth, signal)
    const scope: AuthScope = { host, repository: ref.repository, credential, refused: () => void this.#credentials.refused(host, ref), signal, log }
    const url = new URL(`${host.url}/${ref.repository}/${question.object}`)
    if (!host.ownRegistry) url.searchParams.set('ns', ref.registry)
    const answered = ({ response, redirected, url: from, authorization: sent }: Answer): Answered => ({
      response,
      secrets: () => [...secretsOf(credential), ...secretsInAuthorization(sent), ...secretsInAuthorization(authorization), ...secretsInHeaders(this.#headers), ...secretsInHeaders(host.headers), ...(redirected ? secretsInQuery(from) : [])],
      refusal: (detail) => {
        const failure = failureOfStatus(response.statusCode ?? 0, detail, response.headers)
        if (redirected) return atTarget(from, failure)
        if (failure.kind === 'denied') scope.refused?.()
        return withCredentialProblem(failure, credential)
      },
    })
    let authorization = this.#authorizer.known(scope)
    const authorizationAt = (target: URL): string | undefined => this.#authorizer.known(anonymousAt(target, scope))
    for (let [met, metElsewhere] = [false, false]; ;) {
      const answer = await this.#transport.send(host, { ...question, url, authorization, authorizationAt, connectLead, signal, log })
      const { response, redirected } = answer
      if (response.statusCode === 403 && !redirected && !met && this.#authorizer.denied(authorization, scope)) {
        await discardBody(response)
        authorization = undefined
        continue
      }
      if (response.statusCode !== 401 || (redirected && (metElsewhere || !offersToken(response)))) return answered(answer)
      await discardBody(response)
      if (redirected) {
        metElsewhere = true
        await this.#authorizer.answer(response, answer.authorization, anonymousAt(answer.url, scope)).catch((error: unknown) => {
          throw error instanceof HostFailure ? atTarget(answer.url, error) : error
        })
        continue
      }
      const next = met ? authorization : await this.#authorizer.answer(response, authorization, scope)
      if (next === authorization) throw stillUnauthorized(scope)
      met = true
      authorization = next
    }
  }
}

/** Registries behind another name redirect to one that wants a token from everybody. Credentials are not for there: whoever redirects chose the host. */
function anonymousAt(target: URL, scope: AuthScope): AuthScope {
  const { host, signal, log } = scope
  const there: RegistryHost = {
    ...host, url: target.origin, protocol: target.protocol === 'http:' ? 'http' : 'https', host: target.host, apiRoot: '', headers: {}, tls: { ...host.tls, clientPairs: [] }, ownRegistry: false,
  }
  // Longer than any: whoever redirects chose it, and tokens are kept under it.
  const repository = /^\/v2\/(.{1,255})\/(?:manifests|blobs)\//.exec(target.pathname)?.[1] ?? scope.repository
  return { host: there, repository, credential: { kind: 'none' }, foreign: true, signal, log }
}

/** A registry may say in many ways that it wants a credential: that there is none although one was meant to be belongs to the answer. */
function withCredentialProblem(failure: HostFailure, credential: Credential): HostFailure {
  if (credential.kind !== 'none' || credential.problem === undefined) return failure
  const tells = failure.kind === 'unauthenticated' || failure.kind === 'denied' || (credential.unreadable === true && (failure.kind === 'missing' || failure.kind === 'limited'))
  return tells ? failure.with(withProblem(failure.message, credential)) : failure
}
