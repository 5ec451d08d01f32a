import { HostFailure } from './failures.ts'
import { keepNewest } from './newest.ts'
import type { RegistryHost } from './registry-host.ts'

/**
 * `closed`: in use. `slow`: an attempt waits for it longer than others should. `open`: it kept failing and is skipped for a while.
 * `probing`: that while is over and one request finds out. `held`: it asked to be left alone (Retry-After).
 */
export type BreakerState = 'closed' | 'slow' | 'open' | 'probing' | 'held'

/** What is known of one host. */
export interface HostState {
  /** Scheme and authority, as configured. */
  readonly origin: string
  readonly state: BreakerState
  /** Failures in a row. */
  readonly failures: number
  /** The last failure, fit for everyone's eyes; undefined after a success. */
  readonly lastFailure: string | undefined
  /** How much longer the host is skipped; 0: not. */
  readonly skippedForMs: number
}

/** What to do with a host that others follow. */
export type Admission =
  /** Ask it; after `headStartMs` without an answer the next one is asked too. */
  | { readonly kind: 'ask'; readonly headStartMs: number }
  /** Ask it and the next one at once, to find out whether it is back. `release` is called when that was never found out. */
  | { readonly kind: 'probe'; readonly release: () => void }
  | { readonly kind: 'skip'; readonly why: HostFailure }

export interface HostHealthOptions {
  /** Monotonic milliseconds. Default: performance.now. */
  readonly now?: () => number
  /** Lead over the next host for one that has not answered lately, and for the time that a connection takes. Default: 1000. */
  readonly headStartMs?: number
  /** Lead for one that has: it is alive as long as it takes connections, and may be filling its cache. Default: 5000. */
  readonly knownHeadStartMs?: number
  /** How long a host is skipped at first. Default: 15,000. */
  readonly skipMs?: number
  /** Told when a host begins to be skipped, why and for how long at first, and when it is in use again. */
  readonly onTurn?: (host: RegistryHost, skipped: { readonly why: string; readonly forMs: number } | undefined) => void
}

interface Entry {
  readonly host: RegistryHost
  failures: number
  /** Bodies that broke off in a row. */
  breaks: number
  /** How often in a row the breaker opened. */
  openings: number
  openUntil: number | undefined
  /** All that it was known to be silent about over a connection that stood. */
  openAbout: string | undefined
  heldUntil: number
  /** What the requests are about that find out whether it is back. */
  readonly probing: Set<string>
  /** What it takes its time for, and since when. */
  readonly slow: Map<string, number>
  answeredAt: number | undefined
  deliveredAt: number | undefined
  lastFailure: HostFailure | undefined
  readonly waiting: Set<() => void>
}

/** Cheap failures (refused, reset, 5xx) in a row that open the breaker; one that took a deadline is enough. */
const failuresToOpen = 3
const maxSkipMs = 300_000
/** A host that sent an answer within this time is taken for alive. */
const knownForMs = 300_000
const maxHoldMs = 300_000
const maxEntries = 512
/** Side by side, each about something else: what is asked first may be what it does not answer. */
const maxProbes = 4
/** A body that came to its end within this time says that another one which stalled is a matter of that one. */
const deliveredLatelyMs = 30_000

/**
 * What is known of the hosts that were asked: a circuit breaker for each. Entries belong to a host as it is configured, so that an edit
 * of its TLS settings or time-out begins anew.
 */
export class HostHealth {
  readonly #entries = new Map<string, Entry>()
  readonly #now: () => number
  /** Lead over the next host for one that has not answered lately. */
  readonly headStartMs: number
  readonly #knownHeadStartMs: number
  readonly #skipMs: number
  readonly #onTurn: HostHealthOptions['onTurn']

  constructor(options: HostHealthOptions = {}) {
    this.#now = options.now ?? (() => performance.now())
    this.headStartMs = options.headStartMs ?? 1000
    this.#knownHeadStartMs = options.knownHeadStartMs ?? 5000
    this.#skipMs = options.skipMs ?? 15_000
    this.#onTurn = options.onTurn
  }

  /** The clock of all times here. */
  now(): number {
    return this.#now()
  }

  /** For a host that others follow; the last one is asked whatever is known of it. `about`: the image, of which a cache may wait for its own source. */
  admit(host: RegistryHost, about = ''): Admission {
    const entry = this.#entry(host)
    const now = this.#now()
    if (now < entry.heldUntil) return skip(entry, entry.heldUntil - now)
    if (entry.openUntil !== undefined) {
      const isForOther = entry.openAbout !== undefined && entry.openAbout !== about
      return now < entry.openUntil && !isForOther ? skip(entry, entry.openUntil - now) : this.#probe(entry, about, Math.max(0, entry.openUntil - now))
    }
    const known = entry.answeredAt !== undefined && now - entry.answeredAt < knownForMs
    // One image may be all that it is slow for: another one finds out, where there was somebody lately.
    if (entry.slow.has(about) || (isSlow(entry) && !known)) return skip(entry, 0)
    if (isSlow(entry)) return this.#probe(entry, about, 0)
    return { kind: 'ask', headStartMs: known ? this.#knownHeadStartMs : this.headStartMs }
  }

  #probe(entry: Entry, about: string, forMs: number): Admission {
    if (entry.probing.has(about) || entry.probing.size >= maxProbes) return skip(entry, forMs)
    entry.probing.add(about)
    return { kind: 'probe', release: () => void entry.probing.delete(about) }
  }

  /** How long a host asked to be left alone from now on; 0 when it did not. */
  heldForMs(host: RegistryHost): number {
    return Math.max(0, this.#entry(host).heldUntil - this.#now())
  }

  /** The head start of a request that began at `sinceMs` is over: until it answers or fails, requests that have another host go there. */
  overran(host: RegistryHost, about = '', sinceMs = this.#now()): void {
    const entry = this.#entry(host)
    entry.slow.set(about, sinceMs)
    if (isSlow(entry)) wake(entry)
  }

  /** Nobody waits for it any more. */
  abandoned(host: RegistryHost, about = ''): void {
    this.#entry(host).slow.delete(about)
  }

  /** Whether it ever answered since it was first asked. */
  hasAnswered(host: RegistryHost): boolean {
    return this.#entry(host).answeredAt !== undefined
  }

  /** It sent the head of an answer that is not its own failure. */
  answered(host: RegistryHost, about = ''): void {
    const entry = this.#entry(host)
    const now = this.#now()
    if (entry.openUntil !== undefined) this.#onTurn?.(host, undefined)
    Object.assign(entry, { failures: 0, openings: 0, openUntil: undefined, openAbout: undefined, answeredAt: now })
    entry.probing.clear()
    entry.slow.delete(about)
    if (entry.heldUntil <= now) entry.lastFailure = undefined
  }

  /** A body came to its end, or far enough. */
  delivered(host: RegistryHost): void {
    Object.assign(this.#entry(host), { breaks: 0, deliveredAt: this.#now() })
  }

  /** A request that began at `sinceMs` failed before its answer was usable. */
  failed(host: RegistryHost, failure: HostFailure, about = '', sinceMs = this.#now()): void {
    const entry = this.#entry(host)
    // Others were answered while this one waited: it is what was asked for that takes so long.
    const onlyThis = failure.timedOut && entry.answeredAt !== undefined && entry.answeredAt > sinceMs
    if (!isHostsFault(failure) || onlyThis) {
      if (!onlyThis && saysAlive(failure)) this.answered(host, about)
      entry.slow.delete(about)
      entry.probing.delete(about)
      this.#hold(entry, failure)
      return
    }
    entry.failures += 1
    this.#count(entry, failure, about, { inRow: entry.failures, isEnough: failure.timedOut })
    this.#hold(entry, failure)
  }

  /** A body broke off, stalled or was too short. */
  brokeOff(host: RegistryHost, failure: HostFailure, about = ''): void {
    const entry = this.#entry(host)
    entry.breaks += 1
    const onlyThis = entry.deliveredAt !== undefined && this.#now() - entry.deliveredAt < deliveredLatelyMs
    this.#count(entry, failure, about, { inRow: entry.breaks, isEnough: failure.timedOut && !onlyThis })
  }

  /** Calls `listener` when the host turns out to be slow or dead. The function returned ends that. */
  onTrouble(host: RegistryHost, listener: () => void): () => void {
    const { waiting } = this.#entry(host)
    waiting.add(listener)
    return () => waiting.delete(listener)
  }

  stateOf(host: RegistryHost): HostState {
    return this.#describe(this.#entry(host))
  }

  /** All hosts that were asked since the start, as far as they are remembered. */
  states(): HostState[] {
    return [...this.#entries.values()].map((entry) => this.#describe(entry))
  }

  /** The same with the hosts themselves. */
  hosts(): { readonly host: RegistryHost; readonly state: BreakerState }[] {
    return [...this.#entries.values()].map((entry) => ({ host: entry.host, state: this.#describe(entry).state }))
  }

  #count(entry: Entry, failure: HostFailure, about: string, { inRow, isEnough }: { readonly inRow: number; readonly isEnough: boolean }): void {
    entry.lastFailure = failure
    const wasOpen = entry.openUntil !== undefined
    entry.slow.clear()
    entry.probing.clear()
    if (!wasOpen && !isEnough && inRow < failuresToOpen) return
    const now = this.#now()
    if (!wasOpen) entry.openAbout = failure.connected ? about : undefined
    else if (!failure.connected || entry.openAbout !== about) entry.openAbout = undefined
    // Of requests that were under way together only the first one counts.
    if (wasOpen && now < (entry.openUntil ?? 0)) return
    entry.openings += 1
    // What fails at once costs little to try: only time-outs are put off for longer and longer.
    const skipMs = failure.timedOut ? Math.min(this.#skipMs * 2 ** (entry.openings - 1), maxSkipMs) : this.#skipMs
    entry.openUntil = now + skipMs
    if (!wasOpen) this.#onTurn?.(entry.host, { why: failure.message, forMs: skipMs })
    wake(entry)
  }

  #hold(entry: Entry, failure: HostFailure): void {
    if (failure.retryAfterMs === undefined || failure.retryAfterMs === 0) return
    entry.heldUntil = this.#now() + Math.min(failure.retryAfterMs, maxHoldMs)
    entry.lastFailure = failure
  }

  #describe(entry: Entry): HostState {
    const now = this.#now()
    const until = Math.max(entry.heldUntil, entry.openUntil ?? 0)
    const state = now < entry.heldUntil ? 'held' : entry.openUntil !== undefined ? (entry.probing.size > 0 ? 'probing' : 'open') : isSlow(entry) ? 'slow' : 'closed'
    return { origin: originOf(entry.host), state, failures: entry.failures, lastFailure: entry.lastFailure?.message, skippedForMs: Math.round(Math.max(0, until - now)) }
  }

  #entry(host: RegistryHost): Entry {
    const key = JSON.stringify([host.protocol, host.host, host.tls, host.dialTimeoutMs])
    const known = this.#entries.get(key)
    const entry = known ?? {
      host, failures: 0, breaks: 0, openings: 0, openUntil: undefined, openAbout: undefined, heldUntil: 0, probing: new Set(), slow: new Map(), answeredAt: undefined, deliveredAt: undefined, lastFailure: undefined, waiting: new Set(),
    }
    // The longest unused is forgotten first.
    keepNewest(this.#entries, key, entry, maxEntries)
    return entry
  }
}

function originOf(host: RegistryHost): string {
  return host.url.slice(0, host.url.length - host.apiRoot.length)
}

function skip(entry: Entry, forMs: number): Admission {
  const since = entry.lastFailure === undefined ? 'it does not answer now' : entry.lastFailure.message
  const text = `${since} (skipped${forMs > 0 ? ` for ${Math.ceil(forMs / 1000)} s` : ''})`
  return { kind: 'skip', why: new HostFailure(entry.lastFailure?.kind ?? 'unreachable', text, { transient: true, cause: entry.lastFailure }) }
}

/** Whether it keeps somebody waiting who came after its last answer. */
function isSlow({ slow, answeredAt }: Entry): boolean {
  return [...slow.values()].some((sinceMs) => answeredAt === undefined || sinceMs >= answeredAt)
}

function wake(entry: Entry): void {
  for (const listener of entry.waiting) listener()
  entry.waiting.clear()
}

/** Whether the host itself is in trouble, whatever it was asked for. */
function isHostsFault(failure: HostFailure): boolean {
  return failure.kind === 'unreachable' || (failure.kind === 'server' && failure.transient)
}

/** Whether it takes a living host to fail like that. */
function saysAlive(failure: HostFailure): boolean {
  return failure.kind !== 'config'
}
