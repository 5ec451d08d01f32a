import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import type { AddressInfo } from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { after, test } from 'node:test'
import { connect, createServer } from 'node:tls'
import { makeCertificates } from './fake-registry.test-helper.ts'
import { HostFailure } from './failures.ts'
import { type HostTls, noTls } from './registry-host.ts'
import { TlsLoader } from './tls-material.ts'

const root = await mkdtemp(path.join(os.tmpdir(), 'tls-material-'))
after(() => rm(root, { recursive: true, force: true }))
const { caFile, clientCertFile: cert, clientKeyFile: key, keyFile: otherKey } = makeCertificates(root)
const loader = new TlsLoader({})

async function file(name: string, content: string | Buffer): Promise<string> {
  await writeFile(path.join(root, name), content)
  return path.join(root, name)
}

const openssl = (...args: string[]): Buffer => execFileSync('openssl', args, { stdio: ['ignore', 'pipe', 'ignore'] })

async function refused(tls: Partial<HostTls>, why: RegExp): Promise<void> {
  await assert.rejects(loader.load({ ...noTls, ...tls }, true), (error) => {
    assert.ok(error instanceof HostFailure && error.kind === 'config', String(error))
    assert.match(error.message, why)
    assert.doesNotMatch(error.message, /routines|EISDIR/)
    return true
  })
}

test('files of certificates that cannot be used are named, with what is wrong with them', async () => {
  await refused({ caFiles: [await file('ca.der', openssl('x509', '-in', caFile, '-outform', 'der'))] }, /^ca \S+\/ca\.der holds no PEM certificate; if it is one in DER: openssl x509 -inform der/)
  await refused({ caFiles: [await file('empty', '')] }, /^ca \S+\/empty holds no PEM certificate$/)
  await refused({ caFiles: [key] }, /^ca \S+\/client\.key holds no PEM certificate$/)
  await refused({ caFiles: [root] }, /^ca \S+ is a directory: name a file in it$/)
  await refused({ caFiles: [await file('damaged', '-----BEGIN CERTIFICATE-----\nMIIBgarbage\n-----END CERTIFICATE-----\n')] }, /^ca \S+\/damaged is damaged/)
  await refused({ clientPairs: [{ certFile: cert, keyFile: await file('old.key', openssl('ec', '-in', key, '-aes128', '-passout', 'pass:x')) }] }, /^client key \S+\/old\.key has a passphrase, .*openssl pkey/)
  await refused({ clientPairs: [{ certFile: cert, keyFile: await file('new.key', openssl('pkcs8', '-topk8', '-in', key, '-passout', 'pass:x')) }] }, /^client key \S+\/new\.key has a passphrase/)
  await refused({ clientPairs: [{ certFile: cert, keyFile: otherKey }] }, /^client key \S+\/server\.key does not belong to the certificate \S+\/client\.crt$/)
  await refused({ clientPairs: [{ certFile: cert }] }, /^client \S+\/client\.crt has no private key in it: write client = \[\["/)
  await refused({ clientPairs: [{ certFile: key, keyFile: cert }] }, /^client certificate \S+\/client\.key is a key: a pair is written/)
  await refused({ clientPairs: [{ certFile: cert, keyFile: caFile }] }, /^client key \S+\/ca\.crt holds no private key in PEM$/)
  await refused({ clientPairs: [{ certFile: cert, keyFile: await file('bad.key', '-----BEGIN PRIVATE KEY-----\nMIIBgarbage\n-----END PRIVATE KEY-----\n') }] }, /^client key \S+\/bad\.key is damaged/)
})

/** A server that the authority has signed for is believed. */
async function trusts(authorities: string): Promise<void> {
  const { secureContext } = await loader.load({ ...noTls, caFiles: [authorities] }, true)
  const server = createServer({ cert: await readFile(path.join(root, 'server.crt')), key: await readFile(otherKey) }, (socket) => socket.end()).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const socket = connect({ host: '127.0.0.1', port: (server.address() as AddressInfo).port, secureContext })
  try {
    await once(socket, 'secureConnect')
  } finally {
    socket.destroy()
    server.close()
  }
}

test('good files are taken: with a key, a chain, remarks, a damaged authority beside a good one', async () => {
  const [certPem, keyPem, caPem] = await Promise.all([cert, key, caFile].map((name) => readFile(name, 'utf8')))
  const both = await file('both.pem', `${keyPem}subject: x\n${certPem}${caPem}`)
  await loader.load({ caFiles: [await file('mixed', `-----BEGIN CERTIFICATE-----\nMIIBgarbage\n-----END CERTIFICATE-----\nremark\n${caPem?.replaceAll('\n', '\r\n')}`)], clientPairs: [{ certFile: both }], skipVerify: false }, true)
  await trusts(await file('mixed-up', `-----BEGIN CERTIFICATE-----\nMIIBgarbage\n-----END CERTIFICATE-----\n${caPem}`))
  const rsa = openssl('req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=rsa', '-keyout', path.join(root, 'rsa.key'))
  await loader.load({ ...noTls, clientPairs: [{ certFile: await file('rsa.crt', rsa), keyFile: await file('rsa1.key', openssl('rsa', '-in', path.join(root, 'rsa.key'), '-traditional')) }] }, true)
})
