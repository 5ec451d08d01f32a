import assert from 'node:assert/strict'
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { after, afterEach, before, test } from 'node:test'
import { Code, CriError } from '../errors/cri-error.ts'
import { backgroundCtx, type Ctx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import { causesOf } from './causes.test-helper.ts'
import { type CertificateFiles, FakeRegistry, makeCertificates, sha256 } from './fake-registry.test-helper.ts'
import { parseImageRef } from './image-ref.ts'
import { mediaType } from './media-types.ts'
import { RegistryClient, type RegistryClientOptions } from './registry-client.ts'
import { noRegistrySettings } from './settings.ts'

// Who is given which credential, on real sockets; and that no secret gets into a log or an error.

const manifestBytes = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: mediaType.ociManifest, config: {}, layers: [] }))
const blobBytes = Buffer.alloc(100_000, 'layer')
const ref = parseImageRef('registry.test/team/app:1.0')
const basic = (username: string, password: string): string => `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`
const secrets = ['hunter2', 'mirror-secret', 'refresh-1', 'refresh-2', 'token-', 'SIGNED-0123456789', basic('user', 'hunter2').slice(6), basic('mirror', 'mirror-secret').slice(6)]

let root: string
let certificates: CertificateFiles
let logged = ''
const log = createLogger('trace', { write: (line: string) => { logged += line } })
const ctx: Ctx = backgroundCtx(log, 'test')
const cleanups: (() => unknown)[] = []

before(async () => {
  root = await mkdtemp(path.join(os.tmpdir(), 'authorizer-'))
  certificates = makeCertificates(root)
})
after(() => rm(root, { recursive: true, force: true }))
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
  for (const secret of secrets) assert.ok(!logged.includes(secret), `${secret} is in the log: ${logged}`)
  assert.notEqual(logged, '')
  logged = ''
})

async function registry(options: Parameters<typeof FakeRegistry.start>[0] = {}): Promise<FakeRegistry> {
  const started = await FakeRegistry.start(options)
  cleanups.push(() => started.close())
  for (const repository of ['team/app', 'team/other']) {
    started.putManifest(repository, '1.0', manifestBytes, mediaType.ociManifest)
    started.putBlob(repository, blobBytes)
  }
  return started
}

function client(options: Partial<RegistryClientOptions> = {}): RegistryClient {
  const made = new RegistryClient({ ...noRegistrySettings, log, userAgent: 'cri-shim/test', env: { PATH: `${root}/bin:/usr/bin:/bin`, DIR: root }, retryDelayMs: 1, ...options })
  cleanups.push(() => made.close())
  return made
}

let dirs = 0
async function certsD(toml: string): Promise<string[]> {
  const dir = path.join(root, `certs-${dirs++}`)
  await mkdir(path.join(dir, 'registry.test'), { recursive: true })
  await writeFile(path.join(dir, 'registry.test/hosts.toml'), toml)
  return [dir]
}

const blob = { mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip', digest: sha256(blobBytes), sizeBytes: blobBytes.length }

async function readBlob(from: RegistryClient, of = ref, auth: Parameters<RegistryClient['resolve']>[1] = null): Promise<Buffer> {
  const opened = await from.openBlob(of, blob, { signal: ctx.signal, auth })
  const pieces: Buffer[] = []
  for await (const piece of opened.stream) pieces.push(piece)
  return Buffer.concat(pieces)
}

async function failure(promise: Promise<unknown>, code: Code, pattern: RegExp): Promise<void> {
  const error = await promise.then(() => assert.fail('it did not fail'), (reason: unknown) => reason)
  assert.ok(error instanceof CriError, String(error))
  assert.match(error.message, pattern)
  assert.equal(error.code, code, error.message)
  // As the service logs it.
  log.warn({ err: error, causes: causesOf(error) }, 'failed')
  for (const secret of secrets) assert.ok(!error.message.includes(secret), error.message)
}

const authorizations = (one: FakeRegistry): (string | undefined)[] => [...new Set(one.requests.map((request) => request.headers.authorization))]

test('tokens are kept per host, repository and credential', async () => {
  const [one, two] = [await registry(), await registry()]
  let issued = 0
  for (const each of [one, two]) each.auth = { kind: 'bearer', expiresIn: 300, check: () => `token-${++issued}` }
  const some = client()
  const asked = (each: FakeRegistry): string[] => each.requests.filter((request) => request.path === '/token').map((request) => `${request.query.get('scope')} ${request.headers.authorization ?? '-'}`)
  for (const each of [one, two]) {
    for (const repository of ['team/app', 'team/other']) {
      for (const auth of [null, { username: 'user', password: 'hunter2' }]) {
        for (let times = 0; times < 2; times++) await some.resolve(parseImageRef(`${each.host}/${repository}:1.0`), auth, ctx)
      }
    }
  }
  const each = ['repository:team/app:pull -', `repository:team/app:pull ${basic('user', 'hunter2')}`, 'repository:team/other:pull -', `repository:team/other:pull ${basic('user', 'hunter2')}`]
  assert.deepEqual(asked(one), each)
  assert.deepEqual(asked(two), each)
  const used = one.requests.filter((request) => request.path !== '/token').map((request) => request.headers.authorization)
  assert.equal(new Set(used.filter((header) => header !== undefined)).size, 4, 'no token serves another credential or repository')
})

test('a refresh token that the service replaces is followed, and the first one is not forgotten', async () => {
  const one = await registry()
  const own = parseImageRef(`${one.host}/team/app:1.0`)
  const other = parseImageRef(`${one.host}/team/other:1.0`)
  let valid = 'refresh-1'
  const used: string[] = []
  one.fault = ({ path: asked, method, body }) => {
    if (asked !== '/token' || method !== 'POST') return undefined
    const token = new URLSearchParams(body).get('refresh_token') ?? ''
    used.push(token)
    if (token !== valid) return { kind: 'status', status: 401 }
    valid = token === 'refresh-1' ? 'refresh-2' : 'refresh-1'
    const access = `token-${used.length}-${valid}`
    one.validTokens.add(access)
    return { kind: 'status', status: 200, body: JSON.stringify({ access_token: access, refresh_token: valid }) }
  }
  one.auth = { kind: 'bearer', check: () => undefined }
  const some = client()
  await some.resolve(own, { identity_token: 'refresh-1' }, ctx)
  await some.resolve(other, { identity_token: 'refresh-1' }, ctx)
  assert.deepEqual(used, ['refresh-1', 'refresh-2'])
  valid = 'refresh-1'
  one.validTokens.clear()
  await some.resolve(own, { identity_token: 'refresh-1' }, ctx)
  valid = 'refresh-1'
  one.validTokens.clear()
  used.length = 0
  await some.resolve(other, { identity_token: 'refresh-1' }, ctx)
  assert.deepEqual(used, ['refresh-2', 'refresh-1'], 'the one that was given is tried when the newer one is refused')
})

test('mirrors get their own credentials and never the pull secret, which waits for the registry', async () => {
  const [mirror, server] = [await registry(), await registry()]
  mirror.auth = { kind: 'basic', username: 'mirror', password: 'mirror-secret' }
  server.auth = { kind: 'basic', username: 'user', password: 'hunter2' }
  const configPath = await certsD(`server = "${server.url}"\n[host."${mirror.url}"]\n`)
  const auth = { username: 'user', password: 'hunter2' }
  const credentials = { [mirror.host]: { username: 'mirror', password: 'mirror-secret' } }
  const own = client({ configPath, credentials })
  assert.equal((await own.resolve(ref, auth, ctx)).host, mirror.host)
  assert.ok((await readBlob(own, ref, auth)).equals(blobBytes))
  assert.deepEqual(authorizations(mirror), [undefined, basic('mirror', 'mirror-secret')])

  // A `server` of another name is a mirror like any other, until it is said to be the registry's.
  mirror.fault = () => ({ kind: 'status', status: 404 })
  await failure(own.resolve(ref, auth, ctx), Code.UNAUTHENTICATED, new RegExp(`${server.host}: needs a user name and password.*the pull secret is for registry\\.test alone; give ${server.host} its own, or pull_secrets_of`))
  assert.deepEqual(authorizations(server), [undefined])
  const allowed = client({ configPath, credentials: { ...credentials, [server.host]: { pullSecretsOf: ['registry.test'] } } })
  assert.equal((await allowed.resolve(ref, auth, ctx)).host, server.host)
  assert.deepEqual(authorizations(server), [undefined, basic('user', 'hunter2')])
})

test('a redirect’s target and a token service’s redirect get no credential (CVE-2020-15157)', async () => {
  const [own, elsewhere] = [await registry(), await registry()]
  const image = parseImageRef(`${own.host}/team/app:1.0`)
  own.auth = { kind: 'bearer', check: ({ headers }) => (headers.authorization === basic('user', 'hunter2') ? 'token-1' : undefined) }
  own.fault = ({ path: asked, headers }) => (asked.includes('/blobs/') && headers.authorization !== undefined ? { kind: 'redirect', location: `${elsewhere.url}${asked}?sig=SIGNED-0123456789` } : undefined)
  const some = client()
  assert.ok((await readBlob(some, image, { username: 'user', password: 'hunter2' })).equals(blobBytes))
  // It asks for one: that is no reason to give it.
  elsewhere.auth = { kind: 'basic', username: 'user', password: 'hunter2' }
  await failure(readBlob(some, image, { username: 'user', password: 'hunter2' }), Code.UNAUTHENTICATED, new RegExp(`${own.host}: redirects to ${elsewhere.host}: 401 unauthorized`))
  assert.deepEqual(authorizations(elsewhere), [undefined])
  elsewhere.requests.length = 0
  own.fault = ({ path: asked }) => (asked === '/token' ? { kind: 'redirect', location: `${elsewhere.url}/token?sig=SIGNED-0123456789` } : undefined)
  await failure(client().resolve(image, { username: 'user', password: 'hunter2' }, ctx), Code.UNAVAILABLE, /token service .* answered 307/)
  assert.deepEqual([elsewhere.requests.length, ...authorizations(elsewhere)], [1, undefined])
})

test('a registry that redirects to another one: its anonymous token is fetched, and no credential goes there', async () => {
  const [vanity, real] = [await registry(), await registry()]
  const image = parseImageRef(`${vanity.host}/team/app:1.0`)
  const auth = { username: 'user', password: 'hunter2' }
  vanity.auth = { kind: 'basic', ...auth }
  vanity.fault = ({ path: asked, headers }) => (headers.authorization === undefined ? undefined : { kind: 'redirect', location: `${real.url}${asked}` })
  let issued = 0
  real.auth = { kind: 'bearer', expiresIn: 300, check: ({ headers }) => (headers.authorization === undefined ? `token-${++issued}` : undefined) }
  const some = client({ headers: { 'x-global': ['mirror-secret'] }, credentials: { [real.host]: { username: 'mirror', password: 'mirror-secret' } } })
  assert.equal((await some.resolve(image, auth, ctx)).host, vanity.host)
  assert.ok((await readBlob(some, image, auth)).equals(blobBytes))
  assert.deepEqual(real.requests.map(({ method, path: asked, headers }) => `${method} ${asked.replace(/sha256:.*/, '')} ${headers.authorization ?? '-'}`), [
    'HEAD /v2/team/app/manifests/1.0 -', 'GET /token -', 'HEAD /v2/team/app/manifests/1.0 Bearer token-1', 'GET /v2/team/app/blobs/ Bearer token-1',
  ], 'the token is asked for once')
  assert.ok(real.requests.every(({ headers }) => headers['x-global'] === undefined))
  assert.deepEqual(authorizations(vanity), [undefined, basic('user', 'hunter2')])
  real.validTokens.clear()
  assert.ok((await readBlob(some, image, auth)).equals(blobBytes), 'a refused one is replaced')
  // It wants more than that.
  real.auth = { kind: 'bearer', check: () => undefined }
  real.validTokens.clear()
  await failure(readBlob(some, image, auth), Code.UNAUTHENTICATED, new RegExp(`${vanity.host}: redirects to ${real.host}: token service ${real.host}: gives no token without credentials`))
  real.fault = ({ path: asked }) => (asked === '/token' ? { kind: 'status', status: 200, body: '{"token":"useless"}' } : undefined)
  await failure(readBlob(some, image, auth), Code.UNAUTHENTICATED, new RegExp(`${vanity.host}: redirects to ${real.host}: 401 unauthorized`))
})

test('no credential is sent to a token service elsewhere over plain HTTP', async () => {
  const [own, service] = [await registry(), await registry()]
  const image = parseImageRef(`${own.host}/team/app:1.0`)
  const auth = { username: 'user', password: 'hunter2' }
  service.auth = { kind: 'bearer', check: () => 'token-1' }
  own.auth = { kind: 'bearer', check: () => undefined, realm: `http://localhost:${service.port}/token` }
  own.validTokens.add('token-1')
  await failure(client().resolve(image, auth, ctx), Code.UNAVAILABLE, /token service localhost:\d+ is plain HTTP: credentials are not sent there/)
  await failure(client().resolve(image, { identity_token: 'refresh-1' }, ctx), Code.UNAVAILABLE, /is plain HTTP/)
  assert.equal(service.requests.length, 0)
  await client().resolve(image, null, ctx)
  assert.equal(service.requests.length, 1, 'without a credential there is nothing to lose')
  own.auth = { kind: 'bearer', check: () => undefined, realm: `${service.url}/token` }
  await client().resolve(image, auth, ctx)
  assert.equal(service.requests.at(-1)?.headers.authorization, basic('user', 'hunter2'), 'the same machine, for a registry that is plain HTTP itself')

  const secure = await registry({ tls: certificates })
  secure.auth = own.auth
  const configPath = await certsD(`server = "${secure.url}"\nca = "${certificates.caFile}"\n`)
  service.requests.length = 0
  await failure(client({ configPath, credentials: { '*': auth } }).resolve(ref, null, ctx), Code.UNAVAILABLE, /is plain HTTP/)
  assert.equal(service.requests.length, 0)
})

test('helpers’ credentials are used, replaced when they were refused, and missed in words', async () => {
  const own = await registry()
  const image = parseImageRef(`${own.host}/team/app:1.0`)
  own.auth = { kind: 'basic', username: 'user', password: 'hunter2' }
  await mkdir(path.join(root, 'bin'), { recursive: true })
  const file = path.join(root, 'bin/docker-credential-rotating')
  await writeFile(path.join(root, 'secret'), 'mirror-secret')
  await writeFile(file, '#!/bin/sh\necho run >> "$DIR/runs"\nprintf \'{"Username":"user","Secret":"%s"}\' "$(cat "$DIR/secret")"\n')
  await chmod(file, 0o755)
  const some = client({ credentials: { [own.host]: { helper: 'rotating' } } })
  await failure(some.resolve(image, null, ctx), Code.PERMISSION_DENIED, /the credentials do not allow to pull it/)
  await writeFile(path.join(root, 'secret'), 'hunter2')
  await some.resolve(image, null, ctx)
  await readBlob(some, image)
  assert.equal(await readFile(path.join(root, 'runs'), 'utf8'), 'run\nrun\n')
  // Registries whose tokens have run out say so with a 403, too.
  await writeFile(path.join(root, 'secret'), 'refresh-1')
  own.fault = ({ headers }) => (headers.authorization === basic('user', 'hunter2') ? { kind: 'status', status: 403 } : undefined)
  own.auth = { kind: 'basic', username: 'user', password: 'refresh-1' }
  await failure(some.resolve(image, null, ctx), Code.PERMISSION_DENIED, /403 forbidden/)
  await some.resolve(image, null, ctx)
  own.fault = () => undefined
  const missing = client({ credentials: { [own.host]: { helper: 'absent' } } })
  await failure(missing.resolve(image, null, ctx), Code.UNAUTHENTICATED, /none is given: docker-credential-absent is not in PATH/)
  assert.match(logged, /registry\.credentials.*helper: docker-credential-absent is not in PATH/)
  own.auth = undefined
  await missing.resolve(image, null, ctx)
})

test('what kept a credential from being read is said when the anonymous question is refused, in whichever words', async () => {
  const [mirror, own] = [await registry(), await registry()]
  const broken = path.join(root, 'broken-config.json')
  await writeFile(broken, '{"auths": {"x": {"auth": "hunter2"')
  const file = `server = "${own.url}"\n[host."${mirror.url}"]\n`
  const some = client({ configPath: await certsD(file), credentials: { [own.host]: { helper: 'absent' }, [mirror.host]: { configFile: broken } } })
  const refusals: readonly (readonly [number, Code])[] = [[403, Code.PERMISSION_DENIED], [404, Code.NOT_FOUND], [429, Code.RESOURCE_EXHAUSTED], [401, Code.UNAUTHENTICATED]]
  for (const [status, code] of refusals) {
    for (const each of [mirror, own]) each.fault = () => ({ kind: 'status', status, headers: { 'retry-after': '0' } })
    const pattern = new RegExp(`${mirror.host}: ${status} .*${broken} is not JSON; ${own.host}: ${status} .*docker-credential-absent is not in PATH`)
    await failure(some.resolve(ref, null, ctx), code, pattern)
    await failure(readBlob(some), code, pattern)
  }
  // A file for all hosts that nobody made has kept nothing from being read.
  for (const each of [mirror, own]) each.fault = () => ({ kind: 'status', status: 404 })
  const absent = client({ configPath: await certsD(file), credentials: { '*': { configFile: `${broken}.absent` } } })
  await failure(absent.resolve(ref, null, ctx), Code.NOT_FOUND, new RegExp(`: ${mirror.host}: 404 not found; ${own.host}: 404 not found$`))
  for (const each of [mirror, own]) each.fault = () => ({ kind: 'status', status: 403 })
  await failure(absent.resolve(ref, null, ctx), Code.PERMISSION_DENIED, new RegExp(`${own.host}: 403 forbidden: .*absent does not exist`))
  // What fails for another reason is not blamed on it.
  for (const each of [mirror, own]) each.fault = () => ({ kind: 'status', status: 400 })
  await failure(some.resolve(ref, null, ctx), Code.UNAVAILABLE, new RegExp(`: ${mirror.host}: 400 bad request; ${own.host}: 400 bad request$`))

  // A secret that is for the registry alone may be why a mirror refuses, but not why it has not got the image.
  const auth = { username: 'user', password: 'hunter2' }
  const plain = client({ configPath: await certsD(file) })
  for (const each of [mirror, own]) each.fault = () => ({ kind: 'status', status: 403 })
  await failure(plain.resolve(ref, auth, ctx), Code.PERMISSION_DENIED, new RegExp(`${mirror.host}: 403 forbidden: the pull secret is for registry\\.test alone`))
  for (const each of [mirror, own]) each.fault = () => ({ kind: 'status', status: 404 })
  await failure(plain.resolve(ref, auth, ctx), Code.NOT_FOUND, new RegExp(`: ${mirror.host}: 404 not found; ${own.host}: 404 not found$`))
  // Nor why a bucket refuses what the registry allowed.
  const bucket = await registry()
  bucket.fault = () => ({ kind: 'status', status: 403 })
  for (const each of [mirror, own]) each.fault = ({ path: asked }) => ({ kind: 'redirect', location: `${bucket.url}${asked}?sig=SIGNED-0123456789` })
  await failure(readBlob(plain, ref, auth), Code.PERMISSION_DENIED, new RegExp(`: ${mirror.host}: redirects to ${bucket.host}: 403 forbidden; ${own.host}: redirects to ${bucket.host}: 403 forbidden \\(check`))
})

test('what a token service says of a refusal is passed on', async () => {
  const own = await registry()
  const image = parseImageRef(`${own.host}/team/app:1.0`)
  const auth = { username: 'user', password: 'hunter2' }
  own.auth = { kind: 'bearer', check: () => 'token-1' }
  const bodies: readonly (readonly [string, string])[] = [
    ['{"details":"incorrect username or password"}', ' \\(incorrect username or password\\)'], ['{"errors":[{"code":"UNAUTHORIZED","message":"HTTP Basic: Access denied"}]}', ' \\(UNAUTHORIZED: HTTP Basic: Access denied\\)'],
    ['{"error":"invalid_grant","error_description":"the token hunter2 has run out, see https://x.example/?sig=SIGNED-0123456789"}', ' \\(invalid_grant: the token … has run out, see https://x.example/\\)'],
    ['{"message":"no such user"}', ' \\(no such user\\)'], ['<html>', ''], ['{"details":{"a":1}}', ''], ['[]', ''], ['', ''],
  ]
  for (const [body, said] of bodies) {
    own.fault = ({ path: asked }) => (asked === '/token' ? { kind: 'status', status: 401, body } : undefined)
    await failure(client().resolve(image, auth, ctx), Code.UNAUTHENTICATED, new RegExp(`token service ${own.host}: refused the credentials \\(401\\)${said} \\(check the`))
  }
})

test('signed URLs and tokens stay out of errors and logs, wherever they come from', async () => {
  const [own, storage] = [await registry(), await registry()]
  const image = parseImageRef(`${own.host}/team/app:1.0`)
  const signed = (base: string): string => `${base}/blob?sv=2021&sig=SIGNED-0123456789&X-Amz-Signature=SIGNED-0123456789`
  const some = client()
  const redirectTo = async (location: string, code: Code, pattern: RegExp): Promise<void> => {
    own.fault = ({ path: asked }) => (asked.includes('/blobs/') ? { kind: 'redirect', location } : undefined)
    await failure(readBlob(some, image), code, pattern)
  }
  storage.fault = () => ({ kind: 'status', status: 403, body: `<Error><AuthenticationErrorDetail>sig=SIGNED-0123456789</AuthenticationErrorDetail></Error>` })
  await redirectTo(signed(storage.url), Code.PERMISSION_DENIED, /403 forbidden/)
  storage.fault = () => ({ kind: 'reset' })
  await redirectTo(signed(storage.url), Code.UNAVAILABLE, /connection reset/)
  await redirectTo(signed('http://nowhere.invalid'), Code.UNAVAILABLE, /host name not found/)
  await redirectTo(signed('http://user:hunter2@nowhere.invalid'), Code.UNAVAILABLE, /host name not found/)
  await redirectTo('http://[/?sig=SIGNED-0123456789', Code.UNAVAILABLE, /redirects to something that is no URL/)
  await redirectTo('gopher://x/?sig=SIGNED-0123456789', Code.UNAVAILABLE, /redirects to a gopher: address/)
  const detail = (message: string): string => JSON.stringify({ errors: [{ code: 'DENIED', message }] })
  for (const message of [signed('see https://x.example'), 'failed: sig=SIGNED-0123456789&se=1', 'Authorization: Bearer SIGNED-0123456789', 'token=SIGNED-0123456789', 'X-Amz-Signature=SIGNED-0123456789, X-Amz-Security-Token=SIGNED-0123456789', '{"password":"SIGNED-0123456789"}']) {
    own.fault = ({ path: asked }) => (asked.includes('/blobs/') ? { kind: 'status', status: 403, body: detail(message) } : undefined)
    await failure(readBlob(some, image), Code.PERMISSION_DENIED, /403 forbidden \(DENIED: /)
  }
  own.fault = () => undefined
  own.auth = { kind: 'bearer', check: () => undefined, realm: `${storage.url}/token?client_secret=SIGNED-0123456789` }
  storage.fault = () => ({ kind: 'status', status: 200, body: '{"token": "SIGNED-0123456789' })
  await failure(client().resolve(image, null, ctx), Code.UNAVAILABLE, /token service 127\.0\.0\.1:\d+: its answer is not JSON/)
  storage.fault = () => ({ kind: 'status', status: 200, body: '{"token": "SIGNED-0123456789\\nx: y"}' })
  await failure(client().resolve(image, null, ctx), Code.UNAVAILABLE, /its answer has no token/)
})

test('what a registry repeats of a credential is not shown', async () => {
  const [own, storage] = [await registry(), await registry()]
  const image = parseImageRef(`${own.host}/team/app:1.0`)
  const auth = { username: 'user', password: 'hunter2' }
  const detail = (message: string): string => JSON.stringify({ errors: [{ code: 'DENIED', message }] })
  const refuse = (message: string): void => {
    own.fault = ({ path: asked, headers }) => (asked !== '/token' && headers.authorization !== undefined ? { kind: 'status', status: 403, body: detail(message) } : undefined)
  }
  own.auth = { kind: 'basic', username: 'user', password: 'hunter2' }
  const forms: readonly (readonly [string, string])[] = [
    ['got hunter2', ': got …'], [`got ${basic('user', 'hunter2')}`, ': got Basic …'], [`got ${basic('user', 'hunter2').slice(6)}`, ': got …'], ['got %68unter2', ''], ['got h u n t e r 2', ''], ['no such image', ': no such image'],
  ]
  for (const [message, said] of forms) {
    refuse(message)
    await failure(client().resolve(image, auth, ctx), Code.PERMISSION_DENIED, new RegExp(`: 403 forbidden${said === '' ? '' : ` \\(DENIED${said}\\)`} \\(check`))
  }
  own.auth = { kind: 'bearer', check: () => 'token-SIGNED-0123456789' }
  refuse('no token-SIGNED-0123456789')
  await failure(client().resolve(image, null, ctx), Code.PERMISSION_DENIED, /403 forbidden \(DENIED: no …\)/)
  // What a hosts.toml or the settings send, and what signs the URL of a redirect.
  own.auth = undefined
  own.fault = () => ({ kind: 'status', status: 403, body: detail('key mirror-secret, other hunter2') })
  const configPath = await certsD(`server = "${own.url}"\n[header]\nX-Api-Key = "mirror-secret"\n`)
  await failure(client({ configPath, headers: { Authorization: ['Bearer hunter2'] } }).resolve(ref, null, ctx), Code.PERMISSION_DENIED, /403 forbidden \(DENIED: key …, other …\)/)
  own.fault = ({ path: asked }) => ({ kind: 'redirect', location: `${storage.url}${asked}?x=SIGNED-0123456789` })
  storage.fault = () => ({ kind: 'status', status: 403, body: detail('computed SIGNED-0123456789') })
  await failure(client().resolve(image, null, ctx), Code.PERMISSION_DENIED, /403 forbidden \(DENIED: computed …\)/)
})

test('what a hostile registry calls a token, a name or a time is bounded', async () => {
  const own = await registry()
  const image = parseImageRef(`${own.host}/team/app:1.0`)
  const some = client()
  let asked = 0
  const token = (body: unknown): void => {
    own.fault = (request) => (request.path === '/token' && ++asked > 0 ? { kind: 'status', status: 200, body: JSON.stringify(body) } : undefined)
  }
  own.auth = { kind: 'bearer', check: () => undefined }
  token({ token: 'a'.repeat(40_000) })
  await failure(some.resolve(image, null, ctx), Code.UNAVAILABLE, /its token has 40000 characters, the limit is 32768/)
  token({ token: 'a'.repeat(400_000) })
  await failure(some.resolve(image, null, ctx), Code.DATA_LOSS, /its answer is larger than/)
  asked = 0
  token({ token: 'good', expires_in: 1e306 })
  own.validTokens.add('good')
  for (let times = 0; times < 3; times++) await some.resolve(image, null, ctx)
  assert.equal(asked, 1, 'for ever is a time like another one')
  const long = 'a'.repeat(100_000)
  const reasons: string[] = []
  for (const [name, value] of [['www-authenticate', `Bearer realm="http://${long}/"`], ['www-authenticate', 'x, '.repeat(10_000)], ['location', `https://${long}/`], ['location', `${long}://x`]] as const) {
    own.fault = () => ({ kind: 'status', status: name === 'location' ? 307 : 401, headers: { [name]: value } })
    await assert.rejects(client().resolve(image, null, { ...ctx, passedOver: (_host, why) => reasons.push(why) }))
  }
  assert.ok(reasons.length >= 4 && reasons.every((reason) => reason.length < 400), reasons.map((reason) => reason.length).join())
})

test('a token that a registry refuses with 403 is not the last word, unless it was given just now', async (context) => {
  const own = await registry()
  const image = parseImageRef(`${own.host}/team/app:1.0`)
  let issued = 0
  own.auth = { kind: 'bearer', expiresIn: 3600, check: () => `token-${++issued}` }
  // As some registries tell that a token has run out, and all of them that it was for less.
  own.fault = ({ headers }) => (headers.authorization === 'Bearer token-1' && issued === 1 && later > 0 ? { kind: 'status', status: 403 } : undefined)
  let later = 0
  const now = performance.now.bind(performance)
  context.mock.method(performance, 'now', () => now() + later)
  const some = client()
  await some.resolve(image, null, ctx)
  later = 60_000
  await some.resolve(image, null, ctx)
  assert.equal(issued, 2)
  own.fault = ({ headers }) => (headers.authorization?.startsWith('Bearer ') === true ? { kind: 'status', status: 403 } : undefined)
  await failure(some.resolve(image, null, ctx), Code.PERMISSION_DENIED, /403 forbidden/)
  assert.ok(issued <= 4, `${issued} tokens`)
  own.fault = () => undefined
  await some.resolve(image, null, ctx)
})
