import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FileCache } from './file-cache.ts'
import { parseHostsFile } from './hosts-file.ts'
import { noTls } from './registry-host.ts'
import { resolveHosts } from './resolve-hosts.ts'
import { noRegistrySettings } from './settings.ts'
import { tlsAt } from './transport.ts'

test('that this machine may have any certificate is not said of a token service elsewhere, which gets the password', async () => {
  const files = new FileCache((bytes, file) => parseHostsFile(bytes, file))
  const mirrors = { 'localhost:5000': { endpoints: ['127.0.0.1:5001'] } }
  for (const settings of [noRegistrySettings, { ...noRegistrySettings, mirrors }]) {
    for (const { tls } of await resolveHosts('localhost:5000', { settings, files })) {
      for (const here of ['https://localhost:5000/v2/', 'https://127.0.0.1:5001/token', 'https://[::1]/token']) assert.equal(tlsAt(tls, new URL(here)).skipVerify, true, here)
      for (const elsewhere of ['https://auth.example/token', 'https://10.0.0.1/token', 'https://localhost.example/']) assert.equal(tlsAt(tls, new URL(elsewhere)).skipVerify, false, elsewhere)
    }
  }
  assert.equal(tlsAt({ ...noTls, skipVerify: true }, new URL('https://auth.example/')).skipVerify, true, 'skip_verify that somebody wrote is meant')
})
