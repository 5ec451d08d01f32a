// Limits of containers and pods on the real node: as they were asked for at the start, and as they are changed while it runs.
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdtemp, readFile, readdir, rm, rmdir, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { status as grpc } from '@grpc/grpc-js'
import { ContainerState, type LinuxContainerResources } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { type ContainerNode, type Pod, logEntries, startContainerNode, statusOf } from './container-node.ts'

const MiB = 1 << 20
const mebibytes = (count: number): string => String(count * MiB)
const sleeper = { command: ['sh', '-c', 'trap "exit 0" TERM; sleep 1000 & wait $!'] }
const parent = `/cri-shim-resources-${process.pid}`

let node: ContainerNode
let pod: Pod
/** Whether the kernel of this machine limits memory and swap together (swap accounting of cgroup v1). */
let memsw = false

/** A block device of this machine to limit, by name; that of the root file system is left alone. */
let device: string | undefined
let classesDir = ''

before(async () => {
  classesDir = await mkdtemp(join(tmpdir(), 'cri-shim-classes-'))
  device = (await readdir('/sys/block')).find((name) => name.startsWith('loop') && existsSync(`/dev/${name}`))
  const classes = join(classesDir, 'blockio.yaml')
  await writeFile(classes, `Classes:\n  slow:\n    - Devices: ["/dev/${device ?? 'nothing'}"]\n      ThrottleReadBps: 1Mi\n      ThrottleWriteIOPS: 2k\n`)
  node = await startContainerNode([], `[plugins."io.containerd.service.v1.tasks-service"]\nblockio_config_file = "${classes}"\n`)
  pod = await node.pod('resources', { linux: { cgroup_parent: parent, resources: { cpu_shares: '2048', memory_limit_in_bytes: mebibytes(512) }, overhead: { cpu_shares: '102' } } })
})
after(async () => {
  await rm(classesDir, { recursive: true })
  await node[Symbol.asyncDispose]()
  // The runtime makes a parent that is missing and leaves it: with a kubelet it is the kubelet's.
  for (const hierarchy of await readdir('/sys/fs/cgroup')) await rmdir(join('/sys/fs/cgroup', hierarchy, parent)).catch((error: unknown) => assert.match(String(error), /ENOENT|ENOTDIR/))
})

interface Info {
  readonly pid: number
  readonly cgroups?: { readonly v1: Readonly<Record<string, string>>; readonly v2?: string }
  readonly runtimeSpec: { readonly annotations?: Readonly<Record<string, string>>; readonly process?: { readonly oomScoreAdj?: number }; readonly linux?: { readonly cgroupsPath?: string; readonly resources?: object } }
}

async function info(id: string): Promise<Info> {
  const answer = await node.cri.runtime.ContainerStatus({ container_id: id, verbose: true })
  return JSON.parse(answer.info['info'] ?? '{}') as Info
}

/** The kernel's word on a running container: cgroup v1 names, or what v2 calls the same. */
async function limits(id: string): Promise<Readonly<Record<string, string | undefined>>> {
  const { cgroups } = await info(id)
  const read = async (controller: string, v1: string, v2: string): Promise<string | undefined> => {
    const dir = cgroups?.v1[controller]
    const path = dir === undefined ? join(cgroups?.v2 ?? '/nowhere', v2) : join(dir, v1)
    return readFile(path, 'utf8').then((text) => text.trim(), () => undefined)
  }
  const [shares, quota, memory, swap, cpus] = await Promise.all([
    read('cpu', 'cpu.shares', 'cpu.weight'), read('cpu', 'cpu.cfs_quota_us', 'cpu.max'), read('memory', 'memory.limit_in_bytes', 'memory.max'),
    read('memory', 'memory.memsw.limit_in_bytes', 'memory.swap.max'), read('cpuset', 'cpuset.cpus', 'cpuset.cpus'),
  ])
  memsw = swap !== undefined
  return { shares, quota, memory, swap, cpus }
}

const update = async (id: string, linux: Init<LinuxContainerResources>, annotations: Readonly<Record<string, string>> = {}): Promise<unknown> =>
  node.cri.runtime.UpdateContainerResources({ container_id: id, linux, annotations })
const resources = async (id: string): Promise<LinuxContainerResources | null | undefined> => (await node.status(id)).resources?.linux
const some = (all: LinuxContainerResources | null | undefined) => ({ shares: all?.cpu_shares, quota: all?.cpu_quota, memory: all?.memory_limit_in_bytes })
const v1 = (await readdir('/sys/fs/cgroup')).includes('memory')

describe('resources', { skip: v1 ? false : 'written for the names of cgroup v1' }, () => {
  it('at the start: in the cgroup below the pod\'s parent, and in status', async () => {
    const { id } = await node.start(pod, 'started', { ...sleeper, linux: { resources: { cpu_shares: '512', cpu_quota: '50000', cpu_period: '100000', cpuset_cpus: '0', memory_limit_in_bytes: mebibytes(64) } } })
    const { cgroups, runtimeSpec } = await info(id)
    assert.ok(cgroups?.v1['memory']?.endsWith(`${parent}/${id}`), JSON.stringify(cgroups))
    assert.equal(runtimeSpec.linux?.cgroupsPath, `${parent}/${id}`)
    const pauseInfo = JSON.parse((await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod.id, verbose: true })).info['info'] ?? '{}') as Info
    assert.match(await readFile(`/proc/${pauseInfo.pid}/cgroup`, 'utf8'), new RegExp(`^\\d+:memory:.*${parent}/${pod.id}$`, 'm'))
    const found = await limits(id)
    assert.deepEqual(found, { shares: '512', quota: '50000', memory: mebibytes(64), swap: memsw ? mebibytes(64) : undefined, cpus: '0' })
    const shown = await resources(id)
    assert.deepEqual(some(shown), { shares: '512', quota: '50000', memory: mebibytes(64) })
    assert.equal(shown?.memory_swap_limit_in_bytes, memsw ? mebibytes(64) : '0')
  })

  it('of a running container: up, down, apart, without a limit; its process goes on', async () => {
    const { id } = await node.start(pod, 'running', { ...sleeper, linux: { resources: { cpu_shares: '512', memory_limit_in_bytes: mebibytes(64) } } })
    const { pid } = await info(id)
    const steps: readonly (readonly [Init<LinuxContainerResources>, Readonly<Record<string, string>>])[] = [
      [{ cpu_shares: '1024', cpu_quota: '70000', cpu_period: '100000' }, { shares: '1024', quota: '70000', memory: mebibytes(64), swap: mebibytes(64) }],
      // With swap accounting the kernel takes a limit of both only above that of memory alone: the order changes with the direction.
      [{ memory_limit_in_bytes: mebibytes(128) }, { memory: mebibytes(128), swap: mebibytes(128), shares: '1024' }],
      [{ memory_limit_in_bytes: mebibytes(32) }, { memory: mebibytes(32), swap: mebibytes(32) }],
      [{ memory_limit_in_bytes: mebibytes(48), memory_swap_limit_in_bytes: mebibytes(96) }, { memory: mebibytes(48), swap: mebibytes(96) }],
      [{ memory_limit_in_bytes: mebibytes(40), memory_swap_limit_in_bytes: mebibytes(44) }, { memory: mebibytes(40), swap: mebibytes(44) }],
      [{ memory_swap_limit_in_bytes: mebibytes(41) }, { memory: mebibytes(40), swap: mebibytes(41) }],
      [{ cpu_quota: '-1', cpuset_cpus: '0' }, { quota: '-1', cpus: '0', memory: mebibytes(40) }],
      [{ memory_limit_in_bytes: '-1' }, { memory: '9223372036854771712', swap: '9223372036854771712' }],
      [{ memory_limit_in_bytes: mebibytes(64) }, { memory: mebibytes(64), swap: mebibytes(64), shares: '1024', quota: '-1', cpus: '0' }],
    ]
    for (const [request, expected] of steps) {
      await update(id, request)
      const found = await limits(id)
      for (const [name, value] of Object.entries(expected)) if (name !== 'swap' || memsw) assert.equal(found[name], value, `${name} after ${JSON.stringify(request)}`)
    }
    assert.deepEqual(some(await resources(id)), { shares: '1024', quota: '-1', memory: mebibytes(64) })
    assert.equal((await info(id)).pid, pid)
    assert.equal((await node.status(id)).state, ContainerState.CONTAINER_RUNNING)
  })

  it('of a created container: in force when it starts, oom_score_adj included', async () => {
    const { id } = await node.create(pod, 'created', { ...sleeper, linux: { resources: { cpu_shares: '512', oom_score_adj: '900' } } })
    await update(id, { cpu_shares: '256', memory_limit_in_bytes: mebibytes(24), oom_score_adj: '950' })
    assert.deepEqual(some(await resources(id)), { shares: '256', quota: '0', memory: mebibytes(24) })
    await node.cri.runtime.StartContainer({ container_id: id })
    const found = await limits(id)
    assert.deepEqual([found['shares'], found['memory']], ['256', mebibytes(24)])
    assert.equal((await readFile(`/proc/${(await info(id)).pid}/oom_score_adj`, 'utf8')).trim(), '950')
    assert.equal((await resources(id))?.oom_score_adj, '950')
  })

  it('survive a restart of the service, after which they can be changed again', async () => {
    const { id } = await node.start(pod, 'restarted', { ...sleeper, linux: { resources: { cpu_shares: '512' } } })
    await update(id, { cpu_shares: '300', memory_limit_in_bytes: mebibytes(32) })
    await node.cri.runtime.UpdatePodSandboxResources({ pod_sandbox_id: pod.id, resources: { cpu_shares: '4096' } })
    await node.shim.end('SIGKILL')
    await node.shim.start()
    assert.deepEqual(some(await resources(id)), { shares: '300', quota: '0', memory: mebibytes(32) })
    await update(id, { cpu_shares: '301' })
    assert.deepEqual([(await limits(id))['shares'], some(await resources(id)).memory], ['301', mebibytes(32)])
    assert.equal((await podInfo()).resources?.linux['cpu_shares'], 4096)
  })

  it('that cannot be are refused with the reason, and change nothing', async () => {
    const { id, log } = await node.start(pod, 'refused', { command: ['sh', '-c', 'dd if=/dev/zero of=/dev/shm/fill bs=1M count=12 2>/dev/null; echo filled; trap "exit 0" TERM; sleep 1000 & wait $!'], linux: { resources: { cpu_shares: '512', memory_limit_in_bytes: mebibytes(64) } } })
    for (const deadline = Date.now() + 30_000; !(await logEntries(log)).some(({ text }) => text === 'filled');) {
      assert.ok(Date.now() < deadline, 'the container did not fill its memory')
      await new Promise((resolve) => { setTimeout(resolve, 10) })
    }
    const cases: readonly (readonly [Init<LinuxContainerResources>, number, RegExp])[] = [
      [{ cpu_shares: '1' }, grpc.INVALID_ARGUMENT, /cpu_shares is 1/],
      [{ cpu_quota: '10' }, grpc.INVALID_ARGUMENT, /cpu_quota is 10/],
      [{ cpu_period: '5' }, grpc.INVALID_ARGUMENT, /cpu_period is 5/],
      [{ cpuset_cpus: '100000' }, grpc.INVALID_ARGUMENT, /names 100000, which this node does not have/],
      [{ cpuset_mems: 'x' }, grpc.INVALID_ARGUMENT, /cpuset_mems "x" is malformed/],
      [{ memory_limit_in_bytes: '-2' }, grpc.INVALID_ARGUMENT, /memory_limit_in_bytes is -2/],
      [{ oom_score_adj: '1001' }, grpc.INVALID_ARGUMENT, /oom_score_adj is 1001/],
      [{ unified: { 'memory.high': '1' } }, grpc.FAILED_PRECONDITION, /need cgroup v2/],
      ...(memsw ? [[{ memory_swap_limit_in_bytes: mebibytes(63) }, grpc.INVALID_ARGUMENT, /below the memory limit/] as const] : []),
    ]
    const before = await resources(id)
    for (const [request, code, message] of cases) {
      const { code: actual, details } = await statusOf(update(id, request))
      assert.equal(actual, code, `${JSON.stringify(request)}: ${details}`)
      assert.match(details, message)
    }
    const windows = await statusOf(node.cri.runtime.UpdateContainerResources({ container_id: id, windows: {} }))
    assert.deepEqual([windows.code, windows.details.includes('Linux node')], [grpc.INVALID_ARGUMENT, true])
    // Less than it holds, which the kernel cannot take away: the refusal is the kernel's, and cpu.shares, which came with it, is as it was.
    const busy = await statusOf(update(id, { cpu_shares: '700', memory_limit_in_bytes: mebibytes(4) }))
    assert.equal(busy.code, grpc.FAILED_PRECONDITION, busy.details)
    assert.match(busy.details, /memory/)
    const found = await limits(id)
    assert.deepEqual([found['shares'], found['memory']], ['512', mebibytes(64)])
    assert.deepEqual(await resources(id), before)
    assert.equal((await statusOf(update('f'.repeat(64), {}))).code, grpc.NOT_FOUND)
  })

  it('of a container that has ended cannot be changed', async () => {
    const { id } = await node.run(pod, 'ended', 'true')
    const { code, details } = await statusOf(update(id, { cpu_shares: '512' }))
    assert.deepEqual([code, /is exited/.test(details)], [grpc.FAILED_PRECONDITION, true])
  })

  it('a blockio class: throttled by the kernel, also after an update; one that is not there, and RDT without RDT, are refused', async (t) => {
    const blockio = (name: string) => ({ annotations: { 'io.kubernetes.cri.blockio-class': name } })
    const refusals = [await statusOf(node.create(pod, 'no-class', { ...sleeper, ...blockio('fast') })), await statusOf(node.create(pod, 'no-rdt', { ...sleeper, annotations: { 'io.kubernetes.cri.rdt-class': 'gold' } }))]
    assert.deepEqual(refusals.map(({ code }) => code), [grpc.INVALID_ARGUMENT, grpc.FAILED_PRECONDITION])
    assert.match(refusals.map(({ details }) => details).join('\n'), /"fast" is not defined in .*; there are slow\n.*rdt_config_file/)
    if (device === undefined) {
      t.skip('no loop device to limit')
      return
    }
    const { id } = await node.start(pod, 'throttled', { ...sleeper, ...blockio('slow') })
    const number = (await readFile(`/sys/block/${device}/dev`, 'utf8')).trim()
    const throttled = async (): Promise<readonly string[]> => {
      const dir = (await info(id)).cgroups?.v1['blkio'] ?? ''
      return Promise.all(['read_bps', 'write_iops'].map(async (name) => (await readFile(join(dir, `blkio.throttle.${name}_device`), 'utf8')).trim()))
    }
    assert.deepEqual(await throttled(), [`${number} 1048576`, `${number} 2000`])
    await update(id, { cpu_shares: '700' })
    assert.deepEqual([await throttled(), (await limits(id))['shares']], [[`${number} 1048576`, `${number} 2000`], '700'])
  })

  it('many updates beside a start and a stop end in one of the states asked for', async () => {
    const { id } = await node.create(pod, 'busy', { ...sleeper, linux: { resources: { cpu_shares: '512' } } })
    const wanted = Array.from({ length: 8 }, (_, index) => String(100 + index))
    await Promise.all([node.cri.runtime.StartContainer({ container_id: id }), ...wanted.map((shares) => update(id, { cpu_shares: shares }))])
    const [kernel, shown] = [(await limits(id))['shares'], (await resources(id))?.cpu_shares]
    assert.equal(kernel, shown)
    assert.ok(wanted.includes(shown ?? ''), String(shown))
    const results = await Promise.allSettled([node.cri.runtime.StopContainer({ container_id: id, timeout: '1' }), ...wanted.map((shares) => update(id, { cpu_shares: shares }))])
    for (const result of results) if (result.status === 'rejected') assert.match(String(result.reason), /FAILED_PRECONDITION.*is exited/)
    assert.equal((await node.exited(id)).state, ContainerState.CONTAINER_EXITED)
  })
})

interface PodInfo {
  readonly resources?: { readonly linux: Readonly<Record<string, number>> }
  readonly overhead?: { readonly linux: Readonly<Record<string, number>> }
  readonly config: { readonly linux: { readonly resources?: Readonly<Record<string, number>> } }
  readonly runtimeSpec: { readonly annotations: Readonly<Record<string, string>> }
}

async function podInfo(): Promise<PodInfo> {
  return JSON.parse((await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod.id, verbose: true })).info['info'] ?? '{}') as PodInfo
}

describe('a pod\'s own resources', () => {
  it('are for the runtime to know at the start, and recorded when they change', async () => {
    const first = await podInfo()
    assert.equal(first.runtimeSpec.annotations['io.kubernetes.cri.sandbox-memory'], mebibytes(512))
    assert.equal(first.overhead?.linux['cpu_shares'], 102)
    await node.cri.runtime.UpdatePodSandboxResources({ pod_sandbox_id: pod.id, resources: { cpu_shares: '1024', cpu_quota: '200000', cpu_period: '100000', memory_limit_in_bytes: mebibytes(256) } })
    const second = await podInfo()
    assert.deepEqual(second.resources?.linux, { cpu_period: 100000, cpu_quota: 200000, cpu_shares: 1024, memory_limit_in_bytes: 256 * MiB })
    assert.deepEqual(second.config.linux.resources, second.resources?.linux)
    assert.equal(second.overhead?.linux['cpu_shares'], 102)
    await node.cri.runtime.UpdatePodSandboxResources({ pod_sandbox_id: pod.id, overhead: { cpu_shares: '103' } })
    const third = await podInfo()
    assert.deepEqual([third.overhead?.linux['cpu_shares'], third.resources?.linux['cpu_shares']], [103, 1024])
  })

  it('that cannot be are refused; so is a pod that is not there, or not ready', async () => {
    const ask = async (id: string, linux: Init<LinuxContainerResources>): Promise<{ readonly code: number }> => statusOf(node.cri.runtime.UpdatePodSandboxResources({ pod_sandbox_id: id, resources: linux }))
    assert.equal((await ask(pod.id, { cpu_shares: '1' })).code, grpc.INVALID_ARGUMENT)
    assert.equal((await ask('f'.repeat(64), {})).code, grpc.NOT_FOUND)
    const stopped = await node.pod('stopped')
    await node.cri.runtime.StopPodSandbox({ pod_sandbox_id: stopped.id })
    assert.equal((await ask(stopped.id, {})).code, grpc.FAILED_PRECONDITION)
  })
})
