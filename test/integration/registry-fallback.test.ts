import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { after, afterEach, before, describe, it } from 'node:test'
import { createLogger } from '../../src/observability/logger.ts'
import { parseImageRef } from '../../src/registry-mirrors/image-ref.ts'
import { RegistryClient } from '../../src/registry-mirrors/registry-client.ts'
import { noRegistrySettings } from '../../src/registry-mirrors/settings.ts'
import { type BlackHole, openBlackHole } from '../fixtures/black-hole.ts'
import { command } from '../fixtures/command.ts'
import { criShimBinary } from '../fixtures/cri-shim.ts'
import type { Fault } from '../fixtures/registry/faults.ts'
import { type Registry, startRegistry } from '../fixtures/registry/registry.ts'
import { addImage, addLayer } from '../images/image.ts'
import type { ContentDir } from '../images/layout.ts'
import { file } from '../images/tar.ts'
import { hostArchitecture } from '../images/tiny-elf.ts'
import { eventually, failureOf, type PrivateNode, pull, skipUnlessRoot, startNode, writeNodeFile } from './private-node.ts'

const registryName = 'mirrored.example'
const sizeBytes = 3 * 1024 * 1024
const names = ['vanished', 'next', 'opened', 'back', 'dead', 'after', 'status', 'reset', 'cut', 'corrupt', 'junk', 'ignored', 'stale'] as const

async function images(content: ContentDir): Promise<void> {
  for (const name of names) content.name(`${registryName}/t/${name}:1`, await addImage(content, [await addLayer(content, [file(name, Buffer.alloc(sizeBytes, name))], 'oci', 'none')], hostArchitecture(), { Labels: { name } }))
}

/** A port of loopback that is free now. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

describe('mirrors that fail', { skip: skipUnlessRoot }, () => {
  let node: PrivateNode
  let second: Registry
  let hole: BlackHole
  let metricsPort = 0
  const held: Socket[] = []
  const dead = createServer((socket) => held.push(socket.on('error', () => undefined)))
  before(async () => {
    process.env['NO_PROXY'] = '*' // or a proxy of this machine is asked for what lies behind it
    hole = await openBlackHole()
    metricsPort = await freePort()
    node = await startNode({ images, metricsAddress: `127.0.0.1:${metricsPort}` })
    second = await startRegistry({ contentDir: node.contentDir })
    dead.listen(0, '127.0.0.1')
    await once(dead, 'listening')
  })
  afterEach(async () => {
    for (const image of (await node.cri.image.ListImages({})).images) await node.cri.image.RemoveImage({ image: { image: image.id } })
    second.requests.length = node.registry.requests.length = 0
  })
  after(async () => {
    for (const socket of held) socket.destroy()
    dead.close()
    await second.close()
    try {
      assert.deepEqual(await node.stop(), [])
    } finally {
      await hole[Symbol.asyncDispose]()
    }
    assert.notEqual((await command('ip', ['link', 'show', hole.link])).code, 0)
  })
  const deadUrl = (): string => `https://127.0.0.1:${(dead.address() as AddressInfo).port}`
  const hostsFile = (): string => join(node.certsDir, registryName, 'hosts.toml')
  const through = async (...urls: readonly string[]): Promise<void> =>
    writeNodeFile(hostsFile(), `server = "${urls.at(-1)}"\n${urls.slice(0, -1).map((url) => `[host."${url}"]\n  capabilities = ["pull", "resolve"]\n`).join('')}`)
  const metrics = async (): Promise<string> => (await fetch(`http://127.0.0.1:${metricsPort}/metrics`)).text()

  /** Of the latest pull of an image, by its log line: why other hosts did not serve. */
  const passedOver = async (name: string): Promise<Readonly<Record<string, readonly string[]>>> => eventually(`the line about ${name}`, async () => {
    const lines = (await readFile(node.shim.logFile, 'utf8')).split('\n').filter((line) => line.includes('"msg":"pulled"') && line.includes(`/t/${name}:1"`))
    return lines.length < (pulls.get(name) ?? 0) ? undefined : (JSON.parse(lines.at(-1) ?? '{}') as { passedOver: Record<string, readonly string[]> }).passedOver
  })
  const pulls = new Map<string, number>()
  const pullOne = async (name: (typeof names)[number]): Promise<void> => {
    await pull(node, `${registryName}/t/${name}:1`)
    pulls.set(name, (pulls.get(name) ?? 0) + 1)
  }
  const throughHole = async (port: number, settings = ''): Promise<string> => {
    const host = `${hole.address}:${port}`
    await writeNodeFile(hostsFile(), `server = "${second.url}"\n[host."http://${host}"]\ncapabilities = ["pull", "resolve"]\n${settings}`)
    return host
  }

  it('costs a host whose packets vanish one connection, in this pull and the next ones, and says so', async () => {
    const host = await throughHole(5000)
    await pullOne('vanished')
    const connections = await hole.connecting(5000)
    assert.equal(connections.length, 1)
    assert.deepEqual((await passedOver('vanished'))[host], ['no answer within 1 s, and another host was faster', 'it does not answer now (skipped)'])
    await pullOne('next')
    assert.deepEqual(await hole.connecting(5000), connections)
    assert.deepEqual((await passedOver('next'))[host], ['it does not answer now (skipped)'])
    // Of an image that is there only the name is asked for.
    const other = await throughHole(5001)
    await pullOne('next')
    assert.deepEqual(await passedOver('next'), { [other]: ['no answer within 1 s, and another host was faster'] })
  })

  it('skips such a host once its time to connect is over: figures, log, listing and probes say why', async () => {
    const host = await throughHole(5002, 'dial_timeout = "1200ms"\n')
    await pullOne('opened')
    await eventually('its breaker opens', async () => (await metrics()).includes(`cri_shim_registry_breaker_state{host="${host}",state="open"} 1`))
    await pullOne('next')
    const [why] = (await passedOver('next'))[host] ?? []
    assert.match(why ?? '', /^no connection within 1\.2 s \(skipped for \d+ s\)$/)
    const listed = await (await fetch(`http://127.0.0.1:${metricsPort}/pulls`)).json() as readonly { readonly image: string; readonly passedOver: Readonly<Record<string, readonly string[]>> }[]
    assert.deepEqual(listed.findLast(({ image }) => image.includes('/t/next:1'))?.passedOver[host]?.[0], why)
    const requests = (await metrics()).split('\n').filter((line) => line.startsWith('cri_shim_registry_requests_total') && line.includes(host))
    assert.deepEqual(requests, [`cri_shim_registry_requests_total{host="${host}",result="unreachable"} 1`])
    const { stdout, code } = await command(criShimBinary, ['mirrors', 'explain', '--probe', '--config', node.configFile, `${registryName}/t/next:1`])
    assert.equal(code, 0)
    assert.match(stdout, /no connection within 1\.2 s/)
  })

  it('costs a black hole one connection, in this pull and the next ones', async () => {
    await through(deadUrl(), second.url)
    await pull(node, `${registryName}/t/dead:1`)
    assert.equal(held.length, 1)
    const figures = await metrics()
    const host = deadUrl().slice('https://'.length)
    assert.ok(figures.includes(`cri_shim_registry_breaker_state{host="${host}",state="slow"} 1`), 'its 30 s are not over yet')
    await pull(node, `${registryName}/t/after:1`)
    assert.equal(held.length, 1)
    assert.match(await metrics(), new RegExp(`cri_shim_registry_received_bytes_total\\{host="127\\.0\\.0\\.1:${second.port}"\\} [1-9]`))
  })

  const faults: Readonly<Record<'status' | 'reset' | 'cut' | 'corrupt' | 'junk' | 'ignored', Fault['action']>> = {
    status: { kind: 'status', status: 503, headers: { 'retry-after': '1' } }, reset: { kind: 'reset' }, cut: { kind: 'cut', afterBytes: sizeBytes / 2 }, corrupt: { kind: 'corrupt' },
    junk: { kind: 'cut', afterBytes: sizeBytes / 2, corrupt: true }, ignored: { kind: 'cut', afterBytes: sizeBytes / 2 },
  }
  for (const [name, action] of Object.entries(faults)) {
    it(`goes on at the next host: ${name}`, async () => {
      // One that nothing is known of.
      await using first = await startRegistry({ contentDir: node.contentDir })
      await through(first.url, second.url)
      first.fault({ match: ({ kind }) => kind === 'blob', action })
      const undoRange = name === 'ignored' ? second.fault({ match: ({ kind }) => kind === 'blob', action: { kind: 'ignore-range' } }) : undefined
      try {
        await pull(node, `${registryName}/t/${name}:1`)
      } finally {
        undoRange?.()
      }
      assert.ok(first.requests.some(({ kind }) => kind === 'blob'))
      const asked = second.requests.filter(({ kind }) => kind === 'blob')
      assert.ok(asked.length > 0 && asked.every(({ ns }) => ns === registryName))
      if (name === 'cut' || name === 'junk' || name === 'ignored') assert.ok(asked.some(({ range }) => /^bytes=[1-9]\d*-$/.test(range ?? '')), 'from where it broke off')
      // Who sent junk and broke off is asked no more; who went on from there, once again and for all of it.
      if (name === 'corrupt' || name === 'junk') assert.ok(asked.some(({ range }) => range === undefined), 'from the start')
    })
  }

  it('tells each host’s own reason in the words of an event, and a broken file by its line', async () => {
    const refusing = await freePort()
    await through(`http://127.0.0.1:${refusing}`, node.registry.url, second.url)
    const undo = [node.registry, second].map((registry, index) => registry.fault({ action: { kind: 'status', status: index === 0 ? 500 : 403, body: JSON.stringify({ errors: [{ code: 'DENIED', message: `at https://bucket/x?sig=signed-secret ${'and so on '.repeat(50)}` }] }) } }))
    const failure = await failureOf(pull(node, `${registryName}/t/stale:1`))
    for (const each of undo) each()
    assert.match(failure, /^PERMISSION_DENIED: cannot resolve mirrored\.example\/t\/stale:1: /)
    for (const reason of [`127.0.0.1:${refusing}: connection refused`, `127.0.0.1:${node.registry.port}: 500 `, `127.0.0.1:${second.port}: 403 forbidden (DENIED`]) assert.ok(failure.includes(reason), failure)
    assert.ok(failure.length < 1000 && !failure.includes('signed-secret'), failure)
    assert.ok(!(await readFile(node.shim.logFile, 'utf8')).includes('signed-secret'))

    await writeNodeFile(hostsFile(), `server = "${second.url}"\n[host."${node.registry.url}"]\nskip_verify = "yes"\n`)
    assert.match(await failureOf(pull(node, `${registryName}/t/stale:1`)), new RegExp(`^FAILED_PRECONDITION: ${hostsFile()}:3: skip_verify must be true or false`))
    await through(second.url)
    await pull(node, `${registryName}/t/stale:1`)
  })

  it('asks a host that was dead again when its time is over, and uses it when it is back', async () => {
    const host = await throughHole(5003, 'dial_timeout = "300ms"\n')
    // As the service has it, but for times that nobody waits for in a test.
    const client = new RegistryClient({ ...noRegistrySettings, configPath: [node.certsDir], log: createLogger('fatal'), userAgent: 'test', env: {}, health: { headStartMs: 100, knownHeadStartMs: 100, skipMs: 200 } })
    const servedBy = async (): Promise<string> => (await client.resolve(parseImageRef(`${registryName}/t/back:1`), null, node.ctx)).host
    const state = (): string | undefined => client.hostStates().find(({ origin }) => origin.endsWith(host))?.state
    try {
      assert.equal(await servedBy(), `127.0.0.1:${second.port}`)
      const [met] = await hole.connecting(5003)
      await eventually('its breaker opens', async () => state() === 'open')
      await eventually('it is asked again', async () => {
        assert.equal(await servedBy(), `127.0.0.1:${second.port}`, 'nobody waits for it')
        return (await hole.connecting(5003)).some((port) => port !== met)
      })
      await hole.revive()
      await using revived = await startRegistry({ contentDir: node.contentDir, address: hole.address, port: 5003 })
      await eventually('it is back in use', async () => await servedBy() === host)
      assert.equal(state(), 'closed')
      assert.ok(revived.requests.length > 0)
      await hole.vanish()
    } finally {
      client.close()
    }
  })

  it('gives a host that vanishes after it has served no longer lead than an unknown one', async () => {
    const host = await throughHole(5004)
    const client = new RegistryClient({ ...noRegistrySettings, configPath: [node.certsDir], log: createLogger('fatal'), userAgent: 'test', env: {}, health: { headStartMs: 100, knownHeadStartMs: 600_000 } })
    const servedBy = async (): Promise<string> => (await client.resolve(parseImageRef(`${registryName}/t/back:1`), null, { ...node.ctx, signal: AbortSignal.timeout(25_000) })).host
    try {
      await hole.revive()
      {
        await using revived = await startRegistry({ contentDir: node.contentDir, address: hole.address, port: 5004 })
        assert.equal(await servedBy(), host)
        assert.ok(revived.requests.length > 0)
      }
      await hole.vanish()
      assert.equal(await servedBy(), `127.0.0.1:${second.port}`, 'before its 30 s to connect are over')
    } finally {
      client.close()
    }
  })
})
