import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer as createHttpServer } from 'node:http'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { type CertificateFiles, FakeRegistry, makeCertificates } from './fake-registry.test-helper.ts'
import { type PeerCertificate, peerCertificate } from './peer-certificate.ts'
import { allCapabilities, defaultDialTimeoutMs, type HostTls, noTls, type RegistryHost } from './registry-host.ts'

let dir: string
let certificates: CertificateFiles
let good: FakeRegistry
before(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'peer-'))
  certificates = makeCertificates(dir)
  good = await FakeRegistry.start({ tls: certificates })
})
after(async () => {
  await good.close()
  await rm(dir, { recursive: true, force: true })
})

function host(authority: string, tls: Partial<HostTls> = {}): RegistryHost {
  return {
    url: `https://${authority}/v2`, protocol: 'https', host: authority, apiRoot: '/v2', capabilities: new Set(allCapabilities), tls: { ...noTls, ...tls }, headers: {},
    dialTimeoutMs: defaultDialTimeoutMs, ownRegistry: true, source: '/certs.d/registry.test/hosts.toml',
  }
}

const look = async (of: RegistryHost, env: Record<string, string> = {}): Promise<PeerCertificate | undefined> => peerCertificate(of, { env, signal: new AbortController().signal })

/** A registry whose certificate openssl makes with these words, signed by itself. */
async function withOwn(name: string, ...words: string[]): Promise<FakeRegistry> {
  const [certFile, keyFile] = [path.join(dir, `${name}.pem`), path.join(dir, `${name}.key`)]
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', keyFile]
  const quiet = { cwd: dir, stdio: ['ignore', 'ignore', 'pipe'] as ['ignore', 'ignore', 'pipe'] }
  if (words.includes('-enddate')) {
    // Only `openssl ca` takes dates.
    await writeFile(path.join(dir, 'ca.cnf'), '[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\ncopy_extensions=copy\n[p]\ncommonName=supplied\n')
    await writeFile(path.join(dir, 'index'), '')
    await writeFile(path.join(dir, 'serial'), '01')
    execFileSync('openssl', ['req', '-new', ...key, '-out', 'request', '-subj', `/CN=${name}`, '-addext', 'subjectAltName=IP:127.0.0.1'], quiet)
    execFileSync('openssl', ['ca', '-batch', '-config', 'ca.cnf', '-selfsign', '-keyfile', keyFile, '-in', 'request', '-out', certFile, '-notext', ...words], quiet)
  } else execFileSync('openssl', ['req', '-x509', ...key, '-out', certFile, '-subj', `/CN=${name}`, '-days', '2', ...words], quiet)
  return FakeRegistry.start({ tls: { ...certificates, certFile, keyFile } })
}

test('trusted, not trusted, another authority, another name', async () => {
  const trusted = await look(host(good.host, { caFiles: [certificates.caFile] }))
  assert.deepEqual([trusted?.subject, trusted?.issuer, trusted?.names, trusted?.problem], ['CN=registry.test', 'CN=test authority', ['127.0.0.1', 'registry.test', 'localhost'], undefined])
  const where = 'name the authority\'s certificate with ca in /certs.d/registry.test/hosts.toml'
  assert.equal((await look(host(good.host)))?.problem, `the authority CN=test authority is not trusted: ${where}`)
  const other = await withOwn('other.test', '-addext', 'subjectAltName=DNS:other.test')
  const ca = path.join(dir, 'other.test.pem')
  assert.equal((await look(host(good.host, { caFiles: [ca] })))?.problem, `the authority CN=test authority is not trusted; ca names CN=other.test instead: ${where}`)
  assert.equal((await look(host(other.host, { caFiles: [ca] })))?.problem, 'it is for other.test, not for 127.0.0.1: write one of its names in the URL')
  assert.match((await look(host(other.host)))?.problem ?? '', /^it is signed by itself, and nobody says that it is to be trusted: put the certificate into a file/)
  await other.close()
  assert.equal((await look(host(good.host, { skipVerify: true })))?.problem, undefined)
  // What is wrong with the files is told elsewhere: it must not look as if the host were to blame.
  assert.deepEqual([(await look(host(good.host, { caFiles: ['/missing.pem'] })))?.subject, (await look(host(good.host, { caFiles: ['/missing.pem'] })))?.problem], ['CN=registry.test', undefined])
  assert.ok(good.requests.every(({ method, headers }) => method === 'HEAD' && headers.authorization === undefined))
})

test('expired, or not valid yet', async () => {
  const expired = await withOwn('old.test', '-startdate', '20200101000000Z', '-enddate', '20210101000000Z')
  const early = await withOwn('early.test', '-startdate', '20990101000000Z', '-enddate', '20990201000000Z')
  try {
    const seen = await look(host(expired.host, { caFiles: [path.join(dir, 'old.test.pem')] }))
    assert.deepEqual([seen?.validTo, seen?.problem], ['2021-01-01T00:00:00.000Z', 'it has expired on 2021-01-01: whoever runs the host must renew it'])
    assert.equal((await look(host(early.host, { caFiles: [path.join(dir, 'early.test.pem')] })))?.problem, 'it is not valid before 2099-01-01: is the clock of this node right?')
  } finally {
    await Promise.all([expired.close(), early.close()])
  }
})

test('what a certificate says cannot steer a terminal', async () => {
  const evil = await withOwn('\u001b[31mevil')
  try {
    const seen = await look(host(evil.host))
    assert.ok(seen !== undefined && !JSON.stringify(seen).includes('\\u001b'), JSON.stringify(seen))
  } finally {
    await evil.close()
  }
})

const listen = async (server: Server): Promise<string> => new Promise((resolve) => {
  server.listen(0, '127.0.0.1', () => resolve(`127.0.0.1:${(server.address() as AddressInfo).port}`))
})

test('through a proxy; not at all from a host without TLS, a silent one, nobody', async () => {
  const proxy = createHttpServer().on('connect', (_request, client: Socket, head: Buffer) => {
    const server = connect(good.port, '127.0.0.1', () => {
      client.write('HTTP/1.1 200 OK\r\n\r\n')
      server.write(head)
      server.pipe(client).pipe(server)
    })
    for (const socket of [server, client]) socket.on('error', () => client.destroy())
  })
  const silent = createServer((socket) => socket.on('error', () => undefined))
  const plain = await FakeRegistry.start()
  try {
    const env = { HTTPS_PROXY: `http://${await listen(proxy)}` }
    const seen = await look(host(`registry.test:${good.port}`, { caFiles: [certificates.caFile] }), env)
    assert.deepEqual([seen?.subject, seen?.problem], ['CN=registry.test', undefined])
    assert.equal(await look(host('registry.test'), { HTTPS_PROXY: 'socks5://127.0.0.1:1' }), undefined)
    assert.equal(await look(host(plain.host)), undefined)
    assert.equal(await look(host('127.0.0.1:1')), undefined)
    assert.equal(await peerCertificate(host(await listen(silent)), { env: {}, signal: new AbortController().signal, timeoutMs: 50 }), undefined)
  } finally {
    proxy.closeAllConnections()
    proxy.close()
    silent.close()
    await plain.close()
  }
})
