import assert from 'node:assert/strict'
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { type NearMissOptions, nearMisses } from './near-misses.ts'

let base: string
before(async () => { base = await mkdtemp(path.join(os.tmpdir(), 'near-')) })
after(() => rm(base, { recursive: true, force: true }))
let count = 0

/** Makes files below a new config_path (`name/` is a directory) and gives what is told of them, as `name: why`. */
async function missed(registry: string, names: readonly string[], more: Partial<NearMissOptions> & { readonly decides?: string } = {}): Promise<string[]> {
  const root = path.join(base, String(count++))
  await mkdir(root)
  for (const name of names) {
    const at = path.join(root, name)
    await mkdir(name.endsWith('/') ? at : path.dirname(at), { recursive: true })
    if (!name.endsWith('/')) await writeFile(at, 'x')
  }
  const { decides, ...options } = more
  const found = await nearMisses({ roots: [root], registry, ...(decides === undefined ? {} : { directory: path.join(root, decides) }), ...options })
  return found.map((each) => `${path.relative(root, each.path)}: ${each.why}`.replaceAll(root, 'R'))
}

test('a directory with another name of the registry', async () => {
  for (const name of ['registry-1.docker.io', 'index.docker.io', 'hub.docker.com', 'registry-1.docker.io_443_']) {
    assert.deepEqual(await missed('docker.io', [`${name}/hosts.toml`]), [`${name}: images of Docker Hub are called docker.io/…, and the directory is too: move it to R/docker.io`])
  }
  assert.match((await missed('docker.io', ['registry-1.docker.io/', 'docker.io/hosts.toml'], { decides: 'docker.io' }))[0] ?? '', /^registry-1\.docker\.io: .*: R\/docker\.io counts for them$/)
  for (const name of ['https:__docker.io', 'https_docker.io', 'https%3A%2F%2Fdocker.io', 'https-docker.io']) {
    assert.deepEqual(await missed('docker.io', [`${name}/hosts.toml`]), [`${name}: a directory is named after the host, without https://: move it to R/docker.io`])
  }
  assert.match((await missed('quay.io', ['https:/quay.io/hosts.toml']))[0] ?? '', /^https:\/quay\.io: .*without https:.*move it to R\/quay\.io$/, 'mkdir -p certs.d/https://quay.io')
  assert.match((await missed('quay.io', ['Quay.io/hosts.toml']))[0] ?? '', /^Quay\.io: names are taken letter by letter/)
  assert.match((await missed('registry.example', ['regsitry.example/hosts.toml']))[0] ?? '', /misspelt\? For this registry it would be R\/registry\.example/)
  assert.match((await missed('quay.io', ['default/hosts.toml']))[0] ?? '', /is called _default/)
})

test('ports', async () => {
  const written = 'the port is written harbor.lan_5000_ or harbor.lan:5000: rename it'
  assert.deepEqual(await missed('harbor.lan:5000', ['harbor.lan_5000/', 'harbor.lan-5000/', 'harbor.lan/', 'harbor.lan:5001/', 'other.lan:5000/']), [
    'harbor.lan: it is about images called harbor.lan/…, without a port', `harbor.lan-5000: ${written}`,
    'harbor.lan:5001: it is about images called harbor.lan:5001/…, with another port', `harbor.lan_5000: ${written}`,
  ])
  assert.deepEqual(await missed('harbor.lan', ['harbor.lan_5000_/']), ['harbor.lan_5000_: it is about images called harbor.lan:5000/…, with that port'])
  assert.deepEqual(await missed('[fd00::1]:5000', ['[fd00::1]/', '[fd00::1]_5000/']), ['[fd00::1]: it is about images called [fd00::1]/…, without a port', '[fd00::1]_5000: the port is written [fd00::1]_5000_ or [fd00::1]:5000: rename it'])
})

test('files: in config_path itself, with another name, certificates that nobody names', async () => {
  assert.deepEqual(await missed('docker.io', ['hosts.toml', 'docker.io.toml', 'quay.io.toml']), [
    'docker.io.toml: each registry has a directory: move it to R/docker.io/hosts.toml',
    'hosts.toml: it lies in config_path itself: move it to R/docker.io/hosts.toml, or R/_default/hosts.toml for every registry without a directory',
  ])
  const names = (found: readonly string[]): string[] => found.map((each) => each.slice(0, each.indexOf(':')))
  const wrong = ['host.toml', 'hosts.tml', 'hosts.toml.bak', 'hosts.yaml', 'hots.toml', 'mirror.toml']
  assert.deepEqual(names(await missed('q.io', [...wrong, 'README', 'ca.crt', 'a.cert', 'a.key'].map((name) => `q.io/${name}`), { decides: 'q.io' })), wrong.toSorted().map((name) => `q.io/${name}`))
  assert.deepEqual(names(await missed('q.io', ['q.io/hosts.toml', 'q.io/hosts.toml.bak', 'q.io/mirror.toml'], { decides: 'q.io' })), ['q.io/mirror.toml'], 'a copy beside the file is no mistake')
  assert.deepEqual(await missed('q.io', ['q.io/hosts.toml', 'q.io/ca.crt'], { decides: 'q.io' }), ['q.io/ca.crt: beside a hosts.toml, certificate files count when it names them: ca = "ca.crt"'])
  assert.deepEqual(await missed('q.io', ['q.io/ca.pem', 'q.io/b.key'], { decides: 'q.io' }), [
    'q.io/b.key: there is no b.cert that it belongs to', 'q.io/ca.pem: without a hosts.toml, authorities are called *.crt, client certificates *.cert with *.key: rename it',
  ])
  const root = path.join(base, String(count))
  assert.deepEqual(await missed('q.io', ['q.io/hosts.toml', 'q.io/ca.crt'], { decides: 'q.io', named: [path.join(root, 'q.io/ca.crt')] }), [])
})

test('symbolic links to nothing, and directories that config_path does not name', async () => {
  const root = path.join(base, 'links')
  await mkdir(path.join(root, 'q.io'), { recursive: true })
  await symlink('nowhere', path.join(root, 'docker.io'))
  await symlink('nowhere', path.join(root, 'q.io/hosts.toml'))
  assert.match((await nearMisses({ roots: [root], registry: 'docker.io' }))[0]?.why ?? '', /symbolic link to something that does not exist/)
  assert.deepEqual((await nearMisses({ roots: [root], registry: 'q.io', directory: path.join(root, 'q.io') })).map((each) => each.path), [path.join(root, 'q.io/hosts.toml')])

  const usual = path.join(base, 'usual')
  await mkdir(path.join(usual, 'q.io'), { recursive: true })
  assert.deepEqual(await nearMisses({ roots: [], registry: 'q.io', usualRoots: [usual] }), [], 'an empty one says nothing')
  await writeFile(path.join(usual, 'q.io/hosts.toml'), 'x')
  assert.deepEqual(await nearMisses({ roots: [root], registry: 'q.io', usualRoots: [usual] }), [{ path: path.join(usual, 'q.io'), why: `config_path does not name ${usual}: add it there, or move this to a directory that it names` }])
  assert.deepEqual(await nearMisses({ roots: [usual], registry: 'q.io', usualRoots: [usual] }), [])
})

test('what is in order is not told of', async () => {
  // Names that are close to each other and all right.
  assert.deepEqual(await missed('gcr.io', ['ghcr.io/hosts.toml', 'k8s.gcr.io/hosts.toml', 'quay.io/hosts.toml', 'docker.io/hosts.toml', '_default/hosts.toml'], { decides: '_default' }), [])
  assert.deepEqual(await missed('harbor1.lan', ['harbor2.lan/hosts.toml', 'README.md']), [])
  assert.deepEqual(await missed('docker.io', ['docker.io/hosts.toml'], { decides: 'docker.io' }), [])
  assert.deepEqual(await missed('harbor.lan', ['harbor.lan/hosts.toml', 'harbor.lan:5000/hosts.toml', 'harbor.lan_5001_/hosts.toml'], { decides: 'harbor.lan' }), [])
  assert.equal((await missed('harbor.lan', ['_default/hosts.toml', 'harbor.lan:5000/hosts.toml'], { decides: '_default' })).length, 1)
  assert.deepEqual(await missed('registry.example', ['registry.example/hosts.toml', 'regsitry.example/hosts.toml'], { decides: 'registry.example' }), [])
  assert.deepEqual(await nearMisses({ roots: [path.join(base, 'missing')], registry: 'q.io' }), [])
  assert.deepEqual((await missed('q.io', Array.from({ length: 50 }, (_, index) => `q.io:${6000 + index}/`))).length, 20, 'the list is bounded')
})
