import assert from 'node:assert/strict'
import { test } from 'node:test'
import { HostFailure } from './failures.ts'
import { HostHealth } from './host-health.ts'
import { type AttemptOptions, firstToServe } from './host-race.ts'
import { allCapabilities, noTls, type RegistryHost } from './registry-host.ts'

const hostNamed = (name: string): RegistryHost =>
  ({ url: `https://${name}/v2`, protocol: 'https', host: name, apiRoot: '/v2', capabilities: new Set(allCapabilities), tls: noTls, headers: {}, dialTimeoutMs: 30_000, ownRegistry: false, source: 'default' })
const [mirror, registry] = [hostNamed('mirror'), hostNamed('registry')]

/** Asks both; `never` is a host that does not answer. Returns who served, and what is said of the other. */
async function raced(health: HostHealth, attempt: (host: RegistryHost, how: AttemptOptions) => Promise<string>): Promise<{ readonly served: string; readonly said: readonly string[] }> {
  const said: string[] = []
  const served = await firstToServe({
    what: 'cannot fetch', hosts: [mirror, registry], health, attempt, signal: new AbortController().signal, closing: new AbortController().signal, discard: () => undefined,
    onSkip: ({ host, failure }) => said.push(`${host.host}: ${failure.message}`),
  })
  return { served, said }
}

const never = async (): Promise<string> => new Promise<string>(() => undefined)

test('a host that is overtaken is said to be, with the time that it had', async () => {
  const health = new HostHealth({ headStartMs: 20 })
  assert.deepEqual(await raced(health, async ({ host }) => (host === 'mirror' ? never() : host)), { served: 'registry', said: ['mirror: no answer within 0.02 s, and another host was faster'] })
  assert.deepEqual(await raced(health, async ({ host }) => host), { served: 'registry', said: ['mirror: it does not answer now (skipped)'] })
})

test('a host that overtakes back is the one that served', async () => {
  const health = new HostHealth({ headStartMs: 20 })
  const asked = Promise.withResolvers<string>()
  const { served, said } = await raced(health, async ({ host }) => {
    if (host === 'mirror') return asked.promise
    asked.resolve('mirror')
    return never()
  })
  assert.deepEqual([served, said], ['mirror', ['registry: another host was faster']])
})

test('a host that is asked whether it is back keeps nobody waiting, and is said to be', async () => {
  let now = 1000
  const health = new HostHealth({ now: () => now })
  health.failed(mirror, new HostFailure('unreachable', 'no connection within 30 s', { transient: true, timedOut: true }))
  now += 15_000
  assert.deepEqual(await raced(health, async ({ host }) => (host === 'mirror' ? never() : host)), { served: 'registry', said: ['mirror: it was asked whether it is back, and another host was faster'] })
})

test('a host that is alive has its time to answer, but no more than others to be connected to', async () => {
  const health = new HostHealth({ headStartMs: 20, knownHeadStartMs: 600_000 })
  health.answered(mirror)
  const { served, said } = await raced(health, async ({ host }, { connectLead }) => {
    if (host !== 'mirror') {
      assert.equal(connectLead, undefined, 'the last one is not looked after')
      return host
    }
    assert.ok(connectLead)
    setTimeout(connectLead.overran, connectLead.ms)
    return never()
  })
  assert.deepEqual([served, said], ['registry', ['mirror: no answer within 0.02 s, and another host was faster']])
  health.answered(mirror)
  assert.deepEqual(await raced(health, async ({ host }) => {
    assert.equal(host, 'mirror')
    return new Promise((resolve) => { setTimeout(resolve, 60, host) })
  }), { served: 'mirror', said: [] })
})
