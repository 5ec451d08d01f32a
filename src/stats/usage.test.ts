import assert from 'node:assert/strict'
import { it } from 'node:test'
import type { ContainerStats, ListPodSandboxMetricsResponse, ListPodSandboxStatsResponse } from '../generated/cri.ts'
import { criProtos, messageCodec } from '../generated/protos.ts'
import { Figure, type FigureName, type InterfaceCounters, rowLength, type UsageLevel, type UsageRows, type UsageTarget } from '../linux/usage.ts'
import { backgroundCtx } from '../observability/context.ts'
import { createLogger } from '../observability/logger.ts'
import type { Container, Sandbox } from '../state/records.ts'
import { CgroupReader } from './cgroup-figures.ts'
import { CpuSampler } from './cpu-sampler.ts'
import { baseLabelKeys, descriptors } from './metric-descriptors.ts'
import { cgroupName, pauseCgroup, podCgroup } from './pod-cgroup.ts'
import { PodMetrics } from './pod-metrics.ts'
import { writePodStats } from './stats-messages.ts'
import { Usage } from './usage.ts'
import { MessageWriter } from './wire.ts'

const ctx = backgroundCtx(createLogger('fatal'), 'test')
const mounts = { mode: 'v2', v1: {}, v2: '/cg' } as const

const sandbox = (id: string, over: Record<string, unknown> = {}, cgroupParent = `/kubepods/${id}`): Sandbox => ({
  id, state: 'ready', pid: 12, networkDown: false, createdAt: 5_000_000_000n,
  metadata: { id, netnsPath: `/netns/${id}`, runtimeHandler: '', config: { metadata: { name: `${id}-name`, namespace: 'ns', uid: 'u', attempt: 0 }, labels: { app: 'x' }, annotations: {}, linux: { cgroup_parent: cgroupParent } } },
  ...over,
}) as unknown as Sandbox
const container = (id: string, sandboxId: string, state = 'running'): Container => ({
  id, status: { state, pid: 34, startedAt: 7_000_000_000n }, cgroups: state === 'created' ? undefined : { v1: {}, v2: `/cg/kubepods/${sandboxId}/${id}` },
  metadata: { id, sandboxId, config: { metadata: { name: `${id}-name`, attempt: 1 }, labels: { tier: 'y' }, annotations: { note: 'n' } } },
}) as unknown as Container

type Values = Partial<Record<FigureName, number>>

/** Rows by directory; every cgroup that is not in it is gone. */
function fixture(cgroups: Readonly<Record<string, Values>>, networks: Readonly<Record<string, readonly InterfaceCounters[]>> = {}) {
  const read: { level: UsageLevel; targets: readonly UsageTarget[] }[] = []
  const reader = new CgroupReader(async (level, targets): Promise<UsageRows> => {
    read.push({ level, targets })
    const rows = new Float64Array(rowLength[level] * targets.length).fill(Number.NaN)
    for (const [index, { v2 = '' }] of targets.entries()) {
      for (const [name, value] of Object.entries({ wallMs: 1_700_000_000_000, monotonicMs: 1, ...cgroups[v2] })) if (v2 in cgroups) rows[index * rowLength[level] + Figure[name as FigureName]] = value
    }
    const devices = targets.map(() => [{ device: '/dev/sda', major: '8', minor: '0', bytes: { Read: 4096, Write: 1 }, operations: { Read: 1, Write: 2 } }])
    const hugetlb = targets.map(() => [{ pageSize: '2MB', usageBytes: 5, maxUsageBytes: undefined }])
    return { rows, devices, hugetlb, failures: [] }
  })
  const shared = {
    reader, mounts, snapshotterOf: () => 'overlayfs', snapshotterRoot: (name: string) => `/var/lib/${name}`, systemdCgroup: () => false,
    networkCounters: async (targets: readonly { readonly netnsPath: string }[]) => targets.map(({ netnsPath }) => networks[netnsPath]),
    disk: {
      ofAll: async (_: unknown, wanted: readonly { readonly key: string }[]) => wanted.map(({ key }) => (key === 'unmeasured' ? undefined : { measuredMs: 1_600_000_000_000, bytes: 4096, inodes: 3 })),
      fileSystem: () => ({ device: '/dev/sdb1', totalBytes: 1e12, totalInodes: 1e6, freeInodes: 9e5 }),
    },
  }
  const sampler = new CpuSampler({ reader, ctx, periodMs: 1000, list: () => [] })
  return { read, usage: new Usage({ ...shared, sampler }), metrics: new PodMetrics({ ...shared, imageName: () => 'docker.io/library/app:1', sandboxImage: 'pause:1' }) }
}

const eth0 = { name: 'eth0', rxBytes: 1, rxPackets: 2, rxErrors: 3, rxDropped: 4, txBytes: 5, txPackets: 6, txErrors: 7, txDropped: 8 }
const memory = { memoryUsage: 100, workingSet: 80, rss: 60, pageFaults: 5, majorPageFaults: 1 }

async function podStats(usage: Usage, sandboxes: readonly Sandbox[], containers: readonly Container[]): Promise<ListPodSandboxStatsResponse['stats']> {
  const out = new MessageWriter()
  for (const figures of await usage.pods(ctx, sandboxes, containers)) writePodStats(out, 1, figures)
  return (messageCodec(criProtos(), 'runtime.v1.ListPodSandboxStatsResponse').deserialize(out.finish()) as unknown as ListPodSandboxStatsResponse).stats
}

const wrapped = (value: { readonly value: string } | null | undefined): number | undefined => (value ? Number(value.value) : undefined)

it('tells of a container what its cgroup and its writable layer say, in the fields of CRI', async () => {
  const f = fixture({
    '/cg/kubepods/p/c': { cpuNs: 9e15, ...memory, memoryLimit: 200, swapUsage: 0, swapAvailable: 50, tasks: 3, cpuSome: 1e9, cpuFull: 0, memorySome: 2e9, memoryFull: 1e9, ioSome: 3e9, [`ioFull`]: 5 },
  })
  const [pod] = await podStats(f.usage, [sandbox('p')], [container('c', 'p'), container('other', 'q')])
  assert.equal(pod?.linux?.containers.length, 1)
  const stats = pod.linux.containers[0] as ContainerStats
  assert.deepEqual([stats.attributes?.id, stats.attributes?.metadata?.name, stats.attributes?.metadata?.attempt, { ...stats.attributes?.labels }, { ...stats.attributes?.annotations }], ['c', 'c-name', 1, { tier: 'y' }, { note: 'n' }])
  assert.deepEqual([stats.cpu?.timestamp, wrapped(stats.cpu?.usage_core_nano_seconds), stats.cpu?.usage_nano_cores], ['1700000000000000000', 9e15, null])
  assert.deepEqual([stats.cpu?.psi?.Some?.Total, stats.cpu?.psi?.Full?.Total], ['1000000000', '0'])
  const { working_set_bytes, available_bytes, usage_bytes, rss_bytes, page_faults, major_page_faults, psi } = stats.memory ?? assert.fail('no memory')
  assert.deepEqual([working_set_bytes, available_bytes, usage_bytes, rss_bytes, page_faults, major_page_faults].map(wrapped), [80, 120, 100, 60, 5, 1])
  assert.deepEqual([psi?.Some?.Total, psi?.Full?.Total, stats.io?.psi?.Some?.Total, stats.io?.psi?.Full?.Total], ['2000000000', '1000000000', '3000000000', '5'])
  assert.deepEqual([wrapped(stats.swap?.swap_usage_bytes), wrapped(stats.swap?.swap_available_bytes)], [0, 50])
  assert.deepEqual([stats.writable_layer?.fs_id?.mountpoint, wrapped(stats.writable_layer?.used_bytes), wrapped(stats.writable_layer?.inodes_used), stats.writable_layer?.timestamp], ['/var/lib/overlayfs', 4096, 3, '1600000000000000000'])
})

it('leaves out what is not known: no task, no limit, no pressure, no measurement', async () => {
  const f = fixture({ '/cg/kubepods/p/plain': { cpuNs: 0, ...memory } })
  const [pod] = await podStats(f.usage, [sandbox('p')], [container('plain', 'p'), container('made', 'p', 'created'), container('ended', 'p', 'exited'), container('gone', 'p'), container('unmeasured', 'p', 'exited')])
  const fields = pod?.linux?.containers.map(({ attributes, ...rest }) => [attributes?.id, ...Object.entries(rest).filter(([, value]) => value !== null).map(([key]) => key)])
  assert.deepEqual(fields, [['plain', 'cpu', 'memory', 'writable_layer'], ['made', 'writable_layer'], ['ended', 'writable_layer'], ['gone', 'writable_layer'], ['unmeasured']])
  const plain = pod?.linux?.containers[0]
  assert.deepEqual([plain?.memory?.available_bytes, plain?.memory?.psi, plain?.cpu?.psi, wrapped(plain?.cpu?.usage_core_nano_seconds)], [null, null, null, 0])
})

it('takes a pod\'s figures from its cgroup, its network from inside, its tasks from the containers', async () => {
  const f = fixture({ '/cg/kubepods/p': { cpuNs: 77, ...memory, tasks: 9, ioSome: 1, ioFull: 1 }, '/cg/kubepods/p/a': { cpuNs: 1, ...memory, tasks: 2 }, '/cg/kubepods/p/b': { cpuNs: 1, ...memory, tasks: 3 } }, { '/netns/p': [{ ...eth0, name: 'net1' }, eth0] })
  const [pod] = await podStats(f.usage, [sandbox('p')], [container('a', 'p'), container('b', 'p')])
  assert.deepEqual([pod?.attributes?.id, pod?.attributes?.metadata?.namespace, { ...pod?.attributes?.labels }], ['p', 'ns', { app: 'x' }])
  const { cpu, memory: ofMemory, network, process, io } = pod?.linux ?? assert.fail('no figures')
  assert.deepEqual([wrapped(cpu?.usage_core_nano_seconds), wrapped(ofMemory?.working_set_bytes), wrapped(process?.process_count), io?.psi?.Some?.Total], [77, 80, 5, '1'])
  assert.deepEqual([network?.default_interface?.name, ...network?.interfaces.map(({ name, rx_bytes, rx_errors, tx_bytes, tx_errors }) => [name, ...[rx_bytes, rx_errors, tx_bytes, tx_errors].map(wrapped)]) ?? []], ['eth0', ['net1', 1, 3, 5, 7], ['eth0', 1, 3, 5, 7]])
})

it('adds up a pod that has no cgroup of its own: its containers and the pause process', async () => {
  const f = fixture({ '/cg/k8s.io/p': { cpuNs: 1, memoryUsage: 10, workingSet: 10, rss: 10 }, '/cg/kubepods/p/a': { cpuNs: 20, ...memory, memoryLimit: 1000, cpuSome: 5 }, '/cg/kubepods/p/b': { cpuNs: 300, ...memory } })
  const [pod, lone] = await podStats(f.usage, [sandbox('p', {}, ''), sandbox('lone', {}, '')], [container('a', 'p'), container('b', 'p'), container('c', 'p', 'exited')])
  assert.deepEqual([wrapped(pod?.linux?.cpu?.usage_core_nano_seconds), wrapped(pod?.linux?.memory?.working_set_bytes), pod?.linux?.memory?.available_bytes, pod?.linux?.cpu?.psi], [321, 170, null, null])
  assert.deepEqual([lone?.attributes?.id, lone?.linux?.cpu, lone?.linux?.network], ['lone', null, null])
})

it('has nothing of the cgroup and the network of a pod that ended: another sandbox of the pod is in them', async () => {
  const f = fixture({ '/cg/kubepods/p': { cpuNs: 77, ...memory } }, { '/netns/p': [eth0] })
  const [pod] = await podStats(f.usage, [sandbox('p', { state: 'notready', pid: 0 })], [container('a', 'p', 'exited')])
  assert.deepEqual([pod?.linux?.cpu, pod?.linux?.memory, pod?.linux?.network, pod?.linux?.containers.length], [null, null, null, 1])
  const [host] = await podStats(f.usage, [sandbox('h', { metadata: { ...sandbox('h').metadata, netnsPath: '' } })], [])
  assert.equal(host?.linux?.network, null)
})

it('reads many cgroups in few calls, each short enough to let others between', async () => {
  const names = Array.from({ length: 100 }, (_, index) => `c${index}`)
  const f = fixture(Object.fromEntries(names.map((name) => [`/cg/kubepods/p/${name}`, { cpuNs: 1 }])))
  const figures = await f.usage.containers(ctx, names.map((name) => container(name, 'p')))
  assert.ok(figures.every(({ row }) => row !== undefined))
  assert.deepEqual(f.read.map(({ targets }) => targets.length), [32, 32, 32, 4])
})

it('names a pod\'s cgroup by path and by slice, and refuses to be led out of the hierarchy', () => {
  const path = (parent: string): string | undefined => podCgroup(sandbox('p', {}, parent), mounts)?.v2
  assert.equal(path('/kubepods/burstable/pod1'), '/cg/kubepods/burstable/pod1')
  assert.equal(path('kubepods/pod1'), '/cg/kubepods/pod1')
  const slice = '/cg/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice'
  assert.equal(path('/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice'), slice)
  assert.equal(path('kubepods-burstable-pod1.slice'), slice)
  for (const none of ['', '/', '/a/../../etc', 'a--b.slice']) assert.equal(path(none), undefined, none)
  assert.equal(pauseCgroup(sandbox('p', {}, 'kubepods-pod1.slice'), mounts, true)?.v2, '/cg/kubepods.slice/kubepods-pod1.slice/cri-containerd-p.scope')
  assert.equal(pauseCgroup(sandbox('p', {}, '/a'), mounts, false)?.v2, '/cg/a/p')
  assert.equal(pauseCgroup(sandbox('p', {}, '/not-a-slice'), mounts, true), undefined)
  assert.equal(cgroupName({ v1: { memory: '/sys/fs/cgroup/memory/a/b' }, v2: '/x' }, { mode: 'hybrid', v1: { memory: '/sys/fs/cgroup/memory' }, v2: '/y' }), '/a/b')
  assert.equal(cgroupName({ v1: {}, v2: '/cg/a' }, mounts), '/a')
})

const everything = Object.fromEntries(Object.entries(Figure).filter(([name]) => name !== 'wallMs').map(([name, at]) => [name, (at + 1) * 1e9])) as Values

async function metricsOf(metrics: PodMetrics, sandboxes: readonly Sandbox[], containers: readonly Container[]): Promise<ListPodSandboxMetricsResponse['pod_metrics']> {
  const pieces: Buffer[] = []
  for await (const piece of metrics.pieces(ctx, sandboxes, containers)) pieces.push(piece)
  return (messageCodec(criProtos(), 'runtime.v1.ListPodSandboxMetricsResponse').deserialize(Buffer.concat(pieces)) as unknown as ListPodSandboxMetricsResponse).pod_metrics
}

it('has a value for every metric that it describes, with as many labels and of the described type', async () => {
  const f = fixture({ '/cg/kubepods/p': everything, '/cg/kubepods/p/c': everything }, { '/netns/p': [eth0] })
  const [pod] = await metricsOf(f.metrics, [sandbox('p')], [container('c', 'p')])
  const found = [...pod?.metrics ?? [], ...pod?.container_metrics.flatMap(({ metrics }) => metrics) ?? []]
  const byName = new Map(descriptors.map((descriptor) => [descriptor.name, descriptor]))
  for (const { name, label_values, metric_type, timestamp, value } of found) {
    assert.equal(label_values.length, byName.get(name)?.labelKeys.length, name)
    assert.equal(metric_type, byName.get(name)?.type, name)
    assert.ok(BigInt(timestamp) > 10n ** 18n && value !== null, name)
  }
  const missing = descriptors.filter(({ name }) => !found.some((metric) => metric.name === name)).map(({ name }) => name)
  // The one that v2 keeps no record of.
  assert.deepEqual(missing, ['container_hugetlb_max_usage_bytes'])
  assert.equal(new Set(descriptors.map(({ name }) => name)).size, descriptors.length)
  for (const { help, labelKeys } of descriptors) assert.ok(help !== '' && labelKeys.slice(0, 6).join() === baseLabelKeys.join())
})

it('labels series as cAdvisor does, each of them once', async () => {
  const f = fixture({ '/cg/kubepods/p': everything, '/cg/kubepods/p/c': everything }, { '/netns/p': [eth0, { ...eth0, name: 'net1' }] })
  const [pod] = await metricsOf(f.metrics, [sandbox('p')], [container('c', 'p')])
  const series = (from: readonly { readonly name: string; readonly label_values: readonly string[]; readonly value: { readonly value: string } | null }[] | undefined, name: string): unknown[] =>
    (from ?? []).filter((metric) => metric.name === name).map(({ label_values, value }) => [...label_values, Number(value?.value)])
  const ofContainer = pod?.container_metrics[0]?.metrics
  const base = ['c-name', '/kubepods/p/c', 'docker.io/library/app:1', 'c', 'ns', 'p-name']
  assert.deepEqual(series(ofContainer, 'container_cpu_usage_seconds_total'), [[...base, 'total', 3]])
  assert.deepEqual(series(ofContainer, 'container_start_time_seconds'), [[...base, 7]])
  assert.deepEqual(series(ofContainer, 'container_memory_failures_total').map((labels) => (labels as string[]).slice(6, 8).join()), ['pgfault,container', 'pgfault,hierarchy', 'pgmajfault,container', 'pgmajfault,hierarchy'])
  assert.deepEqual(series(ofContainer, 'container_blkio_device_usage_total'), [[...base, '/dev/sda', '8', '0', 'Read', 4096], [...base, '/dev/sda', '8', '0', 'Write', 1]])
  assert.deepEqual(series(ofContainer, 'container_fs_usage_bytes'), [[...base, '/dev/sdb1', 4096]])
  assert.deepEqual(series(pod?.metrics, 'container_memory_rss'), [['', '/kubepods/p', '', '', 'ns', 'p-name', 7e9]])
  const network = ['', '/kubepods/p/p', 'pause:1', 'p', 'ns', 'p-name']
  assert.deepEqual(series(pod?.metrics, 'container_network_transmit_packets_dropped_total'), [[...network, 'eth0', 8], [...network, 'net1', 8]])
  const keys = [...pod?.metrics ?? [], ...ofContainer ?? []].map(({ name, label_values }) => [name, ...label_values].join('|'))
  assert.equal(new Set(keys).size, keys.length)
})

it('has 0 for a limit that is not set, no series for what is not counted, and no pod or container that does not run', async () => {
  const f = fixture({ '/cg/kubepods/p/c': { cpuNs: 1, ...memory, tasks: 1 } })
  const pods = await metricsOf(f.metrics, [sandbox('p'), sandbox('ended', { state: 'notready' })], [container('c', 'p'), container('x', 'p', 'exited'), container('y', 'ended', 'exited')])
  assert.deepEqual(pods.map(({ pod_sandbox_id, container_metrics }) => [pod_sandbox_id, container_metrics.map(({ container_id }) => container_id)]), [['p', ['c']]])
  const values = new Map(pods[0]?.container_metrics[0]?.metrics.map(({ name, value }) => [name, wrapped(value)]))
  for (const name of ['container_spec_memory_limit_bytes', 'container_spec_memory_swap_limit_bytes', 'container_threads_max']) assert.equal(values.get(name), 0, name)
  for (const name of ['container_spec_cpu_quota', 'container_pressure_io_stalled_seconds_total', 'container_memory_max_usage_bytes']) assert.equal(values.has(name), false, name)
})

it('comes in pieces of some pods', async () => {
  const sandboxes = Array.from({ length: 25 }, (_, index) => sandbox(`p${index}`))
  const f = fixture({})
  let pieces = 0
  for await (const _ of f.metrics.pieces(ctx, sandboxes, [])) pieces += 1
  assert.equal(pieces, 3)
})
