import assert from 'node:assert/strict'
import { it } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { type ContainerEventResponse, ContainerEventType, ContainerState, PodSandboxState } from '../generated/cri.ts'
import { criProtos, messageCodec } from '../generated/protos.ts'
import { createLogger } from '../observability/logger.ts'
import { createMetrics } from '../observability/metrics.ts'
import { fromGoJson } from '../state/go-json.ts'
import { ImageStore } from '../state/image-store.ts'
import type { Container, ContainerState as State, Sandbox } from '../state/records.ts'
import { Store } from '../state/store.ts'
import { ContainerEvents, type ContainerEventsOptions, eventsOfContainer, eventsOfSandbox } from './container-events.ts'
import type { EventSubscription } from './event-subscription.ts'

const { CONTAINER_CREATED_EVENT: created, CONTAINER_STARTED_EVENT: started, CONTAINER_STOPPED_EVENT: stopped, CONTAINER_DELETED_EVENT: deleted } = ContainerEventType

function sandbox(id: string, more: Partial<Sandbox> = {}): Sandbox {
  const config = fromGoJson('runtime.v1.PodSandboxConfig', { metadata: { name: id, uid: `uid-${id}`, namespace: 'tests' }, labels: { app: id } })
  const metadata = { id, name: id, config, netnsPath: '', ips: ['10.1.2.3'], runtimeHandler: '', cniResult: undefined, processLabel: '' }
  return { id, metadata, state: 'ready', createdAt: 5n, pid: 7, networkDown: false, ...more }
}

function container(id: string, sandboxId: string, state: State, more: Partial<Container['status']> = {}): Container {
  const config = fromGoJson('runtime.v1.ContainerConfig', { metadata: { name: id }, image: { image: 'busybox' } })
  return {
    id, metadata: { id, name: id, sandboxId, config, imageRef: 'sha256:1', logPath: '', stopSignal: '', processLabel: '' },
    status: { state, pid: 0, createdAt: 1n, startedAt: 2n, finishedAt: 3n, exitCode: 0, reason: '', message: '', ...more },
    starting: false, removing: false, oomKilled: false, cgroups: undefined, resources: undefined, user: undefined,
  }
}

function fixture(more: Partial<ContainerEventsOptions> = {}) {
  const sandboxes = new Store<Sandbox>('pod sandbox')
  const containers = new Store<Container>('container')
  const metrics = createMetrics()
  const events = new ContainerEvents({ deps: { sandboxes, containers, images: new ImageStore() }, log: createLogger('fatal'), metrics, ...more })
  const decode = (bytes: Buffer): ContainerEventResponse => messageCodec(criProtos(), 'runtime.v1.ContainerEventResponse').deserialize(bytes) as ContainerEventResponse
  /** What a subscriber has been sent by now. */
  const received = async (subscription: EventSubscription): Promise<ContainerEventResponse[]> => {
    const got: ContainerEventResponse[] = []
    const stop = new AbortController()
    const ended = subscription.forward(async (event) => void got.push(decode(event)), stop.signal).catch((error: unknown) => error)
    while (subscription.waiting > 0) await turn()
    await turn()
    stop.abort('enough')
    assert.equal(await ended, 'enough')
    return got
  }
  return { sandboxes, containers, metrics, events, received, [Symbol.dispose]: () => events.close() }
}

const short = (events: readonly ContainerEventResponse[]): (string | number)[][] => events.map(({ container_id, container_event_type }) => [container_id, container_event_type])

it('tells what changes stand for, also at the first load', () => {
  const [ready, stopping, ended] = [sandbox('p'), sandbox('p', { state: 'notready' }), sandbox('p', { state: 'notready', pid: 0 })]
  assert.deepEqual(eventsOfSandbox(undefined, ready, false), [created, started])
  assert.deepEqual(eventsOfSandbox(undefined, ready, true), [])
  assert.deepEqual(eventsOfSandbox(ready, stopping, false), [], 'its pause process still runs')
  assert.deepEqual(eventsOfSandbox(stopping, ended, false), [stopped])
  assert.deepEqual(eventsOfSandbox(ended, { ...ended, networkDown: true }, false), [])
  assert.deepEqual(eventsOfSandbox(undefined, ended, true), [stopped])
  assert.deepEqual(eventsOfSandbox(undefined, ended, false), [created, stopped])
  assert.deepEqual(eventsOfSandbox(ended, undefined, false), [deleted])
  const in_ = (state: State, more: Partial<Container['status']> = {}): Container => container('c', 'p', state, more)
  assert.deepEqual(eventsOfContainer(undefined, in_('created'), false), [created])
  assert.deepEqual(eventsOfContainer(undefined, in_('running'), false), [created, started], 'another client made it')
  assert.deepEqual(eventsOfContainer(undefined, in_('running'), true), [])
  assert.deepEqual(eventsOfContainer(in_('created'), in_('running'), false), [started])
  assert.deepEqual(eventsOfContainer(in_('running'), { ...in_('running'), removing: true }, false), [])
  assert.deepEqual(eventsOfContainer(in_('running'), in_('exited'), false), [stopped])
  assert.deepEqual(eventsOfContainer(in_('created'), in_('exited'), false), [stopped], 'it could not be started')
  assert.deepEqual(eventsOfContainer(in_('exited', { reason: 'Error' }), in_('exited', { reason: 'OOMKilled' }), false), [stopped])
  assert.deepEqual(eventsOfContainer(in_('exited'), { ...in_('exited'), removing: true }, false), [])
  assert.deepEqual(eventsOfContainer(undefined, in_('exited'), true), [stopped])
  assert.deepEqual(eventsOfContainer(in_('exited'), undefined, false), [deleted])
})

it('sends every event with the pod and all of its containers as they are at that moment', async () => {
  using f = fixture()
  f.events.loaded()
  const subscription = f.events.subscribe()
  f.sandboxes.put(sandbox('p'))
  f.containers.put(container('a', 'p', 'created'))
  f.containers.put(container('nobodys', 'q', 'created'))
  f.containers.put(container('b', 'p', 'created'))
  f.containers.put(container('a', 'p', 'running'))
  f.containers.put(container('a', 'p', 'exited', { exitCode: 3, reason: 'Error' }))
  f.containers.delete('a')
  f.sandboxes.update('p', (now) => ({ ...now, state: 'notready' }))
  f.sandboxes.update('p', (now) => ({ ...now, pid: 0, networkDown: true }))
  f.containers.delete('b')
  f.sandboxes.delete('p')
  const got = await f.received(subscription)
  assert.deepEqual(short(got), [
    ['p', created], ['p', started], ['a', created], ['b', created], ['a', started], ['a', stopped], ['a', deleted], ['p', stopped], ['b', deleted], ['p', deleted],
  ])
  const statuses = got.map((event) => [event.pod_sandbox_status?.state, event.containers_statuses.map(({ id, state }) => `${id} ${state}`).join(', ')])
  const { CONTAINER_CREATED: isCreated, CONTAINER_RUNNING: isRunning, CONTAINER_EXITED: isExited } = ContainerState
  const { SANDBOX_READY: ready, SANDBOX_NOTREADY: notready } = PodSandboxState
  assert.deepEqual(statuses, [
    [ready, ''], [ready, ''], [ready, `a ${isCreated}`], [ready, `a ${isCreated}, b ${isCreated}`], [ready, `a ${isRunning}, b ${isCreated}`],
    [ready, `a ${isExited}, b ${isCreated}`], [ready, `b ${isCreated}`], [notready, `b ${isCreated}`], [notready, ''], [notready, ''],
  ])
  assert.deepEqual(got[0]?.pod_sandbox_status?.metadata, { name: 'p', uid: 'uid-p', namespace: 'tests', attempt: 0 })
  assert.equal(got[0]?.pod_sandbox_status?.network?.ip, '10.1.2.3')
  assert.equal(got.at(-1)?.pod_sandbox_status?.network?.ip, '')
  assert.equal(got[5]?.containers_statuses[0]?.exit_code, 3)
  const times = got.map(({ created_at }) => BigInt(created_at))
  assert.ok(times.every((time, index) => index === 0 || time > (times[index - 1] ?? 0n)), 'their times order them')
  subscription.close()
})

it('encodes an event once for all subscribers', async () => {
  using f = fixture()
  f.events.loaded()
  const subscriptions = Array.from({ length: 20 }, () => f.events.subscribe())
  f.sandboxes.put(sandbox('p'))
  const bytes: Buffer[] = []
  for (const subscription of subscriptions) {
    const stop = new AbortController()
    await assert.rejects(subscription.forward(async (event) => {
      bytes.push(event)
      if (bytes.length % 2 === 0) stop.abort(new Error('enough'))
    }, stop.signal), /enough/)
  }
  assert.equal(bytes.length, 40)
  assert.equal(new Set(bytes).size, 2)
  for (const subscription of subscriptions) subscription.close()
})

it('keeps what is found ended at the first load for the subscribers, with the whole pod', async () => {
  using f = fixture()
  const early = f.events.subscribe()
  f.containers.put(container('gone', 'p', 'exited'))
  f.containers.put(container('ends', 'p', 'running'))
  f.sandboxes.put(sandbox('p'))
  f.containers.put(container('ends', 'p', 'exited', { exitCode: 9 }))
  assert.equal(early.waiting, 0)
  f.events.loaded()
  const got = await f.received(early)
  assert.deepEqual(short(got), [['gone', stopped], ['ends', stopped]])
  assert.deepEqual(got.map((event) => event.pod_sandbox_status?.id), ['p', 'p'])
  early.close()
})

it('ends the stream of a subscriber that does not read, and of no other', async () => {
  using f = fixture({ limits: { events: 5, bytes: 1 << 20 } })
  f.sandboxes.put(sandbox('p'))
  f.events.loaded()
  const [slow, quick] = [f.events.subscribe(), f.events.subscribe()]
  let taken = 0
  // The first event is on its way to a client that takes nothing any more.
  const ended = assert.rejects(slow.forward(async () => { taken++; await new Promise(() => undefined) }, new AbortController().signal), (error: Error & { code: number; reason: string }) => {
    assert.equal(error.code, 8)
    assert.equal(error.reason, 'SlowSubscriber')
    assert.match(error.message, /6 events \(\d+ bytes\) wait for it, and the limit is 5 events or 1048576 bytes; list the pods and containers and subscribe again/)
    return true
  })
  const seen: string[] = []
  const stop = new AbortController()
  const reading = quick.forward(async (event) => void seen.push(event.toString('latin1').slice(2, 5)), stop.signal).catch(() => undefined)
  for (let index = 0; index < 10; index++) {
    f.containers.put(container(`c-${index}`, 'p', 'created'))
    await turn()
  }
  await ended
  assert.equal(taken, 1)
  assert.equal(slow.waiting, 0, 'nothing is kept for it')
  assert.deepEqual(seen, Array.from({ length: 10 }, (_, index) => `c-${index}`))
  stop.abort()
  await reading
  slow.close()
  quick.close()
  assert.match(await f.metrics.registry.metrics(), /cri_shim_container_events_discarded_total\{why="slow subscriber"\} 6\n/)
})

it('counts bytes too', async () => {
  using f = fixture({ limits: { events: 1000, bytes: 2000 } })
  f.sandboxes.put(sandbox('p'))
  f.events.loaded()
  const slow = f.events.subscribe()
  for (let index = 0; index < 20; index++) f.containers.put(container(`c-${index}`, 'p', 'created'))
  assert.equal(slow.waiting, 0)
  await assert.rejects(slow.forward(async () => undefined, new AbortController().signal), /\d+ events \(2\d\d\d bytes\) wait for it/)
})

it('keeps the newest events for who comes back, for a while', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] })
  using f = fixture({ limits: { events: 3, bytes: 1 << 20 }, keepMs: 1000 })
  f.sandboxes.put(sandbox('p'))
  f.events.loaded()
  const first = f.events.subscribe()
  first.close()
  for (let index = 0; index < 5; index++) f.containers.put(container(`c-${index}`, 'p', 'created'))
  const back = f.events.subscribe()
  assert.deepEqual(short(await f.received(back)), [['c-2', created], ['c-3', created], ['c-4', created]])
  back.close()
  t.mock.timers.tick(1000)
  f.containers.delete('c-4')
  const late = f.events.subscribe()
  assert.equal(late.waiting, 0)
  late.close()
  assert.match(await f.metrics.registry.metrics(), /cri_shim_container_events_discarded_total\{why="nobody came"\} 2\n/)
})

it('tells who comes back of the pods as they are by then, and of those that are gone their removal alone', async () => {
  using f = fixture()
  f.events.loaded()
  f.sandboxes.put(sandbox('p'))
  f.containers.put(container('a', 'p', 'created'))
  f.containers.put(container('a', 'p', 'running'))
  f.containers.put(container('a', 'p', 'exited', { exitCode: 3 }))
  f.containers.put(container('b', 'p', 'running'))
  f.containers.delete('a')
  f.sandboxes.put(sandbox('gone'))
  f.containers.put(container('c', 'gone', 'running'))
  f.containers.delete('c')
  f.sandboxes.delete('gone')
  const subscription = f.events.subscribe()
  f.containers.put(container('b', 'p', 'exited'))
  const got = await f.received(subscription)
  assert.deepEqual(short(got), [['p', created], ['p', started], ['a', created], ['a', started], ['a', stopped], ['b', created], ['b', started], ['a', deleted], ['gone', deleted], ['b', stopped]])
  const statuses = got.map((event) => `${event.pod_sandbox_status?.id}: ${event.containers_statuses.map(({ id, state }) => `${id} ${state}`).join(', ')}`)
  assert.deepEqual(statuses, [...Array.from({ length: 8 }, () => `p: b ${ContainerState.CONTAINER_RUNNING}`), 'gone: ', `p: b ${ContainerState.CONTAINER_EXITED}`])
  const times = got.map(({ created_at }) => BigInt(created_at))
  assert.ok(times.every((time, index) => index === 0 || time > (times[index - 1] ?? 0n)), 'it is told when it happened')
  subscription.close()
})

it('keeps no more for the next subscriber than it could have waiting', async () => {
  using f = fixture({ limits: { events: 100, bytes: 2000 } })
  f.sandboxes.put(sandbox('p'))
  f.events.loaded()
  for (let index = 0; index < 20; index++) f.containers.put(container(`c-${index}`, 'p', 'created'))
  for (let index = 0; index < 19; index++) f.containers.delete(`c-${index}`)
  const subscription = f.events.subscribe()
  const got = await f.received(subscription)
  assert.ok(got.length > 3 && got.length < 39, String(got.length))
  assert.deepEqual(short(got).at(-1), ['c-18', deleted])
  subscription.close()
})

it('bounds the subscribers', () => {
  using f = fixture({ maxSubscribers: 2 })
  const [one, two] = [f.events.subscribe(), f.events.subscribe()]
  assert.throws(() => f.events.subscribe(), { code: 8, message: /2 clients follow container events already/ })
  one.close()
  f.events.subscribe().close()
  two.close()
})
