import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { randomBytes } from 'node:crypto'
import { chmod, copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, afterEach, before, describe, it } from 'node:test'
import { fetchPulls } from '../../src/cli/pull-client.ts'
import type { AuthConfig } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { type CertificateFiles, makeCertificates } from '../../src/registry-mirrors/fake-registry.test-helper.ts'
import { temporaryDirectory } from '../../src/server/fixtures.ts'
import { command } from '../fixtures/command.ts'
import { criShimBinary } from '../fixtures/cri-shim.ts'
import { type DockerRegistry, push, startDockerRegistry } from '../fixtures/docker-registry.ts'
import { addImage, addLayer } from '../images/image.ts'
import type { ContentDir, Descriptor } from '../images/layout.ts'
import { file } from '../images/tar.ts'
import { hostArchitecture } from '../images/tiny-elf.ts'
import { eventually, failureOf, type PrivateNode, pull, skipUnlessRoot, startNode, writeNodeFile } from './private-node.ts'

// A registry of somebody else's: TLS with an authority of one's own, client certificates, basic authentication; and `cri-shim pull`.

const secret = { username: 'puller', password: 'correct-horse-battery' }
const htpasswd = `${secret.username}:$2b$05$abcdefghijklmnopqrstuuSnF5tLPqPFqc0z9CY0HcSLFbSRlL67u\n`
const encoded = Buffer.from(`${secret.username}:${secret.password}`).toString('base64')

describe('Debian’s docker-registry', { skip: skipUnlessRoot }, () => {
  let node: PrivateNode
  let certificates: CertificateFiles
  /** TLS and basic authentication; TLS with client certificates. */
  let [basic, mutual]: DockerRegistry[] = []
  const stack = new AsyncDisposableStack()
  let image: { readonly content: ContentDir; readonly descriptor: Descriptor; readonly large: Descriptor }

  const directory = temporaryDirectory()
  const metrics = `unix://${directory.path}/metrics.sock`

  before(async () => {
    node = await startNode({
      metricsAddress: metrics,
      images: async (content) => {
        const layers = [await addLayer(content, [file('one', 'one')]), await addLayer(content, [file('two', 'two'.repeat(100_000))], 'oci', 'none')]
        const large = await addLayer(content, [file('large', randomBytes(12 * 1024 * 1024))], 'oci', 'none')
        image = { content, descriptor: await addImage(content, layers, hostArchitecture(), {}), large: await addImage(content, [large], hostArchitecture(), {}) }
        content.name('docker.io/t/large:1', image.large)
        content.name('docker.io/t/app:1', image.descriptor)
      },
      editConfig: async (toml, dir) => `${toml}\n[plugins."io.cri-shim.v1".registry]\ncredential_helper_dir = "${join(dir, 'helpers')}"\n[plugins."io.cri-shim.v1".registry.credentials."*"]\nconfig_file = "${join(dir, 'docker.json')}"\n`,
    })
    certificates = makeCertificates(node.dir)
    const { certFile, keyFile, caFile } = certificates
    const open = stack.use(await startDockerRegistry({ dir: node.dir }))
    basic = stack.use(await startDockerRegistry({ dir: node.dir, htpasswd, tls: { certFile, keyFile } }))
    mutual = stack.use(await startDockerRegistry({ dir: node.dir, tls: { certFile, keyFile, clientCa: caFile } }))
    await push(open, image.content, 't/app', '1', image.descriptor)
    await push(open, image.content, 't/large', '1', image.large)
  })
  afterEach(async () => {
    await rm(join(node.dir, 'docker.json'), { force: true })
    for (const found of (await node.cri.image.ListImages({})).images) await node.cri.image.RemoveImage({ image: { image: found.id } })
    const log = await readFile(node.shim.logFile, 'utf8')
    for (const word of [secret.password, encoded]) assert.ok(!log.includes(word), 'a secret is in the log')
  })
  after(async () => {
    await stack.disposeAsync()
    assert.deepEqual(await node.stop(), [])
    directory[Symbol.dispose]()
  })

  const pullWith = async (name: string, auth: Init<AuthConfig>): Promise<string> => (await node.cri.image.PullImage({ image: { image: name }, auth })).image_ref
  const hosts = async (registry: string, toml: string): Promise<void> => writeNodeFile(join(node.certsDir, registry, 'hosts.toml'), toml)

  it('serves over TLS with an authority that hosts.toml names, to those who have the password', async () => {
    assert.ok(basic)
    const name = `${basic.host}/t/app:1`
    const server = `server = "${basic.url}"\n`
    await hosts(basic.host, server)
    assert.match(await failureOf(pullWith(name, secret)), /^UNAVAILABLE: .*its certificate is not trusted: name its authority, CN=test authority, with ca in .*hosts\.toml/)
    for (const tls of [`ca = "${certificates.caFile}"\n`, 'skip_verify = true\n']) {
      await hosts(basic.host, server + tls)
      assert.match(await pullWith(name, secret), /^sha256:/)
      await node.cri.image.RemoveImage({ image: { image: name } })
    }
    assert.match(await failureOf(pull(node, name)), new RegExp(`^UNAUTHENTICATED: .*${basic.host}: needs a user name and password, and none is given.*imagePullSecrets`))
    const wrong = await failureOf(pullWith(name, { ...secret, password: 'wrong-and-secret' }))
    assert.match(wrong, /^PERMISSION_DENIED: .*the credentials do not allow to pull it/)
    assert.ok(!wrong.includes('wrong-and-secret'))
    assert.match(await pullWith(name, { auth: encoded }), /^sha256:/)
  })

  it('wants a client certificate, by hosts.toml or in Docker’s layout', async () => {
    assert.ok(mutual)
    const name = `${mutual.host}/t/app:1`
    const { caFile, clientCertFile, clientKeyFile } = certificates
    const server = `server = "${mutual.url}"\nca = "${caFile}"\n`
    await hosts(mutual.host, server)
    assert.match(await failureOf(pull(node, name)), /^UNAVAILABLE: .*wants a client certificate: name it with client in .*hosts\.toml/)
    const stranger = makeCertificates(await mkdtemp(join(node.dir, 'stranger-')))
    await hosts(mutual.host, `${server}client = [["${stranger.clientCertFile}", "${stranger.clientKeyFile}"]]\n`)
    assert.match(await failureOf(pull(node, name)), /^UNAVAILABLE: .*does not accept the client certificate \S+client\.crt \(CN=node, valid until .*, and says "/)
    await hosts(mutual.host, `${server}client = [["${clientCertFile}", "${clientKeyFile}"]]\n`)
    assert.match(await pull(node, name), /^sha256:/)
    await node.cri.image.RemoveImage({ image: { image: name } })
    const dir = join(node.certsDir, mutual.host)
    await rm(join(dir, 'hosts.toml'))
    await copyFile(caFile, join(dir, 'ca.crt'))
    await copyFile(clientCertFile, join(dir, 'node.cert'))
    await copyFile(clientKeyFile, join(dir, 'node.key'))
    assert.match(await pull(node, name), /^sha256:/)
  })

  it('serves a large layer over TLS, which containerd finds to be the right one, and small ones after it', async () => {
    assert.ok(basic)
    await hosts(basic.host, `server = "${basic.url}"\nca = "${certificates.caFile}"\n`)
    for (const name of ['large', 'app', 'large']) {
      assert.match(await pullWith(`${basic.host}/t/${name}:1`, secret), /^sha256:/)
      await node.cri.image.RemoveImage({ image: { image: `${basic.host}/t/${name}:1` } })
    }
  })

  it('is a mirror with a credential of its own: from a Docker config.json and from a credential helper, never the pod’s', async () => {
    assert.ok(basic)
    await hosts('mirrored.example', `server = "${basic.url}"\nca = "${certificates.caFile}"\n`)
    const name = 'mirrored.example/t/app:1'
    const withoutOwn = await failureOf(pullWith(name, secret))
    assert.match(withoutOwn, /^UNAUTHENTICATED: .*needs a user name and password/)
    const config = join(node.dir, 'docker.json')
    await writeFile(config, '{}')
    assert.match(await failureOf(pullWith(name, secret)), new RegExp(`the pull secret is for mirrored\\.example alone; give ${basic.host} its own, or pull_secrets_of`))
    await writeFile(config, JSON.stringify({ auths: { [basic.host]: { auth: encoded } } }))
    assert.match(await pull(node, name), /^sha256:/)
    await node.cri.image.RemoveImage({ image: { image: name } })
    const helper = join(node.dir, 'helpers/docker-credential-test')
    await mkdir(join(node.dir, 'helpers'))
    await writeFile(helper, `#!/bin/sh\nread server\n[ "$1 $server" = "get ${basic.host}" ] && echo '${JSON.stringify({ ServerURL: basic.host, Username: secret.username, Secret: secret.password })}'\n`)
    await chmod(helper, 0o755)
    await writeFile(config, JSON.stringify({ credHelpers: { [basic.host]: 'test' } }))
    assert.match(await pull(node, name), /^sha256:/)
  })

  it('mirrors explain --probe: whose certificate it is and what is wrong with it, with the credential of a pull secret', async () => {
    assert.ok(basic)
    const authFile = join(node.dir, 'secret.json')
    await writeFile(authFile, JSON.stringify({ auths: { [basic.host]: { auth: encoded } } }))
    const words = ['mirrors', 'explain', '--probe', '--config', node.configFile]
    await hosts(basic.host, `server = "${basic.url}"\n`)
    const untrusted = await command(criShimBinary, [...words, `${basic.host}/t/app:1`])
    assert.equal(untrusted.code, 1)
    assert.match(untrusted.stdout, /certificate CN=registry\.test, issued by CN=test authority, valid .*\n {17}the authority CN=test authority is not trusted: name the authority's certificate with ca in .*hosts\.toml\n/)
    await hosts(basic.host, `server = "${basic.url}"\nca = "${certificates.caFile}"\n[host."http://${basic.host}"]\n`)
    const anonymous = await command(criShimBinary, [...words, `${basic.host}/t/app:1`])
    assert.equal(anonymous.code, 1)
    assert.match(anonymous.stdout, /answer {6}400 bad request \(it speaks TLS: write https:\/\/ for it\)/)
    assert.match(anonymous.stdout, /answer {6}needs a user name and password, and none is given/)
    const allowed = await command(criShimBinary, [...words, '--auth-file', authFile, `${basic.host}/t/app:1`])
    assert.equal(allowed.code, 0, allowed.stdout)
    assert.ok(allowed.stdout.includes(image.descriptor.digest), allowed.stdout)
    assert.ok(!`${untrusted.stdout}${anonymous.stdout}${allowed.stdout}`.includes(secret.password))
  })

  const pullArgs = (): string[] => ['pull', '--config', node.configFile, '--listen', `unix://${node.shim.socket}`, '--metrics-address', metrics]

  it('cri-shim pull: lines, bars on a terminal, who served what, exit codes', async () => {
    assert.ok(basic)
    await hosts(basic.host, `server = "${basic.url}"\nca = "${certificates.caFile}"\n`)
    const name = `${basic.host}/t/app:1`
    const refused = await command(criShimBinary, [...pullArgs(), name])
    assert.equal(refused.code, 1)
    assert.match(refused.stderr, /^cri-shim: UNAUTHENTICATED: cannot resolve .*imagePullSecrets/m)

    const authFile = join(node.dir, 'auth.json')
    await writeFile(authFile, JSON.stringify({ auths: { [basic.host]: { auth: encoded } } }))
    const plain = await command(criShimBinary, [...pullArgs(), '--auth-file', authFile, name])
    assert.equal(plain.code, 0, plain.stderr)
    assert.equal(plain.stderr, '')
    assert.ok(!plain.stdout.includes('\u001b'))
    for (const part of [`${name} is ${image.descriptor.digest}, says ${basic.host}`, `name resolved by ${basic.host}: ${image.descriptor.digest}`, `${basic.host} served 2`, 'of 2 layers\n']) assert.ok(plain.stdout.includes(part), `${part}\n${plain.stdout}`)
    assert.match(plain.stdout, /: downloaded from 127\.0\.0\.1:\d+\n/)
    assert.match(plain.stdout, new RegExp(`\\n${name}: sha256:[0-9a-f]{64}\\n$`))
    await node.cri.image.RemoveImage({ image: { image: name } })

    // A mirror that is asked in front of it and cannot serve.
    await hosts(basic.host, `server = "${basic.url}"\nca = "${certificates.caFile}"\n[host."http://127.0.0.1:1"]\n`)
    const second = await command(criShimBinary, [...pullArgs(), '--auth-file', authFile, name])
    assert.match(second.stdout, /\n127\.0\.0\.1:1 was passed over: connection refused\n/)
    await hosts(basic.host, `server = "${basic.url}"\nca = "${certificates.caFile}"\n`)
    await node.cri.image.RemoveImage({ image: { image: name } })

    // util-linux' script gives it a terminal.
    const line = [criShimBinary, ...pullArgs(), '--auth-file', authFile, name].map((word) => `'${word}'`).join(' ')
    const drawn = await command('script', ['--quiet', '--return', '--command', line, '/dev/null'])
    assert.equal(drawn.code, 0, drawn.stdout)
    assert.ok(drawn.stdout.includes('\u001b[0J'))
    assert.match(drawn.stdout, /█+ +(done|present|unpacking|downloaded)/)

    const nobody = await command(criShimBinary, ['pull', '--config', node.configFile, '--listen', `unix://${node.dir}/nothing.sock`, '--metrics-address', '', name])
    assert.equal(nobody.code, 1)
    assert.match(nobody.stderr, /no progress can be shown: metrics_address is not set/)
    assert.match(nobody.stderr, /nobody answers on unix:.*nothing\.sock: is cri-shim running/)
    assert.equal((await command(criShimBinary, ['pull'])).code, 2)
  })

  it('Ctrl-C ends cri-shim pull and the pull', async () => {
    const undo = node.registry.fault({ match: (request) => request.kind === 'blob' && request.repository === 't/app', action: { kind: 'hang' } })
    try {
      const child = spawn(criShimBinary, [...pullArgs(), 'docker.io/t/app:1'], { stdio: ['ignore', 'pipe', 'pipe'] })
      let errors = ''
      child.stderr.on('data', (chunk: Buffer) => { errors += chunk.toString() })
      child.stdout.resume()
      const ended = once(child, 'close')
      const own = async (): Promise<string | undefined> => (await fetchPulls(metrics)).findLast((each) => each.image === 'docker.io/t/app:1')?.state
      await eventually('the pull runs', async () => (await own()) === 'running')
      child.kill('SIGINT')
      const [code] = await ended as [number]
      assert.equal(code, 130)
      assert.match(errors, /interrupted; what was downloaded stays/)
      await eventually('the pull has ended', async () => (await own()) === 'failed')
    } finally {
      undo()
    }
  })
})
