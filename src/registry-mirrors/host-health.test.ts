import assert from 'node:assert/strict'
import { beforeEach, test } from 'node:test'
import { HostFailure } from './failures.ts'
import { type Admission, HostHealth } from './host-health.ts'
import { allCapabilities, noTls, type RegistryHost } from './registry-host.ts'

const host: RegistryHost = {
  url: 'https://mirror.example/v2', protocol: 'https', host: 'mirror.example', apiRoot: '/v2', capabilities: new Set(allCapabilities), tls: noTls, headers: {}, dialTimeoutMs: 30_000, ownRegistry: false, source: 'default',
}
const timedOut = new HostFailure('unreachable', 'no connection within 30 s', { transient: true, timedOut: true })
const refused = new HostFailure('unreachable', 'connection refused')
const broken = new HostFailure('server', '500 internal server error', { transient: true })

let now = 0
let health: HostHealth
beforeEach(() => {
  now = 1000
  health = new HostHealth({ now: () => now, headStartMs: 1000, knownHeadStartMs: 5000, skipMs: 15_000 })
})

const kindOf = (admission: Admission): string => admission.kind
const admitted = (): string => {
  const admission = health.admit(host)
  if (admission.kind === 'probe') admission.release()
  return kindOf(admission)
}

test('a host that answered lately has a longer lead', () => {
  assert.deepEqual(health.admit(host), { kind: 'ask', headStartMs: 1000 })
  health.answered(host)
  assert.deepEqual(health.admit(host), { kind: 'ask', headStartMs: 5000 })
  now += 300_000
  assert.deepEqual(health.admit(host), { kind: 'ask', headStartMs: 1000 })
})

test('one time-out opens the breaker; then one request probes, and each time-out more doubles the wait', () => {
  health.failed(host, timedOut)
  for (const waitMs of [15_000, 30_000, 60_000, 120_000, 240_000, 300_000, 300_000]) {
    const skipped = health.admit(host)
    assert.ok(skipped.kind === 'skip')
    assert.equal(skipped.why.message, `no connection within 30 s (skipped for ${waitMs / 1000} s)`)
    assert.deepEqual(health.stateOf(host).state, 'open')
    now += waitMs - 1
    assert.equal(admitted(), 'skip')
    now += 1
    assert.equal(kindOf(health.admit(host)), 'probe')
    assert.equal(kindOf(health.admit(host)), 'skip', 'one request probes, the others go elsewhere')
    assert.equal(health.stateOf(host).state, 'probing')
    health.failed(host, timedOut)
    // Of requests that were under way together, only the first counts.
    health.failed(host, timedOut)
  }
  now += 300_000
  const probe = health.admit(host)
  assert.ok(probe.kind === 'probe')
  health.answered(host)
  probe.release()
  assert.equal(admitted(), 'ask')
  assert.deepEqual(health.stateOf(host), { origin: 'https://mirror.example', state: 'closed', failures: 0, lastFailure: undefined, skippedForMs: 0 })
  health.failed(host, timedOut)
  assert.equal(health.stateOf(host).skippedForMs, 15_000, 'a success begins the doubling anew')
})

test('a probe that ended without an answer lets the next request probe', () => {
  health.failed(host, timedOut)
  now += 15_000
  const probe = health.admit(host)
  assert.ok(probe.kind === 'probe')
  probe.release()
  assert.equal(kindOf(health.admit(host)), 'probe')
})

test('cheap failures open it when three come in a row, and for no longer each time', () => {
  for (const failure of [refused, broken]) {
    health.failed(host, failure)
    health.failed(host, failure)
    assert.equal(admitted(), 'ask')
    health.answered(host)
    for (let times = 0; times < 3; times++) health.failed(host, failure)
    assert.equal(admitted(), 'skip')
    now += 15_000
    health.admit(host)
    health.failed(host, failure)
    assert.equal(health.stateOf(host).skippedForMs, 15_000)
    health.answered(host)
  }
})

test('what takes a living host does not count: 401, 403, 404, wrong bytes, and certificates that are missing here', () => {
  for (const kind of ['missing', 'unauthenticated', 'denied', 'limited', 'content', 'config'] as const) {
    for (let times = 0; times < 5; times++) health.failed(host, new HostFailure(kind, 'x'))
    assert.equal(admitted(), 'ask', kind)
  }
  health.failed(host, refused)
  health.failed(host, refused)
  health.failed(host, new HostFailure('missing', '404 not found'))
  health.failed(host, refused)
  assert.equal(admitted(), 'ask', 'a 404 ends a row of failures')
})

test('Retry-After: the host is left alone that long, within bounds', () => {
  health.failed(host, new HostFailure('limited', '429 too many requests', { transient: true, retryAfterMs: 40_000 }))
  assert.deepEqual(health.stateOf(host), { origin: 'https://mirror.example', state: 'held', failures: 0, lastFailure: '429 too many requests', skippedForMs: 40_000 })
  health.answered(host)
  assert.equal(health.heldForMs(host), 40_000, 'an answer to a question that was under way does not end it')
  const skipped = health.admit(host)
  assert.ok(skipped.kind === 'skip')
  assert.deepEqual([skipped.why.kind, skipped.why.message], ['limited', '429 too many requests (skipped for 40 s)'])
  now += 40_000
  assert.equal(admitted(), 'ask')
  health.failed(host, new HostFailure('server', '503 service unavailable', { transient: true, retryAfterMs: 86_400_000 }))
  assert.equal(health.heldForMs(host), 300_000)
})

test('a host that overran its lead is passed over until it answers, fails or nobody waits for it', () => {
  let told = 0
  health.onTrouble(host, () => { told++ })
  const forget = health.onTrouble(host, () => assert.fail('not any more'))
  forget()
  health.overran(host)
  assert.equal(told, 1)
  assert.equal(admitted(), 'skip')
  health.answered(host)
  assert.equal(admitted(), 'ask')
  health.overran(host)
  health.abandoned(host)
  assert.equal(admitted(), 'ask')
  health.overran(host)
  health.failed(host, refused)
  assert.equal(admitted(), 'ask')
})

test('bodies that break off are counted by themselves: an answer’s head does not excuse them', () => {
  for (let times = 0; times < 3; times++) {
    health.answered(host)
    health.brokeOff(host, new HostFailure('unreachable', 'connection reset', { transient: true }))
  }
  assert.equal(admitted(), 'skip')
  now += 15_000
  health.answered(host)
  health.delivered(host)
  health.brokeOff(host, new HostFailure('unreachable', 'connection reset', { transient: true }))
  assert.equal(admitted(), 'ask')
  const stalled = new HostFailure('unreachable', 'nothing arrived for 30 s', { timedOut: true, connected: true })
  health.brokeOff(host, stalled)
  assert.equal(admitted(), 'ask', 'another body came to its end meanwhile')
  now += 30_000
  health.answered(host)
  health.brokeOff(host, stalled)
  assert.equal(admitted(), 'skip')
})

test('one image that a mirror has to wait for itself does not take the mirror from all others', () => {
  const silent = new HostFailure('unreachable', 'no answer within 30 s', { transient: true, timedOut: true, connected: true })
  const probed = (about: string): string => {
    const admission = health.admit(host, about)
    if (admission.kind === 'probe') admission.release()
    return admission.kind
  }
  // While it is waited for: one of each other image finds out, beside the next host, that the mirror lives.
  health.answered(host, 'good')
  const sinceMs = now
  now += 5000
  health.overran(host, 'dead', sinceMs)
  assert.equal(health.stateOf(host).state, 'slow')
  assert.equal(probed('dead'), 'skip')
  const probe = health.admit(host, 'good')
  assert.ok(probe.kind === 'probe')
  assert.equal(kindOf(health.admit(host, 'good')), 'skip')
  assert.equal(probed('other'), 'probe')
  now += 100
  health.answered(host, 'good')
  probe.release()
  assert.deepEqual([probed('good'), probed('dead'), health.stateOf(host).state], ['ask', 'skip', 'closed'])
  now += 25_000
  health.failed(host, silent, 'dead', sinceMs)
  assert.deepEqual([probed('good'), probed('dead'), health.stateOf(host).failures], ['ask', 'ask', 0], 'others were answered meanwhile')

  // With nobody else about it opens, and the others find out at once.
  for (let times = 0; times < 6; times++) {
    now += 300_000
    health.failed(host, silent, 'dead', now - 30_000)
    assert.deepEqual([probed('dead'), probed('good')], ['skip', 'probe'])
  }
  health.answered(host, 'good')
  assert.equal(probed('dead'), 'ask')
  // Silent about two of them, or not even connected to: that is the mirror.
  now += 60_000
  health.failed(host, silent, 'dead', now - 30_000)
  health.failed(host, silent, 'good', now - 30_000)
  assert.equal(probed('other'), 'skip')
  health.answered(host)
  now += 60_000
  health.failed(host, timedOut, 'dead', now - 30_000)
  assert.equal(probed('other'), 'skip')
  health.answered(host)
  // Nobody was there lately: a black hole is met once.
  now += 300_000
  health.overran(host, 'a', now)
  assert.equal(probed('b'), 'skip')
})

test('probes are bounded', () => {
  health.failed(host, timedOut)
  now += 15_000
  const kinds = Array.from({ length: 6 }, (_, index) => kindOf(health.admit(host, String(index))))
  assert.deepEqual(kinds, ['probe', 'probe', 'probe', 'probe', 'skip', 'skip'])
})

test('an edit of the host’s settings begins anew; other paths of a host share what is known', () => {
  health.failed(host, timedOut)
  assert.equal(kindOf(health.admit({ ...host, apiRoot: '/v2/proxy', url: 'https://mirror.example/v2/proxy' })), 'skip')
  assert.equal(kindOf(health.admit({ ...host, dialTimeoutMs: 5000 })), 'ask')
  assert.equal(kindOf(health.admit({ ...host, tls: { ...noTls, caFiles: ['/ca.pem'] } })), 'ask')
  assert.equal(health.states().length, 3)
})

test('what is remembered is bounded', () => {
  for (let index = 0; index < 600; index++) health.admit({ ...host, host: `h${index}` })
  assert.equal(health.states().length, 512)
})
