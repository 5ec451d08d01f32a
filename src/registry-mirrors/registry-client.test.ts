import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import net, { type AddressInfo } from 'node:net'
import path from 'node:path'
import { test } from 'node:test'
import zlib from 'node:zlib'
import { Code, CriError } from '../errors/cri-error.ts'
import { causesOf } from './causes.test-helper.ts'
import type { PullAuth } from './credentials.ts'
import { FakeProxy, makeCertificates } from './fake-registry.test-helper.ts'
import { parseImageRef } from './image-ref.ts'
import { mediaType } from './media-types.ts'
import { blob, blobBytes, closedPort, failure, manifest, manifestBytes, ref, RegistryTests } from './registry-client.test-helper.ts'
import type { RegistryClient } from './registry-client.ts'

const t = new RegistryTests()
const { ctx } = t

test('an image is resolved, its manifest and blobs are fetched; mirrors are told whose image it is', async () => {
  const mirror = await t.registry()
  const mirrored = t.client({ configPath: await t.through(mirror, mirror) })
  assert.deepEqual(await mirrored.resolve(ref, null, ctx), { descriptor: manifest, host: mirror.host })
  assert.deepEqual(await mirrored.resolve(parseImageRef(`registry.test/team/app@${manifest.digest}`), null, ctx), { descriptor: manifest, host: mirror.host })
  assert.deepEqual((await mirrored.fetchManifest(ref, manifest, null, ctx)).bytes, manifestBytes)
  const { bytes, hosts, pieces } = await t.readBlob(mirrored)
  assert.ok(bytes.equals(blobBytes))
  assert.deepEqual(hosts, [`${mirror.url}/v2`])
  assert.equal(pieces.reduce((sum, length) => sum + length, 0), blobBytes.length, 'every byte is handed out once')
  assert.deepEqual(mirror.asked, ['HEAD /v2/team/app/manifests/1.0', `HEAD /v2/team/app/manifests/${manifest.digest}`, `GET /v2/team/app/manifests/${manifest.digest}`, `GET /v2/team/app/blobs/${blob.digest}`])
  assert.ok(mirror.requests.every((request) => request.query.get('ns') === 'registry.test' && request.headers['user-agent'] === 'cri-shim/test'))
  for (const type of Object.values(mediaType)) assert.ok(mirror.requests[0]?.headers.accept?.includes(type))
  assert.equal(mirror.connections, 1, 'one connection is kept for all')

  const own = t.client()
  mirror.requests.length = 0
  await own.resolve(parseImageRef(`${mirror.host}/team/app:1.0`), null, ctx)
  assert.equal(mirror.requests.at(-1)?.query.has('ns'), false)
})

test('a registry without usable HEAD is asked with GET', async () => {
  const one = await t.registry()
  const own = parseImageRef(`${one.host}/team/app:1.0`)
  const direct = t.client()
  for (const status of [400, 403, 404, 405, 406, 501]) {
    one.fault = ({ method }) => (method === 'HEAD' ? { kind: 'status', status } : undefined)
    assert.deepEqual((await direct.resolve(own, null, ctx)).descriptor, manifest, String(status))
  }
  one.requests.length = 0
  await failure(direct.resolve(parseImageRef(`${one.host}/team/app:none`), null, ctx), Code.NOT_FOUND, /404 not found \(MANIFEST_UNKNOWN: manifest unknown\)/)
  one.fault = () => undefined
  one.withoutDigestHeader = true
  assert.deepEqual((await direct.resolve(own, null, ctx)).descriptor, manifest)
  one.withoutDigestHeader = false
  one.contentType = 'text/plain; charset=utf-8'
  assert.deepEqual((await direct.resolve(own, null, ctx)).descriptor, manifest)
  assert.deepEqual(one.asked.filter((line) => line.startsWith('GET')).length, 3)
})

test('a refusal whose text does not arrive is a refusal all the same', { timeout: 10_000 }, async () => {
  const [mirror, good] = [await t.registry(), await t.registry()]
  // The head promises a body that never comes.
  mirror.fault = () => ({ kind: 'status', status: 403, headers: { 'content-length': '100' } })
  const some = t.client({ configPath: await t.through(mirror, good), stallTimeoutMs: 300, health: { headStartMs: 2 ** 30, knownHeadStartMs: 2 ** 30 } })
  assert.equal((await some.fetchManifest(ref, manifest, null, ctx)).host, good.host)
  await failure(t.client({ configPath: await t.through(mirror), stallTimeoutMs: 300 }).fetchManifest(ref, manifest, null, ctx), Code.PERMISSION_DENIED, /403 forbidden/)
})

test('a manifest that comes compressed is what it was, and its size not what was sent', async () => {
  const one = await t.registry()
  const own = parseImageRef(`${one.host}/team/app:1.0`)
  const compressed: Readonly<Record<string, (bytes: Buffer) => Buffer>> = { 'gzip': zlib.gzipSync, 'x-gzip': zlib.gzipSync, 'br': zlib.brotliCompressSync, 'deflate': zlib.deflateSync, 'zstd': zlib.zstdCompressSync, 'identity': (bytes) => bytes }
  for (const [encoding, compress] of Object.entries(compressed)) {
    for (const digest of [{}, { 'docker-content-digest': manifest.digest }]) {
      one.fault = () => ({ kind: 'status', status: 200, body: compress(manifestBytes), headers: { 'content-encoding': encoding, 'content-type': mediaType.ociManifest, ...digest } })
      assert.deepEqual((await t.client().resolve(own, null, ctx)).descriptor, manifest, encoding)
      assert.deepEqual((await t.client().fetchManifest(own, manifest, null, ctx)).bytes, manifestBytes, encoding)
    }
  }
  for (const [encoding, body] of [['rot13', Buffer.from('x')], ['gzip', Buffer.from('x')], ['gzip', zlib.gzipSync(Buffer.alloc(20 * 1024 * 1024))]] as const) {
    one.fault = () => ({ kind: 'status', status: 200, body, headers: { 'content-encoding': encoding, 'content-type': mediaType.ociManifest } })
    await failure(t.client().fetchManifest(own, manifest, null, ctx), Code.DATA_LOSS, new RegExp(`sent it ${encoding}-encoded, which was not asked for and cannot be read`))
  }
})

test('a HEAD that names no size is not believed', async () => {
  const one = await t.registry()
  const own = parseImageRef(`${one.host}/team/app:1.0`)
  one.fault = ({ method }) => (method === 'HEAD' ? { kind: 'status', status: 200, headers: { 'content-type': mediaType.ociManifest, 'docker-content-digest': manifest.digest, 'content-length': '0' } } : undefined)
  assert.deepEqual((await t.client().resolve(own, null, ctx)).descriptor, manifest)
})

test('Docker’s schema 1 is refused in words', async () => {
  const one = await t.registry()
  const old = Buffer.from('{"schemaVersion":1,"name":"x"}')
  one.putManifest('old', 'a', old, 'application/vnd.docker.distribution.manifest.v1+prettyjws')
  one.putManifest('old', 'b', old, 'text/plain')
  for (const tag of ['a', 'b']) await failure(t.client().resolve(parseImageRef(`${one.host}/old:${tag}`), null, ctx), Code.FAILED_PRECONDITION, /manifest schema 1.*rebuild/)
})

test('an answer that is no manifest leads to the next host', async () => {
  const [page, good] = [await t.registry(), await t.registry()]
  page.fault = () => ({ kind: 'status', status: 200, body: '<html>sign in to the hotel network</html>', headers: { 'content-type': 'text/html' } })
  const some = t.client({ configPath: await t.through(page, good) })
  assert.equal((await some.resolve(ref, null, ctx)).host, good.host)
  assert.ok((await t.readBlob(some)).bytes.equals(blobBytes))
  await failure(t.client({ configPath: await t.through(page) }).resolve(ref, null, ctx), Code.DATA_LOSS, /text\/html that is no image manifest/)
})

test('a manifest with wrong bytes is not taken', async () => {
  const [bad, good] = [await t.registry(), await t.registry()]
  bad.fault = () => ({ kind: 'wrong-bytes' })
  assert.equal((await t.client({ configPath: await t.through(bad, good) }).fetchManifest(ref, manifest, null, ctx)).host, good.host)
  await failure(t.client({ configPath: await t.through(bad) }).fetchManifest(ref, manifest, null, ctx), Code.DATA_LOSS, /do not match the digest/)
  const pinned = parseImageRef(`registry.test/team/app@${manifest.digest}`)
  bad.withoutDigestHeader = true
  bad.contentType = 'application/json'
  assert.equal((await t.client({ configPath: await t.through(bad, good) }).resolve(pinned, null, ctx)).host, good.host)
})

test('a mirror whose path has a /v2 too many says so when it has not got the image', async () => {
  const [harbor, good] = [await t.registry(), await t.registry()]
  const configPath = await t.certsD(`server = "${good.url}"\n[host."${harbor.url}/v2/hub"]\n`)
  const hint = `${harbor.host}: 404 not found .*asked below /v2/hub/v2: override_path = true takes the path as it is written`
  await failure(t.client({ configPath }).resolve(parseImageRef('registry.test/team/none'), null, ctx), Code.NOT_FOUND, new RegExp(`${hint}.*; ${good.host}: 404 not found \\(MANIFEST_UNKNOWN: manifest unknown\\)$`))
  harbor.fault = () => ({ kind: 'status', status: 200, body: '<html>', headers: { 'content-type': 'text/html' } })
  await failure(t.client({ configPath }).resolve(parseImageRef('registry.test/team/none'), null, ctx), Code.DATA_LOSS, /text\/html that is no image manifest.*asked below \/v2\/hub\/v2/)
})

test('a size that the digest contradicts is told', async () => {
  const one = await t.registry()
  const own = parseImageRef(`${one.host}/team/app:1.0`)
  await failure(t.client().fetchManifest(own, { ...manifest, sizeBytes: 7 }, null, ctx), Code.DATA_LOSS, new RegExp(`has ${manifestBytes.length} bytes under this digest, where 7 were announced`))
  one.fault = () => ({ kind: 'short', afterBytes: 5 })
  await failure(t.client().fetchManifest(own, manifest, null, ctx), Code.DATA_LOSS, new RegExp(`sent 5 bytes instead of ${manifestBytes.length}`))
})

test('manifests are bounded', async () => {
  const one = await t.registry()
  const own = parseImageRef(`${one.host}/team/app:1.0`)
  one.fault = () => ({ kind: 'status', status: 200, headers: { 'content-length': String(9 * 1024 * 1024), 'content-type': mediaType.ociIndex, 'docker-content-digest': manifest.digest } })
  await failure(t.client().resolve(own, null, ctx), Code.DATA_LOSS, /limit/)
  await failure(t.client().fetchManifest(own, { ...manifest, sizeBytes: 0 }, null, ctx), Code.DATA_LOSS, /larger than/)
  await failure(t.client().fetchManifest(own, { ...manifest, sizeBytes: 2 ** 30 }, null, ctx), Code.FAILED_PRECONDITION, /limit/)
})

test('hosts are tried in the order of the file, whatever is wrong with one', async () => {
  const faulty = await Promise.all(Array.from({ length: 4 }, () => t.registry()))
  const [missing, broken, resetting, silent] = faulty
  assert.ok(missing && broken && resetting && silent)
  missing.fault = () => ({ kind: 'status', status: 404 })
  broken.fault = () => ({ kind: 'status', status: 500, body: '{"errors":[{"code":"UNKNOWN","message":"boom at https://x/y?token=hunter2"}]}' })
  resetting.fault = () => ({ kind: 'reset' })
  silent.fault = () => ({ kind: 'silent' })
  const good = await t.registry()
  const closed = await closedPort()
  const file = `server = "${good.url}"\n${faulty.map((host) => `[host."${host.url}"]\n`).join('')}[host."http://127.0.0.1:${closed}"]\n[host."http://nowhere.invalid"]\n`
  const some = t.client({ configPath: await t.certsD(file), headerTimeoutMs: 300 })
  assert.equal((await some.resolve(ref, null, ctx)).host, good.host)
  assert.equal((await some.fetchManifest(ref, manifest, null, ctx)).host, good.host)
  assert.ok((await t.readBlob(some)).bytes.equals(blobBytes))
  for (const host of [missing, broken, resetting]) assert.ok(host.requests.length >= 3, 'every request begins at the first host')
  assert.equal(silent.requests.length, 1, 'a time-out is waited for once')

  good.fault = () => ({ kind: 'status', status: 404 })
  const error = await failure(some.fetchManifest(ref, manifest, null, ctx), Code.UNAVAILABLE, /^cannot fetch manifest sha256:/)
  for (const reason of [
    `${missing.host}: 404 not found`, `${broken.host}: 500 internal server error (UNKNOWN: boom at https://x/y)`, `${resetting.host}: connection reset`,
    `${silent.host}: no answer within 0.3 s (skipped`, `127.0.0.1:${closed}: connection refused`, 'nowhere.invalid: host name not found', `${good.host}: 404 not found`,
  ]) assert.ok(error.message.includes(reason), `${reason} in ${error.message}`)
})

test('a host that never finishes connecting is given up after its dial_timeout', async () => {
  const dead = await t.silentServer()
  const good = await t.registry()
  const configPath = await t.certsD(`server = "${good.url}"\n[host."${dead.url}"]\ndial_timeout = "200ms"\n`)
  assert.equal((await t.client({ configPath }).resolve(ref, null, ctx)).host, good.host)
  assert.match(t.logged, /TLS was not set up within 0\.2 s/)
})

test('what the registry itself says decides the code', async () => {
  const [mirror, own] = [await t.registry(), await t.registry()]
  const ownRef = parseImageRef(`${own.host}/team/app:1.0`)
  const some = t.client({ mirrors: { [own.host]: { endpoints: [mirror.url] } } })
  const cases: readonly (readonly [number, number, Code])[] = [
    [404, 404, Code.NOT_FOUND], [500, 404, Code.NOT_FOUND], [403, 404, Code.NOT_FOUND], [404, 403, Code.PERMISSION_DENIED], [404, 401, Code.UNAUTHENTICATED],
    [404, 503, Code.UNAVAILABLE], [403, 503, Code.PERMISSION_DENIED], [404, 429, Code.RESOURCE_EXHAUSTED],
  ]
  for (const [mirrors, registrys, code] of cases) {
    mirror.fault = () => ({ kind: 'status', status: mirrors })
    own.fault = () => ({ kind: 'status', status: registrys })
    const error = await failure(some.fetchManifest(ownRef, manifest, null, ctx), code, new RegExp(`${mirror.host}: ${mirrors} .*; ${own.host}: ${registrys} `))
    assert.ok(error.message.length < 400)
  }
})

test('a tag is only resolved by hosts that may, a digest by all that may pull', async () => {
  const [puller, resolver] = [await t.registry(), await t.registry()]
  const configPath = await t.certsD(`server = "${resolver.url}"\n[host."${puller.url}"]\ncapabilities = ["pull"]\n`)
  const some = t.client({ configPath })
  assert.equal((await some.resolve(ref, null, ctx)).host, resolver.host)
  assert.equal(puller.requests.length, 0)
  assert.equal((await some.fetchManifest(ref, manifest, null, ctx)).host, puller.host)
  assert.equal((await some.resolve(parseImageRef(`registry.test/team/app@${manifest.digest}`), null, ctx)).host, puller.host)
  const none = await t.certsD(`server = "${resolver.url}"\ncapabilities = ["pull"]\n`)
  await failure(t.client({ configPath: none }).resolve(ref, null, ctx), Code.NOT_FOUND, /no host is configured for registry\.test.*capabilities in .*hosts\.toml/)
})

test('a broken hosts.toml fails the pull and names its line', async () => {
  const configPath = await t.certsD('server = "http://127.0.0.1"\ncapabilities = ["pul"]\n')
  await failure(t.client({ configPath }).resolve(ref, null, ctx), Code.FAILED_PRECONDITION, /registry\.test\/hosts\.toml:2: unknown capability "pul"/)
})

test('the last host is asked again after a passing failure, with Retry-After', async () => {
  const one = await t.registry()
  const own = parseImageRef(`${one.host}/team/app:1.0`)
  let failures = 2
  one.fault = () => (failures-- > 0 ? { kind: 'status', status: 503, headers: { 'retry-after': '0' } } : undefined)
  assert.deepEqual((await t.client().resolve(own, null, ctx)).descriptor, manifest)
  assert.equal(one.requests.length, 3)
  one.requests.length = 0
  one.fault = () => ({ kind: 'status', status: 429, headers: { 'retry-after': '3600' } })
  await failure(t.client().resolve(own, null, ctx), Code.RESOURCE_EXHAUSTED, /429 too many requests/)
  assert.equal(one.requests.length, 1, 'nobody waits for an hour')
})

test('a download begins at an offset, also where Range is not known', async () => {
  const one = await t.registry()
  for (const ignoreRange of [false, true]) {
    one.ignoreRange = ignoreRange
    for (const offsetBytes of [1, 1024 * 1024, 2_500_000, blobBytes.length - 1]) {
      const { bytes } = await t.readBlob(t.client(), { offsetBytes }, parseImageRef(`${one.host}/team/app`))
      assert.ok(bytes.equals(blobBytes.subarray(offsetBytes)), `${ignoreRange} ${offsetBytes}`)
    }
  }
  assert.equal(one.requests[0]?.headers.range, 'bytes=1-')
  one.requests.length = 0
  assert.equal((await t.readBlob(t.client(), { offsetBytes: blobBytes.length }, parseImageRef(`${one.host}/team/app`))).bytes.length, 0)
  assert.equal(one.requests.length, 0, 'nothing is left to ask for')
  await failure(t.readBlob(t.client(), { offsetBytes: blobBytes.length + 1 }), Code.INVALID_ARGUMENT, /outside/)
})

test('storage that calls a compressed archive an encoded one is not in the way', async () => {
  const one = await t.registry()
  const own = parseImageRef(`${one.host}/team/app`)
  one.contentEncoding = 'gzip'
  for (const offsetBytes of [0, 1000]) assert.ok((await t.readBlob(t.client(), { offsetBytes }, own)).bytes.equals(blobBytes.subarray(offsetBytes)))
  one.fault = () => ({ kind: 'status', status: 200, body: 'something shorter', headers: { 'content-encoding': 'gzip' } })
  await failure(t.readBlob(t.client(), {}, own), Code.DATA_LOSS, /sent the blob gzip-encoded, which was not asked for/)
})

test('a download that breaks off goes on at the next host, where it was', async () => {
  for (const ignoreRange of [false, true]) {
    for (const kind of ['truncate', 'short'] as const) {
      const [breaking, next] = [await t.registry(), await t.registry()]
      next.ignoreRange = ignoreRange
      breaking.fault = () => ({ kind, afterBytes: 1_500_000 })
      const { bytes, hosts } = await t.readBlob(t.client({ configPath: await t.through(breaking, next) }))
      assert.ok(bytes.equals(blobBytes), kind)
      assert.deepEqual(hosts, [`${breaking.url}/v2`, `${next.url}/v2`])
      const from = Number(/^bytes=(\d+)-$/.exec(next.requests[0]?.headers.range ?? '')?.[1])
      if (kind === 'short') assert.equal(from, 1_500_000)
      else assert.ok(from > 0 && from <= 1_500_000, `from ${from}`)
    }
  }
})

test('answers that are odd: HTTP/1.0, a large head, another range than asked for, and none any more', async () => {
  const answers = new Map<string, string>()
  const asked: string[] = []
  const odd = net.createServer((socket) => {
    socket.on('error', () => {})
    socket.once('data', (request) => {
      const line = request.toString('latin1').split('\r\n')[0] ?? ''
      asked.push(line)
      socket.end([...answers].find(([part]) => line.includes(part))?.[1] ?? 'HTTP/1.0 404 Not Found\r\n\r\n', 'latin1')
    })
  }).listen(0, '127.0.0.1')
  await once(odd, 'listening')
  t.cleanups.push(() => { odd.close() })
  const url = `http://127.0.0.1:${(odd.address() as AddressInfo).port}`
  const good = await t.registry()
  answers.set('HEAD', `HTTP/1.0 200 OK\r\nContent-Type: ${mediaType.ociManifest}\r\nSet-Cookie: ${'x'.repeat(40_000)}\r\n\r\n`)
  answers.set('GET /v2/team/app/manifests/', `HTTP/1.0 200 OK\r\nContent-Type: ${mediaType.ociManifest}\r\n\r\n${manifestBytes.toString('latin1')}`)
  const alone = t.client({ configPath: await t.through({ url }) })
  assert.deepEqual((await alone.resolve(ref, null, ctx)).descriptor, manifest)
  const both = t.client({ configPath: await t.through({ url }, good) })
  const ranges = ['bytes 0-9/10', `bytes 1000-${blobBytes.length - 1}/999999999`, `bytes 0-${blobBytes.length - 1}/${blobBytes.length}`, 'bytes */10', 'nonsense', '']
  for (const range of ranges) {
    answers.set('GET /v2/team/app/blobs/', `HTTP/1.1 206 Partial Content\r\nContent-Range: ${range}\r\n\r\nxxxxxxxxxx`)
    assert.ok((await t.readBlob(both, { offsetBytes: 1000 })).bytes.equals(blobBytes.subarray(1000)), range)
  }
  answers.set('GET /v2/team/app/blobs/', 'HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */10\r\nContent-Length: 0\r\n\r\n')
  assert.ok((await t.readBlob(both, { offsetBytes: 1000 })).bytes.equals(blobBytes.subarray(1000)))
  await failure(t.readBlob(alone, { offsetBytes: 1000 }), Code.UNAVAILABLE, /416 range not satisfiable/)
  assert.equal(asked.filter((line) => line.includes('/blobs/')).length, ranges.length + 2)
})

test('an answer that is another protocol, or a page in place of a blob, is passed over', { timeout: 20_000 }, async () => {
  const good = await t.registry()
  const page = '<html>please log in</html>'
  const chunked = (type: string): string => `HTTP/1.1 200 OK\r\ncontent-type: ${type}\r\ntransfer-encoding: chunked\r\n\r\n${page.length.toString(16)}\r\n${page}\r\n0\r\n\r\n`
  const answers: readonly (readonly [string, RegExp])[] = [
    ['HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n', /101 switches to another protocol/],
    [chunked('text/html; charset=utf-8'), /answered with text\/html in place of the blob/], [chunked('application/json'), /answered with application\/json in place of the blob/],
    [`HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n${page}`, /answered with text\/html in place of the blob/],
    [`HTTP/1.1 206 Partial Content\r\ncontent-length: ${blobBytes.length}\r\ncontent-range: bytes 5-${blobBytes.length + 4}/${blobBytes.length + 5}\r\n\r\n`, /sent another range/],
  ]
  let answer = ''
  const server = net.createServer((socket) => socket.on('error', () => {}).on('data', () => (answer.includes('charset') || !answer.includes('text/html') ? socket.write(answer) : socket.end(answer)))).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const sockets = new Set<net.Socket>()
  server.on('connection', (socket) => sockets.add(socket))
  t.cleanups.push(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  const odd = { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }
  for (const [each, why] of answers) {
    answer = each
    const some = t.client({ configPath: await t.through(odd, good), health: { headStartMs: 2 ** 30 } })
    const passed: string[] = []
    const { bytes, hosts } = await t.readBlob(some, { passedOver: (_host, reason) => passed.push(reason) })
    assert.ok(bytes.equals(blobBytes), each)
    assert.deepEqual(hosts, [`${good.url}/v2`])
    assert.match(passed.join(), why)
  }
  answer = answers[0]?.[0] ?? ''
  await failure(t.client({ configPath: await t.through(odd) }).resolve(ref, null, ctx), Code.UNAVAILABLE, /101 switches to another protocol/)
})

test('a download goes on at the same host when there is no other', async () => {
  const one = await t.registry()
  let breaks = 4
  one.fault = () => (breaks-- > 0 ? { kind: 'short', afterBytes: 600_000 } : undefined)
  const { bytes, hosts } = await t.readBlob(t.client({ configPath: await t.through(one) }))
  assert.ok(bytes.equals(blobBytes))
  assert.deepEqual(hosts, [`${one.url}/v2`])
  assert.deepEqual(one.requests.map((request) => request.headers.range), [undefined, 'bytes=600000-', 'bytes=1200000-', 'bytes=1800000-', 'bytes=2400000-'])
})

test('a stalled download goes on elsewhere', async () => {
  const [stalling, next] = [await t.registry(), await t.registry()]
  stalling.fault = () => ({ kind: 'stall', afterBytes: 100_000 })
  const { bytes } = await t.readBlob(t.client({ configPath: await t.through(stalling, next), stallTimeoutMs: 200 }))
  assert.ok(bytes.equals(blobBytes))
  assert.match(t.logged, /nothing arrived for 0\.2 s/)
})

test('the attempts to go on are bounded', async () => {
  const one = await t.registry()
  one.fault = () => ({ kind: 'short', afterBytes: 10 })
  await failure(t.readBlob(t.client({ configPath: await t.through(one) })), Code.DATA_LOSS, /bytes too few/)
  assert.equal(one.requests.length, 6)
  one.fault = ({ headers }) => (headers.range === undefined ? { kind: 'short', afterBytes: 10 } : { kind: 'status', status: 404 })
  await failure(t.readBlob(t.client({ configPath: await t.through(one) })), Code.NOT_FOUND, /404/)
})

test('no more bytes than the descriptor says', async () => {
  const one = await t.registry()
  one.fault = () => ({ kind: 'long' })
  await failure(t.readBlob(t.client({ configPath: await t.through(one) })), Code.DATA_LOSS, /more bytes than/)
  one.fault = () => undefined
  const opened = t.client({ configPath: await t.through(one) }).openBlob(ref, { ...blob, sizeBytes: blob.sizeBytes - 1 }, { signal: ctx.signal })
  await failure(opened, Code.DATA_LOSS, new RegExp(`has ${blob.sizeBytes} bytes of it instead of ${blob.sizeBytes - 1}`))
})

test('a host that sent wrong bytes can be avoided', async () => {
  const [bad, good] = [await t.registry(), await t.registry()]
  bad.fault = () => ({ kind: 'wrong-bytes' })
  const some = t.client({ configPath: await t.through(bad, good) })
  const first = await t.readBlob(some)
  assert.ok(!first.bytes.equals(blobBytes))
  const second = await t.readBlob(some, { avoid: first.hosts })
  assert.ok(second.bytes.equals(blobBytes))
  await failure(t.readBlob(some, { avoid: [...first.hosts, ...second.hosts] }), Code.DATA_LOSS, /every host that has it sent wrong bytes/)
})

test('redirects go without credentials and headers to another host, with them to the same', async () => {
  const [own, elsewhere] = [await t.registry(), await t.registry()]
  own.auth = { kind: 'basic', username: 'user', password: 'hunter2' }
  const configPath = await t.certsD(`server = "${own.url}"\n[header]\nx-custom = "header-secret"\n`)
  const some = t.client({ configPath, headers: { 'x-global': ['header-secret'] }, configs: { [own.host]: { auth: { username: 'user', password: 'hunter2' } } } })
  own.fault = ({ path: asked, headers }) => (asked.includes('/blobs/') && headers.authorization !== undefined ? { kind: 'redirect', location: `${elsewhere.url}${asked}?X-Amz-Signature=hunter2` } : undefined)
  assert.ok((await t.readBlob(some, { offsetBytes: 100 })).bytes.equals(blobBytes.subarray(100)))
  const there = elsewhere.requests[0]
  assert.deepEqual([there?.headers.authorization, there?.headers['x-custom'], there?.headers['x-global'], there?.headers.range], [undefined, undefined, undefined, 'bytes=100-'])
  assert.equal(own.requests.at(-1)?.headers['x-custom'], 'header-secret')
  assert.equal(own.requests.at(-1)?.headers['x-global'], 'header-secret')

  own.fault = ({ query, path: asked }) => (query.has('moved') ? undefined : { kind: 'redirect', location: `${asked}?moved=1` })
  assert.equal((await some.resolve(ref, null, ctx)).host, own.host)
  assert.equal(own.requests.at(-1)?.headers['x-custom'], 'header-secret')

  elsewhere.fault = () => ({ kind: 'status', status: 403 })
  own.fault = ({ path: asked }) => ({ kind: 'redirect', location: `${elsewhere.url}${asked}?X-Amz-Signature=hunter2` })
  await failure(t.readBlob(some), Code.PERMISSION_DENIED, new RegExp(`${own.host}: redirects to ${elsewhere.host}: 403 forbidden`))
  own.fault = () => ({ kind: 'redirect', location: '/again' })
  own.requests.length = 0
  await failure(some.resolve(ref, null, ctx), Code.UNAVAILABLE, /more than 5 redirects/)
  assert.equal(own.requests.length, 6)
  own.fault = () => ({ kind: 'redirect', location: 'file:///etc/shadow' })
  await failure(some.resolve(ref, null, ctx), Code.UNAVAILABLE, /redirects to a file: address/)
})

test('headers of the settings add to a request and do not change what is asked', async () => {
  const one = await t.registry()
  const upset = 'Accept = "text/html"\nRange = "bytes=0-1"\nAccept-Encoding = "gzip"\nHost = "other.example"\ncontent-length = "5"\nTransfer-Encoding = "chunked"\nConnection = "close"\nUser-Agent = "mine"\nx-custom = "1"\n'
  const some = t.client({ configPath: await t.certsD(`server = "${one.url}"\n[header]\n${upset}`), headers: { accept: ['text/plain'], Expect: ['100-continue'] } })
  assert.deepEqual((await some.resolve(ref, null, ctx)).descriptor, manifest)
  assert.deepEqual((await some.fetchManifest(ref, manifest, null, ctx)).bytes, manifestBytes)
  assert.ok((await t.readBlob(some, { offsetBytes: 7 })).bytes.equals(blobBytes.subarray(7)))
  for (const { headers } of one.requests) {
    assert.deepEqual([headers['accept-encoding'], headers.host, headers['content-length'], headers['transfer-encoding'], headers['expect'], headers['user-agent'], headers['x-custom']], ['identity', one.host, undefined, undefined, undefined, 'mine', '1'])
    assert.match(headers.accept ?? '', /^application\/vnd\./)
  }
  assert.deepEqual(one.requests.map(({ headers }) => headers.range), [undefined, undefined, 'bytes=7-'])
  assert.equal(one.connections, 1)
  for (const name of ['Accept', 'Range', 'Accept-Encoding', 'Host', 'content-length', 'Transfer-Encoding', 'Connection']) assert.match(t.logged, new RegExp(`hosts\\.toml:\\d+: header \\\\"${name}\\\\" is not used`))
})

test('a header of the settings that HTTP does not allow is told', async () => {
  const one = await t.registry()
  for (const headers of [{ 'x y': ['header-secret'] }, { 'x-z': ['header-secret\n'] }]) {
    const name = Object.keys(headers)[0] ?? ''
    await failure(t.client({ headers }).resolve(parseImageRef(`${one.host}/team/app:1.0`), null, ctx), Code.FAILED_PRECONDITION, new RegExp(`header "${name}" of registry\\.headers is not one that HTTP allows`))
  }
  assert.equal(one.requests.length, 0)
})

test('the pull secret goes to the image’s own registry only', async () => {
  const [mirror, own] = [await t.registry(), await t.registry()]
  own.auth = { kind: 'basic', username: 'user', password: 'hunter2' }
  mirror.auth = { kind: 'basic', username: 'mirror', password: 'hunter2' }
  const ownRef = parseImageRef(`${own.host}/team/app:1.0`)
  const mirrors = { [own.host]: { endpoints: [mirror.url] } }
  const auth: PullAuth = { username: 'user', password: 'hunter2' }
  assert.equal((await t.client({ mirrors }).resolve(ownRef, auth, ctx)).host, own.host)
  assert.ok(mirror.requests.length > 0 && mirror.requests.every((request) => request.headers.authorization === undefined))
  assert.equal((await t.client({ mirrors, configs: { [mirror.host]: { auth: { auth: Buffer.from('mirror:hunter2').toString('base64') } } } }).resolve(ownRef, auth, ctx)).host, mirror.host)
  assert.equal((await t.client({ mirrors, auths: { [`http://${mirror.host}/v1/`]: { username: 'mirror', password: 'hunter2' } } }).resolve(ownRef, auth, ctx)).host, mirror.host)
  assert.equal((await t.client({ mirrors }).resolve(ownRef, { username: 'mirror', password: 'hunter2', server_address: mirror.url }, ctx)).host, mirror.host, 'server_address names whose it is')

  const direct = t.client()
  await failure(direct.resolve(ownRef, { ...auth, server_address: 'https://other.example' }, ctx), Code.UNAUTHENTICATED, /needs a user name and password, and none is given: the pull secret is for https:\/\/other\.example \(its server_address\) \(check the imagePullSecrets/)
  await failure(direct.resolve(ownRef, null, ctx), Code.UNAUTHENTICATED, /none is given/)
  await failure(direct.resolve(ownRef, { username: 'user', password: 'wrong' }, ctx), Code.PERMISSION_DENIED, /do not allow to pull/)
  await failure(direct.resolve(ownRef, { auth: 'hunter2' }, ctx), Code.INVALID_ARGUMENT, /not base64 of username:password/)
  assert.equal((await direct.resolve(ownRef, { auth: Buffer.from('user:hunter2').toString('base64') }, ctx)).host, own.host)
  own.requests.length = 0
  await direct.resolve(ownRef, { auth: Buffer.from('user:hunter2').toString('base64') }, ctx)
  assert.deepEqual(own.requests.map((request) => request.headers.authorization !== undefined), [true], 'what worked is sent right away')
})

test('bearer tokens: asked once per repository and credential, and again when they are refused', async () => {
  const one = await t.registry()
  let issued = 0
  one.auth = { kind: 'bearer', expiresIn: 300, check: () => `token-${++issued}` }
  const own = parseImageRef(`${one.host}/team/app:1.0`)
  const some = t.client()
  const tokenRequests = (): typeof one.requests => one.requests.filter((request) => request.path === '/token')
  await Promise.all([some.resolve(own, null, ctx), some.fetchManifest(own, manifest, null, ctx), some.fetchManifest(own, manifest, null, ctx)])
  await t.readBlob(some, {}, own)
  assert.equal(tokenRequests().length, 1)
  const [asked] = tokenRequests()
  assert.deepEqual([asked?.method, asked?.query.get('service'), asked?.query.getAll('scope'), asked?.headers.authorization], ['GET', 'fake', ['repository:team/app:pull'], undefined])
  one.validTokens.clear()
  await some.fetchManifest(own, manifest, null, ctx)
  assert.equal(tokenRequests().length, 2, 'a refused token is replaced')
  await some.fetchManifest(own, manifest, { username: 'user', password: 'hunter2' }, ctx)
  assert.equal(tokenRequests().length, 3, 'another credential has a token of its own')
  assert.equal(tokenRequests().at(-1)?.headers.authorization, `Basic ${Buffer.from('user:hunter2').toString('base64')}`)

  one.auth = { kind: 'bearer', check: () => 'useless' }
  one.fault = ({ path: asks }) => (asks === '/token' ? undefined : { kind: 'status', status: 401, headers: { 'www-authenticate': `Bearer realm="${one.url}/token",service="fake"` } })
  await failure(t.client().resolve(own, null, ctx), Code.UNAUTHENTICATED, /does not exist or needs credentials, and none are given/)
  assert.deepEqual(tokenRequests().at(-1)?.query.getAll('scope'), ['repository:team/app:pull'], 'a challenge without scope')
})

test('identity, registry and refused tokens', async () => {
  const one = await t.registry()
  const own = parseImageRef(`${one.host}/team/app:1.0`)
  one.auth = { kind: 'bearer', check: ({ method, body }) => (method === 'POST' && body.includes('refresh_token=identity-secret') ? 'token-1' : undefined) }
  await t.client().resolve(own, { identity_token: 'identity-secret' }, ctx)
  const form = new URLSearchParams(one.requests.find((request) => request.path === '/token')?.body)
  assert.deepEqual([form.get('grant_type'), form.get('service'), form.get('scope')], ['refresh_token', 'fake', 'repository:team/app:pull'])
  await failure(t.client().resolve(own, { username: 'user', password: 'hunter2' }, ctx), Code.UNAUTHENTICATED, new RegExp(`token service ${one.host}: refused the credentials \\(401\\)`))
  one.auth = { kind: 'bearer', noGet: true, check: ({ body }) => (new URLSearchParams(body).get('password') === 'hunter2' ? 'token-2' : undefined) }
  await t.client().resolve(own, { username: 'user', password: 'hunter2' }, ctx)

  one.requests.length = 0
  one.validTokens.add('registry-secret')
  await t.client().resolve(own, { registry_token: 'registry-secret' }, ctx)
  assert.deepEqual(one.asked, ['HEAD /v2/team/app/manifests/1.0'])
  one.validTokens.clear()
  await failure(t.client().resolve(own, { registry_token: 'registry-secret' }, ctx), Code.UNAUTHENTICATED, /registry token was refused/)

  one.fault = ({ path: asked }) => (asked === '/token' ? { kind: 'status', status: 500 } : undefined)
  await failure(t.client().resolve(own, null, ctx), Code.UNAVAILABLE, /token service .* answered 500/)
  one.fault = () => undefined
  one.auth = { kind: 'bearer', check: () => 'x', realm: 'nonsense' }
  await failure(t.client().resolve(own, null, ctx), Code.UNAVAILABLE, /names no token service/)
})

test('credentials do not leave TLS for a plain token service', async () => {
  const one = await t.registry({ tls: t.certificates })
  const plain = await t.registry()
  one.auth = { kind: 'bearer', check: () => 'token-1', realm: `${plain.url}/token` }
  const configPath = await t.certsD(`server = "${one.url}"\nca = "${t.certificates.caFile}"\n`)
  await failure(t.client({ configPath, configs: { [one.host]: { auth: { username: 'user', password: 'hunter2' } } } }).resolve(ref, null, ctx), Code.UNAVAILABLE, /plain HTTP: credentials are not sent there/)
  assert.equal(plain.requests.length, 0)
})

test('TLS: authorities, client certificates, skip_verify', async () => {
  const one = await t.registry({ tls: t.certificates, askClientCertificate: true })
  const { caFile, clientCertFile, clientKeyFile } = t.certificates
  const pair = `client = [["${clientCertFile}", "${clientKeyFile}"]]\n`
  const some = async (settings: string): Promise<RegistryClient> => t.client({ configPath: await t.certsD(`server = "${one.url}"\n${settings}`) })
  await (await some(`ca = "${caFile}"\n${pair}`)).resolve(ref, null, ctx)
  assert.equal(one.requests.at(-1)?.clientName, 'node')
  await (await some(`skip_verify = true\n${pair}`)).resolve(ref, null, ctx)
  await failure((await some(pair)).resolve(ref, null, ctx), Code.UNAVAILABLE, /certificate is not trusted: name its authority, CN=test authority, with ca in .*hosts\.toml/)
  await failure((await some(`ca = "${caFile}"\n`)).resolve(ref, null, ctx), Code.UNAVAILABLE, /wants a client certificate: name it with client in .*hosts\.toml/)

  const good = await t.registry()
  const broken = [`ca = "missing.pem"`, `ca = "${path.join(t.root, 'server.key')}x"`, `client = "${caFile}"`, `ca = "${import.meta.filename}"`, `ca = "${t.certificates.keyFile}"`]
  for (const settings of broken) {
    const configPath = await t.certsD(`server = "${good.url}"\n[host."${one.url}"]\n${settings}\n`)
    assert.equal((await t.client({ configPath }).resolve(ref, null, ctx)).host, good.host)
    assert.match(t.logged, /is passed over: (?:ca|client) /)
    t.logged = ''
  }
  const configPath = await t.certsD(`server = "${one.url}"\nca = "missing.pem"\n`)
  await failure(t.client({ configPath }).resolve(ref, null, ctx), Code.FAILED_PRECONDITION, /ca .*registry\.test\/missing\.pem does not exist/)
})

test('an authority that is replaced counts at the next request', async () => {
  const one = await t.registry({ tls: t.certificates })
  const configPath = await t.certsD(`server = "${one.url}"\nca = "ca.pem"\n`)
  const file = path.join(configPath[0] ?? '', 'registry.test/ca.pem')
  const some = t.client({ configPath })
  await writeFile(file, await readFile(t.certificates.caFile))
  await some.resolve(ref, null, ctx)
  const other = await mkdtemp(path.join(t.root, 'other-'))
  await writeFile(file, await readFile(makeCertificates(other).caFile))
  await failure(some.resolve(ref, null, ctx), Code.UNAVAILABLE, /not trusted/)
})

test('authorities of this machine may be files in a directory, as for containerd', async () => {
  const one = await t.registry({ tls: t.certificates })
  const configPath = await t.certsD(`server = "${one.url}"\n`)
  const dir = await mkdtemp(path.join(t.root, 'authorities-'))
  await writeFile(path.join(dir, 'README'), ['nothing', 'BEGIN', 'bm8=', 'END', ''].join('\n').replaceAll(/BEGIN|END/g, '-----$& CERTIFICATE-----'))
  await symlink('nowhere', path.join(dir, 'dangling.pem'))
  const some = t.client({ configPath, env: { SSL_CERT_DIR: `/nonexistent:${dir}` } })
  await failure(some.resolve(ref, null, ctx), Code.UNAVAILABLE, /certificate is not trusted/)
  await writeFile(path.join(dir, 'company.pem'), await readFile(t.certificates.caFile))
  await some.resolve(ref, null, ctx)
  await rm(path.join(dir, 'company.pem'))
  await failure(some.resolve(ref, null, ctx), Code.UNAVAILABLE, /certificate is not trusted/)
})

test('this machine’s own registry is spoken to in whichever protocol it knows', async () => {
  const [plain, secure] = [await t.registry(), await t.registry({ tls: t.certificates })]
  for (const one of [plain, secure]) {
    const some = t.client()
    const own = parseImageRef(`${one.host}/team/app:1.0`)
    await some.resolve(own, null, ctx)
    assert.ok((await t.readBlob(some, {}, own)).bytes.equals(blobBytes))
  }
  const configPath = await t.certsD(`server = "https://${plain.host}"\n`)
  await failure(t.client({ configPath }).resolve(ref, null, ctx), Code.UNAVAILABLE, /does not speak TLS: write http:\/\//)
})

test('a tag is not believed over a redirect from TLS to plain HTTP', async () => {
  const [secure, plain] = [await t.registry({ tls: t.certificates }), await t.registry()]
  secure.fault = ({ path: asked }) => ({ kind: 'redirect', location: `${plain.url}${asked}` })
  const configPath = await t.certsD(`server = "${secure.url}"\nca = "${t.certificates.caFile}"\n`)
  await failure(t.client({ configPath }).resolve(ref, null, ctx), Code.UNAVAILABLE, /redirects to plain HTTP/)
  assert.ok((await t.readBlob(t.client({ configPath }))).bytes.equals(blobBytes), 'bytes are verified by their digest')
})

test('proxies', async () => {
  const [plain, secure] = [await t.registry(), await t.registry({ tls: t.certificates })]
  const [proxy, tunnel] = [await FakeProxy.start(plain.port), await FakeProxy.start(secure.port)]
  t.cleanups.push(() => proxy.close(), () => tunnel.close())
  const env = { HTTP_PROXY: proxy.url, https_proxy: tunnel.url, NO_PROXY: '10.0.0.0/8,other.test' }
  const overHttp = t.client({ env, configPath: await t.certsD('server = "http://registry.test"\n') })
  assert.equal((await overHttp.resolve(ref, null, ctx)).host, 'registry.test')
  assert.deepEqual(proxy.seen.map((line) => line.replace(/\?.*/, '')), ['HEAD http://registry.test/v2/team/app/manifests/1.0'])
  const overTls = t.client({ env, configPath: await t.certsD(`ca = "${t.certificates.caFile}"\n`) })
  assert.equal((await overTls.resolve(ref, null, ctx)).host, 'registry.test')
  assert.ok((await t.readBlob(overTls)).bytes.equals(blobBytes))
  assert.deepEqual(tunnel.seen, ['CONNECT registry.test:443'])
  await t.client({ env }).resolve(parseImageRef(`${plain.host}/team/app:1.0`), null, ctx)
  assert.equal(proxy.seen.length, 1, 'never for this machine')
  await failure(t.client({ env: { HTTPS_PROXY: 'socks5://user:hunter2@127.0.0.1:1' } }).resolve(ref, null, ctx), Code.FAILED_PRECONDITION, /proxies of kind socks5 are not supported/)
})

test('a proxy that is the one in trouble is named, and waited for no longer than the host would be', { timeout: 20_000 }, async () => {
  const sockets = new Set<net.Socket>()
  const proxy = async (answer: string): Promise<string> => {
    const server = net.createServer((socket) => sockets.add(socket.on('error', () => {}).on('data', () => socket.write(answer)))).listen(0, '127.0.0.1')
    await once(server, 'listening')
    t.cleanups.push(() => {
      for (const socket of sockets) socket.destroy()
      server.close()
    })
    return `127.0.0.1:${(server.address() as AddressInfo).port}`
  }
  const configPath = await t.certsD('server = "https://registry.test"\ndial_timeout = "300ms"\n')
  const through = (address: string): RegistryClient => t.client({ configPath, env: { HTTPS_PROXY: address } })
  const cases: readonly (readonly [string, RegExp])[] = [
    [`127.0.0.1:${await closedPort()}`, /: connection refused$/], [await proxy(''), /: no connection within 0\.3 s \(3 times\)$|: no connection within 0\.3 s$/],
    [await proxy('HTTP/1.1 407 Proxy Authentication Required\r\n\r\n'), /: it wants a user name and password \(407\)$/], [await proxy('HTTP/1.1 403 Forbidden\r\n\r\n'), /: it refused the connection \(403 forbidden\)$/], [await proxy('SSH-2.0-x\r\n\r\n'), /: it gave no connection$/],
  ]
  for (const [address, why] of cases) {
    const error = await failure(through(`http://user:hunter2@${address}`).resolve(ref, null, ctx), Code.UNAVAILABLE, new RegExp(`registry\\.test: by the HTTP proxy ${address}${why.source}`))
    assert.doesNotMatch(causesOf(error).join(), /hunter2/)
  }
  for (const address of ['http://', 'http://user:hunter2@127.0.0.1:99999', '"http://127.0.0.1:3128"', 'http://user:hunter2%zz@127.0.0.1:3128', 'http://a b:3128']) {
    const error = await through(address).resolve(ref, null, ctx).then(() => assert.fail('it did not fail'), (reason: unknown) => reason)
    assert.ok(error instanceof CriError && error.code === Code.FAILED_PRECONDITION && error.message.includes('is not the address of a proxy'), String(error))
    // Node's own words would hold all of the URL.
    assert.doesNotMatch([error.message, ...causesOf(error)].join(), /hunter2/)
  }
  // Whoever waits for the proxy may give up.
  const silent = await proxy('')
  const gone = new AbortController()
  const waiting = t.client({ env: { HTTPS_PROXY: `http://${silent}` } }).resolve(ref, null, { ...ctx, signal: gone.signal })
  const before = sockets.size
  while (sockets.size === before) await new Promise((resolve) => { setTimeout(resolve, 5) })
  gone.abort(new Error('not wanted any more'))
  await assert.rejects(waiting, /not wanted any more/)
})

test('a registry in plain HTTP that sends everybody on to its TLS is one registry, credential and all', async () => {
  const [plain, secure] = [await t.registry(), await t.registry({ tls: t.certificates, askClientCertificate: true })]
  const [proxy, tunnel] = [await FakeProxy.start(plain.port), await FakeProxy.start(secure.port)]
  t.cleanups.push(() => proxy.close(), () => tunnel.close())
  const env = { HTTP_PROXY: proxy.url, HTTPS_PROXY: tunnel.url }
  const { caFile, clientCertFile, clientKeyFile } = t.certificates
  const configPath = await t.certsD(`server = "http://registry.test"\nca = "${caFile}"\nclient = [["${clientCertFile}", "${clientKeyFile}"]]\n`)
  plain.fault = ({ path: asked }) => ({ kind: 'redirect', location: `https://registry.test${asked}` })
  secure.auth = { kind: 'basic', username: 'user', password: 'hunter2' }
  const some = t.client({ env, configPath })
  await some.resolve(ref, { username: 'user', password: 'hunter2' }, ctx)
  assert.ok((await t.readBlob(some, { auth: { username: 'user', password: 'hunter2' } })).bytes.equals(blobBytes))
  // Not to another port: that may be somebody else's.
  plain.fault = ({ path: asked }) => ({ kind: 'redirect', location: `https://registry.test:8443${asked}` })
  secure.requests.length = 0
  await failure(some.resolve(ref, { username: 'user', password: 'hunter2' }, ctx), Code.UNAVAILABLE, /wants a client certificate/)
  assert.equal(secure.requests.length, 0)
})

test('an abort ends the sockets at once, with its own reason', async () => {
  const one = await t.registry()
  const own = parseImageRef(`${one.host}/team/app:1.0`)
  const reason = new CriError(Code.CANCELLED, 'the client is gone')
  one.fault = ({ method }) => (method === 'HEAD' ? { kind: 'silent' } : { kind: 'stall', afterBytes: 10 })
  const gone = async (work: (signal: AbortSignal) => Promise<unknown>): Promise<void> => {
    const abort = new AbortController()
    const before = one.requests.length
    const working = work(abort.signal)
    while (one.requests.length === before) await new Promise((resolve) => { setImmediate(resolve) })
    abort.abort(reason)
    await assert.rejects(working, (error) => error === reason)
    await one.idle()
  }
  const some = t.client()
  await gone((signal) => some.resolve(own, null, { ...ctx, signal }))
  await gone((signal) => some.fetchManifest(own, manifest, null, { ...ctx, signal }))
  await gone((signal) => t.readBlob(some, { signal }, own))
  await assert.rejects(some.resolve(own, null, { ...ctx, signal: AbortSignal.abort(reason) }), (error) => error === reason)
})

test('a reader that leaves early, a blob that nobody reads, and close() leave no socket', async () => {
  const one = await t.registry()
  const own = parseImageRef(`${one.host}/team/app:1.0`)
  const some = t.client()
  one.fault = () => ({ kind: 'stall', afterBytes: 2 * 1024 * 1024 })
  const opened = await some.openBlob(own, blob, { signal: ctx.signal })
  for await (const piece of opened.stream) {
    assert.ok(piece.length > 0)
    break
  }
  await one.idle()
  const unread = await some.openBlob(own, blob, { signal: ctx.signal })
  unread.close()
  await one.idle()
  await assert.rejects(async () => { for await (const _ of unread.stream) assert.fail('closed') }, (error) => error instanceof CriError && error.code === Code.CANCELLED)
  const reading = t.readBlob(some, {}, own)
  while (one.sockets.size === 0) await new Promise((resolve) => { setImmediate(resolve) })
  some.close()
  await failure(reading, Code.UNAVAILABLE, /shutting down/)
  await one.idle()
  await failure(some.resolve(own, null, ctx), Code.UNAVAILABLE, /shutting down/)
})

test('a kept connection that the registry closed meanwhile is replaced without a word', async () => {
  const one = await t.registry()
  const some = t.client({ configPath: await t.through(one) })
  await some.resolve(ref, null, ctx)
  // The next request on the old connection is reset, as by a server whose keep-alive time is over.
  let first = true
  one.fault = () => {
    const reset = first
    first = false
    return reset ? { kind: 'reset' } : undefined
  }
  assert.equal((await some.fetchManifest(ref, manifest, null, ctx)).host, one.host)
  assert.deepEqual(one.requests.map((request) => request.connection), [1, 1, 2])
  assert.doesNotMatch(t.logged, /asking the registry again/)
})
