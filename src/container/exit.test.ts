import assert from 'node:assert/strict'
import { mkdtemp, mkdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { it } from 'node:test'
import { KeyedMutex } from '../concurrency/keyed-mutex.ts'
import { TaskTeardown } from '../containerd/task-teardown.ts'
import type { TasksService } from '../containerd/tasks.ts'
import { internal } from '../errors/cri-error.ts'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import { fromGoJson } from '../state/go-json.ts'
import type { Container } from '../state/records.ts'
import { Layout } from '../state/status-file.ts'
import { Store } from '../state/store.ts'
import type { ContainerDeps } from './deps.ts'
import { handleExit, handleOom } from './exit.ts'
import { saveStatus, statusPath } from './status.ts'
import { stopContainer } from './stop-container.ts'

const id = 'c'.repeat(64)
const ctx = backgroundCtx(createLogger('fatal'), 'test')

/** A running container; `whileEnding` is called when its exit is about to be recorded. */
async function running(dir: string, whileEnding: () => void, more: Partial<TasksService> = {}): Promise<ContainerDeps> {
  const tasks = { delete: async () => ({ exitStatus: 137, exitedAt: 3n }), ...more } as unknown as TasksService
  const containers = new Store<Container>('container')
  const layout = new Layout(join(dir, 'root'), join(dir, 'state'))
  const container: Container = {
    id, starting: false, removing: false, oomKilled: false, cgroups: undefined, user: undefined, resources: undefined,
    metadata: { id, name: 'c', sandboxId: '', config: fromGoJson('runtime.v1.ContainerConfig', {}), imageRef: '', logPath: '', stopSignal: '', processLabel: '' },
    status: { state: 'running', pid: 7, createdAt: 1n, startedAt: 2n, finishedAt: 0n, exitCode: 0, reason: '', message: '' },
  }
  await mkdir(layout.containerDir(id), { recursive: true })
  containers.put(container)
  await saveStatus(layout, containers, container)
  return {
    containers, layout, containerd: { tasks }, teardown: new TaskTeardown(tasks, new KeyedMutex()),
    io: { started: () => undefined, drained: async () => 'eof', closeLog: async () => undefined }, stdin: { release: () => undefined },
    host: { removeTree: async () => whileEnding() },
  } as unknown as ContainerDeps
}

for (const [when, delay] of [['before', (work: () => void) => work()], ['in a turn between', setImmediate], ['as a microtask between', queueMicrotask]] as const) {
  it(`records the exit and the reason when the out-of-memory event comes ${when}`, async () => {
    const dir = await mkdtemp(join(tmpdir(), 'cri-shim-exit-'))
    try {
      const noted: Promise<void>[] = []
      const deps = await running(dir, () => delay(() => noted.push(handleOom(deps, id))))
      await handleExit(deps, ctx, id, { exitStatus: 137, exitedAt: 3n })
      await Promise.all(noted)
      assert.equal(noted.length, 1)
      const status = deps.containers.get(id)?.status
      assert.equal(status?.state, 'exited')
      assert.equal(status.reason, 'OOMKilled')
      assert.equal(status.exitCode, 137)
      const stored = JSON.parse(await readFile(statusPath(deps.layout, id), 'utf8')) as { state: string; reason: string }
      assert.equal(stored.state, 'exited')
      assert.equal(stored.reason, 'OOMKilled')
    } finally {
      await rm(dir, { recursive: true })
    }
  })
}

it('corrects the reason when the event comes after the exit, and leaves one that says something else', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'cri-shim-exit-'))
  try {
    const deps = await running(dir, () => undefined)
    await handleExit(deps, ctx, id, { exitStatus: 137, exitedAt: 3n })
    assert.equal(deps.containers.get(id)?.status.reason, 'Error')
    await handleOom(deps, id)
    assert.equal(deps.containers.get(id)?.status.reason, 'OOMKilled')
    assert.equal(deps.containers.get(id)?.status.finishedAt, 3n)
  } finally {
    await rm(dir, { recursive: true })
  }
})

it('a stop whose signal meets the end of the shim is done when the exit under way is recorded, with its exit code', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'cri-shim-exit-'))
  try {
    const deleting = Promise.withResolvers<void>()
    const deleted = Promise.withResolvers<void>()
    let gone = false
    const deps = await running(dir, () => undefined, {
      async delete() {
        if (gone) return undefined
        deleting.resolve()
        await deleted.promise
        gone = true
        return { exitStatus: 137, exitedAt: 3n }
      },
      async kill() {
        setImmediate(() => deleted.resolve())
        throw internal('containerd Tasks.Kill: ttrpc: closed: unknown', { reason: 'ShimGone' })
      },
      get: async () => (gone ? undefined : { containerId: id, pid: 7, state: 'stopped', exitStatus: 137, exitedAt: 3n }),
    })
    const exit = handleExit(deps, ctx, id, { exitStatus: 137, exitedAt: 3n })
    await deleting.promise
    const container = deps.containers.get(id)
    assert.ok(container !== undefined)
    await stopContainer(deps, ctx, container, 0)
    await exit
    assert.equal(deps.containers.get(id)?.status.state, 'exited')
    assert.equal(deps.containers.get(id)?.status.exitCode, 137)
  } finally {
    await rm(dir, { recursive: true })
  }
})
