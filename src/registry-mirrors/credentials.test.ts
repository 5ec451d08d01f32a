import assert from 'node:assert/strict'
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { CredentialHelpers, HelperError } from './credential-helper.ts'
import { basicAuthorization, type Credential, Credentials, type PullAuth, passwordForm } from './credentials.ts'
import { isOwnRegistry } from './host-url.ts'
import { allCapabilities, noTls, type RegistryHost } from './registry-host.ts'
import { noRegistrySettings, type RegistrySettings } from './settings.ts'

let dir: string
before(async () => { dir = await mkdtemp(path.join(os.tmpdir(), 'credentials-')) })
after(() => rm(dir, { recursive: true, force: true }))

const image = { registry: 'docker.io', repository: 'library/busybox' }

function hostOf(host: string, registry = image.registry): RegistryHost {
  return {
    url: `https://${host}/v2`, protocol: 'https', host, apiRoot: '/v2', capabilities: new Set(allCapabilities), tls: noTls, headers: {}, dialTimeoutMs: 1000,
    ownRegistry: isOwnRegistry(registry, host, 'https'), source: 'test',
  }
}

const warnings: string[] = []
function credentials(settings: Partial<RegistrySettings>, helperTimeoutMs = 20_000): Credentials {
  warnings.length = 0
  return new Credentials({ settings: { ...noRegistrySettings, ...settings }, env: { PATH: `${dir}/bin:/usr/bin:/bin`, DIR: dir }, warn: (warning) => warnings.push(warning), helperTimeoutMs })
}

/** A shell script that is a credential helper. */
async function helper(name: string, script: string): Promise<string> {
  await mkdir(path.join(dir, 'bin'), { recursive: true })
  const file = path.join(dir, 'bin', `docker-credential-${name}`)
  await writeFile(file, `#!/bin/sh\n${script}\n`)
  await chmod(file, 0o755)
  return file
}

const password = (username: string, secret: string): Credential => ({ kind: 'password', username, password: secret })
const none: Credential = { kind: 'none' }
const encoded = (text: string): string => Buffer.from(text).toString('base64')

test('the pull secret goes to the image’s registry in all its names, and to no other host', async () => {
  const some = credentials({})
  const auth: PullAuth = { username: 'pod', password: 'hunter2' }
  for (const own of ['registry-1.docker.io', 'docker.io', 'index.docker.io']) assert.deepEqual(await some.of(hostOf(own), image, auth), password('pod', 'hunter2'))
  for (const other of ['mirror.example', 'harbor.internal', 'docker.io.evil.example', 'registry-1.docker.io:8443']) {
    const got = await some.of(hostOf(other), image, auth)
    assert.deepEqual(got, { kind: 'none', problem: `the pull secret is for docker.io alone; give ${other} its own, or pull_secrets_of` })
  }
  assert.deepEqual(await some.of(hostOf('mirror.example'), image, null), none)
  const elsewhere: PullAuth = { ...auth, server_address: 'https://mirror.example/v1/' }
  assert.deepEqual(await some.of(hostOf('mirror.example'), image, elsewhere), password('pod', 'hunter2'), 'server_address names whose it is')
  assert.equal((await some.of(hostOf('registry-1.docker.io'), image, elsewhere)).kind, 'none')
  assert.deepEqual(warnings, [])
})

test('pull_secrets_of lets a host of another name have them', async () => {
  const some = credentials({ credentials: { 'harbor.internal': { pullSecretsOf: ['docker.io'] }, '*.mirrors.example': { pullSecretsOf: ['*'] } } })
  const auth: PullAuth = { username: 'pod', password: 'hunter2' }
  for (const host of ['harbor.internal', 'a.mirrors.example', 'b.mirrors.example:5000']) {
    assert.deepEqual(await some.of(hostOf(host), image, auth), password('pod', 'hunter2'), host)
    assert.deepEqual(await some.of(hostOf(host), image, { ...auth, server_address: 'index.docker.io' }), password('pod', 'hunter2'), host)
    assert.equal(some.takesPullSecret(hostOf(host), image), true)
  }
  const quay = { registry: 'quay.io', repository: 'a/b' }
  assert.equal((await some.of(hostOf('harbor.internal', 'quay.io'), quay, auth)).kind, 'none')
  for (const host of ['mirrors.example', 'harbor.internal:8443', 'xmirrors.example']) assert.equal((await some.of(hostOf(host), image, auth)).kind, 'none', host)
})

test('every form of a pull secret', async () => {
  const own = hostOf('registry-1.docker.io')
  const some = credentials({})
  const cases: readonly (readonly [PullAuth, Credential])[] = [
    [{ auth: encoded('pod:hunter2') }, password('pod', 'hunter2')],
    [{ auth: encoded('pod:with:colons\0\0') }, password('pod', 'with:colons')],
    [{ identity_token: 'refresh' }, { kind: 'identity', token: 'refresh' }],
    [{ username: '<token>', password: 'refresh' }, { kind: 'identity', token: 'refresh' }],
    [{ auth: encoded('<token>:refresh') }, { kind: 'identity', token: 'refresh' }],
    // Azure's: a name that stands for none, and no password.
    [{ username: '00000000-0000-0000-0000-000000000000', password: '', identity_token: 'refresh' }, { kind: 'identity', token: 'refresh' }],
    [{ auth: encoded('00000000-0000-0000-0000-000000000000:'), identity_token: 'refresh' }, { kind: 'identity', token: 'refresh' }],
    [{ username: 'pod', password: 'hunter2', identity_token: 'refresh' }, password('pod', 'hunter2')],
    [{ registry_token: 'bearer' }, { kind: 'registry', token: 'bearer' }],
    [{}, none], [null, none], [{ username: '' }, none],
  ]
  for (const [auth, credential] of cases) assert.deepEqual(await some.of(own, image, auth), credential)
  for (const auth of ['hunter2', 'not base64: hunter2', encoded('nocolon-hunter2')]) {
    await assert.rejects(some.of(own, image, { auth }), (error: Error) => /not base64 of username:password/.test(error.message) && !error.message.includes('hunter2'))
  }
  await assert.rejects(some.of(own, image, { registry_token: 'a\r\nb: hunter2' }), /^CriError: the registry token of the pull secret has characters that no token has$/)
})

test('configured credentials: our own section before auths before configs, by host and port', async () => {
  const settings: Partial<RegistrySettings> = {
    credentials: { 'one.example': { username: 'own', password: 'a' }, '*.example': { username: 'pattern', password: 'b' }, '*': { identityToken: 'all' } },
    auths: { 'https://one.example/v1/': { username: 'auths', password: 'c' }, 'https://user:hunter2@three.test?x=hunter2': { auth: '!!' } },
    configs: { 'two.test:5000': { auth: { auth: encoded('configs:d') } } },
  }
  const some = credentials(settings)
  assert.deepEqual(await some.of(hostOf('one.example'), image, null), password('own', 'a'))
  assert.deepEqual(await some.of(hostOf('x.example:5000'), image, null), password('pattern', 'b'))
  assert.deepEqual(await some.of(hostOf('two.test:5000'), image, null), { kind: 'identity', token: 'all' })
  const { credentials: _own, ...old } = settings
  const older = credentials(old)
  assert.deepEqual(await older.of(hostOf('one.example'), image, null), password('auths', 'c'))
  assert.deepEqual(await older.of(hostOf('two.test:5000'), image, null), password('configs', 'd'))
  assert.deepEqual(await older.of(hostOf('two.test'), image, null), none)
  const broken = await older.of(hostOf('three.test'), image, null)
  assert.match(broken.kind === 'none' ? broken.problem ?? '' : '', /auth is not base64/)
  assert.equal(warnings.length, 1)
  assert.ok(!warnings.join().includes('hunter2') && !JSON.stringify(broken).includes('hunter2'))
  assert.deepEqual(await some.of(hostOf('registry-1.docker.io'), image, { username: 'pod', password: 'p' }), password('pod', 'p'), 'the pull secret comes first')
})

test('an identity token beside a name without a password is what counts in settings too', async () => {
  const some = credentials({ credentials: { 'one.example': { username: 'nobody', identityToken: 'refresh' }, 'two.example': { username: 'pod', password: 'hunter2', identityToken: 'refresh' } } })
  assert.deepEqual(await some.of(hostOf('one.example'), image, null), { kind: 'identity', token: 'refresh' })
  assert.deepEqual(await some.of(hostOf('two.example'), image, null), password('pod', 'hunter2'))
})

test('a password that is no UTF-8 is sent in its own bytes', async () => {
  const bytes = Buffer.from('us\xe9r:p\xe4ss\xff', 'latin1')
  const auth = bytes.toString('base64')
  const some = credentials({ credentials: { 'one.example': { auth } } })
  for (const given of [await some.of(hostOf('one.example'), image, null), await some.of(hostOf('registry-1.docker.io'), image, { auth })]) {
    assert.ok(given.kind === 'password')
    assert.equal(basicAuthorization(given), `Basic ${auth}`)
    assert.equal(passwordForm(given), 'username=%75%73%e9%72&password=%70%e4%73%73%ff')
  }
  const utf8 = await some.of(hostOf('registry-1.docker.io'), image, { auth: encoded('usér:pä ß') })
  assert.ok(utf8.kind === 'password')
  assert.deepEqual([basicAuthorization(utf8), passwordForm(utf8)], [`Basic ${encoded('usér:pä ß')}`, 'username=us%C3%A9r&password=p%C3%A4+%C3%9F'])
})

test('a Docker config.json: auths by host and path, credHelpers, credsStore', async () => {
  await helper('hosthelper', `printf '{"Username":"helped","Secret":"%s"}' "$(cat)"`)
  await helper('store', `printf '{"Username":"<token>","Secret":"refresh"}'`)
  const file = path.join(dir, 'config.json')
  await writeFile(file, JSON.stringify({
    auths: {
      'https://index.docker.io/v1/': { auth: encoded('hub:a') }, 'plain.example': { username: 'plain', password: 'b' }, 'plain.example/team': { auth: encoded('team:c') },
      'plain.example/team/deep': { identitytoken: 'deep', username: '<token>' }, 'empty.example': {}, 'bearer.example': { registrytoken: 'bearer' },
    },
    credHelpers: { 'helped.example': 'hosthelper' }, credsStore: 'store', HttpHeaders: { x: 1 },
  }))
  const some = credentials({ credentials: { '*': { configFile: file } } })
  const of = async (host: string, repository = 'x'): Promise<Credential> => some.of(hostOf(host), { registry: host, repository }, null)
  assert.deepEqual(await of('registry-1.docker.io'), password('hub', 'a'))
  assert.deepEqual(await of('plain.example'), password('plain', 'b'))
  assert.deepEqual(await of('plain.example', 'teams/x'), password('plain', 'b'))
  assert.deepEqual(await of('plain.example', 'team/x'), password('team', 'c'))
  assert.deepEqual(await of('plain.example', 'team/deep'), { kind: 'identity', token: 'deep' })
  assert.deepEqual(await of('bearer.example'), { kind: 'registry', token: 'bearer' })
  assert.deepEqual(await of('helped.example'), password('helped', 'helped.example'), 'the helper is told the host')
  for (const host of ['empty.example', 'other.example']) assert.deepEqual(await of(host), { kind: 'identity', token: 'refresh' })
  // A change of the file counts at once.
  await writeFile(file, '{"auths":{"plain.example":{"auth":"hunter2"}}}')
  assert.deepEqual(await of('plain.example'), { kind: 'none', problem: `${file} (auths."plain.example"): auth is not base64 of username:password`, unreadable: true })
  await writeFile(file, '{"auths": hunter2')
  assert.deepEqual(await of('plain.example'), { kind: 'none', problem: `${file} is not JSON`, unreadable: true })
  await rm(file)
  assert.deepEqual(await of('plain.example'), { kind: 'none', problem: `${file} does not exist` }, 'for all hosts: nobody may have logged in')
  assert.deepEqual(warnings, [`${file} (auths."plain.example"): auth is not base64 of username:password`, `registry.credentials."*".config_file: ${file} is not JSON`, `registry.credentials."*".config_file: ${file} does not exist`])
  assert.ok(!warnings.join().includes('hunter2'))
  assert.deepEqual(await credentials({ credentials: { 'plain.example': { configFile: file } } }).of(hostOf('plain.example'), image, null), { kind: 'none', problem: `${file} does not exist`, unreadable: true })
  assert.ok(!warnings.join().includes('hunter2'))
  const chosen = credentials({ credentials: { 'one.example': { configFile: file } } })
  assert.deepEqual(await chosen.candidates(hostOf('two.example'), image), [], 'the file is for the hosts that it is named for')
})

test('helpers: asked once for all, kept for a while, asked again when what they said was refused', async () => {
  const file = await helper('counting', 'echo run >> "$DIR/runs"; cat > "$DIR/server"; printf \'{"ServerURL":"x","Username":"me","Secret":"hunter2"}\'')
  for (const name of ['counting', file]) {
    await rm(path.join(dir, 'runs'), { force: true })
    const some = credentials({ credentials: { 'one.example': { helper: name } } })
    const host = hostOf('one.example')
    const ask = async (): Promise<Credential> => some.of(host, image, null)
    assert.deepEqual(await Promise.all([ask(), ask(), ask()]), Array.from({ length: 3 }, () => password('me', 'hunter2')))
    await ask()
    assert.equal(await readFile(path.join(dir, 'runs'), 'utf8'), 'run\n')
    assert.equal(await readFile(path.join(dir, 'server'), 'utf8'), 'one.example\n')
    await some.refused(host, image)
    await ask()
    assert.equal(await readFile(path.join(dir, 'runs'), 'utf8'), 'run\nrun\n')
  }
  await credentials({ credentials: { '*': { helper: 'counting' } } }).of(hostOf('registry-1.docker.io'), image, null)
  assert.equal(await readFile(path.join(dir, 'server'), 'utf8'), 'https://index.docker.io/v1/\n', 'the name that Docker Hub has for helpers')
  const inDirectory = credentials({ credentials: { '*': { helper: 'counting' } }, credentialHelperDir: '/nonexistent' })
  assert.deepEqual(await inDirectory.of(hostOf('one.example'), image, null), { kind: 'none', problem: 'there is no /nonexistent/docker-credential-counting', unreadable: true })
})

test('a clock that is set back does not make a failed helper fail for hours', async (context) => {
  await helper('waking', 'test -e "$DIR/awake" || exit 1; printf \'{"Username":"me","Secret":"hunter2"}\'')
  const some = credentials({ credentials: { 'one.example': { helper: 'waking' } } })
  assert.equal((await some.of(hostOf('one.example'), image, null)).kind, 'none')
  await writeFile(path.join(dir, 'awake'), '')
  const [now, date] = [performance.now.bind(performance), Date.now()]
  context.mock.method(Date, 'now', () => date - 86_400_000)
  context.mock.method(performance, 'now', () => now() + 21_000)
  assert.equal((await some.of(hostOf('one.example'), image, null)).kind, 'password')
})

test('helpers that fail are said by name, and nothing that they print is', async () => {
  await helper('nothing', 'echo "credentials not found in native keychain"; exit 1')
  await helper('failing', 'echo "no session with https://sts.example/?X-Amz-Signature=hunter2" >&2; exit 3')
  await helper('leaking', `echo '{"Secret":"hunter2"}'; exit 1`)
  await helper('garbage', 'echo hunter2')
  await helper('half', `echo '{"Username":"hunter2"}'`)
  await helper('endless', 'while :; do echo hunter2hunter2hunter2hunter2hunter2hunter2hunter2hunter2; done')
  await chmod(await helper('notexecutable', 'exit 0'), 0o644)
  const cases: readonly (readonly [string, string | undefined])[] = [
    ['nothing', undefined],
    ['failing', 'docker-credential-failing failed: no session with https://sts.example/'],
    ['leaking', 'docker-credential-leaking failed with exit code 1'],
    ['garbage', 'docker-credential-garbage did not answer in JSON'],
    ['half', 'docker-credential-half answered without Username and Secret'],
    ['endless', 'docker-credential-endless wrote more than 256 KiB'],
    ['missing', 'docker-credential-missing is not in PATH'],
    ['notexecutable', 'docker-credential-notexecutable is not executable'],
    ['../bin/x', '"../bin/x" is not the name of a credential helper'],
  ]
  for (const [name, problem] of cases) {
    const some = credentials({ credentials: { 'one.example': { helper: name } } })
    assert.deepEqual(await some.of(hostOf('one.example'), image, null), problem === undefined ? none : { kind: 'none', problem, unreadable: true }, name)
    assert.deepEqual(warnings, problem === undefined ? [] : [`registry.credentials."one.example".helper: ${problem}`])
  }
})

test('a helper that hangs is ended with all that it started', async () => {
  await helper('hanging', 'sleep 1000 & echo $! > "$DIR/pid"; wait')
  let pid = 0
  // As much time as it takes to start it on this machine at this moment.
  for (let timeoutMs = 250; pid === 0; timeoutMs *= 2) {
    const helpers = new CredentialHelpers({ env: { PATH: `${dir}/bin:/usr/bin:/bin`, DIR: dir }, directory: '', timeoutMs })
    await assert.rejects(helpers.get('hanging', 'one.example'), (error: unknown) => error instanceof HelperError && error.message === `docker-credential-hanging did not answer within ${timeoutMs / 1000} s`)
    pid = Number(await readFile(path.join(dir, 'pid'), 'utf8').catch(() => ''))
  }
  const state = async (): Promise<string> => readFile(`/proc/${pid}/stat`, 'utf8').then((text) => text.split(' ')[2] ?? '', () => 'gone')
  // It may be a zombie until its new parent has looked.
  while (!['gone', 'Z', 'X'].includes(await state())) await new Promise((resolve) => { setTimeout(resolve, 10) })
})
