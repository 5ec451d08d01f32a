import assert from 'node:assert/strict'
import { chmodSync, existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { after, before, beforeEach, test } from 'node:test'
import type { Explanation } from '../registry-mirrors/explain.ts'
import { FakeRegistry, makeCertificates } from '../registry-mirrors/fake-registry.test-helper.ts'
import type { Probe } from '../registry-mirrors/probe.ts'
import { temporaryDirectory } from '../server/fixtures.ts'
import { commandsWith, main } from './command-line.ts'
import { explainCommand, type ExplainCommandDeps } from './commands/mirrors.ts'

const commands = commandsWith(() => Promise.reject(new Error('no test of this file gets this far')))

async function run(...words: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return runOf(commands, ...words)
}

async function runOf(given: typeof commands, ...words: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  let stdout = ''
  let stderr = ''
  const code = await main(given, words, { stdout: (text) => void (stdout += text), stderr: (text) => void (stderr += text) })
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
    `1. ${one.url}/v2\n     from        ${file}:2\n`, 'asked for   content by digest (pull)', `manifest    ${one.url}/v2/team/app/manifests/DIGEST?ns=registry.test`,
    '2. https://mirror.test/hub\n', `credential  Authorization header in ${file}`, `warning     it is passed over: ca ${place('second')}/registry.test/missing.pem does not exist`,
    `3. ${two.url}/v2\n`, `credential  registry.credentials."${two.host}"`, 'its credential is sent over plain HTTP',
    `4. https://registry.test/v2\n     from        ${file}:1\n     asked for   tags and content\n`, 'manifest    https://registry.test/v2/team/app/manifests/latest\n', 'the pod\'s pull secret, when it has one', `${file}:10: unknown key "sever" is ignored; `,
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
  const nobody = await run('mirrors', 'explain', '--config', config, 'registry.test/team/app')
  assert.equal(nobody.code, 1, 'every pull by tag fails')
  assert.match(nobody.stdout, /error: no host may resolve tags.*\nEvery pull of this image fails/)
  assert.equal((await run('mirrors', 'explain', '--config', config, `registry.test/team/app@sha256:${'0'.repeat(64)}`)).code, 0, 'by digest it is possible')
  write('first/registry.test/hosts.toml', 'server = "https://registry.test"\nca = "missing.pem"\n')
  const unusable = await run('mirrors', 'explain', '--config', config, 'registry.test/team/app')
  assert.equal(unusable.code, 1)
  assert.match(unusable.stdout, /error: no host can be asked: https:\/\/registry\.test\/v2: ca .*missing\.pem does not exist/)
  rmSync(place('first/registry.test'), { recursive: true })
  write('first/registry.test', 'server = "https://registry.test"\n')
  assert.match((await run('mirrors', 'explain', '--config', config, 'registry.test/team/app')).stdout, /first\/registry\.test: cannot be used\n/)
  rmSync(place('first/registry.test'))
  const broken = write('broken.toml', 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = 7\n')
  const { code, stderr } = await run('mirrors', 'explain', '--config', broken, 'registry.test/team/app')
  assert.equal(code, 1)
  assert.ok(stderr.includes(`${broken}:3:`), stderr)
  assert.equal((await run('mirrors', 'explain', '--config', config)).code, 2)
  for (const command of ['mirrors explain', 'pull']) {
    const wrong = await run(...command.split(' '), '--config', config, 'UPPER/x y')
    assert.equal(wrong.code, 2)
    assert.match(wrong.stderr, /white space/)
    assert.match((await run(...command.split(' '), 'https://registry.test/x')).stderr, /without https:/)
  }
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

test('explain: what is there and does not count, and what a URL means', async () => {
  write('first/registry.test:5000/host.toml', 'server = "https://registry.test:5000"\n')
  write('second/registry.test_5000/hosts.toml', 'server = "https://registry.test:5000"\n')
  const { stdout, code } = await run('mirrors', 'explain', '--config', config, 'registry.test:5000/team/app')
  assert.equal(code, 0)
  for (const part of ['there, and not read\n', `${place('first')}/registry.test:5000: has no hosts.toml and no certificates`, `${place('first')}/registry.test:5000/host.toml: the file must be called hosts.toml: rename it\n`, `${place('second')}/registry.test_5000: the port is written registry.test_5000_ or registry.test:5000: rename it\n`]) assert.ok(stdout.includes(part), `${part}\n${stdout}`)

  write('first/registry.test/hosts.toml', `server = "https://registry.test"
[host."https://harbor.test/v2/hub"]
[host."https://mirror.test/hub"]
override_path = true
[host."https://good.test/hub/v2"]
[host."https://other.test/v2/hub"]
override_path = true
`)
  write('second/good.test/hosts.toml', '')
  const json = JSON.parse((await run('mirrors', 'explain', '--json', '--config', config, 'registry.test/team/app')).stdout) as Explanation & { configPath: string[]; configPathSource: string }
  assert.deepEqual(json.hosts.map(({ line }) => line), [2, 3, 5, 6, 1])
  assert.deepEqual(json.hosts.map(({ warnings }) => warnings.length), [1, 1, 0, 0, 0])
  assert.match(json.hosts[0]?.warnings[0] ?? '', /^\/v2 is added to a path that has one already \(https:\/\/harbor\.test\/v2\/hub\/v2\/team\/app\/manifests\/…\): override_path = true/)
  assert.match(json.hosts[1]?.warnings[0] ?? '', /^its requests have no \/v2 \(https:\/\/mirror\.test\/hub\/team\/app/)
  assert.deepEqual(json.warnings, [`${place('second')}/good.test is about images called good.test/…: what it says does not count for good.test as a mirror; certificates of a mirror go below its [host."…"] line`])
  assert.deepEqual([json.configPath, json.configPathSource, json.nearMisses], [[place('first'), place('second')], `${config}:3`, []])
})

test('explain: a proxy is shown without its password, one that cannot be used is said', async () => {
  write('first/registry.test/hosts.toml', 'server = "https://registry.test"\n[host."https://mirror.test"]\n')
  const before = { ...process.env }
  const set = (env: Record<string, string>): void => {
    for (const name of ['HTTPS_PROXY', 'https_proxy', 'NO_PROXY', 'no_proxy']) delete process.env[name]
    Object.assign(process.env, env)
  }
  try {
    set({ HTTPS_PROXY: 'http://me:hunter2@proxy.test:3128', NO_PROXY: 'mirror.test' })
    const { stdout } = await run('mirrors', 'explain', '--config', config, 'registry.test/team/app')
    assert.match(stdout, /1\. https:\/\/mirror\.test\/v2\n(?: {5}(?!proxy).*\n)+ {2}2\. https:\/\/registry\.test\/v2\n(?: {5}.*\n)* {5}proxy {7}http:\/\/proxy\.test:3128, /)
    set({ HTTPS_PROXY: 'socks5://proxy.test' })
    const socks = await run('mirrors', 'explain', '--config', config, 'registry.test/team/app')
    assert.equal(socks.code, 1)
    assert.match(socks.stdout, /passed over: proxies of kind socks5 are not supported/)
  } finally {
    set(Object.fromEntries(['HTTPS_PROXY', 'https_proxy', 'NO_PROXY', 'no_proxy'].flatMap((name) => (before[name] === undefined ? [] : [[name, before[name]]]))))
  }
})

const explainWith = (deps: ExplainCommandDeps, ...words: string[]): ReturnType<typeof run> => runOf([explainCommand(deps)], 'mirrors', 'explain', ...words)

test('explain: lines end at the edge of a terminal, and go on whole into a pipe; what files are called never reaches it as a command', async () => {
  write('first/registry.test/hosts.toml', 'server = "https://registry.test"\nsever = 1\n[host."http://mirror.test"]\n')
  write('first/registry.test/\u001b[2J.toml', '')
  const words = ['--config', config, 'registry.test/team/app']
  const drawn = (await explainWith({ terminal: { isTTY: true, columns: 80 }, configFiles: [] }, ...words)).stdout
  // A path or a URL is not torn apart.
  assert.deepEqual(drawn.split('\n').filter((line) => line.length > 80 && line.trim().split(' ').length > 1 && !/[/:].{40}/.test(line)), [])
  assert.match(drawn, /\n {5}manifest {4}http:\/\/mirror\.test\/v2\/team\/app\/manifests\/latest\?ns=registry\.test\n/, 'what does not fit anyway stays beside its name')
  assert.match(drawn, /\n {5}warning {5}what it says of tags .*\n {17}\S.*\n/)
  const piped = (await explainWith({ terminal: {}, configFiles: [] }, ...words)).stdout
  assert.equal(drawn.replaceAll(/\s+/g, ' '), piped.replaceAll(/\s+/g, ' '))
  assert.match(piped, /warning {5}what it says of tags comes over plain HTTP, .* which is verified\n/)
  for (const text of [drawn, piped]) assert.ok(!text.includes('\u001b'), text)
})

test('explain: a configuration file that would have been read, had another one not been there', async () => {
  const [own, theirs] = [write('etc/own.toml', 'version = 2\n'), write('etc/containerd.toml', 'version = 2\n')]
  const both = await explainWith({ terminal: {}, configFiles: [own, theirs] }, 'registry.test/app')
  assert.ok(both.stdout.includes(`${theirs} is there and not read: ${own} counts`), both.stdout)
  assert.ok(!(await explainWith({ terminal: {}, configFiles: [own, theirs] }, '--config', theirs, 'registry.test/app')).stdout.includes('is there and not read'))
})

test('explain --probe: certificates with subject, issuer, expiry and what to do; TLS behind http://; Retry-After; helpers that fail; a pull secret', async () => {
  mkdirSync(place('tls'), { recursive: true })
  const certificates = makeCertificates(place('tls'))
  const secure = await FakeRegistry.start({ tls: certificates })
  const helper = write('docker-credential-broken', '#!/bin/sh\necho "no session" >&2\nexit 1\n')
  chmodSync(helper, 0o755)
  const own = write('probe.toml', `version = 2
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "${place('first')}"
[plugins."io.cri-shim.v1".registry.credentials."${one.host}"]
helper = "${helper}"
`)
  const explained = async (...flags: string[]): Promise<{ code: number; stdout: string; probes: Probe[]; warnings: string[]; digests: { digest: string; hosts: string[] }[] }> => {
    const words = ['mirrors', 'explain', '--probe', ...flags, '--config', own, 'registry.test/team/app:1']
    const { code, stdout } = await run(...words)
    return { code, stdout, ...JSON.parse((await run(...words, '--json')).stdout) as { probes: Probe[]; warnings: string[]; digests: [] } }
  }
  try {
    for (const each of [secure, one]) each.putManifest('team/app', '1', manifest, 'application/vnd.oci.image.manifest.v1+json')
    const file = write('first/registry.test/hosts.toml', `server = "${secure.url}"\n[host."http://${secure.host}"]\n[host."${one.url}"]\n[host."${two.url}"]\n`)
    two.fault = () => ({ kind: 'status', status: 429, headers: { 'retry-after': '30' } })
    const first = await explained()
    assert.equal(first.code, 0)
    const [plain, anonymous, limited, untrusted] = first.probes
    assert.match(plain?.status ?? '', /^connection reset; it speaks TLS: write https:\/\/ for it$/)
    assert.equal(anonymous?.ok, true)
    assert.ok(first.warnings.includes(`registry.credentials."${one.host}".helper: docker-credential-broken failed: no session`), first.warnings.join('\n'))
    assert.equal(limited?.retryAfterMs, 30_000)
    assert.match(first.stdout, /429 too many requests, \d+ ms, to be asked again in 30 s\n/)
    const { subject, issuer, names = [], validTo = '', problem } = untrusted?.certificate ?? {}
    assert.deepEqual([subject, issuer, names.includes('127.0.0.1')], ['CN=registry.test', 'CN=test authority', true])
    assert.ok(Date.parse(validTo) > Date.now())
    assert.equal(problem, `the authority CN=test authority is not trusted: name the authority's certificate with ca in ${file}`)
    assert.match(first.stdout, /certificate CN=registry\.test, issued by CN=test authority, valid \d{4}-\d\d-\d\d to \d{4}-\d\d-\d\d; it expires at .*\n {17}the authority CN=test authority is not trusted/)
    assert.equal(first.digests.length, 1)

    write('first/registry.test/hosts.toml', `server = "${secure.url}"\nca = "${certificates.caFile}"\n[host."https://other.localhost:${secure.port}"]\nca = "${certificates.caFile}"\n[host."${secure.url}/v2/"]\nca = "${certificates.certFile}"\n[host."${secure.url}/"]\nskip_verify = true\n`)
    const second = await explained()
    assert.match(second.probes.at(-1)?.certificate?.subject ?? '', /registry\.test/)
    assert.equal(second.probes.at(-1)?.certificate?.problem, undefined)
    assert.equal(second.probes.at(-1)?.ok, true)
    assert.equal(second.probes.at(-2)?.certificate?.problem, undefined, 'not verified, as it is wished')

    secure.auth = { kind: 'basic', username: 'me', password: 'hunter2' }
    write('first/registry.test/hosts.toml', `server = "${secure.url}"\nca = "${certificates.caFile}"\n`)
    const secret = write('secret.json', JSON.stringify({ auths: { 'registry.test': { auth: Buffer.from('me:hunter2').toString('base64') } } }))
    const refused = await explained('--auth-file', secret)
    assert.equal(refused.code, 1, 'the secret is for registry.test, which this server is not')
    assert.match(refused.probes[0]?.status ?? '', /the pull secret is for registry\.test alone/)
    write('probe.toml', `${readFileSync(own, 'utf8')}[plugins."io.cri-shim.v1".registry.credentials."${secure.host}"]\npull_secrets_of = ["registry.test"]\n`)
    assert.equal((await explained('--auth-file', secret)).code, 0)
    assert.equal((await run('mirrors', 'explain', '--auth-file', secret, '--config', own, 'x')).code, 2, 'without --probe nobody is asked')
  } finally {
    await secure.close()
  }
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

  const rancher = write('rancher.toml', `version = 2
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://docker.io"]
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io".rewrite]
"^rancher/(.*)" = "mirrored/$1"
`)
  const migrated = (await run('mirrors', 'migrate', '--config', rancher)).stdout
  for (const part of [/^# Put these files below \/etc\/containerd\/certs\.d, set registry\.config_path = .*, take registry\.mirrors/m, /^# .*rancher\.toml:4:\d+: unknown table rewrite .*an addition of k3s and RKE2/m, /docker\.io serves no registry API/]) assert.match(migrated, part)
  assert.match((await run('mirrors', 'explain', '--config', rancher, 'busybox')).stdout, /warning {5}it serves no registry API: write https:\/\/registry-1\.docker\.io\n/)
  assert.ok(!(await run('mirrors', 'migrate', '--config', both)).stdout.includes('set registry.config_path'), 'it is set already')
})

test('explain: a hosts.toml that is a link to nothing is no empty directory', async () => {
  const file = place('second/registry.test/hosts.toml')
  mkdirSync(dirname(file), { recursive: true })
  symlinkSync('..data/hosts.toml', file)
  const { code, stdout } = await run('mirrors', 'explain', '--config', config, 'registry.test/team/app')
  assert.equal(code, 1)
  assert.ok(stdout.includes(`${file}: cannot be used`) && stdout.includes(`error: ${file}: it is a link to ..data/hosts.toml, which does not exist`) && !stdout.includes('the registry itself is asked'), stdout)
})

test('explain: an image that is named after something that is no host name', async () => {
  for (const words of [[], ['--probe']]) {
    const { code, stdout, stderr } = await run('mirrors', 'explain', '--config', config, ...words, '1.2.b.3/team/app')
    assert.deepEqual([code, stderr], [1, ''])
    assert.match(stdout, /error: no host can be asked: https:\/\/1\.2\.b\.3\/v2: 1\.2\.b\.3 is not a host name/)
  }
})
