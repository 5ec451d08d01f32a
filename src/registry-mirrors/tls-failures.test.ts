import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp } from 'node:fs/promises'
import net, { type AddressInfo, type Socket } from 'node:net'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { test } from 'node:test'
import { Code } from '../errors/cri-error.ts'
import { makeCertificates } from './fake-registry.test-helper.ts'
import { closedPort, failure, manifest, ref, RegistryTests } from './registry-client.test-helper.ts'

// What an operator is told of TLS that does not come about.

const t = new RegistryTests()
const { ctx } = t

/** OpenSSL's own server, which says in alerts what it does not like. Ends with the test. */
async function strictServer(...words: string[]): Promise<string> {
  const { caFile, certFile, keyFile } = t.certificates
  const child = spawn('openssl', ['s_server', '-accept', '127.0.0.1:0', '-cert', certFile, '-key', keyFile, '-CAfile', caFile, '-Verify', '1', '-verify_return_error', '-www', ...words], { stdio: ['ignore', 'pipe', 'ignore'] })
  t.cleanups.push(async () => {
    const ended = once(child, 'exit')
    child.kill()
    await ended
  })
  for await (const line of createInterface({ input: child.stdout })) {
    const port = /^ACCEPT .*:(\d+)/.exec(line)?.[1]
    if (port !== undefined) return `127.0.0.1:${port}`
  }
  throw new Error('openssl s_server did not start')
}

async function answering(host: string, settings: string, code: Code, pattern: RegExp): Promise<void> {
  await failure(t.client({ configPath: await t.certsD(`server = "${host}"\n${settings}`) }).fetchManifest(ref, manifest, null, ctx), code, pattern)
}

test('a client certificate that is not accepted is named, with what the host says of it', async () => {
  const { caFile } = t.certificates
  const stranger = makeCertificates(await mkdtemp(path.join(t.root, 'stranger-')))
  const pair = `ca = "${caFile}"\nclient = [["${stranger.clientCertFile}", "${stranger.clientKeyFile}"]]\n`
  const named = `the client certificate ${stranger.clientCertFile} \\(CN=node, valid until \\d{4}-\\d\\d-\\d\\d\\)`
  for (const version of ['-tls1_2', '-tls1_3']) {
    const host = await strictServer(version)
    await answering(`https://${host}`, pair, Code.UNAVAILABLE, new RegExp(`${host}: does not accept ${named}, and says "[a-z ]+": it must trust the authority that signed it`))
    const expected = version === '-tls1_3' ? /wants a client certificate: name it with client in .*hosts\.toml/ : /refused the TLS handshake; it may want a client certificate/
    await answering(`https://${host}`, `ca = "${caFile}"\n`, Code.UNAVAILABLE, expected)
  }
})

test('a certificate that is not trusted: who signed it, and whom ca names instead', async () => {
  const one = await t.registry({ tls: t.certificates })
  const other = makeCertificates(await mkdtemp(path.join(t.root, 'other-')))
  await answering(one.url, `ca = "${other.certFile}"\n`, Code.UNAVAILABLE, /its certificate is not trusted: its authority is CN=test authority, and ca names CN=registry\.test: name the right one in .*hosts\.toml$/)
  // The same name is not the same authority.
  await answering(one.url, `ca = ["${other.caFile}", "${other.certFile}", "${other.clientCertFile}"]\n`, Code.UNAVAILABLE, /its authority is CN=test authority, and ca names CN=test authority, CN=registry\.test and more: /)
  await answering(one.url, '', Code.UNAVAILABLE, /its certificate is not trusted: name its authority, CN=test authority, with ca in .*hosts\.toml$/)
  const selfSigned = await t.registry({ tls: { ...t.certificates, certFile: t.certificates.caFile, keyFile: path.join(t.root, 'ca.key') } })
  await answering(selfSigned.url, '', Code.UNAVAILABLE, /its certificate is not trusted: it is signed by itself; name it with ca in .*hosts\.toml$/)
  await answering(selfSigned.url, `ca = "${t.certificates.caFile}"\n`, Code.UNAVAILABLE, /its certificate is for another host name/)
})

test('http:// for a host that speaks TLS', async () => {
  const [page, secure] = [await t.registry(), await t.registry({ tls: t.certificates })]
  for (const body of ['<html><body><center>The plain HTTP request was sent to HTTPS port</center></body></html>', 'Client sent an HTTP request to an HTTPS server.\n']) {
    page.fault = () => ({ kind: 'status', status: 400, body })
    await answering(page.url, '', Code.UNAVAILABLE, /400 bad request \(it speaks TLS: write https:\/\/ for it\)/)
  }
  // Node's server just resets.
  await answering(`http://${secure.host}`, '', Code.UNAVAILABLE, /connection reset \(if it speaks TLS, write https:\/\/ for it\)/)
  const alert = net.createServer((socket: Socket) => {
    socket.on('error', () => undefined)
    socket.once('data', () => socket.end(Buffer.from([0x15, 3, 1, 0, 2, 2, 70])))
  }).listen(0, '127.0.0.1')
  await once(alert, 'listening')
  t.cleanups.push(() => alert.close())
  await answering(`http://127.0.0.1:${(alert.address() as AddressInfo).port}`, '', Code.UNAVAILABLE, /: it speaks TLS: write https:\/\/ for it in .*hosts\.toml$/)

  const some = t.client({ configPath: await t.through(page) })
  page.fault = () => undefined
  await some.resolve(ref, null, ctx)
  page.fault = () => ({ kind: 'reset' })
  const { message } = await failure(some.fetchManifest(ref, manifest, null, ctx), Code.UNAVAILABLE, /connection reset/)
  assert.doesNotMatch(message, /TLS/, 'it is known to speak HTTP')
})

test('https:// for a host that does not speak TLS', async () => {
  const plain = await t.registry()
  await answering(`https://${plain.host}`, '', Code.UNAVAILABLE, /it does not speak TLS: write http:\/\/ for it in .*hosts\.toml$/)
  const closing = net.createServer((socket) => socket.on('error', () => undefined).once('data', () => socket.resetAndDestroy())).listen(0, '127.0.0.1')
  await once(closing, 'listening')
  t.cleanups.push(() => closing.close())
  await answering(`https://127.0.0.1:${(closing.address() as AddressInfo).port}`, '', Code.UNAVAILABLE, /connection reset before TLS was set up: it may not speak TLS/)
})

test('what is wrong with the target of a redirect is said of the target', async () => {
  const [one, bucket] = [await t.registry(), await t.registry()]
  const [closed, name] = [`127.0.0.1:${await closedPort()}`, 'bucket.invalid']
  bucket.fault = () => ({ kind: 'status', status: 403, body: '<Error>hunter2</Error>' })
  for (const [target, why] of [[closed, 'connection refused'], [name, 'host name not found'], [bucket.host, '403 forbidden']] as const) {
    one.fault = () => ({ kind: 'redirect', location: `http://${target}/x?X-Amz-Signature=hunter2` })
    await answering(one.url, '', target === bucket.host ? Code.PERMISSION_DENIED : Code.UNAVAILABLE, new RegExp(`${one.host}: redirects to ${target}: ${why}`))
  }
  const secure = await t.registry({ tls: t.certificates, askClientCertificate: true })
  one.fault = () => ({ kind: 'redirect', location: `${secure.url}/x` })
  const { clientCertFile, clientKeyFile, caFile } = t.certificates
  await answering(one.url, `ca = "${caFile}"\nclient = [["${clientCertFile}", "${clientKeyFile}"]]\n`, Code.UNAVAILABLE, new RegExp(`redirects to ${secure.host}: wants a client certificate, and those in a hosts.toml are not sent to another host`))
  await answering(one.url, '', Code.UNAVAILABLE, new RegExp(`redirects to ${secure.host}: its certificate is not trusted: name its authority, CN=test authority, with ca in`))
})
