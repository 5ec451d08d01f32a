import assert from 'node:assert/strict'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { after, before, beforeEach, test } from 'node:test'
import type { Explanation, Probe } from '../registry-mirrors/explain.ts'
import { FakeRegistry } from '../registry-mirrors/fake-registry.test-helper.ts'
import { temporaryDirectory } from '../server/fixtures.ts'
import { commandsWith, main } from './command-line.ts'

const commands = commandsWith(() => Promise.reject(new Error('no test of this file gets this far')))

async function run(...words: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  let stdout = ''
  let stderr = ''
  const code = await main(commands, words, { stdout: (text) => void (stdout += text), stderr: (text) => void (stderr += text) })
  assert.ok(!`${stdout}${stderr}`.includes('hunter2'), `a secret is shown: ${stdout}${stderr}`)
  return { code, stdout, stderr }
}

const directory = temporaryDirectory()
after(() => directory[Symbol.dispose]())
const [one, two, three] = [await FakeRegistry.start(), await FakeRegistry.start(), await FakeRegistry.start()]
after(async () => Promise.all([one.close(), two.close(), three.close()]))

const place = (name: string): string => join(directory.path, name)
function write(name: string, text: string): string {
  mkdirSync(dirname(place(name)), { recursive: true })
  writeFileSync(place(name), text)
  return place(name)
}

const manifest = Buffer.from('{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}')
const older = Buffer.from('{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[ ]}')
let config: string
before(() => {
  config = write('config.toml', `version = 2
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "${place('first')}:${place('second')}"
[plugins."io.cri-shim.v1".registry.credentials."${two.host}"]
username = "me"
password = "hunter2"
`)
})
beforeEach(() => {
  for (const name of ['first', 'second']) {
    rmSync(place(name), { recursive: true, force: true })
    mkdirSync(place(name))
  }
  for (const each of [one, two, three]) each.fault = () => undefined
})

test('explain: which places were looked at, which hosts are asked for what, and with whose credential', async () => {
  const file = write('second/registry.test/hosts.toml', `server = "https://registry.test"
[host."${one.url}"]
capabilities = ["pull"]
[host."https://mirror.test/hub"]
override_path = true
ca = "missing.pem"
[host."https://mirror.test/hub".header]
Authorization = "Bearer hunter2"
[host."${two.url}"]
sever = "x"
`)
  write('second/_default/hosts.toml', '')
  const { code, stdout } = await run('mirrors', 'explain', '--config', config, 'registry.test/team/app')
  assert.equal(code, 0)
  for (const part of [
    'image         registry.test/team/app:latest', `${place('first')}/registry.test: not there`, `${place('first')}/_default: not there`, `  ${file}: read`, `${place('second')}/_default: there, not read`,
    `1. ${one.url}/v2\n     from        ${file}`, 'asked for   content by digest (pull)', `manifest    ${one.url}/v2/team/app/manifests/DIGEST?ns=registry.test`,
    '2. https://mirror.test/hub\n', `credential  Authorization header in ${file}`, `warning     it is passed over: ca ${place('second')}/registry.test/missing.pem does not exist`,
    `3. ${two.url}/v2\n`, `credential  registry.credentials."${two.host}"`, 'its credential is sent over plain HTTP',
    `4. https://registry.test/v2\n`, 'manifest    https://registry.test/v2/team/app/manifests/latest\n', 'the pod\'s pull secret, when it has one', `${file}:10: unknown key "sever" is ignored; `,
  ]) assert.ok(stdout.includes(part), `${part}\n${stdout}`)
  for (const each of [one, two]) assert.equal(each.requests.length, 0, 'nobody is asked')

  const json = JSON.parse((await run('mirrors', 'explain', '--json', '--config', config, 'registry.test/team/app')).stdout) as Explanation
  assert.deepEqual(json.hosts.map(({ url }) => url), [`${one.url}/v2`, 'https://mirror.test/hub', `${two.url}/v2`, 'https://registry.test/v2'])
  assert.equal(json.lookedAt.length, 4)
})

test('explain: a broken file is an error with its line, and no host that can be asked a warning', async () => {
  const file = write('first/registry.test/hosts.toml', 'server = "https://registry.test"\ncapabilities = ["pul"]\n')
  for (const flags of [[], ['--probe'], ['--json']]) {
    const { code, stdout } = await run('mirrors', 'explain', '--config', config, ...flags, 'registry.test/team/app')
    assert.equal(code, 1)
    assert.ok(stdout.includes(`${file}:2: unknown capability`), stdout)
  }
  write('first/registry.test/hosts.toml', 'server = "https://registry.test"\ncapabilities = ["pull"]\n')
  assert.match((await run('mirrors', 'explain', '--config', config, 'registry.test/team/app')).stdout, /no host may resolve tags/)
  const broken = write('broken.toml', 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = 7\n')
  const { code, stderr } = await run('mirrors', 'explain', '--config', broken, 'registry.test/team/app')
  assert.equal(code, 1)
  assert.ok(stderr.includes(`${broken}:3:`), stderr)
  assert.equal((await run('mirrors', 'explain', '--config', config)).code, 2)
  assert.match((await run('mirrors', 'explain', '--config', config, 'UPPER/x y')).stderr, /white space/)
  assert.match((await run('mirrors', 'explain', '--probe=yes', 'x')).stderr, /--probe takes no value/)
})

test('explain: tags over plain HTTP are a warning', async () => {
  write('first/registry.test/hosts.toml', 'server = "https://registry.test"\n[host."http://mirror.test"]\n[host."http://other.test"]\ncapabilities = ["pull"]\n')
  const explained = async (name: string): Promise<Explanation> => JSON.parse((await run('mirrors', 'explain', '--json', '--config', config, name)).stdout) as Explanation
  const tag = await explained('registry.test/team/app:1')
  assert.deepEqual(tag.hosts.map(({ warnings }) => warnings.length), [1, 0, 0])
  assert.match(tag.hosts[0]?.warnings[0] ?? '', /tags comes over plain HTTP/)
  const digest = await explained(`registry.test/team/app@sha256:${'0'.repeat(64)}`)
  assert.deepEqual(digest.hosts.map(({ warnings }) => warnings.length), [0, 0, 0])
})

test('explain --probe: status, time and digest of each host; those that differ are pointed out', async () => {
  write('first/registry.test/hosts.toml', `server = "${three.url}"\n[host."${one.url}"]\n[host."${two.url}"]\n[host."http://127.0.0.1:1"]\ncapabilities = ["pull"]\n`)
  const current = one.putManifest('team/app', '1', manifest, 'application/vnd.oci.image.manifest.v1+json').digest
  const stale = two.putManifest('team/app', '1', older, 'application/vnd.oci.image.manifest.v1+json').digest
  two.auth = { kind: 'basic', username: 'me', password: 'hunter2' }
  three.fault = () => ({ kind: 'status', status: 503 })
  const { code, stdout } = await run('mirrors', 'explain', '--probe', '--config', config, 'registry.test/team/app:1')
  assert.equal(code, 0)
  assert.match(stdout, new RegExp(`answer      200, \\d+ ms, ${current}`))
  assert.match(stdout, new RegExp(`answer      200, \\d+ ms, ${stale}`))
  assert.match(stdout, /answer      503 service unavailable, \d+ ms\n/)
  assert.match(stdout, /answer      connection refused, \d+ ms\n/)
  assert.match(stdout, new RegExp(`the hosts do not agree on what the tag means:\n +${current} at ${one.url}/v2\n +${stale} at ${two.url}/v2`))
  const { probes } = JSON.parse((await run('mirrors', 'explain', '--probe', '--json', '--config', config, 'registry.test/team/app:1')).stdout) as { probes: Probe[] }
  assert.deepEqual(probes.map(({ ok, digest }) => [ok, digest]), [[true, current], [true, stale], [false, undefined], [false, undefined]])
  for (const each of [one, two]) each.fault = () => ({ kind: 'status', status: 404 })
  assert.equal((await run('mirrors', 'explain', '--probe', '--config', config, 'registry.test/team/app:1')).code, 1, 'nobody has it')
})

test('migrate prints or writes the files, says where the old settings stand, and overwrites nothing', async () => {
  const old = write('old.toml', `version = 2
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://mirror.test"]
[plugins."io.containerd.grpc.v1.cri".registry.configs."mirror.test".tls]
insecure_skip_verify = true
[plugins."io.containerd.grpc.v1.cri".registry.configs."mirror.test".auth]
username = "me"
password = "hunter2"
`)
  const printed = await run('mirrors', 'migrate', '--config', old)
  assert.equal(printed.code, 0)
  for (const part of ['# --- docker.io/hosts.toml\n', 'server = "https://registry-1.docker.io"\n', '[host."https://mirror.test"]\n', '  skip_verify = true\n', '# --- mirror.test/hosts.toml\n', `(${old}:3, ${old}:5)`, 'registry.credentials."mirror.test"']) {
    assert.ok(printed.stdout.includes(part), `${part}\n${printed.stdout}`)
  }
  const written = await run('mirrors', 'migrate', '--config', old, '--write', place('certs.d'))
  assert.equal(written.code, 0)
  assert.match(readFileSync(place('certs.d/docker.io/hosts.toml'), 'utf8'), /mirror\.test/)
  assert.ok(existsSync(place('certs.d/mirror.test/hosts.toml')))
  assert.equal((await run('mirrors', 'migrate', '--config', old, '--write', place('certs.d'))).code, 0, 'again: they say the same')
  writeFileSync(place('certs.d/docker.io/hosts.toml'), '# mine\n')
  const kept = await run('mirrors', 'migrate', '--config', old, '--write', place('certs.d'))
  assert.equal(kept.code, 1)
  assert.match(kept.stderr, /docker\.io\/hosts\.toml is there and says something else/)
  assert.equal(readFileSync(place('certs.d/docker.io/hosts.toml'), 'utf8'), '# mine\n')

  const both = write('both.toml', `version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "${place('certs.d')}"\n[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\nendpoint = ["https://mirror.test"]\n`)
  assert.equal((await run('config', 'check', both)).code, 1)
  assert.match((await run('mirrors', 'migrate', '--config', both)).stdout, /mirror\.test/, 'a half-done migration is what it is for')
  assert.match((await run('mirrors', 'migrate', '--config', config)).stdout, /nothing to migrate/)
})
