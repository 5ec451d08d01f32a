import assert from 'node:assert/strict'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { it } from 'node:test'
import { Code, CriError, internal, notFound } from '../errors/cri-error.ts'
import type { LinuxContainerResources } from '../generated/cri.ts'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import { ociSpecAny, parseOciJson, parseOciSpec } from '../oci-spec/json.ts'
import type { OciResources, OciSpec } from '../oci-spec/types.ts'
import { resourcesOfSpec } from '../oci-spec/update-resources.ts'
import { fromGoJson } from '../state/go-json.ts'
import type { Container, ContainerState } from '../state/records.ts'
import { Store } from '../state/store.ts'
import { updateContainerResources } from './update-resources.ts'

const id = 'c'.repeat(64)
const ctx = backgroundCtx(createLogger('fatal'), 'test')
const linux = (quota: number): LinuxContainerResources => ({ ...resourcesOfSpec({ ociVersion: '' }), cpu_quota: String(quota) })
const code = (expected: number, message: RegExp) => (error: unknown): boolean => error instanceof CriError && error.code === expected && message.test(error.message)

interface Faults {
  readonly task?: Error
  readonly record?: Error
  /** What tasks.get finds after a failure. */
  readonly after?: { readonly state: string } | undefined
}

/** A container with shares and no quota; the fake containerd notes what it is told. */
function fixture(state: ContainerState, faults: Faults = {}, mounts: OciSpec['mounts'] = []) {
  let record = ociSpecAny({ ociVersion: '1.1.0', mounts, linux: { resources: { cpu: { shares: 512 } } } })
  const told: OciResources[] = []
  const containers = new Store<Container>('container')
  const container: Container = {
    id, starting: false, removing: false, oomKilled: false, cgroups: undefined, user: undefined, resources: undefined,
    metadata: { id, name: 'c', sandboxId: 's1', config: fromGoJson('runtime.v1.ContainerConfig', {}), imageRef: '', logPath: '', stopSignal: '', processLabel: '' },
    status: { state, pid: 7, createdAt: 1n, startedAt: 2n, finishedAt: 0n, exitCode: 0, reason: '', message: '' },
  }
  containers.put(container)
  const containerd = {
    containers: {
      get: async () => ({ spec: record }),
      setSpec: async (_: unknown, __: string, spec: typeof record) => {
        if (faults.record !== undefined) throw faults.record
        record = spec
      },
    },
    tasks: {
      get: async () => faults.after,
      update: async (_: unknown, __: string, { value }: { readonly value: Buffer }) => {
        if (faults.task !== undefined) throw faults.task
        told.push(parseOciJson(value.toString()) as OciResources)
      },
    },
  }
  const updatedSpec = (spec: OciSpec, { linux: asked }: { readonly linux: LinuxContainerResources | null }): OciSpec =>
    ({ ...spec, linux: { ...spec.linux, resources: { cpu: { shares: 512, quota: Number(asked?.cpu_quota) } } } })
  const deps = { containerd, containers, updatedSpec } as unknown as Parameters<typeof updateContainerResources>[0]
  return {
    told, containers,
    update: async (quota: number): Promise<void> => updateContainerResources(deps, ctx, containers.get(id) ?? container, { linux: linux(quota), annotations: {} }, ''),
    get recorded() { return parseOciSpec(record.value).linux?.resources?.cpu },
    get shown() { return containers.get(id)?.resources?.cpu_quota },
  }
}

it('a running container is told, then recorded; a created one is recorded alone', async () => {
  const running = fixture('running')
  await running.update(5000)
  assert.deepEqual([running.told, running.recorded, running.shown], [[{ cpu: { shares: 512, quota: 5000 } }], { shares: 512, quota: 5000 }, '5000'])
  const created = fixture('created')
  await created.update(5000)
  assert.deepEqual([created.told, created.recorded, created.shown], [[], { shares: 512, quota: 5000 }, '5000'])
})

it('nothing to update: ended, unknown, being removed, gone', async () => {
  for (const state of ['exited', 'unknown'] as const) {
    const f = fixture(state)
    await assert.rejects(f.update(5000), code(Code.FAILED_PRECONDITION, new RegExp(`is ${state}`)))
    assert.deepEqual([f.told, f.recorded], [[], { shares: 512 }])
  }
  const removing = fixture('running')
  removing.containers.update(id, (now) => ({ ...now, removing: true }))
  await assert.rejects(removing.update(5000), code(Code.FAILED_PRECONDITION, /being removed/))
})

it('what the runtime refuses changes nothing, and says whose fault it is', async () => {
  for (const [message, expected] of [
    ['write cpuset.cpus: invalid argument', Code.INVALID_ARGUMENT], ['numerical result out of range', Code.INVALID_ARGUMENT],
    ['unable to set memory limit to 4096 (current usage: 900000, peak usage: 1000000)', Code.FAILED_PRECONDITION], ['device or resource busy', Code.FAILED_PRECONDITION], ['out of cheese', Code.INTERNAL],
  ] as const) {
    const f = fixture('running', { task: internal(message), after: { state: 'running' } })
    await assert.rejects(f.update(5000), code(expected, new RegExp(message.slice(0, 12))), message)
    assert.deepEqual([f.recorded, f.shown], [{ shares: 512 }, undefined])
  }
})

it('a container that ends meanwhile is recorded alone', async () => {
  for (const faults of [{ task: notFound('no task') }, { task: internal('no process'), after: { state: 'stopped' } }, { task: internal('no process'), after: undefined }, { task: internal('x', { reason: 'ShimGone' }), after: { state: 'running' } }] as const) {
    const f = fixture('running', faults)
    await f.update(5000)
    assert.deepEqual([f.recorded, f.shown], [{ shares: 512, quota: 5000 }, '5000'])
  }
})

it('a record that cannot be written gives the task its old limits back', async () => {
  const f = fixture('running', { record: internal('disk full') })
  await assert.rejects(f.update(5000), code(Code.INTERNAL, /are as they were.*disk full/))
  assert.deepEqual(f.told, [{ cpu: { shares: 512, quota: 5000 } }, { cpu: { quota: -1, shares: 512 }, memory: {} }])
  assert.deepEqual([f.recorded, f.shown], [{ shares: 512 }, undefined])
})

it('the status file of containerd\'s own CRI plugin says it too, its other fields as they were', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'cri-shim-update-'))
  try {
    const plugin = join(dir, 'io.containerd.grpc.v1.cri')
    const status = '{"Version":"v1","Pid":7,"CreatedAt":1791000000123456789,"StartedAt":1791000000223456789,"Resources":{"linux":{"cpu_shares":512}},"Later":true}'
    await mkdir(join(plugin, 'containers', id), { recursive: true })
    await writeFile(join(plugin, 'containers', id, 'status'), status)
    const f = fixture('running', {}, [{ destination: '/etc/hosts', source: join(plugin, 'sandboxes/s1/hosts') }])
    await f.update(5000)
    assert.equal(await readFile(join(plugin, 'containers', id, 'status'), 'utf8'), status.replace('"cpu_shares":512', '"cpu_quota":5000,"cpu_shares":512'))
  } finally {
    await rm(dir, { recursive: true })
  }
})
