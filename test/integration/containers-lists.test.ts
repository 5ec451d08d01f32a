// What the service tells of containers: lists with every filter, stats that move, conditions that say what to do.
import assert from 'node:assert/strict'
import { rename } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { Code } from '../../src/errors/cri-error.ts'
import { type Container, type ContainerFilter, type ContainerStats, ContainerState, NamespaceMode } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { type ContainerNode, type Pod, startContainerNode, statusOf } from './container-node.ts'

let node: ContainerNode
let pods: readonly [Pod, Pod]
const ids: Record<string, string> = {}

before(async () => {
  node = await startContainerNode([], '  stats_collect_period = 1')
  pods = [await node.pod('first'), await node.pod('second')]
  const [first, second] = pods
  ids['created'] = (await node.create(first, 'created', { command: ['true'], labels: { app: 'a', tier: 'x' } })).id
  ids['running'] = (await node.start(first, 'running', { command: ['sh', '-c', 'echo content > /file; while :; do :; done'], labels: { app: 'a', tier: 'y' } })).id
  ids['exited'] = (await node.run(second, 'exited', 'exit 3', { labels: { app: 'a', tier: 'x' } })).id
  ids['idle'] = (await node.start(second, 'idle', { command: ['sleep', '1000'], labels: { app: 'b' }, annotations: { note: 'here' } })).id
})
after(async () => { await node[Symbol.asyncDispose]() })

const id = (name: string): string => ids[name] ?? assert.fail(name)
const namesOf = (found: readonly { readonly id: string }[]): string[] => found.map((one) => Object.entries(ids).find(([, value]) => value === one.id)?.[0] ?? one.id).sort()

describe('ListContainers and StreamContainers', () => {
  const list = async (filter: Init<ContainerFilter> | undefined): Promise<string[]> => {
    const { containers } = await node.cri.runtime.ListContainers(filter === undefined ? {} : { filter })
    const streamed: Container[] = []
    for await (const page of node.cri.runtime.StreamContainers(filter === undefined ? {} : { filter })) streamed.push(...page.containers)
    assert.deepEqual(streamed, containers, 'the stream says the same')
    return namesOf(containers)
  }

  it('give all without a filter, and with an empty one', async () => {
    assert.deepEqual(await list(undefined), ['created', 'exited', 'idle', 'running'])
    assert.deepEqual(await list({}), ['created', 'exited', 'idle', 'running'])
  })

  it('filter by id, also a shortened one', async () => {
    assert.deepEqual(await list({ id: id('idle') }), ['idle'])
    assert.deepEqual(await list({ id: id('idle').slice(0, 20) }), ['idle'])
    assert.deepEqual(await list({ id: 'f'.repeat(64) }), [])
  })

  it('filter by state', async () => {
    assert.deepEqual(await list({ state: { state: ContainerState.CONTAINER_CREATED } }), ['created'])
    assert.deepEqual(await list({ state: { state: ContainerState.CONTAINER_RUNNING } }), ['idle', 'running'])
    assert.deepEqual(await list({ state: { state: ContainerState.CONTAINER_EXITED } }), ['exited'])
    assert.deepEqual(await list({ state: { state: ContainerState.CONTAINER_UNKNOWN } }), [])
  })

  it('filter by pod', async () => {
    assert.deepEqual(await list({ pod_sandbox_id: pods[0].id }), ['created', 'running'])
    assert.deepEqual(await list({ pod_sandbox_id: pods[1].id.slice(0, 16) }), ['exited', 'idle'])
    assert.deepEqual(await list({ pod_sandbox_id: 'nosuchpod' }), [])
  })

  it('filter by labels, all of them, and by several things at once', async () => {
    assert.deepEqual(await list({ label_selector: { app: 'a' } }), ['created', 'exited', 'running'])
    assert.deepEqual(await list({ label_selector: { app: 'a', tier: 'x' } }), ['created', 'exited'])
    assert.deepEqual(await list({ label_selector: { app: 'a', tier: 'z' } }), [])
    assert.deepEqual(await list({ label_selector: { tier: '' } }), [])
    assert.deepEqual(await list({ label_selector: { tier: 'x' }, pod_sandbox_id: pods[1].id, state: { state: ContainerState.CONTAINER_EXITED } }), ['exited'])
    assert.deepEqual(await list({ label_selector: { tier: 'x' }, id: id('idle') }), [])
  })

  it('say of each what was given', async () => {
    const { containers } = await node.cri.runtime.ListContainers({ filter: { id: id('idle') } })
    const [found] = containers
    assert.equal(found?.pod_sandbox_id, pods[1].id)
    assert.equal(found.metadata?.name, 'idle')
    assert.deepEqual({ ...found.annotations }, { note: 'here' })
    assert.match(found.image_id, /^sha256:/)
    assert.equal(found.created_at, (await node.status(id('idle'))).created_at)
  })

  it('say of a container\'s pod which namespaces it has', async () => {
    const { status } = await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: pods[0].id })
    const options = status?.linux?.namespaces?.options
    assert.equal(options?.pid, NamespaceMode.POD, 'what a request that says nothing means')
    assert.equal(options.network, NamespaceMode.POD)
  })
})

describe('ContainerStats and ListContainerStats', () => {
  const stats = async (name: string): Promise<ContainerStats> => (await node.cri.runtime.ContainerStats({ container_id: id(name) })).stats ?? assert.fail('no stats')

  it('move', async () => {
    const first = await stats('running')
    let later = await stats('running')
    while (BigInt(later.cpu?.usage_core_nano_seconds?.value ?? '0') <= BigInt(first.cpu?.usage_core_nano_seconds?.value ?? '0') || BigInt(later.cpu?.usage_nano_cores?.value ?? '0') === 0n) later = await stats('running')
    assert.ok(BigInt(later.memory?.working_set_bytes?.value ?? '0') > 0n)
    assert.ok(BigInt(later.memory?.usage_bytes?.value ?? '0') >= BigInt(later.memory?.working_set_bytes?.value ?? '0'))
    assert.ok(BigInt(later.cpu?.timestamp ?? '0') > 0n)
    assert.equal(later.attributes?.metadata?.name, 'running')
    assert.deepEqual({ ...later.attributes.labels }, { app: 'a', tier: 'y' })
  })

  it('have what the writable layer uses, of one that is not running as well', async () => {
    const before = await stats('idle')
    const used = BigInt(before.writable_layer?.used_bytes?.value ?? assert.fail('no used_bytes'))
    assert.match(before.writable_layer?.fs_id?.mountpoint ?? '', /overlayfs$/)
    await node.cri.runtime.ExecSync({ container_id: id('idle'), cmd: ['sh', '-c', 'head -c 1000000 /dev/urandom > /big'], timeout: '30' })
    let now = await stats('idle')
    const deadline = Date.now() + 30_000
    while (BigInt(now.writable_layer?.used_bytes?.value ?? '0') < used + 1_000_000n) {
      assert.ok(Date.now() < deadline, JSON.stringify(now.writable_layer))
      await new Promise((resolve) => { setTimeout(resolve, 50) })
      now = await stats('idle')
    }
    const exited = await stats('exited')
    assert.ok(exited.writable_layer?.used_bytes)
    assert.equal(exited.cpu, null)
  })

  it('take every filter', async () => {
    const list = async (filter: object): Promise<string[]> => namesOf((await node.cri.runtime.ListContainerStats({ filter })).stats.map(({ attributes }) => ({ id: attributes?.id ?? '' })))
    assert.deepEqual(await list({}), ['created', 'exited', 'idle', 'running'])
    assert.deepEqual(await list({ id: id('idle') }), ['idle'])
    assert.deepEqual(await list({ pod_sandbox_id: pods[0].id }), ['created', 'running'])
    assert.deepEqual(await list({ label_selector: { app: 'a', tier: 'y' } }), ['running'])
    assert.deepEqual(await list({ id: 'nosuch' }), [])
    const streamed: string[] = []
    for await (const page of node.cri.runtime.StreamContainerStats({ filter: { pod_sandbox_id: pods[1].id } })) streamed.push(...namesOf(page.container_stats.map(({ attributes }) => ({ id: attributes?.id ?? '' }))))
    assert.deepEqual(streamed.sort(), ['exited', 'idle'])
  })

  it('are not there for one that is not there', async () => {
    assert.equal((await statusOf(node.cri.runtime.ContainerStats({ container_id: 'nosuch' }))).code, Code.NOT_FOUND)
  })
})

describe('Status', () => {
  const conditions = async (): Promise<Map<string, { status: boolean; reason: string; message: string }>> => {
    const { status } = await node.cri.runtime.Status({})
    return new Map(status?.conditions.map((condition) => [condition.type, condition]))
  }
  const until = async (type: string, wanted: boolean): Promise<{ reason: string; message: string }> => {
    const deadline = Date.now() + 30_000
    for (;;) {
      const condition = (await conditions()).get(type)
      if (condition?.status === wanted) return condition
      assert.ok(Date.now() < deadline, JSON.stringify(condition))
      await new Promise((resolve) => { setTimeout(resolve, 20) })
    }
  }

  it('says Version and the runtime\'s configuration', async () => {
    const version = await node.cri.runtime.Version({ version: 'v1' })
    assert.equal(version.runtime_name, 'containerd')
    assert.equal(version.runtime_api_version, 'v1')
    assert.equal((await node.cri.runtime.RuntimeConfig({})).linux?.cgroup_driver, 1)
    const { runtime_handlers: handlers, info } = await node.cri.runtime.Status({ verbose: true })
    assert.deepEqual(handlers.map(({ name }) => name).sort(), ['', 'runc'])
    for (const [key, value] of Object.entries(info)) assert.doesNotThrow(() => JSON.parse(value) as unknown, `${key} is JSON`)
    const quiet = await node.cri.runtime.Status({})
    assert.deepEqual({ ...quiet.info }, {})
  })

  it('names the directory and the remedy while there is no CNI configuration, and recovers by itself', async () => {
    const file = join(node.containerd.cniConfDir, '10-test.conflist')
    await rename(file, `${file}.away`)
    try {
      const { reason, message } = await until('NetworkReady', false)
      assert.match(reason, /^\w+$/)
      assert.ok(message.includes(node.containerd.cniConfDir), message)
      const failure = await statusOf(node.pod('no-network'))
      assert.ok(failure.details.includes(node.containerd.cniConfDir), failure.details)
    } finally {
      await rename(`${file}.away`, file)
    }
    await until('NetworkReady', true)
    await node.removePod(await node.pod('network-again'))
  })

  it('says while containerd is away that it is, refuses calls as UNAVAILABLE, and goes on when it is back', async () => {
    await node.containerd.end('SIGKILL')
    try {
      const { reason, message } = await until('RuntimeReady', false)
      assert.equal(reason, 'ContainerdNotReady')
      assert.ok(message.includes(node.containerd.socket), message)
      for (const call of [node.cri.runtime.ListContainers({}), node.cri.runtime.StopContainer({ container_id: id('idle') }), node.cri.runtime.ExecSync({ container_id: id('idle'), cmd: ['true'] }), node.cri.runtime.RunPodSandbox({})]) {
        const { code, details } = await statusOf(call)
        assert.equal(code, Code.UNAVAILABLE, details)
      }
    } finally {
      await node.containerd.start()
    }
    await until('RuntimeReady', true)
    assert.equal((await node.status(id('idle'))).state, ContainerState.CONTAINER_RUNNING)
    assert.equal((await node.status(id('exited'))).exit_code, 3)
    assert.equal((await node.cri.runtime.ExecSync({ container_id: id('idle'), cmd: ['echo', 'back'], timeout: '30' })).stdout.toString(), 'back\n')
    await node.cri.runtime.StopContainer({ container_id: id('idle'), timeout: '0' })
    assert.equal((await node.status(id('idle'))).exit_code, 137)
  })
})
