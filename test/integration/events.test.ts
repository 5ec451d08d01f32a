import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { connect as connectHttp2, type IncomingHttpHeaders } from 'node:http2'
import { connect } from 'node:net'
import { after, before, describe, it } from 'node:test'
import { Client, type ClientReadableStream, type ServiceError, credentials } from '@grpc/grpc-js'
import { type ContainerEventResponse, ContainerEventType, ContainerState, PodSandboxState } from '../../src/generated/cri.ts'
import { criProtos, serviceDefinition } from '../../src/generated/protos.ts'
import { skipUnlessRoot } from './private-node.ts'
import { script, startTestNode, type TestNode, until } from './restart-node.ts'

const { CONTAINER_CREATED_EVENT: created, CONTAINER_STARTED_EVENT: started, CONTAINER_STOPPED_EVENT: stopped, CONTAINER_DELETED_EVENT: deleted } = ContainerEventType
const names: Readonly<Record<number, string>> = { [created]: 'created', [started]: 'started', [stopped]: 'stopped', [deleted]: 'deleted' }

/** A kubelet's stream of events. */
class Follower implements Disposable {
  readonly events: ContainerEventResponse[] = []
  readonly ended: Promise<ServiceError>
  readonly stream: ClientReadableStream<ContainerEventResponse>
  readonly #client: Client
  readonly #served: Promise<void>
  #changed = Promise.withResolvers<void>()

  constructor(socket: string) {
    const rpc = serviceDefinition(criProtos(), 'runtime.v1.RuntimeService')['GetContainerEvents']
    assert.ok(rpc)
    this.#client = new Client(`unix://${socket}`, credentials.createInsecure(), { 'grpc.use_local_subchannel_pool': 1 })
    this.stream = this.#client.makeServerStreamRequest(rpc.path, rpc.requestSerialize, rpc.responseDeserialize as (bytes: Buffer) => ContainerEventResponse, {})
    this.#served = new Promise((resolve, reject) => { this.stream.once('metadata', () => resolve()).once('error', reject) })
    this.#served.catch(() => undefined)
    this.ended = new Promise((resolve) => { this.stream.once('error', resolve) })
    this.stream.on('data', (event: ContainerEventResponse) => {
      this.events.push(event)
      this.#changed.resolve()
      this.#changed = Promise.withResolvers()
    })
  }

  /** A stream that is subscribed when this resolves. */
  static async of(node: TestNode): Promise<Follower> {
    const follower = new Follower(node.shim.socket)
    await follower.#served
    return follower
  }

  /** The first event of this kind. */
  async until(id: string, type: ContainerEventType): Promise<ContainerEventResponse> {
    const late = Promise.withResolvers<never>()
    const timer = setTimeout(() => late.reject(new Error(`no event ${names[type]} of ${id} within 60 s: ${this.lines().join(', ')}`)), 60_000)
    late.promise.catch(() => undefined)
    try {
      for (;;) {
        const event = this.events.find((each) => each.container_id === id && each.container_event_type === type)
        if (event !== undefined) return event
        await Promise.race([this.#changed.promise, late.promise])
      }
    } finally {
      clearTimeout(timer)
    }
  }

  /** `ID created`, in order; of these ids alone. */
  lines(...ids: string[]): string[] {
    return this.events.filter((event) => ids.length === 0 || ids.includes(event.container_id)).map((event) => `${event.container_id} ${names[event.container_event_type]}`)
  }

  [Symbol.dispose](): void {
    this.stream.on('error', () => undefined).cancel()
    this.#client.close()
  }
}

/** The same without reading: grpc-js would take in whatever comes. `rest` reads what is there and resolves with the trailers. */
async function withoutReading(socket: string): Promise<{ rest(): Promise<{ readonly bytes: number; readonly status: string; readonly message: string }>; close(): void }> {
  const session = connectHttp2('http://localhost', { createConnection: () => connect(socket) })
  const stream = session.request({ ':method': 'POST', ':path': '/runtime.v1.RuntimeService/GetContainerEvents', 'content-type': 'application/grpc', te: 'trailers' })
  stream.end(Buffer.alloc(5))
  await once(stream, 'response')
  const trailers = once(stream, 'trailers') as Promise<[IncomingHttpHeaders]>
  return {
    rest: async () => {
      let bytes = 0
      for await (const chunk of stream) bytes += (chunk as Buffer).length
      const [{ 'grpc-status': status, 'grpc-message': message }] = await trailers
      return { bytes, status: String(status), message: decodeURIComponent(String(message)) }
    },
    close: () => session.destroy(),
  }
}

describe('container events', { skip: skipUnlessRoot }, () => {
  let node: TestNode
  before(async () => { node = await startTestNode() })
  after(async () => {
    await node.removeAll()
    await node.nothingLeft()
    await node[Symbol.asyncDispose]()
  })

  it('come in order, to many subscribers, with the pod as it is at that moment', async () => {
    const followers = await Promise.all(Array.from({ length: 25 }, () => Follower.of(node)))
    const config = node.pod('order')
    const pod = await node.runPod(config)
    const [runs, ends] = [await node.run(pod, config, script('runs', 'sleep 100000')), await node.run(pod, config, script('ends', 'exit 7'))]
    const [first] = followers
    assert.ok(first)
    const exit = await first.until(ends, stopped)
    assert.equal(exit.pod_sandbox_status?.id, pod)
    assert.equal(exit.pod_sandbox_status.metadata?.uid, 'uid-order')
    assert.match(exit.pod_sandbox_status.network?.ip ?? '', /^10\./)
    assert.deepEqual(exit.containers_statuses.map(({ id, state, exit_code, reason }) => [id, state, exit_code, reason]), [
      [runs, ContainerState.CONTAINER_RUNNING, 0, ''], [ends, ContainerState.CONTAINER_EXITED, 7, 'Error'],
    ])
    const { status } = await node.cri.runtime.ContainerStatus({ container_id: ends })
    assert.deepEqual(exit.containers_statuses[1], status, 'what ContainerStatus says')
    // What the kubelet compares: a status asked for later is newer.
    const { timestamp } = await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod })
    assert.ok(BigInt(timestamp) > BigInt(exit.created_at))

    await node.cri.runtime.StopContainer({ container_id: runs, timeout: '0' })
    await node.cri.runtime.RemoveContainer({ container_id: ends })
    await node.removePod(pod)
    await Promise.all(followers.map((follower) => follower.until(pod, deleted)))
    const expected = [
      `${pod} created`, `${pod} started`, `${runs} created`, `${runs} started`, `${ends} created`, `${ends} started`, `${ends} stopped`,
      `${runs} stopped`, `${ends} deleted`, `${pod} stopped`, `${runs} deleted`, `${pod} deleted`,
    ]
    for (const follower of followers) {
      assert.deepEqual(follower.lines(pod, runs, ends), expected)
      follower[Symbol.dispose]()
    }
    const last = first.events.at(-1)
    assert.equal(last?.pod_sandbox_status?.state, PodSandboxState.SANDBOX_NOTREADY)
    assert.equal(last.pod_sandbox_status.metadata?.name, 'order')
    assert.deepEqual(last.containers_statuses, [])
  })

  it('tell of a pause process that was killed, and of a container that cannot be started', async () => {
    using follower = await Follower.of(node)
    const config = node.pod('killed')
    const pod = await node.runPod(config)
    const broken = await node.create(pod, config, { ...script('broken', ''), command: ['/no/such/program'] })
    await assert.rejects(node.cri.runtime.StartContainer({ container_id: broken }))
    const failed = await follower.until(broken, stopped)
    assert.deepEqual(failed.containers_statuses.map(({ exit_code, reason }) => [exit_code, reason]), [[127, 'ContainerCannotRun']])
    await node.ctr('tasks', 'kill', '--signal', 'SIGKILL', pod)
    const event = await follower.until(pod, stopped)
    assert.equal(event.pod_sandbox_status?.state, PodSandboxState.SANDBOX_NOTREADY)
    await node.removePod(pod)
    await follower.until(pod, deleted)
    assert.deepEqual(follower.lines(pod), [`${pod} created`, `${pod} started`, `${pod} stopped`, `${pod} deleted`], 'each once')
  })

  it('survive a containerd that is killed: the streams stay, and what ended meanwhile is told', async () => {
    using follower = await Follower.of(node)
    const config = node.pod('reconnect')
    const pod = await node.runPod(config)
    const container = await node.run(pod, config, script('ends', 'sleep 100000'))
    const { info } = await node.cri.runtime.ContainerStatus({ container_id: container, verbose: true })
    const { pid } = JSON.parse(info['info'] ?? '') as { pid: number }
    await node.containerd.end('SIGKILL')
    process.kill(pid, 'SIGKILL')
    await node.containerd.start()
    const exit = await follower.until(container, stopped)
    assert.deepEqual(exit.containers_statuses.map(({ state, exit_code }) => [state, exit_code]), [[ContainerState.CONTAINER_EXITED, 137]])
    await node.ready()
    await node.removePod(pod)
    await follower.until(pod, deleted)
    assert.deepEqual(follower.lines(pod, container).map((line) => line.split(' ')[1]), ['created', 'started', 'created', 'started', 'stopped', 'stopped', 'deleted', 'deleted'])
  })

  it('survive a kill -9 of cri-shim: who comes back hears what ended while nobody watched', async () => {
    using before = await Follower.of(node)
    const config = node.pod('crash')
    const pod = await node.runPod(config)
    const container = await node.run(pod, config, script('ends', 'sleep 100000'))
    await before.until(container, started)
    await node.shim.end('SIGKILL')
    await before.ended
    await node.ctr('tasks', 'kill', '--signal', 'SIGKILL', container)
    await until('the container has ended', async () => ((await node.ctr('tasks', 'ls')).split('\n').some((line) => line.startsWith(container) && line.includes('STOPPED')) ? true : undefined))
    await node.shim.start()
    await node.ready()
    using back = await Follower.of(node)
    const exit = await back.until(container, stopped)
    assert.equal(exit.pod_sandbox_status?.state, PodSandboxState.SANDBOX_READY)
    assert.deepEqual(exit.containers_statuses.map(({ exit_code }) => exit_code), [137])
    assert.deepEqual(back.lines(pod), [], 'the pod goes on: nothing has happened to it')
    await node.removePod(pod)
    await back.until(pod, deleted)
  })

  it('end for a client that does not read, with the reason, and for no other', async () => {
    const slow = await withoutReading(node.shim.socket)
    using quick = await Follower.of(node)
    // A megabyte in each event: the limits are reached before long.
    const config = node.pod('slow', { annotations: { 'tests/large': 'x'.repeat(1 << 20) } })
    const pod = await node.runPod(config)
    const told = async (): Promise<boolean> => /"msg":"a client that follows container events does not read them/.test(await readFile(node.shim.logFile, 'utf8'))
    let count = 0
    for (; !await told(); count++) {
      assert.ok(count < 100, 'the slow client is not ended')
      const id = await node.create(pod, config, { ...script('many', ''), metadata: { name: 'many', attempt: count } })
      await node.cri.runtime.RemoveContainer({ container_id: id })
      await quick.until(id, deleted)
    }
    const { bytes, status, message } = await slow.rest()
    slow.close()
    assert.equal(status, '8')
    assert.match(message, /reads container events too slowly: \d+ events \(\d+ bytes\) wait for it, and the limit is 1000 events or 8388608 bytes; list the pods and containers and subscribe again/)
    assert.ok(bytes > 1 << 20, 'what was on its way arrives first')
    await node.removePod(pod)
    await quick.until(pod, deleted)
    assert.equal(quick.events.length, 4 + 2 * count)
  })
})
