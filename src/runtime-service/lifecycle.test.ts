import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdir, mkdtempDisposable, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { it } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { KeyedMutex } from '../concurrency/keyed-mutex.ts'
import { handleExit, handleOom } from '../container/exit.ts'
import { stopContainer } from '../container/stop-container.ts'
import type { ContainerdEvent } from '../containerd/events.ts'
import { TaskTeardown } from '../containerd/task-teardown.ts'
import type { TaskExit, TasksService, TaskProcess } from '../containerd/tasks.ts'
import { notFound, unavailable } from '../errors/cri-error.ts'
import { Background } from '../observability/background.ts'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import { createMetrics } from '../observability/metrics.ts'
import { stopSandbox } from '../sandbox/stop-sandbox.ts'
import { fromGoJson } from '../state/go-json.ts'
import { encodeSandboxMetadata, sandboxExtension } from '../state/metadata.ts'
import { NameIndex } from '../state/name-index.ts'
import type { Container, Sandbox } from '../state/records.ts'
import { Layout } from '../state/status-file.ts'
import { Store } from '../state/store.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { Lifecycle } from './lifecycle.ts'

const newId = (): string => randomBytes(32).toString('hex')
const until = async (holds: () => boolean): Promise<void> => {
  for (const end = performance.now() + 20_000; !holds(); await turn()) assert.ok(performance.now() < end, 'waited in vain')
}

/** A containerd that a test turns as it likes; what is below it is not this folder's business. */
async function fixture({ wordOfEndMs = 600_000 } = {}) {
  const stack = new AsyncDisposableStack()
  const dir = stack.use(await mkdtempDisposable(join(tmpdir(), 'cri-shim-lifecycle-')))
  const layout = new Layout(join(dir.path, 'root'), join(dir.path, 'state'))
  const log = createLogger('fatal')
  const stop = new AbortController()
  const ctx = backgroundCtx(log, 'test', stop.signal)
  const tasks = new Map<string, TaskProcess>()
  const records = new Set<string>()
  const extensions = new Map<string, object>()
  const failures = { delete: 0, kill: 0, removeTree: 0, closeLog: 0 }
  const killed: string[] = []
  const fail = (kind: keyof typeof failures): void => {
    if (failures[kind] === 0) return
    failures[kind] -= 1
    throw unavailable(`no ${kind} now`)
  }
  let streamEnded = Promise.withResolvers<void>()
  let listed = async (): Promise<void> => undefined
  const events: ContainerdEvent[] = []
  let wake = Promise.withResolvers<void>()
  const containerd = {
    events: {
      async *subscribe() {
        yield { name: 'synced' as const }
        for (;;) {
          for (let event = events.shift(); event !== undefined; event = events.shift()) yield event
          wake = Promise.withResolvers()
          await Promise.race([wake.promise, streamEnded.promise, new Promise((resolve) => stop.signal.addEventListener('abort', resolve, { once: true }))])
          stop.signal.throwIfAborted()
          await Promise.race([streamEnded.promise, Promise.resolve()])
        }
      },
    },
    introspection: { uuid: async () => 'one' },
    containers: {
      list: async () => {
        const found = [...records].map((id) => ({ id, labels: { 'io.cri-containerd.kind': containers.get(id) === undefined ? 'sandbox' : 'container' }, extensions: extensions.get(id) ?? {}, created_at: null, spec: null }))
        await listed()
        return found
      },
      get: async (_: unknown, id: string) => (records.has(id) ? { id, snapshotter: 'overlayfs' } : undefined),
    },
    tasks: {
      list: async () => [...tasks.values()],
      get: async (_: unknown, id: string) => tasks.get(id),
      kill: async (_: unknown, id: string) => {
        fail('kill')
        killed.push(id)
        if (tasks.get(id)?.state !== 'running') throw notFound('process already finished')
      },
      delete: async (_: unknown, id: string): Promise<TaskExit | undefined> => {
        fail('delete')
        const task = tasks.get(id)
        tasks.delete(id)
        return task === undefined ? undefined : { exitStatus: task.exitStatus, exitedAt: task.exitedAt }
      },
    },
  }
  const taskMutex = new KeyedMutex()
  const real = new TaskTeardown(containerd.tasks as unknown as TasksService, taskMutex)
  const teardown = {
    exclusive: real.exclusive.bind(real),
    signal: real.signal.bind(real),
    destroy: (_: unknown, id: string) => taskMutex.run(id, () => containerd.tasks.delete(undefined, id)),
  }
  const host = {
    removeTree: async (path: string) => {
      fail('removeTree')
      await rm(path, { recursive: true, force: true })
    },
    oomKillCount: async () => 0,
    unmount: async () => undefined,
    deleteNetns: async () => undefined,
  }
  const io = { started: () => undefined, drained: async () => 'eof', closeLog: async () => fail('closeLog') }
  const sandboxes = new Store<Sandbox>('pod sandbox')
  const containers = new Store<Container>('container')
  const network = { del: async (): Promise<void> => undefined }
  const deps = {
    sandbox: { containerd, teardown, host, layout, sandboxes, networks: () => network },
    container: { containerd, teardown, host, layout, containers, io, stdin: { release: () => undefined } },
    sandboxes, containers, sandboxNames: new NameIndex('pod sandbox'), containerNames: new NameIndex('container'), mutex: new KeyedMutex(),
  } as unknown as RuntimeServiceDeps
  const background = new Background(log, createMetrics())
  const lifecycle = new Lifecycle({
    deps, containerd: containerd as never, background, ctx, reloadImages: async () => undefined, imageChanged: async () => undefined, netnsExists: async () => true,
    attachedToNetworks: async () => new Set(), removeLeftovers: async () => undefined, wordOfEndMs,
  })
  stack.defer(async () => {
    stop.abort(new Error('over'))
    await lifecycle.close()
    await background.drain()
  })
  return {
    ctx, deps, layout, tasks, records, extensions, failures, killed, lifecycle, background, network, sandboxes, containers,
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
    onList: (work: () => Promise<void>) => { listed = work },
    async lose() {
      const ended = streamEnded
      streamEnded = Promise.withResolvers()
      ended.reject(unavailable('lost'))
      ended.promise.catch(() => undefined)
      await until(() => lifecycle.gate !== undefined)
      await until(() => lifecycle.gate === undefined)
    },
    exit(id: string, exitStatus: number, pid = 7) {
      events.push({ name: 'containerd.events.TaskExit', topic: '/tasks/exit', message: { container_id: id, id, pid, exit_status: exitStatus, exited_at: { seconds: '100', nanos: 5 } } })
      wake.resolve()
    },
    deleted(id: string, exitStatus: number, execId = '') {
      events.push({ name: 'containerd.events.TaskDelete', topic: '/tasks/delete', message: { container_id: id, id: execId, pid: 7, exit_status: exitStatus, exited_at: { seconds: '100', nanos: 5 } } })
      wake.resolve()
    },
    runs(id: string, state: TaskProcess['state'] = 'running', exitStatus = 0) {
      records.add(id)
      tasks.set(id, { containerId: id, pid: 7, state, exitStatus, exitedAt: state === 'stopped' ? 99n : 0n })
    },
    sandbox(id: string): Sandbox {
      return { id, metadata: { id, name: `pod-${id}`, netnsPath: '/n', runtimeHandler: '', ips: [], config: { port_mappings: [], annotations: {}, dns_config: null, linux: null, metadata: null } } as never, state: 'ready', createdAt: 1n, pid: 7, networkDown: false }
    },
    container(id: string, state: Container['status']['state'] = 'running'): Container {
      return {
        id, metadata: { id, name: `c-${id}`, sandboxId: 's', stopSignal: '' } as never, starting: false, removing: false, oomKilled: false, cgroups: { v1: {}, v2: '/x' }, user: undefined, resources: undefined,
        status: { state, pid: 7, createdAt: 1n, startedAt: 2n, finishedAt: 0n, exitCode: 0, reason: '', message: '' },
      }
    },
  }
}

it('notices a pause process that dies before RunPodSandbox has put its sandbox into the store', async () => {
  await using f = await fixture()
  await f.lifecycle.start()
  const id = newId()
  f.deps.sandboxNames.reserve('pod', id)
  const started = Promise.withResolvers<void>()
  const making = f.deps.mutex.run(id, async () => {
    f.runs(id, 'stopped', 137)
    await started.promise
    f.sandboxes.put(f.sandbox(id))
  })
  f.exit(id, 137)
  await until(() => f.background.size > 0)
  started.resolve()
  await making
  await until(() => f.sandboxes.get(id)?.state === 'notready' && f.background.size === 0)
  assert.equal(f.tasks.has(id), false)
})

it('records an exit although containerd refuses at first, its directory cannot be removed and its log cannot be closed', async () => {
  await using f = await fixture()
  await f.lifecycle.start()
  const id = newId()
  f.containers.put(f.container(id))
  f.runs(id, 'stopped', 3)
  Object.assign(f.failures, { delete: 2, removeTree: 1, closeLog: 1 })
  f.exit(id, 3)
  await until(() => f.containers.get(id)?.status.state === 'exited')
  const { status } = f.containers.get(id) ?? assert.fail()
  assert.deepEqual([status.exitCode, status.reason, status.finishedAt], [3, 'Error', 99n])
  assert.equal((JSON.parse(await readFile(join(f.layout.containerDir(id), 'status.json'), 'utf8')) as { exitCode: number }).exitCode, 3)
})

it('keeps the exit code that an event told when the task is gone by the time containerd is back', async () => {
  await using f = await fixture()
  await f.lifecycle.start()
  const id = newId()
  f.containers.put(f.container(id))
  f.runs(id, 'stopped', 42)
  f.failures.delete = 2
  f.exit(id, 42)
  await until(() => f.failures.delete < 2)
  f.tasks.delete(id)
  await f.lose()
  await until(() => f.containers.get(id)?.status.state === 'exited')
  assert.deepEqual(f.containers.get(id)?.status.exitCode, 42)
})

it('leaves alone what a call that was under way made after the lists were taken', async () => {
  await using f = await fixture()
  await f.lifecycle.start()
  const [created, started, pod] = [newId(), newId(), newId()]
  f.containers.put(f.container(started, 'created'))
  f.records.add(started)
  f.onList(async () => {
    f.onList(async () => undefined)
    // tasks.list answers before this, containers.list has its answer already.
    await turn()
    f.records.add(created)
    f.containers.put(f.container(created, 'created'))
    f.runs(started)
    f.containers.update(started, (now) => ({ ...now, status: { ...now.status, state: 'running' } }))
    f.runs(pod)
    f.sandboxes.put(f.sandbox(pod))
  })
  await f.lose()
  assert.equal(f.containers.get(created)?.status.state, 'created')
  assert.equal(f.containers.get(started)?.status.state, 'running')
  assert.equal(f.sandboxes.get(pod)?.state, 'ready')
})

it('says that a container is gone, or its end unknown, when it is so', async () => {
  await using f = await fixture()
  await f.lifecycle.start()
  const [gone, lost] = [newId(), newId()]
  f.containers.put(f.container(gone))
  f.containers.put(f.container(lost))
  f.records.add(lost)
  await f.lose()
  assert.equal(f.containers.get(gone), undefined)
  assert.deepEqual([f.containers.get(lost)?.status.reason, f.containers.get(lost)?.status.exitCode], ['Unknown', 255])
})

it('waits for word of an end whose task containerd deleted as it came back, as long as the shim of the pod is there to give it', async () => {
  await using f = await fixture()
  await f.lifecycle.start()
  const [deleted, exited, ran, goesOn] = [newId(), newId(), newId(), newId()]
  f.tasks.set('s', { containerId: 's', pid: 7, state: 'running', exitStatus: 0, exitedAt: 0n })
  for (const id of [deleted, exited, ran, goesOn]) f.containers.put(f.container(id))
  for (const id of [deleted, exited]) f.records.add(id)
  for (const id of [ran, goesOn]) f.runs(id)
  await f.lose()
  assert.deepEqual([deleted, exited].map((id) => f.containers.get(id)?.status.state), ['running', 'running'])
  f.deleted(deleted, 9, 'exec')
  f.deleted(deleted, 3)
  f.exit(exited, 0)
  // What cri-shim itself deleted was told before, and one that goes on had only an exec deleted.
  f.deleted(goesOn, 8)
  f.tasks.set(ran, { containerId: ran, pid: 7, state: 'stopped', exitStatus: 5, exitedAt: 99n })
  f.exit(ran, 5)
  await until(() => [deleted, exited, ran].every((id) => f.containers.get(id)?.status.state === 'exited'))
  assert.deepEqual([deleted, exited, ran].map((id) => f.containers.get(id)?.status).map((status) => [status?.exitCode, status?.reason, status?.finishedAt]), [
    [3, 'Error', 100_000_000_005n], [0, 'Completed', 100_000_000_005n], [5, 'Error', 99n],
  ])
  await until(() => f.background.size === 0)
  assert.equal(f.containers.get(goesOn)?.status.state, 'running')
})

it('says that the end of a container is unknown when no word of it comes', async () => {
  await using f = await fixture({ wordOfEndMs: 1 })
  await f.lifecycle.start()
  const id = newId()
  f.tasks.set('s', { containerId: 's', pid: 7, state: 'running', exitStatus: 0, exitedAt: 0n })
  f.containers.put(f.container(id))
  f.records.add(id)
  await f.lose()
  await until(() => f.containers.get(id)?.status.state === 'exited')
  assert.deepEqual([f.containers.get(id)?.status.reason, f.containers.get(id)?.status.exitCode], ['Unknown', 255])
})

it('does not take the end of an earlier task, whose start was cut off, for that of the one that runs now', async () => {
  await using f = await fixture()
  await f.lifecycle.start()
  const [id, next] = [newId(), newId()]
  for (const each of [id, next]) f.containers.put(f.container(each))
  f.runs(id)
  f.runs(next, 'stopped', 1)
  f.exit(id, 137, 6)
  f.exit(next, 1)
  await until(() => f.containers.get(next)?.status.state === 'exited' && f.background.size === 0)
  assert.deepEqual([f.containers.get(id)?.status.state, f.tasks.has(id)], ['running', true])
})

it('StopContainer notices an end whose event was lost', async () => {
  await using f = await fixture()
  const [stopped, forgotten] = [newId(), newId()]
  f.containers.put(f.container(stopped))
  f.runs(stopped, 'stopped', 9)
  await stopContainer(f.deps.container, f.ctx, f.container(stopped), 30_000)
  assert.deepEqual([f.containers.get(stopped)?.status.exitCode, f.containers.get(stopped)?.status.reason], [9, 'Error'])
  f.containers.put(f.container(forgotten))
  await stopContainer(f.deps.container, f.ctx, f.container(forgotten), 30_000)
  assert.deepEqual([f.containers.get(forgotten)?.status.exitCode, f.containers.get(forgotten)?.status.reason], [255, 'Unknown'])
  assert.deepEqual(f.killed, [stopped, forgotten])
})

it('keeps the reason OOMKilled whichever of exit and out-of-memory event is handled first', async () => {
  await using f = await fixture()
  for (const order of ['oom first', 'exit first', 'together']) {
    const id = newId()
    f.containers.put(f.container(id))
    f.runs(id, 'stopped', 137)
    const exit = async (): Promise<void> => handleExit(f.deps.container, f.ctx, id, { exitStatus: 137, exitedAt: 99n })
    const oom = async (): Promise<void> => handleOom(f.deps.container, id)
    if (order === 'oom first') await oom().then(exit)
    else if (order === 'exit first') await exit().then(oom)
    else await Promise.all([exit(), oom()])
    assert.deepEqual([order, f.containers.get(id)?.status.state, f.containers.get(id)?.status.reason], [order, 'exited', 'OOMKilled'])
  }
})

it('a stop makes the sandbox not ready first, and ends the pause process also when the network cannot be taken down', async () => {
  await using f = await fixture()
  const id = newId()
  f.sandboxes.put(f.sandbox(id))
  f.runs(id)
  let seen: string | undefined
  f.network.del = async () => {
    seen = f.sandboxes.get(id)?.state
    throw unavailable('no plugin')
  }
  await assert.rejects(stopSandbox(f.deps.sandbox, f.ctx, f.sandbox(id)), /no plugin/)
  assert.equal(seen, 'notready')
  assert.equal(f.tasks.has(id), false)
  assert.deepEqual([f.sandboxes.get(id)?.pid, f.sandboxes.get(id)?.networkDown], [0, false])
})

it('lists two pods of one name that another client made, and becomes ready', async () => {
  await using f = await fixture()
  const ids = [newId(), newId()]
  for (const id of ids) {
    f.records.add(id)
    const metadata = { id, name: 'one_name', config: fromGoJson('runtime.v1.PodSandboxConfig', {}), netnsPath: '', ips: [], runtimeHandler: '', cniResult: undefined, processLabel: '' }
    f.extensions.set(id, { [sandboxExtension]: encodeSandboxMetadata(metadata) })
  }
  await f.lifecycle.start()
  assert.equal(f.lifecycle.gate, undefined)
  assert.deepEqual([...f.sandboxes.values()].map(({ id }) => id), ids)
})

it('becomes ready although the note of a sandbox that was cut off half-way cannot be read', async () => {
  await using f = await fixture()
  const dir = f.layout.sandboxDir(newId())
  await mkdir(dir, { recursive: true })
  await writeFile(join(dir, 'making.json'), JSON.stringify({ name: 'x', netnsPath: '', runtimeHandler: '', config: 7 }))
  await f.lifecycle.start()
  assert.equal(f.lifecycle.gate, undefined)
})
