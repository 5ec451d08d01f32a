import assert from 'node:assert/strict'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { FileCache } from './file-cache.ts'
import { type HostsFile, parseHostsFile } from './hosts-file.ts'
import { migrateRegistries } from './migrate.ts'
import type { RegistryHost } from './registry-host.ts'
import { resolveHosts } from './resolve-hosts.ts'
import { noRegistrySettings, type RegistrySettings } from './settings.ts'

let root: string
before(async () => { root = await mkdtemp(path.join(os.tmpdir(), 'migrate-')) })
after(() => rm(root, { recursive: true, force: true }))

const tls = (more: object): object => ({ insecureSkipVerify: false, caFile: '', certFile: '', keyFile: '', ...more })
let dirs = 0

/** What matters of a host; push and referrers are never asked for. */
function meaning({ url, protocol, capabilities, tls, headers, dialTimeoutMs, ownRegistry }: RegistryHost): unknown {
  return { url, protocol, resolve: capabilities.has('resolve'), pull: capabilities.has('pull'), tls: protocol === 'http' ? undefined : tls, headers, dialTimeoutMs, ownRegistry }
}

/** The files of the migration must resolve every registry as the old settings do. */
async function same(settings: RegistrySettings, registries: readonly string[]): Promise<Map<string, string>> {
  const dir = path.join(root, String(dirs++))
  const { files } = migrateRegistries(settings)
  for (const file of files) {
    await mkdir(path.dirname(path.join(dir, file.path)), { recursive: true })
    await writeFile(path.join(dir, file.path), file.text)
  }
  const cache = new FileCache<HostsFile>((bytes, file) => parseHostsFile(bytes.toString('utf8'), file))
  const warnings: string[] = []
  for (const registry of registries) {
    const old = await resolveHosts(registry, { settings, files: cache })
    const now = await resolveHosts(registry, { settings: { ...noRegistrySettings, configPath: [dir] }, files: cache, warn: (warning) => warnings.push(warning) })
    assert.deepEqual(now.map(meaning), old.map(meaning), registry)
  }
  assert.deepEqual(warnings, [])
  return new Map(files.map((file) => [file.path, file.text]))
}

test('the files mean what the settings said: mirrors, the registry among them, paths, ports, plain HTTP', async () => {
  const files = await same({
    ...noRegistrySettings,
    mirrors: {
      'docker.io': { endpoints: ['https://mirror.example', 'http://10.0.0.1:5000', 'https://harbor.example/v2/proxy', 'https://other.example/v2', 'https://third.example/hub'] },
      'registry.example:5000': { endpoints: ['http://registry.example:5000'] },
      'gcr.io': { endpoints: ['https://gcr.io', 'https://mirror.example/gcr/v2'] },
      'quay.io': { endpoints: [] },
      'hub.example': { endpoints: ['https://registry-1.docker.io', 'https://hub.example'] },
      'localhost:5000': { endpoints: ['https://mirror.example'] },
      '[fd00::1]:5000': { endpoints: ['https://[fd00::2]:5000'] },
    },
  }, ['docker.io', 'registry.example:5000', 'gcr.io', 'quay.io', 'hub.example', 'localhost:5000', '[fd00::1]:5000', 'unmentioned.example'])
  assert.equal(files.get('registry.example:5000/hosts.toml'), '# Replaces registry.mirrors."registry.example:5000".\nserver = "http://registry.example:5000"\n')
  assert.match(files.get('docker.io/hosts.toml') ?? '', /^server = "https:\/\/registry-1\.docker\.io"$/m)
})

test('TLS settings go with every host that they were for; `*` is _default, and not lost where a registry has a file of its own', async () => {
  const settings: RegistrySettings = {
    ...noRegistrySettings,
    mirrors: { '*': { endpoints: ['https://any.example', 'http://any.example:8080'] }, 'docker.io': { endpoints: ['https://mirror.example:8443/x'] } },
    configs: {
      'mirror.example:8443': { tls: tls({ caFile: '/etc/ca.pem', certFile: '/etc/c.pem', keyFile: '/etc/k.pem' }) },
      'any.example': { tls: tls({ insecureSkipVerify: true }) },
      'any.example:8080': { tls: tls({ caFile: '/etc/ca.pem' }) },
      'registry-1.docker.io': { tls: tls({ caFile: '/etc/hub.pem' }) },
      'private.example': { tls: tls({ certFile: '/etc/both.pem' }) },
      'localhost:5000': { tls: tls({ caFile: '/etc/local.pem' }) },
      'nothing.example': { tls: tls({}) },
    },
  }
  const files = await same(settings, ['docker.io', 'private.example', 'mirror.example:8443', 'any.example', 'localhost:5000', 'elsewhere.example'])
  assert.deepEqual([...files.keys()], ['_default/hosts.toml', 'any.example/hosts.toml', 'any.example:8080/hosts.toml', 'docker.io/hosts.toml', 'localhost:5000/hosts.toml', 'mirror.example:8443/hosts.toml', 'private.example/hosts.toml'])
  assert.match(files.get('private.example/hosts.toml') ?? '', /any\.example/)
})

test('what a hosts.toml cannot say is said, without secrets', () => {
  const auth = { username: 'me', password: 'hunter2', auth: '', identityToken: '' }
  const { files, notes } = migrateRegistries({
    ...noRegistrySettings,
    mirrors: { 'docker.io': { endpoints: ['https://user:hunter2@mirror.example?token=hunter2', 'ftp://x.example'] } },
    configs: { 'mirror.example': { auth, tls: tls({ caFile: 'certs/ca.pem' }) } },
    auths: { 'https://registry.example/v1/': { username: '', password: '', auth: '', identityToken: 'hunter2' }, 'empty.example': { username: '', password: '', auth: '', identityToken: '' } },
  })
  assert.ok(!JSON.stringify([files, notes]).includes('hunter2'))
  assert.equal(notes.length, 5, notes.join('\n'))
  const all = notes.join('\n')
  for (const part of [
    /endpoint "ftp:\/\/x\.example" is left out: scheme "ftp" is not supported/, /the user name and password in "https:\/\/mirror\.example" were never used/, /"certs\/ca\.pem" is a relative path/,
    /registry\.configs\."mirror\.example"\.auth: .*\n\[plugins\."io\.cri-shim\.v1"\.registry\.credentials\."mirror\.example"\]\n {2}username = "…"\n {2}password = "…"$/m,
    /registry\.auths\."https:\/\/registry\.example\/v1\/": .*\n\[plugins\."io\.cri-shim\.v1"\.registry\.credentials\."registry\.example"\]\n {2}identitytoken = "…"$/m,
  ]) assert.match(all, part)
})

test('names that no image has are said, and never become a path; docker.io as an endpoint is Docker Hub’s own host', async () => {
  const settings: RegistrySettings = {
    ...noRegistrySettings,
    mirrors: {
      'docker.io': { endpoints: ['https://docker.io'] },
      'https://user:hunter2@registry.example:5000': { endpoints: ['http://registry.example:5000'] },
      '../../etc/cron.d': { endpoints: ['https://mirror.example'] },
      'index.docker.io': { endpoints: ['https://mirror.example'] },
      'Registry.Example': { endpoints: ['https://mirror.example'] },
    },
    configs: { 'https://harbor.example': { tls: tls({ insecureSkipVerify: true }) } },
  }
  const { files, notes } = migrateRegistries(settings)
  assert.deepEqual(files.map((file) => file.path), ['Registry.Example/hosts.toml', 'docker.io/hosts.toml'])
  assert.equal(files[1]?.text, '# Replaces registry.mirrors."docker.io".\nserver = "https://registry-1.docker.io"\n')
  const all = notes.join('\n')
  assert.ok(!all.includes('hunter2'))
  for (const part of [
    /^registry\.mirrors\."docker\.io": docker\.io serves no registry API; registry-1\.docker\.io is written in its place\.$/m,
    /^registry\.mirrors\."https:\/\/registry\.example:5000" was never used, and is left out: .*; for images called registry\.example:5000\/… the name is "registry\.example:5000"\.$/m,
    /^registry\.mirrors\."\.\.\/\.\.\/etc\/cron\.d" was never used/m, /^registry\.mirrors\."index\.docker\.io" was never used.*the name is "docker\.io"/m,
    /^registry\.configs\."https:\/\/harbor\.example"\.tls was never used.*the name is "harbor\.example"/m,
  ]) assert.match(all, part)
  assert.equal(notes.length, 5, all)
})
