import assert from 'node:assert/strict'
import { mkdtempDisposable, readFile, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { it } from 'node:test'
import { Code, CriError } from '../errors/cri-error.ts'
import type { DNSConfig, PodSandboxConfig } from '../generated/cri.ts'
import { fromGoJson } from '../state/go-json.ts'
import { Layout } from '../state/status-file.ts'
import { podHostname, resolvConf, sandboxFiles, writeSandboxFiles } from './files.ts'
import { readIntent, writeIntent } from './making.ts'

const refused = (error: unknown): boolean => error instanceof CriError && error.code === Code.INVALID_ARGUMENT
const config = (fields: object): PodSandboxConfig => fromGoJson('runtime.v1.PodSandboxConfig', fields)

it('writes a resolv.conf that says what was asked and no more', () => {
  const dns: DNSConfig = { servers: ['10.0.0.10', 'fd00::a'], searches: ['ns.svc.cluster.local', 'svc.cluster.local'], options: ['ndots:5'] }
  assert.equal(resolvConf(dns), 'search ns.svc.cluster.local svc.cluster.local\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n')
  assert.equal(resolvConf({ servers: [], searches: [], options: [] }), '')
  for (const field of ['servers', 'searches', 'options'] as const) {
    for (const hostile of ['', 'a b', 'a\nnameserver 6.6.6.6', 'a\0']) assert.throws(() => resolvConf({ servers: [], searches: [], options: [], [field]: [hostile] }), refused)
  }
})

it('takes hostnames that the kernel takes', () => {
  assert.equal(podHostname(config({ hostname: 'web-0' })), 'web-0')
  assert.equal(podHostname(config({})), '')
  assert.notEqual(podHostname(config({ linux: { security_context: { namespace_options: { network: 2 } } } })), '')
  for (const hostile of ['a b', 'a\n', 'a/b', 'ü', 'a'.repeat(65)]) assert.throws(() => podHostname(config({ hostname: hostile })), refused)
})

it('makes files that every user of a container can read, whatever the umask', async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-sandbox-'))
  const layout = new Layout(dir.path, dir.path)
  const umask = process.umask(0o077)
  try {
    await writeSandboxFiles(layout, 'id', config({ hostname: 'web-0', dns_config: { servers: ['1.2.3.4'] } }))
  } finally {
    process.umask(umask)
  }
  const files = sandboxFiles(layout, 'id')
  assert.equal(await readFile(files.hostname, 'utf8'), 'web-0\n')
  assert.equal(await readFile(files.resolvConf, 'utf8'), 'nameserver 1.2.3.4\n')
  for (const path of Object.values(files)) assert.equal((await stat(path)).mode & 0o777, 0o644)
})

it('notes what a sandbox is being made of, and reads only its own notes', async () => {
  await using dir = await mkdtempDisposable(join(tmpdir(), 'cri-shim-sandbox-'))
  const layout = new Layout(dir.path, dir.path)
  const intent = { id: 'id', name: 'n', config: config({ metadata: { name: 'a' } }), netnsPath: '/n', runtimeHandler: 'runc' }
  await writeIntent(layout, intent)
  assert.deepEqual(await readIntent(layout, 'id'), intent)
  assert.equal(await readIntent(layout, 'other'), undefined)
})
