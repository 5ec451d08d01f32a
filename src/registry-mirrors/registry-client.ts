import type { IncomingMessage } from 'node:http'
import type { Registry } from 'prom-client'
import { pause } from '../concurrency/deadline.ts'
import { Code, CriError, errnoOf, invalidArgument, notFound } from '../errors/cri-error.ts'
import type { Ctx } from '../observability/context.ts'
import type { Logger } from '../observability/logger.ts'
import { Authorizer } from './authorizer.ts'
import { BlobStream, type OpenedBody } from './blob-stream.ts'
import { discardBody } from './body-reader.ts'
import { encodingOf } from './content-encoding.ts'
import { Credentials, type PullAuth } from './credentials.ts'
import { digestProblem, shortDigest } from './digest.ts'
import { type Descriptor, DocumentRequests, maxManifestBytes } from './documents.ts'
import { failureOfError, HostFailure, safeText } from './failures.ts'
import { FileCache } from './file-cache.ts'
import { HostHealth, type HostHealthOptions, type HostState } from './host-health.ts'
import { firstToServe } from './host-race.ts'
import { type Asking, HostRequests } from './host-requests.ts'
import { type HostsFile, parseHostsFile } from './hosts-file.ts'
import type { ImageRef } from './image-ref.ts'
import { bareType } from './media-types.ts'
import type { Capability, RegistryHost } from './registry-host.ts'
import { noRegistryMetrics, registerRegistryMetrics, type RegistryMetrics, type RequestResult } from './registry-metrics.ts'
import { resolveHosts } from './resolve-hosts.ts'
import type { RegistrySettings } from './settings.ts'
import { Transport } from './transport.ts'

export type { Descriptor } from './documents.ts'

export interface RegistryClientOptions extends RegistrySettings {
  readonly log: Logger
  /** `cri-shim/1.2.3` */
  readonly userAgent: string
  /** Proxy variables and SSL_CERT_FILE. Default: the process's environment. */
  readonly env?: Readonly<Record<string, string | undefined>>
  /** How long a host may take to begin its answer. Default: 30,000. */
  readonly headerTimeoutMs?: number
  /** Within this time of waiting for them, 32 KiB of an answer's body must arrive. Default: 30,000. */
  readonly stallTimeoutMs?: number
  /** The wait before a host is asked again, doubled each time. Default: 250. */
  readonly retryDelayMs?: number
  /** Head starts and the time that a failing host is skipped. */
  readonly health?: HostHealthOptions
  /** Where figures per configured host are registered. Default: nowhere. */
  readonly metrics?: Registry
}

/** Hears why a host was not the one that served. */
export interface PassOver {
  readonly passedOver?: (host: string, why: string) => void
}

export interface OpenBlobOptions extends PassOver {
  /** Where to begin, for a download that was interrupted. Default: 0. */
  readonly offsetBytes?: number
  /** Where to end. Default: the blob's size. */
  readonly endBytes?: number
  readonly auth?: PullAuth
  readonly signal: AbortSignal
  /** Default: the client's own. */
  readonly log?: Logger
  /** URLs of hosts (as in `hosts` of an earlier attempt) not to ask, since what they sent did not match the digest. */
  readonly avoid?: readonly string[]
  /** Told of all bytes as they arrive, with the host as configured: those too that a host without Range sends in front of the offset. */
  readonly onReceived?: (bytes: number, host: string) => void
}

export interface OpenedBlob {
  /** Whether the first host says that it knows ranges. */
  readonly acceptsRanges: boolean
  /** The bytes from `offsetBytes` to the end, in pieces that are each good until the next is asked for. Can be read once. Errors are CriErrors or the signal's reason. */
  readonly stream: AsyncIterable<Buffer>
  readonly offsetBytes: number
  /** The host that serves now. */
  readonly host: string
  /** The URLs of all hosts that served a part so far, in order. */
  readonly hosts: readonly string[]
  /** Ends the connection. Not needed after the stream was read or left early. */
  close(): void
}

interface Plan extends Asking {
  readonly hosts: readonly RegistryHost[]
  readonly passedOver: PassOver['passedOver']
}

/** Asks one host; `its` is the plan with the attempt's own signal. */
type Attempt<T> = (host: RegistryHost, its: Plan) => Promise<T>

const maxAttemptsAtLastHost = 3
/** What a Retry-After may ask of a request that has no other host. */
const maxRetryAfterMs = 60_000

/** Fetches images from registries and their mirrors: hosts in order, each request falling back to the next host. */
export class RegistryClient {
  readonly #options: RegistryClientOptions
  readonly #transport: Transport
  readonly #authorizer: Authorizer
  readonly #requests: HostRequests
  readonly #documents: DocumentRequests
  readonly #files = new FileCache<HostsFile>((bytes, file) => parseHostsFile(bytes, file))
  readonly #warned = new Set<string>()
  readonly #stallTimeoutMs: number
  readonly #retryDelayMs: number
  readonly #closing = new AbortController()
  readonly #health: HostHealth
  readonly #metrics: RegistryMetrics

  constructor(options: RegistryClientOptions) {
    this.#options = options
    this.#stallTimeoutMs = options.stallTimeoutMs ?? 30_000
    this.#retryDelayMs = options.retryDelayMs ?? 250
    this.#transport = new Transport({
      userAgent: options.userAgent, headers: options.headers, env: options.env ?? process.env, headerTimeoutMs: options.headerTimeoutMs ?? 30_000,
    })
    this.#health = new HostHealth({
      onTurn: (host, skipped) => {
        const about = { registryHost: host.host, source: host.source }
        if (skipped === undefined) options.log.info(about, 'a registry host is back: it is asked again')
        else options.log.info({ ...about, why: skipped.why, forMs: skipped.forMs }, 'a registry host keeps failing: it is skipped until it answers')
      },
      ...options.health,
    })
    this.#metrics = options.metrics === undefined ? noRegistryMetrics : registerRegistryMetrics(options.metrics, () => this.#health.hosts())
    this.#authorizer = new Authorizer(this.#transport, this.#stallTimeoutMs)
    const credentials = new Credentials({ settings: options, env: options.env ?? process.env, warn: (warning) => this.#warnOnce(warning) })
    this.#requests = new HostRequests({ transport: this.#transport, authorizer: this.#authorizer, credentials, headers: options.headers, stallTimeoutMs: this.#stallTimeoutMs })
    this.#documents = new DocumentRequests(this.#requests, this.#stallTimeoutMs)
  }

  /** The hosts that a registry's images are asked from, in order, with everything known about each. */
  async hosts(registry: string): Promise<RegistryHost[]> {
    return resolveHosts(registry, { settings: this.#options, files: this.#files, warn: (warning) => this.#warnOnce(warning) })
  }

  /** What is known of every host that was asked since the start. */
  hostStates(): HostState[] {
    return this.#health.states()
  }

  /** What is known of one of `hosts()`. */
  stateOf(host: RegistryHost): HostState {
    return this.#health.stateOf(host)
  }

  /** Which manifest or index a reference means. A tag is asked only from hosts that may resolve; a digest from all that may pull. */
  async resolve(ref: ImageRef, auth: PullAuth, ctx: Ctx & PassOver): Promise<{ readonly descriptor: Descriptor; readonly host: string }> {
    const plan = await this.#plan(ref, auth, ctx)
    const needed: readonly Capability[] = ref.digest === undefined ? ['pull', 'resolve'] : ['pull']
    return this.#firstOf(`cannot resolve ${ref.toString()}`, plan, usable(plan, needed), async (host, its) => ({ descriptor: await this.#documents.resolve(host, its), host: host.host }))
  }

  /** What one host of `hosts()` says that a reference means, whatever its capabilities; nothing is remembered of it. For probes. Rejects with a HostFailure or a CriError. */
  async resolveAt(host: RegistryHost, ref: ImageRef, auth: PullAuth, ctx: Ctx): Promise<Descriptor> {
    return this.#documents.resolve(host, await this.#plan(ref, auth, ctx))
  }

  /** The bytes of a manifest, an index or any small document under `manifests/`, verified by digest. */
  async fetchManifest(ref: ImageRef, descriptor: Descriptor, auth: PullAuth, ctx: Ctx & PassOver): Promise<{ readonly bytes: Buffer; readonly host: string }> {
    return this.#fetchSmall('manifests', ref, descriptor, auth, ctx)
  }

  /** The bytes of a small blob (an image's configuration), verified by digest. */
  async fetchSmallBlob(ref: ImageRef, descriptor: Descriptor, auth: PullAuth, ctx: Ctx & PassOver): Promise<{ readonly bytes: Buffer; readonly host: string }> {
    return this.#fetchSmall('blobs', ref, descriptor, auth, ctx)
  }

  /**
   * Begins to fetch a blob. Resolves when a host has agreed to serve it. A connection that breaks is continued where it was, on the
   * next host or again on the same one. The bytes are not verified here: whoever stores them knows their digest when all are there.
   */
  async openBlob(ref: ImageRef, descriptor: Descriptor, options: OpenBlobOptions): Promise<OpenedBlob> {
    const offsetBytes = options.offsetBytes ?? 0
    checkDescriptor(descriptor)
    const endBytes = options.endBytes ?? descriptor.sizeBytes
    if (!Number.isSafeInteger(offsetBytes) || offsetBytes < 0 || offsetBytes > endBytes || endBytes > descriptor.sizeBytes) {
      throw invalidArgument(`offset ${offsetBytes} is outside of the ${descriptor.sizeBytes} bytes of ${descriptor.digest}`)
    }
    const plan = await this.#plan(ref, options.auth, { signal: options.signal, log: options.log ?? this.#options.log, ...(options.passedOver === undefined ? {} : { passedOver: options.passedOver }) })
    const able = usable(plan, ['pull'])
    const avoid = options.avoid ?? []
    const hosts = able.filter((host) => !avoid.includes(host.url))
    const what = `cannot fetch layer or configuration ${shortDigest(descriptor.digest)} of ${ref.name}`
    if (hosts.length === 0 && able.length > 0) {
      throw new CriError(Code.DATA_LOSS, `${what}: every host that has it sent wrong bytes (${able.map((host) => host.host).join(', ')})`, { reason: 'CONTENT' })
    }
    const open = (positionBytes: number, order: readonly RegistryHost[]): Promise<OpenedBody> =>
      this.#firstOf(what, plan, order, (host, its) => this.#openAt(host, its, descriptor, positionBytes, endBytes), ({ response }) => void discardBody(response))
    const stream = new BlobStream({
      what, hosts, open, sizeBytes: endBytes, isPart: endBytes < descriptor.sizeBytes, offsetBytes, signal: plan.signal, log: plan.log, stallTimeoutMs: this.#stallTimeoutMs, retryDelayMs: this.#retryDelayMs,
      onReceived: (host, bytes) => {
        this.#metrics.bytes(host, bytes)
        options.onReceived?.(bytes, host.host)
      },
      onDelivered: (host) => this.#health.delivered(host),
      onBrokenOff: (host, failure) => {
        this.#metrics.request(host, 'broken-off', 0)
        this.#health.brokeOff(host, failure, plan.ref.name)
        options.passedOver?.(host.host, failure.message)
      },
    })
    await stream.start()
    return stream
  }

  /** Ends every connection and request; the client cannot be used any more. */
  close(): void {
    this.#closing.abort(new CriError(Code.UNAVAILABLE, 'the service is shutting down', { reason: 'SHUTDOWN' }))
    this.#authorizer.close()
    this.#transport.close()
  }

  async #plan(ref: ImageRef, auth: PullAuth, ctx: Pick<Ctx, 'signal' | 'log'> & PassOver): Promise<Plan> {
    const signal = AbortSignal.any([ctx.signal, this.#closing.signal])
    signal.throwIfAborted()
    return { ref, hosts: await this.hosts(ref.registry), auth, signal, log: ctx.log, passedOver: ctx.passedOver }
  }

  async #fetchSmall(kind: 'manifests' | 'blobs', ref: ImageRef, descriptor: Descriptor, auth: PullAuth, ctx: Ctx & PassOver): Promise<{ readonly bytes: Buffer; readonly host: string }> {
    checkDescriptor(descriptor)
    const what = `cannot fetch ${kind === 'manifests' ? 'manifest' : 'configuration'} ${shortDigest(descriptor.digest)} of ${ref.name}`
    if (descriptor.sizeBytes > maxManifestBytes) {
      throw new CriError(Code.FAILED_PRECONDITION, `${what}: it has ${descriptor.sizeBytes} bytes, the limit is ${maxManifestBytes}`, { reason: 'TOO_LARGE' })
    }
    const plan = await this.#plan(ref, auth, ctx)
    return this.#firstOf(what, plan, usable(plan, ['pull']), async (host, its) => ({ bytes: await this.#documents.fetch(kind, host, its, descriptor), host: host.host }))
  }

  async #openAt(host: RegistryHost, plan: Plan, descriptor: Descriptor, positionBytes: number, endBytes: number): Promise<OpenedBody> {
    const last = endBytes < descriptor.sizeBytes ? endBytes - 1 : ''
    const range: Record<string, string> = positionBytes === 0 && last === '' ? {} : { range: `bytes=${positionBytes}-${last}` }
    const accept = descriptor.mediaType === '' ? '*/*' : `${descriptor.mediaType}, */*`
    const response = await this.#requests.ask(host, plan, { method: 'GET', object: `blobs/${descriptor.digest}`, headers: { accept, ...range } })
    try {
      return { host, response, skipBytes: bytesToSkip(response, descriptor, positionBytes, endBytes) }
    } catch (error) {
      await discardBody(response)
      throw error
    }
  }

  /** Asks the hosts in order until one serves. Hosts in front of others get one chance, the last one some more. Each attempt has a signal of its own. */
  async #firstOf<T>(what: string, plan: Plan, hosts: readonly RegistryHost[], attempt: Attempt<T>, discard: (late: T) => void = () => undefined): Promise<T> {
    if (hosts.length === 0) {
      throw notFound(`${what}: no host is configured for ${plan.ref.registry} that may serve it (see capabilities in ${plan.hosts[0]?.source ?? 'hosts.toml'})`)
    }
    return firstToServe({
      what, about: plan.ref.name, hosts, health: this.#health, discard, signal: plan.signal, closing: this.#closing.signal,
      attempt: async (host, { patient, wanted, connectLead, signal }) => {
        const its = { ...plan, connectLead, signal }
        try {
          return await (patient ? this.#persistently(host, its, attempt, wanted) : this.#attempt(host, its, attempt))
        } catch (error) {
          if (!(error instanceof HostFailure)) throw error
          plan.passedOver?.(host.host, error.message)
          plan.log.debug({ registryHost: host.host, registry: plan.ref.registry, why: error.message }, 'registry host failed')
          if (error.kind === 'config') this.#warnOnce(`${host.source}: ${host.host} is passed over: ${error.message}`)
          throw error
        }
      },
      onSkip: ({ host, failure }) => {
        plan.passedOver?.(host.host, failure.message)
        plan.log.debug({ registryHost: host.host, registry: plan.ref.registry, why: failure.message }, 'registry host passed over')
      },
    })
  }

  async #persistently<T>(host: RegistryHost, plan: Plan, attempt: Attempt<T>, wanted: () => boolean): Promise<T> {
    // Another request was told to wait.
    const heldForMs = this.#health.heldForMs(host)
    if (heldForMs > 0 && heldForMs <= maxRetryAfterMs) await pause(heldForMs, plan.signal)
    for (let attempts = 1; ; attempts++) {
      try {
        return await this.#attempt(host, plan, attempt)
      } catch (failure) {
        if (!(failure instanceof HostFailure) || !failure.transient || attempts === maxAttemptsAtLastHost || (failure.retryAfterMs ?? 0) > maxRetryAfterMs || !wanted()) throw failure
        const waitMs = Math.max(this.#retryDelayMs * 2 ** (attempts - 1), failure.retryAfterMs ?? 0)
        plan.log.debug({ registryHost: host.host, why: failure.message, waitMs }, 'asking the registry again')
        await pause(waitMs, plan.signal)
      }
    }
  }

  /** One question to one host, counted and remembered. Rejects with a HostFailure, a CriError that no other host would change, or the signal's reason. */
  async #attempt<T>(host: RegistryHost, plan: Plan, attempt: Attempt<T>): Promise<T> {
    const [started, sinceMs, about] = [performance.now(), this.#health.now(), plan.ref.name]
    const count = (result: RequestResult): void => this.#metrics.request(host, result, (performance.now() - started) / 1000)
    try {
      const value = await attempt(host, plan)
      this.#health.answered(host, about)
      count('ok')
      return value
    } catch (error) {
      if (plan.signal.aborted || error instanceof CriError) {
        this.#health.abandoned(host, about)
        count('cancelled')
        plan.signal.throwIfAborted()
        throw error
      }
      const failure = withHint(failureOfError(error), host, this.#health.hasAnswered(host))
      this.#health.failed(host, failure, about, sinceMs)
      count(failure.kind)
      throw failure
    }
  }

  #warnOnce(warning: string): void {
    if (this.#warned.has(warning)) return
    if (this.#warned.size >= 1000) this.#warned.clear()
    this.#warned.add(warning)
    this.#options.log.warn(warning)
  }
}

function usable(plan: Plan, needed: readonly Capability[]): RegistryHost[] {
  return plan.hosts.filter((host) => needed.every((capability) => host.capabilities.has(capability)))
}

/** What no registry calls a blob. */
const pageTypes: ReadonlySet<string> = new Set(['text/html', 'application/xhtml+xml', 'application/json', 'application/problem+json', 'application/xml', 'text/xml'])

/** How many bytes of an answer come before what was asked for: none, or all of them when the host does not know Range. */
function bytesToSkip(response: IncomingMessage, { sizeBytes, mediaType }: Descriptor, positionBytes: number, endBytes: number): number {
  const encoding = encodingOf(response.headers)
  const partial = response.statusCode === 206
  const said = response.headers['content-range']
  if (partial && (said !== undefined || positionBytes > 0 || endBytes < sizeBytes)) {
    const range = /^bytes (\d+)-(\d+)\/(\d+|\*)$/.exec(said ?? '')
    if (Number(range?.[1] ?? Number.NaN) !== positionBytes || (range?.[3] !== '*' && Number(range?.[3]) !== sizeBytes)) throw new HostFailure('content', 'sent another range than the one asked for')
  }
  const skip = partial ? 0 : positionBytes
  const length = response.headers['content-length']
  const expected = partial ? endBytes - positionBytes : sizeBytes
  // Storage says it of archives that are compressed themselves: they have the length that they should have.
  if (encoding !== undefined && Number(length) !== expected) throw new HostFailure('content', `sent the blob ${safeText(encoding, 30)}-encoded, which was not asked for`)
  // A login page, or an error that is called 200. What it has for a length cannot be a blob's by chance.
  const type = bareType(response.headers['content-type'])
  if (length === undefined && type !== bareType(mediaType) && pageTypes.has(type)) throw new HostFailure('content', `answered with ${type} in place of the blob`)
  if (length !== undefined && Number(length) !== expected) throw new HostFailure('content', `has ${length} bytes of it instead of ${expected}`)
  return skip
}

/** What an operator may have mistaken, where nothing else would tell. */
function withHint(failure: HostFailure, { apiRoot, protocol }: RegistryHost, hasAnswered: boolean): HostFailure {
  // `https://harbor/v2/project` without override_path: to the host it is an image that is not there.
  if (/\/v2\/.*\/v2$/.test(apiRoot) && (failure.kind === 'missing' || failure.kind === 'content')) {
    return failure.with(`${failure.message} (asked below ${apiRoot}: override_path = true takes the path as it is written)`)
  }
  // Some servers answer plain HTTP on a TLS port with nothing but a reset.
  return protocol === 'http' && !hasAnswered && errnoOf(failure.cause) === 'ECONNRESET' ? failure.with(`${failure.message} (if it speaks TLS, write https:// for it)`) : failure
}

function checkDescriptor(descriptor: Descriptor): void {
  const problem = digestProblem(descriptor.digest)
  if (problem !== undefined) throw invalidArgument(problem)
  if (!Number.isSafeInteger(descriptor.sizeBytes) || descriptor.sizeBytes < 0) throw invalidArgument(`${descriptor.digest}: ${descriptor.sizeBytes} is not a size`)
}
