import assert from 'node:assert/strict'
import { mkdir, mkdtemp, rename, rm, symlink, truncate, utimes, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Code, CriError } from '../errors/cri-error.ts'
import { FileCache } from './file-cache.ts'
import { type HostsFile, parseHostsFile } from './hosts-file.ts'
import type { RegistryHost } from './registry-host.ts'
import { hostDirNames, resolveHosts } from './resolve-hosts.ts'
import { noRegistrySettings, type RegistrySettings } from './settings.ts'

let root: string
const fixtures = path.join(import.meta.dirname, '../../test/fixtures/certs.d')

before(async () => {
  root = await mkdtemp(path.join(os.tmpdir(), 'hosts-'))
})
after(() => rm(root, { recursive: true, force: true }))

async function put(name: string, text: string): Promise<string> {
  const file = path.join(root, name)
  await mkdir(path.dirname(file), { recursive: true })
  await writeFile(file, text)
  return file
}

const parsed: string[] = []
const files = new FileCache<HostsFile>((bytes, file) => {
  parsed.push(file)
  return parseHostsFile(bytes.toString('utf8'), file)
})

async function hostsOf(registry: string, settings: Partial<RegistrySettings>, warnings: string[] = []): Promise<RegistryHost[]> {
  return resolveHosts(registry, { settings: { ...noRegistrySettings, ...settings }, files, warn: (warning) => warnings.push(warning) })
}

const shown = (hosts: readonly RegistryHost[]): string[] => hosts.map((host) => `${host.protocol} ${host.host}${host.apiRoot}${host.ownRegistry ? ' own' : ''}`)

test('without configuration a registry is asked itself', async () => {
  assert.deepEqual(shown(await hostsOf('docker.io', {})), ['https registry-1.docker.io/v2 own'])
  assert.deepEqual(shown(await hostsOf('REG.example:443', {})), ['https reg.example:443/v2 own'])
  for (const name of ['localhost:5000', '127.0.0.1:5000', '[::1]:5000']) {
    const [host] = await hostsOf(name, {})
    assert.deepEqual([host?.protocol, host?.tls.skipVerify, host?.source], ['https-or-http', true, 'default'], name)
  }
  assert.deepEqual(shown(await hostsOf('localhost:80', {})), ['http localhost:80/v2 own'])
  assert.deepEqual((await hostsOf('localhost:443', {})).map((host) => [host.protocol, host.tls.skipVerify]), [['https', true]])
})

test('the directories of a registry', () => {
  assert.deepEqual(hostDirNames('h:5000'), ['h_5000_', 'h:5000', '_default'])
  assert.deepEqual(hostDirNames('h'), ['h', '_default'])
  assert.deepEqual(hostDirNames('[fd00::1]:5000'), ['[fd00::1]_5000_', '[fd00::1]:5000', '_default'])
  assert.deepEqual(hostDirNames('[fd00::1]'), ['[fd00::1]', '_default'])
})

test('the first directory of the first config_path that knows the host decides', async () => {
  const one = path.join(root, 'one')
  const two = path.join(root, 'two')
  const configPath = [path.join(root, 'missing'), one, two]
  await put('two/h:5000/hosts.toml', '[host."https://two"]')
  await put('two/_default/hosts.toml', '[host."https://default"]')
  assert.deepEqual(shown(await hostsOf('h:5000', { configPath })), ['https two/v2', 'https h:5000/v2 own'])
  assert.deepEqual(shown(await hostsOf('other', { configPath })), ['https default/v2', 'https other/v2 own'])
  await put('one/h:5000/hosts.toml', '[host."https://one-colon"]')
  assert.equal((await hostsOf('h:5000', { configPath }))[0]?.host, 'one-colon')
  await put('one/h_5000_/hosts.toml', '[host."https://one-underscore"]')
  assert.equal((await hostsOf('h:5000', { configPath }))[0]?.host, 'one-underscore')
  // An empty directory counts as found, and hides what follows.
  await mkdir(path.join(one, 'other'))
  assert.deepEqual(shown(await hostsOf('other', { configPath })), ['https other/v2 own'])
})

test('paths, capabilities, headers and time-outs reach the hosts', async () => {
  const file = await put('full/reg.example/hosts.toml', `
server = "http://fallback.example/base"
[host."https://a.example"]
capabilities = ["pull"]
[host."https://b.example/v2/proxy"]
override_path = true
dial_timeout = "2s"
[host."https://c.example/some/path/"]
[host."https://d.example/v2"]
[host."https://e.example"]
override_path = true
[host."http://f.example:8080"]
skip_verify = true
[host."http://g.example"]
skip_verify = true
[host."127.0.0.1:5000".header]
x = "1"
`)
  const hosts = await hostsOf('reg.example', { configPath: [path.join(root, 'full')] })
  assert.deepEqual(shown(hosts), [
    'https a.example/v2', 'https b.example/v2/proxy', 'https c.example/some/path/v2', 'https d.example/v2', 'https e.example',
    'https-or-http f.example:8080/v2', 'http g.example/v2', 'https-or-http 127.0.0.1:5000/v2', 'http fallback.example/base/v2',
  ])
  assert.deepEqual(hosts.map((host) => [...host.capabilities].join()), ['pull', ...Array<string>(8).fill('pull,resolve,push,referrers')])
  assert.deepEqual([hosts[0]?.dialTimeoutMs, hosts[1]?.dialTimeoutMs, hosts[7]?.headers], [30_000, 2000, { x: ['1'] }])
  assert.ok(hosts.every((host) => host.source === file))
  assert.equal(hosts[1]?.url, 'https://b.example/v2/proxy')
})

test('without server, the root’s settings are the registry’s own', async () => {
  await put('root/docker.io/hosts.toml', 'ca = "hub.pem"\ncapabilities = ["push"]\noverride_path = true\n[header]\nx = "1"')
  const [host] = await hostsOf('docker.io', { configPath: [path.join(root, 'root')] })
  assert.deepEqual([host?.url, host?.tls.caFiles, host?.headers], ['https://registry-1.docker.io/v2', [path.join(root, 'root/docker.io/hub.pem')], { x: ['1'] }])
  assert.ok(host?.capabilities.has('resolve'), 'as in containerd, capabilities at the root are about server')
})

test('a server that is named as a host too is the same host: asked once, with what the file says of it below either', async () => {
  const configPath = [path.join(root, 'twice')]
  const put2 = async (name: string, text: string): Promise<RegistryHost[]> => {
    await put(`twice/${name}/hosts.toml`, text)
    return hostsOf(name, { configPath })
  }
  const both = 'capabilities = ["pull", "resolve"]\nca = "ca.pem"\nclient = "node.pem"\nskip_verify = true\ndial_timeout = "3s"\n'
  for (const server of ['server = "https://reg.example"\n', '']) {
    const hosts = await put2('reg.example', `${server}[host."https://reg.example"]\n${both}[host."https://reg.example".header]\nx = "1"\n`)
    assert.deepEqual(shown(hosts), ['https reg.example/v2 own'])
    assert.deepEqual([hosts[0]?.tls.skipVerify, hosts[0]?.tls.caFiles.length, hosts[0]?.dialTimeoutMs], [true, 1, 3000])
  }
  // As a mirror it tells no tags; as the server it does.
  const [pull, server] = await put2('pull.example', 'server = "https://pull.example"\n[host."https://pull.example"]\ncapabilities = ["pull"]\nca = "ca.pem"\ndial_timeout = "3s"\n[host."https://pull.example".header]\nx = "1"\n')
  assert.deepEqual([[...pull?.capabilities ?? []], server?.capabilities.has('resolve'), server?.tls, server?.headers, server?.dialTimeoutMs], [['pull'], true, pull?.tls, { x: ['1'] }, 3000])
  // What is said of the server itself counts.
  const own = await put2('own.example', 'server = "https://own.example"\nca = "own.pem"\n[host."https://own.example"]\nskip_verify = true\n')
  assert.deepEqual(own.map((host) => [host.tls.skipVerify, host.tls.caFiles.length]), [[true, 0], [false, 1]])
  // Another address is another host.
  assert.deepEqual(shown(await put2('reg.example:5000', 'server = "https://reg.example:5000"\n[host."http://reg.example:5000"]\n[host."https://reg.example"]\n')), ['http reg.example:5000/v2 own', 'https reg.example/v2', 'https reg.example:5000/v2 own'])
})

test('a registry is its own server with and without the port of TLS, and not in plain HTTP', async () => {
  const configPath = [path.join(root, 'ports')]
  const last = async (registry: string, server: string): Promise<string | undefined> => {
    await put(`ports/${registry}/hosts.toml`, `server = "${server}"`)
    return shown(await hostsOf(registry, { configPath })).at(-1)
  }
  assert.equal(await last('one.example:443', 'https://one.example'), 'https one.example/v2 own')
  assert.equal(await last('two.example', 'https://two.example:443'), 'https two.example:443/v2 own')
  assert.equal(await last('three.example:443', 'http://three.example'), 'http three.example/v2')
  assert.equal(await last('four.example:80', 'https://four.example'), 'https four.example/v2')
  assert.equal(await last('docker.io', 'https://registry-1.docker.io:443'), 'https registry-1.docker.io:443/v2 own')
})

test('Docker’s certificate files count where there is no hosts.toml', async () => {
  const dir = path.join(root, 'docker/reg.example')
  for (const name of ['b.crt', 'a.crt', 'client.cert', 'client.key', 'lone.cert', 'README']) await put(`docker/reg.example/${name}`, 'x')
  await mkdir(path.join(dir, 'dir.crt'))
  const [host] = await hostsOf('reg.example', { configPath: [path.join(root, 'docker')] })
  assert.deepEqual(host?.tls, {
    caFiles: [path.join(dir, 'a.crt'), path.join(dir, 'b.crt')], skipVerify: false,
    clientPairs: [{ certFile: path.join(dir, 'client.cert'), keyFile: path.join(dir, 'client.key') }, { certFile: path.join(dir, 'lone.cert') }],
  })
  await put('docker/reg.example/hosts.toml', '')
  assert.equal((await hostsOf('reg.example', { configPath: [path.join(root, 'docker')] }))[0]?.tls.caFiles.length, 2, 'an empty hosts.toml is like none')
})

test('a file is parsed once and again when it changes; a broken one fails its registry until it is mended', async () => {
  const configPath = [path.join(root, 'edit')]
  const file = await put('edit/reg.example/hosts.toml', '[host."https://one"]')
  await put('edit/fine.example/hosts.toml', '[host."https://fine"]')
  parsed.length = 0
  await hostsOf('reg.example', { configPath })
  await hostsOf('reg.example', { configPath })
  assert.deepEqual(parsed, [file])
  await writeFile(file, '[host."https://two"]')
  await utimes(file, 1, 1)
  assert.equal((await hostsOf('reg.example', { configPath }))[0]?.host, 'two')
  await writeFile(file, '[host."https://two"]\nserver = \n')
  await assert.rejects(hostsOf('reg.example', { configPath }), (error) => {
    assert.ok(error instanceof CriError)
    assert.equal(error.code, Code.FAILED_PRECONDITION)
    assert.ok(error.message.startsWith(`${file}:2: not valid TOML`), error.message)
    return true
  })
  assert.equal((await hostsOf('fine.example', { configPath }))[0]?.host, 'fine')
  await writeFile(file, '[host."https://mended"]')
  assert.equal((await hostsOf('reg.example', { configPath }))[0]?.host, 'mended')
  await rm(path.dirname(file), { recursive: true })
  assert.deepEqual(shown(await hostsOf('reg.example', { configPath })), ['https reg.example/v2 own'])
})

test('a file that is replaced counts, though its time or its size is the old one', async () => {
  const configPath = [path.join(root, 'same')]
  const file = await put('same/reg.example/hosts.toml', '[host."https://one"]')
  await utimes(file, 1000, 1000)
  assert.equal((await hostsOf('reg.example', { configPath }))[0]?.host, 'one')
  // As configuration management does it: another file of the same size and time takes its place.
  const other = await put('same/reg.example/.hosts.toml.new', '[host."https://two"]')
  await utimes(other, 1000, 1000)
  await rename(other, file)
  assert.equal((await hostsOf('reg.example', { configPath }))[0]?.host, 'two')
  await writeFile(file, '[host."https://three"]')
  await utimes(file, 1000, 1000)
  assert.equal((await hostsOf('reg.example', { configPath }))[0]?.host, 'three')
})

test('a hosts.toml that cannot be read fails its registry, by name', async () => {
  const configPath = [path.join(root, 'unreadable')]
  const dir = path.join(root, 'unreadable/reg.example/hosts.toml')
  await mkdir(dir, { recursive: true })
  await assert.rejects(hostsOf('reg.example', { configPath }), (error) => error instanceof CriError && error.code === Code.FAILED_PRECONDITION && error.message.startsWith(`${dir}: cannot be read`))
})

test('a link that leads nowhere is a broken file, not a missing one', async () => {
  const configPath = [path.join(root, 'links')]
  await mkdir(path.join(root, 'links/file.example'), { recursive: true })
  await symlink('../shared/hosts.toml', path.join(root, 'links/file.example/hosts.toml'))
  await symlink('shared', path.join(root, 'links/dir.example'))
  const broken = async (registry: string, what: RegExp): Promise<void> => {
    await assert.rejects(hostsOf(registry, { configPath }), (error) => error instanceof CriError && error.code === Code.FAILED_PRECONDITION && what.test(error.message))
  }
  await broken('file.example', /links\/file\.example\/hosts\.toml: it is a link to \.\.\/shared\/hosts\.toml, which does not exist/)
  await broken('dir.example', /links\/dir\.example: it is a link to shared, which does not exist/)
  await put('links/shared/hosts.toml', '[host."https://linked"]')
  for (const registry of ['file.example', 'dir.example']) assert.equal((await hostsOf(registry, { configPath }))[0]?.host, 'linked')
})

test('a file too large to be a hosts.toml is not read', async () => {
  const configPath = [path.join(root, 'large')]
  const file = await put('large/reg.example/hosts.toml', '')
  await truncate(file, 2 ** 40)
  await assert.rejects(hostsOf('reg.example', { configPath }), (error) => error instanceof CriError && error.message.startsWith(`${file}:1: it has 1099511627776 bytes, more than`))
})

test('something that is no directory is named', async () => {
  const file = await put('odd/reg.example', 'not a directory')
  await assert.rejects(hostsOf('reg.example', { configPath: [path.join(root, 'odd')] }), (error) => {
    assert.ok(error instanceof CriError)
    assert.ok(error.message.includes(`${file} is not a directory`), error.message)
    return true
  })
})

test('mirror files in circulation', async () => {
  const warnings: string[] = []
  const docker = await hostsOf('docker.io', { configPath: [fixtures] }, warnings)
  assert.deepEqual(docker.map((host) => [host.url, [...host.capabilities].join()]), [
    ['https://dockerproxy.com/v2', 'pull,resolve'], ['https://docker.m.daocloud.io/v2', 'pull,resolve'], ['https://reg-mirror.qiniu.com/v2', 'pull,resolve'],
    ['https://registry.docker-cn.com/v2', 'pull,resolve'], ['http://hub-mirror.c.163.com/v2', 'pull,resolve'], ['https://registry-1.docker.io/v2', 'pull,resolve,push,referrers'],
  ])
  assert.deepEqual(docker.map((host) => host.protocol), ['https', 'https', 'https', 'https', 'http', 'https'])
  assert.deepEqual(docker.map((host) => host.ownRegistry), [false, false, false, false, false, true])
  assert.equal(warnings.length, 1)
  assert.match(warnings.join(), /docker\.io\/hosts\.toml:1: server "https:\/\/docker\.io".*registry-1\.docker\.io/)
  const withPush = 'pull,resolve,push'
  const circulating: Readonly<Record<string, readonly [string, string]>> = {
    'registry.k8s.io': ['k8s', withPush], 'docker.elastic.co': ['elastic', withPush], 'gcr.io': ['gcr', 'pull,resolve'], 'ghcr.io': ['ghcr', withPush], 'k8s.gcr.io': ['k8s-gcr', withPush],
    'mcr.microsoft.com': ['mcr', withPush], 'nvcr.io': ['nvcr', withPush], 'quay.io': ['quay', withPush], 'registry.jujucharms.com': ['jujucharms', withPush],
    'rocks.canonical.com': ['rocks-canonical', 'pull,resolve'],
  }
  for (const [registry, [mirror, capabilities]] of Object.entries(circulating)) {
    const hosts = await hostsOf(registry, { configPath: [fixtures] }, warnings)
    assert.deepEqual(hosts.map((host) => [host.protocol, host.url, host.ownRegistry, [...host.capabilities].join()]), [
      ['https', `https://${mirror}.m.daocloud.io/v2`, false, capabilities], ['https', `https://${registry}/v2`, true, 'pull,resolve,push,referrers'],
    ])
    assert.ok(hosts.every((host) => host.source === path.join(fixtures, registry, 'hosts.toml')))
  }
  assert.equal(warnings.length, 1, 'nothing else is odd in these files')
  assert.deepEqual(shown(await hostsOf('harbor.lan:8443', { configPath: [fixtures] })), ['https harbor.lan:8443/v2/proxy-cache', 'https harbor.lan:8443/v2 own'].map((line) => line.replace('proxy-cache', 'proxy-cache own')))
  assert.deepEqual(shown(await hostsOf('anything.example', { configPath: [fixtures] })), ['https pull-through.lan/v2', 'https anything.example/v2 own'])
})

test('the deprecated registry.mirrors and registry.configs', async () => {
  const settings = {
    mirrors: {
      'docker.io': { endpoints: ['https://mirror.example', 'http://10.0.0.1:5000', 'https://path.example/v2/hub', 'localhost:5001'] },
      '*': { endpoints: ['https://all.example/'] },
      'own.example': { endpoints: ['http://own.example'] },
    },
    configs: { 'mirror.example': { tls: { insecureSkipVerify: true, caFile: '/ca', certFile: '/cert', keyFile: '/key' } }, 'plain.example': { tls: { caFile: '/plain-ca' } } },
  }
  const hosts = await hostsOf('docker.io', settings)
  assert.deepEqual(shown(hosts), ['https mirror.example/v2', 'http 10.0.0.1:5000/v2', 'https path.example/v2/hub', 'https-or-http localhost:5001/v2', 'https registry-1.docker.io/v2 own'])
  assert.deepEqual(hosts[0]?.tls, { caFiles: ['/ca'], clientPairs: [{ certFile: '/cert', keyFile: '/key' }], skipVerify: true })
  assert.deepEqual(shown(await hostsOf('x.example', settings)), ['https all.example/v2', 'https x.example/v2 own'])
  assert.deepEqual(shown(await hostsOf('own.example', settings)), ['http own.example/v2 own'], 'an endpoint that is the registry itself is not followed by it')
  assert.deepEqual((await hostsOf('plain.example', settings)).at(-1)?.tls.caFiles, ['/plain-ca'])
  assert.deepEqual(shown(await hostsOf('docker.io', { ...settings, configPath: ['/nonexistent'] })), ['https registry-1.docker.io/v2 own'], 'config_path takes their place')
  await assert.rejects(hostsOf('bad.example', { mirrors: { 'bad.example': { endpoints: ['ftp://u:hunter2@x'] } } }), (error) => error instanceof CriError && /registry\.mirrors\."bad\.example".*ftp/.test(error.message) && !error.message.includes('hunter2'))
})
