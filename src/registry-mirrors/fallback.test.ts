import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Registry } from 'prom-client'
import { Code } from '../errors/cri-error.ts'
import { allFailed, failureOfError, failureOfStatus, HostFailure, retryAfter, safeText } from './failures.ts'
import type { Fault, SeenRequest } from './fake-registry.test-helper.ts'
import { type BreakerState, HostHealth } from './host-health.ts'
import { parseImageRef } from './image-ref.ts'
import { blob, blobBytes, closedPort, failure, manifest, ref, RegistryTests, secrets } from './registry-client.test-helper.ts'
import type { RegistryClient } from './registry-client.ts'
import { allCapabilities, noTls, type RegistryHost } from './registry-host.ts'

const t = new RegistryTests()
const { ctx } = t
const quick = { headStartMs: 30, knownHeadStartMs: 30 }
const isBlob = ({ path }: SeenRequest): boolean => path.includes('/blobs/')

function stateOf(client: RegistryClient, host: string): BreakerState | undefined {
  return client.hostStates().find(({ origin }) => origin.endsWith(`//${host}`))?.state
}

async function reaches(client: RegistryClient, host: string, state: BreakerState): Promise<void> {
  while (stateOf(client, host) !== state) await new Promise((resolve) => { setTimeout(resolve, 5) })
}

test('whatever is wrong with a mirror, the next one serves', async () => {
  const faults: Readonly<Record<string, Fault>> = {
    'resets': { kind: 'reset' }, 'is silent': { kind: 'silent' }, 'answers 400': { kind: 'status', status: 400 }, 'answers 401': { kind: 'status', status: 401 },
    'answers 403': { kind: 'status', status: 403 }, 'answers 404': { kind: 'status', status: 404 }, 'answers 429': { kind: 'status', status: 429, headers: { 'retry-after': '1' } },
    'answers 500': { kind: 'status', status: 500 }, 'answers 503': { kind: 'status', status: 503 }, 'answers with a page': { kind: 'status', status: 200, body: '<html>' },
    'redirects in circles': { kind: 'redirect', location: '/' }, 'redirects to nowhere': { kind: 'redirect', location: 'http://127.0.0.1:1/' },
    'sends wrong bytes': { kind: 'wrong-bytes' }, 'truncates': { kind: 'truncate', afterBytes: 20 }, 'ends early': { kind: 'short', afterBytes: 20 }, 'stalls': { kind: 'stall', afterBytes: 20 },
    'trickles': { kind: 'trickle' },
  }
  for (const onBlobs of [false, true]) {
    await Promise.all(Object.entries(faults).map(async ([what, fault]) => {
      const [mirror, next] = [await t.registry(), await t.registry()]
      mirror.fault = (request) => (onBlobs === isBlob(request) && request.method === 'GET' || (!onBlobs && fault.kind === 'status') ? fault : undefined)
      const some = t.client({ configPath: await t.through(mirror, next), headerTimeoutMs: 800, stallTimeoutMs: 800 })
      await some.resolve(ref, null, ctx)
      const small = await some.fetchManifest(ref, manifest, null, ctx)
      // A manifest may trickle in within the time that it has.
      if (!onBlobs && fault.kind !== 'trickle') assert.equal(small.host, next.host, what)
      const first = await t.readBlob(some)
      if (onBlobs && ['wrong-bytes'].includes(fault.kind)) assert.ok((await t.readBlob(some, { avoid: first.hosts })).bytes.equals(blobBytes), what)
      else assert.ok(first.bytes.equals(blobBytes), what)
    }))
  }
})

test('the next host is asked while a black hole is still being connected to, and the black hole not again', async () => {
  const [dead, good] = [await t.silentServer(), await t.registry()]
  // The defaults: a second of lead, 30 s to connect.
  const some = t.client({ configPath: await t.through(dead, good) })
  assert.equal((await some.resolve(ref, null, ctx)).host, good.host)
  assert.equal(stateOf(some, dead.host), 'slow', 'its time to connect is not over yet')
  assert.equal((await some.fetchManifest(ref, manifest, null, ctx)).host, good.host)
  assert.ok((await t.readBlob(some)).bytes.equals(blobBytes))
  assert.equal((await some.resolve(ref, null, ctx)).host, good.host)
  assert.equal(dead.connections(), 1)
})

test('what becomes of an overtaken host is found out after the pull that met it, but not after close()', async () => {
  const [dead, good] = [await t.silentServer(), await t.registry()]
  const configPath = await t.certsD(`server = "${good.url}"\n[host."${dead.url}"]\ndial_timeout = "500ms"\n`)
  const some = t.client({ configPath, health: quick })
  const pull = new AbortController()
  await some.resolve(ref, null, { ...ctx, signal: pull.signal })
  pull.abort(new Error('this pull is over'))
  await reaches(some, dead.host, 'open')
  assert.equal(dead.connections(), 1)
  const cancelled = new AbortController()
  const other = t.client({ configPath: await t.through(dead, dead), health: { headStartMs: 5 } })
  const waiting = other.resolve(ref, null, { ...ctx, signal: cancelled.signal })
  while (dead.connections() < 2) await new Promise((resolve) => { setImmediate(resolve) })
  cancelled.abort(new Error('not wanted any more'))
  await assert.rejects(waiting, /not wanted any more/)
})

test('a mirror that takes connections and never answers is a black hole too', async () => {
  const [silent, good] = [await t.registry(), await t.registry()]
  silent.fault = () => ({ kind: 'silent' })
  const some = t.client({ configPath: await t.through(silent, good), health: { headStartMs: 200 } })
  assert.equal((await some.resolve(ref, null, ctx)).host, good.host)
  assert.ok((await t.readBlob(some)).bytes.equals(blobBytes))
  assert.deepEqual([stateOf(some, silent.host), silent.requests.length], ['slow', 1])
})

test('dial_timeout is the end of the attempt, and opens the breaker', async () => {
  const [dead, good] = [await t.silentServer(), await t.registry()]
  const configPath = await t.certsD(`server = "${good.url}"\n[host."${dead.url}"]\ndial_timeout = "300ms"\n`)
  const some = t.client({ configPath, health: quick })
  await some.resolve(ref, null, ctx)
  await reaches(some, dead.host, 'open')
  const state = some.hostStates().find(({ origin }) => origin === dead.url)
  assert.match(state?.lastFailure ?? '', /^it was reached, and TLS was not set up within 0\.3 s/)
  await some.resolve(ref, null, ctx)
  assert.equal(dead.connections(), 1)
})

test('requests that meet a dead host at the same time all go on, and the ones after them do not meet it', async () => {
  const [dead, good] = [await t.silentServer(), await t.registry()]
  const some = t.client({ configPath: await t.through(dead, good), health: { headStartMs: 50 } })
  const all = async (): Promise<unknown> => Promise.all(Array.from({ length: 8 }, () => t.readBlob(some)))
  await all()
  const met = dead.connections()
  assert.ok(met >= 1 && met <= 8)
  await all()
  assert.equal(dead.connections(), met)
})

test('a mirror that was only slow serves again as soon as it has answered; what it sent too late is let go', async () => {
  const [slow, good] = [await t.registry(), await t.registry()]
  const answer = Promise.withResolvers<void>()
  slow.fault = () => ({ kind: 'late', until: answer.promise })
  const some = t.client({ configPath: await t.through(slow, good), health: quick })
  assert.deepEqual((await t.readBlob(some)).hosts, [`${good.url}/v2`])
  assert.equal((await some.resolve(ref, null, ctx)).host, good.host)
  assert.equal(slow.requests.length, 1)
  slow.fault = () => undefined
  answer.resolve()
  await reaches(some, slow.host, 'closed')
  await slow.idle()
  assert.equal((await some.resolve(ref, null, ctx)).host, slow.host)
})

test('a host whose time is over is probed by one request beside the next host, and serves again', async () => {
  const [mirror, good] = [await t.registry(), await t.registry()]
  mirror.fault = () => ({ kind: 'silent' })
  const some = t.client({ configPath: await t.through(mirror, good), headerTimeoutMs: 600, health: { ...quick, skipMs: 1 } })
  await some.resolve(ref, null, ctx)
  await reaches(some, mirror.host, 'open')
  const answer = Promise.withResolvers<void>()
  mirror.fault = () => ({ kind: 'late', until: answer.promise })
  mirror.requests.length = 0
  while (mirror.requests.length === 0) assert.equal((await some.resolve(ref, null, ctx)).host, good.host, 'nobody waits for the probe')
  answer.resolve()
  await reaches(some, mirror.host, 'closed')
  assert.equal((await some.resolve(ref, null, ctx)).host, mirror.host)
})

test('a mirror that is silent about one image goes on serving the others', { timeout: 20_000 }, async () => {
  const [mirror, good] = [await t.registry(), await t.registry()]
  const silent = Promise.withResolvers<void>()
  mirror.fault = ({ path }) => (path.includes('/dead/') ? { kind: 'late', until: silent.promise } : undefined)
  const some = t.client({ configPath: await t.through(mirror, good), health: { headStartMs: 1000, knownHeadStartMs: 30 } })
  while ((await some.resolve(ref, null, ctx)).host !== mirror.host);
  const dead = some.resolve(parseImageRef('registry.test/dead/app:1.0'), null, ctx).catch(() => undefined)
  await reaches(some, mirror.host, 'slow')
  // Until it answers or its time is over, which is longer than this test may take.
  while ((await some.resolve(ref, null, ctx)).host !== mirror.host);
  assert.equal(mirror.requests.filter(({ path }) => path.includes('/dead/')).length, 1)
  silent.resolve()
  await dead
})

test('a mirror that sends those who ask for one image to a host in trouble goes on serving the others', { timeout: 20_000 }, async () => {
  const [mirror, good] = [await t.registry(), await t.registry()]
  const nowhere = `http://127.0.0.1:${await closedPort()}/`
  mirror.fault = ({ path }) => (path.includes('/dead/') ? { kind: 'redirect', location: nowhere } : undefined)
  const some = t.client({ configPath: await t.through(mirror, good), health: { skipMs: 2 ** 30, headStartMs: 2 ** 30, knownHeadStartMs: 2 ** 30 } })
  const dead = parseImageRef('registry.test/dead/app:1.0')
  for (let times = 0; times < 4; times++) await failure(some.resolve(dead, null, ctx), Code.UNAVAILABLE, /redirects to 127\.0\.0\.1:\d+: connection refused/)
  assert.deepEqual([stateOf(some, mirror.host), mirror.requests.length], ['open', 3], 'not for that image')
  await some.resolve(ref, null, ctx)
  await reaches(some, mirror.host, 'closed')
  assert.equal((await some.resolve(ref, null, ctx)).host, mirror.host)
})

test('the last host is asked whatever is known of it, and skipped ones when it cannot help', async () => {
  const [mirror, last] = [await t.registry(), await t.registry()]
  const some = t.client({ configPath: await t.through(mirror, last), headerTimeoutMs: 400, health: quick })
  for (const host of [mirror, last]) host.fault = () => ({ kind: 'silent' })
  await failure(some.resolve(ref, null, ctx), Code.UNAVAILABLE, new RegExp(`${mirror.host}: no answer within 0.4 s; ${last.host}: no answer within 0.4 s`))
  assert.deepEqual([stateOf(some, mirror.host), stateOf(some, last.host)], ['open', 'open'])
  last.fault = () => undefined
  assert.equal((await some.resolve(ref, null, ctx)).host, last.host)
  last.fault = () => ({ kind: 'status', status: 502 })
  mirror.fault = () => undefined
  assert.equal((await some.fetchManifest(ref, manifest, null, ctx)).host, mirror.host, 'better than none')
})

test('the log tells above debug when a host begins and ends to be skipped, not of every request that passes it over', async () => {
  const [bad, missing, good] = [await t.registry(), await t.registry(), await t.registry()]
  let now = 1
  const some = t.client({ configPath: await t.through(bad, missing, good), health: { ...quick, now: () => now } })
  bad.fault = () => ({ kind: 'status', status: 502 })
  missing.fault = () => ({ kind: 'status', status: 404 })
  for (let request = 0; request < 5; request++) await some.fetchManifest(ref, manifest, null, ctx)
  bad.fault = () => undefined
  now += 15_000
  while (stateOf(some, bad.host) !== 'closed') await some.fetchManifest(ref, manifest, null, ctx)
  const told = t.logged.trimEnd().split('\n').map((line) => JSON.parse(line) as { readonly level: number | string; readonly msg: string; readonly registryHost?: string; readonly why?: string })
  const above = told.filter(({ level }) => level !== 'debug' && level !== 20 && level !== 'trace' && level !== 10)
  assert.deepEqual(above.map(({ registryHost, why }) => [registryHost, why]), [[bad.host, '502 bad gateway'], [bad.host, undefined]])
  assert.ok(told.some(({ msg, registryHost }) => msg === 'registry host failed' && registryHost === missing.host), 'debug tells more')
})

test('a mirror that vanishes behind a kept connection has the short lead; one that takes its time has all of it', async () => {
  const [mirror, good] = [await t.registry(), await t.registry()]
  const some = t.client({ configPath: await t.through(mirror, good), health: { headStartMs: 100, knownHeadStartMs: 2 ** 30 } })
  const asked = async (): Promise<string> => (await some.fetchManifest(ref, manifest, null, ctx)).host
  assert.equal(await asked(), mirror.host)
  const answer = Promise.withResolvers<void>()
  mirror.fault = () => ({ kind: 'late', until: answer.promise })
  const slow = asked()
  // A connection that only shows that somebody is there.
  while (mirror.connections < 2) await new Promise((resolve) => { setTimeout(resolve, 5) })
  answer.resolve()
  assert.equal(await slow, mirror.host)
  mirror.fault = () => ({ kind: 'silent' })
  mirror.stopListening()
  assert.equal(await asked(), good.host)
})

test('a host that is named twice is not held to what it said before', async () => {
  const one = await t.registry()
  const configPath = await t.certsD(`server = "${one.url}"\n[host."${one.url}"]\ncapabilities = ["pull"]\n`)
  const some = t.client({ configPath })
  one.fault = () => ({ kind: 'status', status: 500 })
  await failure(some.resolve(ref, null, ctx), Code.UNAVAILABLE, /500/)
  assert.equal(stateOf(some, one.host), 'open')
  one.requests.length = 0
  one.fault = () => ({ kind: 'status', status: 404 })
  await failure(some.fetchManifest(ref, manifest, null, ctx), Code.NOT_FOUND, new RegExp(`: ${one.host}: 404 not found$`))
  assert.equal(one.requests.length, 1)
})

test('Retry-After: the host is passed over so long, and waited for when there is no other', async () => {
  const [mirror, last] = [await t.registry(), await t.registry()]
  mirror.fault = () => ({ kind: 'status', status: 429, headers: { 'retry-after': '30' } })
  const some = t.client({ configPath: await t.through(mirror, last) })
  await some.resolve(ref, null, ctx)
  await some.fetchManifest(ref, manifest, null, ctx)
  assert.deepEqual([mirror.requests.length, stateOf(some, mirror.host)], [1, 'held'])

  const started = Date.now()
  const date = new Date(started + 10_000).toUTCString()
  let refusals = 1
  last.fault = () => (refusals-- > 0 ? { kind: 'status', status: 503, headers: { date, 'retry-after': new Date(Date.parse(date) + 1000).toUTCString() } } : undefined)
  const alone = t.client({ configPath: await t.through(last) })
  await alone.resolve(ref, null, ctx)
  assert.ok(Date.now() - started >= 990, 'asked again no sooner than it said')
})

test('Retry-After in seconds, as a date by the host’s clock, and as nonsense', () => {
  const at = Date.parse('2026-01-02T03:04:05Z')
  const later = 'Fri, 02 Jan 2026 03:04:35 GMT'
  const cases: readonly (readonly [string, string | undefined, number | undefined])[] = [
    ['0', undefined, 0], ['120', undefined, 120_000], [later, undefined, 30_000], [later, 'Fri, 02 Jan 2026 03:04:30 GMT', 5000], ['Fri, 02 Jan 2026 03:04:00 GMT', undefined, 0],
    ['Friday, 02-Jan-26 03:04:35 GMT', undefined, 30_000], ['soon', undefined, undefined], ['-5', undefined, undefined], ['1.5', undefined, undefined], ['99999999999999999999', undefined, 2 ** 31 - 1], ['Fri, 02 Jan 9026 03:04:05 GMT', undefined, 2 ** 31 - 1], ['', undefined, undefined], ['2026', 'nonsense', 2_026_000],
  ]
  for (const [value, date, expected] of cases) assert.equal(retryAfter({ 'retry-after': value, ...(date === undefined ? {} : { date }) }, at), expected, value)
  assert.equal(retryAfter({}), undefined)
  assert.equal(failureOfStatus(503, '', { 'retry-after': '7' }).retryAfterMs, 7000)
})

test('a host that trickles is passed over: a stall is bytes per time', async () => {
  const [mirror, good] = [await t.registry(), await t.registry()]
  mirror.fault = () => ({ kind: 'trickle' })
  const some = t.client({ configPath: await t.through(mirror, good), stallTimeoutMs: 1000 })
  let received = 0
  const { bytes, hosts } = await t.readBlob(some, { onReceived: (count) => { received += count } })
  assert.ok(bytes.equals(blobBytes))
  assert.deepEqual(hosts, [`${mirror.url}/v2`, `${good.url}/v2`])
  assert.equal(received, blobBytes.length)
  assert.match(t.logged, /only \d+ bytes arrived in 1 s/)
  assert.equal(stateOf(some, mirror.host), 'open')
})

test('every host has its turn in a download that keeps breaking off', async () => {
  const breaking = await Promise.all(Array.from({ length: 9 }, () => t.registry()))
  for (const mirror of breaking) mirror.fault = () => ({ kind: 'short', afterBytes: 10 })
  const good = await t.registry()
  good.ignoreRange = true
  const some = t.client({ configPath: await t.through(...breaking, good), retryDelayMs: 60_000 })
  let received = 0
  const { bytes } = await t.readBlob(some, { onReceived: (count) => { received += count } })
  assert.ok(bytes.equals(blobBytes))
  assert.equal(received, blobBytes.length + 90, 'what is skipped has arrived too')
})

const hostNamed = (name: string, apiRoot = '/v2'): RegistryHost =>
  ({ url: `https://${name}${apiRoot}`, protocol: 'https', host: name, apiRoot, capabilities: new Set(allCapabilities), tls: noTls, headers: {}, dialTimeoutMs: 1, ownRegistry: false, source: 'default' })

test('the error of a failed pull names every host once, in bounded length', () => {
  const long = 'nothing but words '.repeat(20)
  for (const count of [1, 2, 5, 12]) {
    const { message } = allFailed(`cannot resolve ${'r'.repeat(500)}`, Array.from({ length: count }, (_, index) => ({ host: hostNamed(`mirror-${index}.example`), failure: new HostFailure('server', long) })))
    assert.ok(message.length <= 900, `${count}: ${message.length}`)
    for (let index = 0; index < count; index++) assert.match(message, new RegExp(`mirror-${index}\\.example: nothing but`))
  }
  const many = allFailed('x', Array.from({ length: 40 }, (_, index) => ({ host: hostNamed(`${index}.${'long-name'.repeat(30)}`), failure: new HostFailure('server', long) }))).message
  assert.ok(many.length <= 1700 && many.endsWith('; and 28 more'), many)

  const [a, b] = [hostNamed('a'), hostNamed('b')]
  const stall = new HostFailure('unreachable', 'stalled')
  const repeated = allFailed('x', [{ host: a, failure: stall }, { host: b, failure: stall }, { host: a, failure: stall }, { host: a, failure: new HostFailure('missing', '404') }])
  assert.equal(repeated.message, 'x: a: stalled (2 times), then 404; b: stalled')
  const paths = allFailed('x', [{ host: hostNamed('h', '/v2/one'), failure: stall }, { host: hostNamed('h', '/v2/two'), failure: stall }])
  assert.equal(paths.message, 'x: h/v2/one: stalled; h/v2/two: stalled')
  const short = allFailed('x', [{ host: a, failure: new HostFailure('server', 'brief') }, { host: b, failure: new HostFailure('server', 'w'.repeat(500)) }])
  assert.match(short.message, /^x: a: brief; b: w{500}$/, 'the short ones leave their room to the others')
})

test('the code is what the registry said, at whichever of its addresses', () => {
  const at = (name: string, own: boolean, failure: HostFailure): { readonly host: RegistryHost; readonly failure: HostFailure } => ({ host: { ...hostNamed(name), ownRegistry: own }, failure })
  const [missing, refused, denied] = [new HostFailure('missing', '404'), new HostFailure('unreachable', 'connection refused'), new HostFailure('denied', '403')]
  // As in files with http:// as a host and https:// as server.
  assert.equal(allFailed('x', [at('reg:5000', true, missing), at('reg:5000', true, refused)]).code, Code.NOT_FOUND)
  assert.equal(allFailed('x', [at('reg:5000', true, refused), at('reg:5000', true, denied)]).code, Code.PERMISSION_DENIED)
  assert.equal(allFailed('x', [at('reg:5000', true, missing), at('reg:5000', true, denied)]).code, Code.PERMISSION_DENIED)
  assert.equal(allFailed('x', [at('mirror', false, missing), at('reg', true, refused)]).code, Code.UNAVAILABLE)
  assert.equal(allFailed('x', [at('mirror', false, missing), at('other', false, missing)]).code, Code.NOT_FOUND)
})

test('no registry could be reached: not when one has answered, or could not agree on TLS', () => {
  const reasonOf = (...failures: HostFailure[]): string => allFailed('x', failures.map((failure, index) => ({ host: hostNamed(`h${index}`), failure }))).reason
  const refused = new HostFailure('unreachable', 'connection refused')
  const untrusted = new HostFailure('unreachable', 'its certificate is not trusted', { reached: true })
  assert.equal(reasonOf(refused, refused.with('redirects to x: connection refused')), 'RegistryUnavailable')
  assert.equal(reasonOf(untrusted.with('token service x: its certificate is not trusted')), 'UNREACHABLE')
  for (const other of [untrusted, new HostFailure('missing', '404'), new HostFailure('server', '503'), new HostFailure('config', 'no ca')]) assert.notEqual(reasonOf(refused, other), 'RegistryUnavailable')
  const health = new HostHealth({ now: () => 1 })
  const skipped = (failure: HostFailure): HostFailure => {
    const host = hostNamed(failure.message)
    for (let times = 0; times < 3; times++) health.failed(host, failure)
    const admission = health.admit(host)
    assert.ok(admission.kind === 'skip')
    return admission.why
  }
  assert.equal(reasonOf(skipped(refused)), 'RegistryUnavailable')
  assert.equal(reasonOf(skipped(untrusted)), 'UNREACHABLE')
})

test('nothing of a signed URL, a credential or a token gets into an error or a log', async () => {
  const texts = [
    'see https://user:hunter2@host/x?sig=hunter2', 'https://user:p@hunter2@host/x', 'denied: https://h/x#access_token=hunter2', 'Authorization: Bearer hunter2hunter2', 'basic aHVudGVyMjpodW50ZXIy', 'token=hunter2 sig=hunter2&password: "hunter2"',
    '{"access_token":"hunter2"}', 'eyJhbGciOiJub25lIn0.hunter2.hunter2', 'X-Amz-Signature=hunter2', 'api_key=hunter2', 'a\nb\u2028c\u202ed',
  ]
  for (const text of texts) {
    const safe = safeText(text)
    assert.ok(!/hunter2|aHVudGVy|[\n\u2028\u202e]/.test(safe), safe)
  }
  assert.equal(safeText('manifest unknown: tag 1.2 of team/app'), 'manifest unknown: tag 1.2 of team/app')
  const [secretive, other] = [await t.registry(), await t.registry()]
  const some = t.client({ configPath: await t.through(secretive) })
  const locations = [`http://[nonsense/?sig=${secrets[0]}`, `http://127.0.0.1:${await closedPort()}/x?sig=${secrets[0]}`, `http://user:${secrets[0]}@${other.host}/missing?sig=${secrets[0]}`, `ftp://x/?sig=${secrets[0]}`]
  for (const location of locations) {
    secretive.fault = () => ({ kind: 'redirect', location })
    const error = await some.fetchManifest(ref, manifest, null, ctx).then(() => assert.fail('served'), (reason: unknown) => reason)
    // As the server of the CRI logs it, with all causes.
    ctx.log.error({ err: error }, 'PullImage failed')
    assert.ok(!String(error).includes('hunter2'))
  }
  const opaque = failureOfError(new Error('at https://h/?sig=hunter2'))
  assert.ok(!opaque.message.includes('hunter2'))
})

test('a registry whose name is no host name is told so', async () => {
  await failure(t.client().resolve(parseImageRef('1900.b.1/x'), null, ctx), Code.FAILED_PRECONDITION, /1900\.b\.1: it is not a host name/)
})

test('figures are kept for hosts as configured, never for a redirect’s target', async () => {
  const [mirror, good, bucket] = [await t.registry(), await t.registry(), await t.registry()]
  const metrics = new Registry()
  const some = t.client({ configPath: await t.through(mirror, good), metrics, headerTimeoutMs: 600, health: quick })
  mirror.fault = (request) => (isBlob(request) ? { kind: 'silent' } : { kind: 'status', status: 404 })
  good.fault = (request) => (isBlob(request) ? { kind: 'redirect', location: `${bucket.url}${request.path}` } : undefined)
  await some.resolve(ref, null, ctx)
  await t.readBlob(some)
  await reaches(some, mirror.host, 'open')
  const text = await metrics.metrics()
  for (const line of [
    `cri_shim_registry_requests_total{host="${mirror.host}",result="missing"} 1`, `cri_shim_registry_requests_total{host="${mirror.host}",result="unreachable"} 1`,
    `cri_shim_registry_requests_total{host="${good.host}",result="ok"} 2`, `cri_shim_registry_received_bytes_total{host="${good.host}"} ${blob.sizeBytes}`,
    `cri_shim_registry_request_seconds_count{host="${good.host}"} 2`, `cri_shim_registry_breaker_state{host="${mirror.host}",state="open"} 1`, `cri_shim_registry_breaker_state{host="${good.host}",state="closed"} 1`,
  ]) assert.ok(text.includes(line), `${line} in\n${text}`)
  assert.ok(!text.includes(bucket.host))

  const others = new Registry()
  const crowded = t.client({ configPath: await t.through(good), metrics: others })
  for (let index = 0; index < 80; index++) await crowded.resolve(parseImageRef(`127.0.0.1:${await closedPort()}/x${index}`), null, ctx).catch(() => undefined)
  await crowded.resolve(ref, null, ctx)
  const hosts = new Set([...(await others.metrics()).matchAll(/host="([^"]*)"/g)].map(([, host]) => host))
  assert.ok(hosts.size <= 66 && hosts.has('other'), `${hosts.size} labels`)
  assert.ok(hosts.has(good.host), 'what pods name does not take the labels of mirrors')
})
