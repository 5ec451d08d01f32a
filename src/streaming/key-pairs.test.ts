import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createPrivateKey, X509Certificate } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { it } from 'node:test'
import { pino } from 'pino'
import type { StreamingSettings } from '../config/settings.ts'
import { KeyPairs } from './key-pairs.ts'
import type { KeyPair } from './protocol.ts'
import { selfSigned } from './self-signed.ts'

const log = pino({ level: 'silent' })
const settings: StreamingSettings = { address: '', port: 0, idleTimeoutMs: 0, enableTls: true, certFile: '', keyFile: '' }

it('makes certificates that openssl and Node take', async (t) => {
  const names = ['localhost', 'a-node.example', '127.0.0.1', '::1', 'fe80::1:2', '2001:db8:1:2:3:4:5:6', '::ffff:10.1.2.3']
  const { cert, key } = await selfSigned('cri-shim streaming on ä-node', names, 86_400_000)
  const parsed = new X509Certificate(cert)
  assert.ok(parsed.verify(parsed.publicKey))
  assert.ok(parsed.checkPrivateKey(createPrivateKey(key)))
  assert.equal(parsed.ca, false)
  for (const name of ['localhost', 'a-node.example']) assert.equal(parsed.checkHost(name), name)
  for (const address of names.slice(2)) assert.ok(parsed.checkIP(address) !== undefined, address)
  const left = Date.parse(parsed.validTo) - Date.now()
  assert.ok(left > 86_000_000 && left <= 86_400_000)
  const dir = mkdtempSync(join(tmpdir(), 'cri-shim-keys-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const file = join(dir, 'cert.pem')
  writeFileSync(file, cert)
  assert.match(execFileSync('openssl', ['verify', '-check_ss_sig', '-x509_strict', '-partial_chain', '-trusted', file, file], { encoding: 'utf8' }), /OK/)
  assert.match(execFileSync('openssl', ['x509', '-in', file, '-noout', '-text'], { encoding: 'utf8' }), /Version: 3[^]*ecdsa-with-SHA256[^]*TLS Web Server Authentication/)
})

it('renews a certificate of its own before it ends', async () => {
  const renewed = Promise.withResolvers<KeyPair>()
  const pairs = new KeyPairs({ settings, log, onChange: renewed.resolve, validMs: 30, checkEveryMs: 5 })
  const alive = setInterval(() => undefined, 1000)
  const first = await pairs.current()
  const second = await renewed.promise
  pairs.close()
  clearInterval(alive)
  assert.notEqual(second.cert, first.cert)
  assert.notEqual(second.key, first.key)
})

it('reads the files again when they change, and not while they do not fit', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'cri-shim-keys-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const [certFile, keyFile] = [join(dir, 'cert'), join(dir, 'key')]
  const write = (pair: KeyPair): void => {
    writeFileSync(certFile, pair.cert)
    writeFileSync(keyFile, pair.key)
  }
  const warned = Promise.withResolvers<string>()
  const warningLog = pino({}, { write: (line: string) => warned.resolve((JSON.parse(line) as { msg: string }).msg) })
  const [one, two, three] = await Promise.all(['one', 'two', 'three'].map((name) => selfSigned(name, [name], 1_000_000)))
  assert.ok(one !== undefined && two !== undefined && three !== undefined)
  write(one)
  const changed = Promise.withResolvers<KeyPair>()
  const pairs = new KeyPairs({ settings: { ...settings, certFile, keyFile }, log: warningLog, onChange: changed.resolve, checkEveryMs: 5 })
  const alive = setInterval(() => undefined, 1000)
  t.after(() => clearInterval(alive))
  t.after(() => pairs.close())
  assert.deepEqual(await pairs.current(), one)
  writeFileSync(keyFile, two.key)
  assert.match(await warned.promise, /key pair cannot be used: .*; the one in use stays/)
  assert.deepEqual(await pairs.current(), one)
  write(three)
  assert.deepEqual(await changed.promise, three)
  assert.deepEqual(await pairs.current(), three)
  const missing = new KeyPairs({ settings: { ...settings, certFile: join(dir, 'none'), keyFile }, log, onChange: () => undefined })
  await assert.rejects(missing.current(), /key pair cannot be used: .*none.*ENOENT/)
})
