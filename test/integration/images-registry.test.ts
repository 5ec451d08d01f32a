import assert from 'node:assert/strict'
import { readFile, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { once } from 'node:events'
import { join } from 'node:path'
import { after, afterEach, before, describe, it } from 'node:test'
import type { AuthConfig } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { type Registry, type RegistryAuth, startRegistry } from '../fixtures/registry/registry.ts'
import { addImage, addLayer } from '../images/image.ts'
import type { ContentDir } from '../images/layout.ts'
import { file } from '../images/tar.ts'
import { hostArchitecture } from '../images/tiny-elf.ts'
import { failureOf, type PrivateNode, pull, skipUnlessRoot, startNode, writeNodeFile } from './private-node.ts'

const secret = { username: 'puller', password: 'correct-horse-battery' }
const kinds = ['basic', 'bearer'] as const

async function images(content: ContentDir): Promise<void> {
  const image = await addImage(content, [await addLayer(content, [file('one', 'one')]), await addLayer(content, [file('two', 'two')])], hostArchitecture(), {})
  content.name('mirrored.example/t/one:1', image)
}

/** A port of loopback on which nobody listens. */
async function closedPort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  server.close()
  await once(server, 'close')
  assert.ok(typeof address === 'object' && address !== null)
  return address.port
}

describe('registries', { skip: skipUnlessRoot }, () => {
  let node: PrivateNode
  const registries = new Map<string, Registry>()
  before(async () => {
    node = await startNode({ images })
    const auths: Readonly<Record<string, RegistryAuth>> = { basic: { kind: 'basic', ...secret }, bearer: { kind: 'bearer', ...secret }, anonymous: { kind: 'bearer', anonymous: true, ...secret } }
    for (const [name, auth] of Object.entries(auths)) registries.set(name, await startRegistry({ contentDir: node.contentDir, auth }))
  })
  afterEach(async () => {
    for (const image of (await node.cri.image.ListImages({})).images) await node.cri.image.RemoveImage({ image: { image: image.id } })
    assert.deepEqual(await node.api.leases.list(node.ctx), [])
  })
  after(async () => {
    for (const registry of registries.values()) await registry.close()
    assert.deepEqual(await node.stop(), [])
  })
  /** The image at a registry that goes by its address. */
  const at = (name: string): string => `127.0.0.1:${registries.get(name)?.port}`
  const pullWith = async (image: string, auth: Init<AuthConfig>): Promise<string> => (await node.cri.image.PullImage({ image: { image }, auth })).image_ref

  for (const kind of kinds) {
    it(`takes the pod's secret to a registry with ${kind} authentication, and never tells it`, async () => {
      const image = `${at(kind)}/t/one:1`
      const ids = new Set<string>()
      for (const auth of [secret, { auth: Buffer.from(`${secret.username}:${secret.password}`).toString('base64') }, { ...secret, server_address: `http://${at(kind)}` }]) {
        ids.add(await pullWith(image, auth))
        await node.cri.image.RemoveImage({ image: { image } })
      }
      assert.equal(ids.size, 1)
      const log = await readFile(node.shim.logFile, 'utf8')
      assert.ok(log.includes('pulled'))
      for (const word of [secret.password, Buffer.from(`${secret.username}:${secret.password}`).toString('base64')]) assert.ok(!log.includes(word))
    })

    it(`says that a registry with ${kind} authentication wants a secret, or another one`, async () => {
      const host = at(kind)
      const image = `${host}/t/one:1`
      const none = await failureOf(pull(node, image))
      assert.match(none, new RegExp(`^UNAUTHENTICATED: .*${image}: ${host}: (needs a user name and password|token service ${host}: gives no token).*imagePullSecrets`))
      const wrong = await failureOf(pullWith(image, { ...secret, password: 'wrong-and-secret' }))
      assert.match(wrong, new RegExp(`^(PERMISSION_DENIED|UNAUTHENTICATED): .*${host}: .*imagePullSecrets`))
      for (const failure of [none, wrong]) assert.ok(!failure.includes('secret:') && !failure.includes('wrong-and-secret'))
      assert.match(await failureOf(pullWith(image, { auth: '!!' })), /^INVALID_ARGUMENT: .*base64/)
      // What is on the node already is not for whoever may not pull it.
      await pullWith(image, secret)
      assert.match(await failureOf(pull(node, image)), /^UNAUTHENTICATED: /)
    })
  }

  it('gets a token without a secret where registries give one', async () => {
    await pull(node, `${at('anonymous')}/t/one:1`)
    const requests = registries.get('anonymous')?.requests ?? []
    assert.ok(requests.some((request) => request.kind === 'token' && request.authorization === undefined))
    assert.ok(requests.some((request) => request.kind === 'blob' && request.status === 200 && request.authorization === 'Bearer'))
  })

  it('asks mirrors in order, tells them whose image it wants and nothing of the secret, and names all when none has it', async () => {
    const dead = await closedPort()
    const own = at('basic')
    const hosts = join(node.certsDir, own, 'hosts.toml')
    await writeNodeFile(hosts, `[host."http://127.0.0.1:${dead}"]
  capabilities = ["pull", "resolve"]
[host."${node.registry.url}"]
  capabilities = ["pull", "resolve"]
`)
    const mirrored = new Set<string>()
    // The mirror knows the image by the registry that it is told of.
    const undo = node.registry.fault({ match: (request) => (mirrored.add(`${request.ns}`), false), action: { kind: 'hang' } })
    const seen = node.registry.requests.length
    await pullWith(`${own}/t/one:1`, secret)
    undo()
    assert.deepEqual([...mirrored], [own])
    const asked = node.registry.requests.slice(seen)
    assert.ok(asked.length > 0)
    for (const request of asked) assert.equal(request.authorization, undefined)
    const failure = await failureOf(pullWith(`${own}/t/two:1`, secret))
    assert.match(failure, new RegExp(`^NOT_FOUND: cannot resolve ${own}/t/two:1: `))
    for (const each of [`127.0.0.1:${dead}: connection refused`, `127.0.0.1:${node.registry.port}: 404`, `${own}: 404`]) assert.ok(failure.includes(each), failure)
    // A change of the file counts at once.
    await writeNodeFile(hosts, `server = "http://127.0.0.1:${dead}"\n`)
    assert.match(await failureOf(pull(node, `${own}/t/one:1`)), new RegExp(`^UNKNOWN: RegistryUnavailable: cannot resolve ${own}/t/one:1: 127.0.0.1:${dead}: connection refused$`), 'as the kubelet knows it')
    await rm(join(node.certsDir, own), { recursive: true })
  })

  it('goes on at the next host in the middle of an image', async () => {
    const other = await startRegistry({ contentDir: node.contentDir })
    try {
      await writeNodeFile(join(node.certsDir, 'mirrored.example', 'hosts.toml'), `server = "${other.url}"\n[host."${node.registry.url}"]\n  capabilities = ["pull", "resolve"]\n`)
      const undo = node.registry.fault({ match: (request) => request.kind === 'blob', action: { kind: 'status', status: 503 } })
      try {
        await pull(node, 'mirrored.example/t/one:1')
      } finally {
        undo()
      }
      assert.deepEqual(new Set(other.requests.map((request) => request.kind)), new Set(['blob']))
    } finally {
      await other.close()
    }
  })

  it('gives up at a registry that answers nothing when the client does', async () => {
    const undo = node.registry.fault({ match: (request) => request.repository === 't/silent', action: { kind: 'hang' } })
    try {
      const leaving = new AbortController()
      const pulling = pull(node, 'docker.io/t/silent:1', { signal: leaving.signal })
      const arrived = Promise.withResolvers<void>()
      const stop = node.registry.fault({ match: (request) => (request.repository === 't/silent' ? (arrived.resolve(), false) : false), action: { kind: 'hang' } })
      await Promise.race([arrived.promise, pulling])
      stop()
      leaving.abort()
      assert.match(await failureOf(pulling), /^CANCELLED: /)
    } finally {
      undo()
    }
    assert.match(await failureOf(pull(node, 'docker.io/t/silent:1')), /^NOT_FOUND: /)
  })
})
