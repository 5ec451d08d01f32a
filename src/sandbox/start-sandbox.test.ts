import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { it } from 'node:test'
import { KeyedMutex } from '../concurrency/keyed-mutex.ts'
import { Operation } from '../concurrency/operation.ts'
import type { Containerd } from '../containerd/containerd.ts'
import { TaskTeardown } from '../containerd/task-teardown.ts'
import { fromGoJson } from '../state/go-json.ts'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import type { Image, Sandbox } from '../state/records.ts'
import { Layout } from '../state/status-file.ts'
import { Store } from '../state/store.ts'
import { startSandbox } from './start-sandbox.ts'

it('gives the runtime a root file system only when the pod\'s files and /dev/shm are there', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'cri-shim-sandbox-'))
  const done: string[] = []
  const note = <T>(what: string, value: T): T => {
    done.push(what)
    return value
  }
  const prepared = Promise.withResolvers<void>()
  const containerd = {
    containers: { create: async () => note('record', { created_at: null }), setExtension: async () => undefined },
    snapshots: {
      prepare: async () => {
        prepared.resolve()
        return []
      },
    },
    tasks: { create: async () => note('create task', 42), start: async () => note('start task', 42) },
  } as unknown as Containerd
  const host = {
    createNetns: async () => undefined, deleteNetns: async () => undefined, createUserNamespace: async () => undefined, deleteUserNamespace: async () => undefined, withIdmapped: async () => { throw new TypeError('the pod has no user namespace') }, unmount: async () => undefined, removeTree: async () => undefined,
    // Slower than everything that it runs beside.
    mountShm: async () => {
      await prepared.promise
      for (let turn = 0; turn < 100; turn++) await nextTurn()
      note('mounted', undefined)
    },
  }
  try {
    const sandbox = await startSandbox({
      containerd, host, teardown: new TaskTeardown(containerd.tasks, new KeyedMutex()), layout: new Layout(join(dir, 'root'), join(dir, 'state')), sandboxes: new Store<Sandbox>('pod sandbox'),
      netnsDir: dir, runtime: (handler) => ({ handler, type: 'runc', path: '', options: undefined, snapshotter: 'overlayfs', optionsFor: () => undefined }),
      networks: () => ({ add: async () => ({ ips: ['10.0.0.1'], asGoCniResult: {} }) as never, del: async () => undefined }), sandboxSpec: async () => ({}), labels: () => ({}), selinux: { labels: () => undefined, release: () => undefined, relabel: async () => undefined },
    }, backgroundCtx(createLogger('fatal'), 'test'), new Operation('RunPodSandbox'), {
      id: 'a'.repeat(64), name: 'pod', netnsPath: join(dir, 'netns'), runtimeHandler: '', image: { id: 'sha256:1', references: [], chainId: '' } as unknown as Image,
      config: fromGoJson('runtime.v1.PodSandboxConfig', { metadata: { name: 'pod', uid: 'uid', namespace: 'default' } }),
    })
    assert.equal(sandbox.pid, 42)
    assert.deepEqual(done, ['record', 'mounted', 'create task', 'start task'])
  } finally {
    await rm(dir, { recursive: true })
  }
})
