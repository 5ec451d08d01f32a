import { setImmediate as turn } from 'node:timers/promises'
import type { CriError } from '../errors/cri-error.ts'
import type { ConnectLead } from './dispatch.ts'
import { allFailed, type FailedHost, HostFailure } from './failures.ts'
import type { HostHealth } from './host-health.ts'
import type { RegistryHost } from './registry-host.ts'

export interface RaceOptions<T> {
  /** Begins the error: `cannot fetch …`. */
  readonly what: string
  /** The image: what a host takes long for need not be all that it has. */
  readonly about?: string
  /** In order of preference, not empty. */
  readonly hosts: readonly RegistryHost[]
  readonly health: HostHealth
  /** Ends every attempt, but not those that another one has overtaken: what becomes of them is worth knowing after the pull. */
  readonly signal: AbortSignal
  /** Ends those too. */
  readonly closing: AbortSignal
  /** Asks one host. Rejects with a HostFailure when another one may do better, with anything else when none can. */
  readonly attempt: (host: RegistryHost, how: AttemptOptions) => Promise<T>
  /** Lets go of what a host brought after another one had served. */
  readonly discard: (late: T) => void
  /** Told of hosts that were not asked, and of those that had not answered yet when another one served: why. */
  readonly onSkip: (skipped: FailedHost) => void
}

export interface AttemptOptions {
  /** It is the last one, and may be asked again while `wanted()`. */
  readonly patient: boolean
  readonly wanted: () => boolean
  /** A host that was alive a moment ago and takes no connection any more has no longer lead than an unknown one. Undefined: nobody waits for that. */
  readonly connectLead: ConnectLead | undefined
  readonly signal: AbortSignal
}

type Outcome<T> =
  | { readonly kind: 'served'; readonly value: T }
  | { readonly kind: 'failed'; readonly failure: HostFailure }
  | { readonly kind: 'fatal'; readonly error: unknown }

interface Runner<T> {
  readonly host: RegistryHost
  readonly outcome: Promise<Outcome<T>>
  /** Undefined: no other is asked before this one is done. */
  readonly headStartMs: number | undefined
  readonly sinceMs: number
  /** Fulfilled when no connection stands in the time for that. */
  readonly unconnected: Promise<void>
  /** Why another one was asked before it had answered. */
  late: string | undefined
  /** Frees it from the signal of whoever began it. */
  readonly detach: () => void
  readonly stop: (reason: unknown) => void
}

/** In words that are the same each time: who collects them keeps few. */
function whyOvertaken({ late }: Pick<Runner<unknown>, 'late'>): HostFailure {
  return new HostFailure('unreachable', `${late === undefined ? '' : `${late}, and `}another host was faster`)
}

/** An overtaken attempt has its own deadlines; this one is for bodies that trickle in. */
const stragglerMs = 120_000

/**
 * Asks hosts in order until one serves. A host that takes longer than its head start is joined by the next one, and the first that
 * serves wins; the slower one goes on in the background, within its own deadlines, so that the next request knows what became of it.
 * Hosts whose breaker is open are passed over, the last one never, and asked after all when nobody else could say anything.
 */
export async function firstToServe<T>(options: RaceOptions<T>): Promise<T> {
  return new Race(options).run()
}

class Race<T> {
  readonly #options: RaceOptions<T>
  readonly #queue: RegistryHost[]
  readonly #skipped: FailedHost[] = []
  readonly #failed: FailedHost[] = []
  readonly #running = new Set<Runner<T>>()
  #over = false

  constructor(options: RaceOptions<T>) {
    this.#options = options
    this.#queue = [...options.hosts]
  }

  async run(): Promise<T> {
    try {
      let newest = this.#startNext()
      for (;;) {
        if (this.#running.size === 0) throw this.#allFailed()
        const event = await this.#next(newest)
        if (event === 'overran') {
          newest = this.#startNext()
          continue
        }
        const { runner, outcome } = event
        this.#running.delete(runner)
        if (outcome.kind === 'served') {
          for (const overtaken of this.#running) this.#options.onSkip({ host: overtaken.host, failure: whyOvertaken(overtaken) })
          return outcome.value
        }
        if (outcome.kind === 'fatal') throw outcome.error
        this.#failed.push({ host: runner.host, failure: outcome.failure })
        // An older one that fails leaves the newest its head start.
        if (runner === newest || this.#running.size === 0) newest = this.#startNext()
      }
    } finally {
      this.#over = true
      for (const runner of this.#running) this.#leave(runner)
    }
  }

  /** In the order of the configuration. */
  #allFailed(): CriError {
    const { what, hosts } = this.#options
    const failed = [...this.#failed, ...this.#skipped.filter(({ host }) => !this.#wasAsked(host))].sort((a, b) => hosts.indexOf(a.host) - hosts.indexOf(b.host))
    return allFailed(what, failed)
  }

  /** Undefined when there is nobody left to ask, for now or at all. */
  #startNext(): Runner<T> | undefined {
    const { health, onSkip } = this.#options
    for (let host = this.#queue.shift(); host !== undefined; host = this.#queue.shift()) {
      if (this.#queue.length === 0) return this.#start(host, undefined, true)
      const admission = health.admit(host, this.#options.about)
      if (admission.kind === 'ask') return this.#start(host, admission.headStartMs, false)
      if (admission.kind === 'probe') return this.#start(host, 0, false, admission.release)
      const skipped = { host, failure: admission.why }
      this.#skipped.push(skipped)
      onSkip(skipped)
    }
    if (this.#running.size > 0 || !this.#isOpen()) return undefined
    for (let resort = this.#skipped.shift(); resort !== undefined; resort = this.#skipped.shift()) {
      if (!this.#wasAsked(resort.host)) return this.#start(resort.host, undefined, false)
    }
    return undefined
  }

  /** Files name a host twice, as a mirror and as `server`: what it says now is worth more than what it said before. */
  #wasAsked({ url }: RegistryHost): boolean {
    return this.#failed.some(({ host }) => host.url === url)
  }

  /** Whether a host that was passed over could still make a difference: not when the registry, or who stands for it, has spoken. */
  #isOpen(): boolean {
    const last = this.#options.hosts.at(-1)
    return !this.#failed.some(({ host, failure }) => (host.ownRegistry || host === last) && ['missing', 'unauthenticated', 'denied'].includes(failure.kind))
  }

  #start(host: RegistryHost, headStartMs: number | undefined, patient: boolean, release?: () => void): Runner<T> {
    const { attempt, health, signal, closing } = this.#options
    const own = new AbortController()
    const sinceMs = health.now()
    const unconnected = Promise.withResolvers<void>()
    const connectLead = headStartMs === undefined || headStartMs === 0 ? undefined : { ms: health.headStartMs, overran: unconnected.resolve }
    const follow = (): void => own.abort(signal.reason)
    if (signal.aborted) follow()
    signal.addEventListener('abort', follow)
    const outcome = attempt(host, { patient, wanted: () => !this.#over, connectLead, signal: AbortSignal.any([own.signal, closing]) }).then(
      (value): Outcome<T> => ({ kind: 'served', value }),
      (error: unknown): Outcome<T> => (error instanceof HostFailure ? { kind: 'failed', failure: error } : { kind: 'fatal', error }),
    ).finally(release)
    const runner: Runner<T> = { host, outcome, headStartMs, sinceMs, unconnected: unconnected.promise, late: undefined, detach: () => signal.removeEventListener('abort', follow), stop: (reason: unknown) => own.abort(reason) }
    this.#running.add(runner)
    return runner
  }

  /** The outcome of any that runs, or that the newest has used up its head start. */
  async #next(newest: Runner<T> | undefined): Promise<'overran' | { readonly runner: Runner<T>; readonly outcome: Outcome<T> }> {
    const outcomes = [...this.#running].map(async (runner) => ({ runner, outcome: await runner.outcome }))
    if (newest?.headStartMs === undefined || this.#queue.length === 0) return Promise.race(outcomes)
    const { host, headStartMs, sinceMs, unconnected } = newest
    if (headStartMs === 0) {
      newest.late = 'it was asked whether it is back'
      return 'overran'
    }
    const overran = Promise.withResolvers<'overran'>()
    const { health, about } = this.#options
    const late = (why: string): void => {
      newest.late ??= why
      // After a pause of this process its timers come before the answers that have arrived meanwhile.
      void turn().then(() => turn()).then(() => overran.resolve('overran'))
    }
    const timer = setTimeout(() => late(`no answer within ${headStartMs / 1000} s`), headStartMs)
    void unconnected.then(() => late(`no answer within ${health.headStartMs / 1000} s`))
    const forget = health.onTrouble(host, () => late('it does not answer now'))
    try {
      const event = await Promise.race([...outcomes, overran.promise])
      if (event === 'overran') health.overran(host, about, sinceMs)
      return event
    } finally {
      clearTimeout(timer)
      forget()
    }
  }

  /** Goes on in the background, bounded by its own deadlines and the end of the service; it cannot reject. */
  #leave(runner: Runner<T>): void {
    if (this.#options.signal.aborted) return
    runner.detach()
    const timer = setTimeout(() => runner.stop(new HostFailure('unreachable', 'another host was faster')), stragglerMs)
    timer.unref()
    void runner.outcome.then((outcome) => {
      clearTimeout(timer)
      if (outcome.kind === 'served') this.#options.discard(outcome.value)
    })
  }
}
