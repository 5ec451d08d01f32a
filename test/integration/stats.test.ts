// What pods and containers use, beside what containerd's own CRI plugin says of the same ones at the same time: it made them, and cri-shim, in front of
// the same containerd, has taken them over.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readdir, rmdir } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import type { ContainerStats, MemoryUsage, NetworkInterfaceUsage, PodSandboxConfig, PodSandboxMetrics, PodSandboxStats } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { type CriClient, connectCri } from '../fixtures/cri-client.ts'
import { script, startTestNode, type TestNode, logLines, until } from './restart-node.ts'

const skip = process.getuid?.() === 0 ? false : 'needs root'
const cgroupParent = `/cri-shim-stats-${process.pid}`
const megabyte = 2 ** 20

describe('figures of a pod under load', { skip }, () => {
  let node: TestNode
  let plugin: CriClient
  let podId: string
  let bareId: string
  let ids: Readonly<Record<'loaded' | 'busy' | 'ended' | 'created', string>>

  before(async () => {
    node = await startTestNode({ cri: true, criSettings: '  stats_collect_period = 1' })
    await node.shim.end('SIGTERM')
    plugin = connectCri(node.containerd.socket)
    const pod = node.pod('loaded', { linux: { cgroup_parent: `${cgroupParent}/loaded` } })
    const bare = node.pod('bare', { labels: { app: 'bare' }, linux: {} })
    const image = { image: script('c', '').image ?? {} }
    await plugin.image.PullImage(image)
    podId = (await plugin.runtime.RunPodSandbox({ config: pod })).pod_sandbox_id
    bareId = (await plugin.runtime.RunPodSandbox({ config: bare })).pod_sandbox_id
    const start = async (name: keyof typeof ids, text: string, sandbox: { readonly id: string; readonly config: Init<PodSandboxConfig> } = { id: podId, config: pod }): Promise<string> => {
      const config = script(name, text, { labels: { role: name }, ...(name === 'loaded' ? { linux: { resources: { memory_limit_in_bytes: String(256 * megabyte), cpu_period: '100000', cpu_quota: '80000', cpu_shares: '512' } } } : {}) })
      const { container_id } = await plugin.runtime.CreateContainer({ pod_sandbox_id: sandbox.id, config, sandbox_config: sandbox.config })
      if (name !== 'created') await plugin.runtime.StartContainer({ container_id })
      return container_id
    }
    const load = 'head -c 30000000 /dev/zero > /dev/shm/held; head -c 20000000 /dev/urandom > /written; sync; cat /written > /dev/null; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; ' +
      'echo ready; nc -l -p 7000 > /dev/null; echo received; sleep 1000 & sleep 1000 & wait'
    ids = {
      loaded: await start('loaded', load),
      busy: await start('busy', 'while :; do :; done', { id: bareId, config: bare }),
      ended: await start('ended', 'head -c 3000000 /dev/urandom > /left'),
      created: await start('created', 'true'),
    }
    const log = join(node.dir, 'logs', 'loaded', 'loaded.log')
    await until('the load', async () => (await logLines(log)).includes('ready') || undefined)
    const { status } = await plugin.runtime.PodSandboxStatus({ pod_sandbox_id: podId })
    await until('the transfer', async () => send(status?.network?.ip ?? '', 7000, 3_000_000).then(() => true, () => undefined))
    await until('the end of the transfer', async () => (await logLines(log)).includes('received') || undefined)
    await until('the end of a container', async () => ((await plugin.runtime.ContainerStatus({ container_id: ids.ended })).status?.finished_at !== '0') || undefined)
    await node.shim.start()
    await node.ready()
  })

  after(async () => {
    await node?.shim.end('SIGTERM')
    for (const id of [podId, bareId]) {
      if (id === undefined) continue
      await plugin.runtime.StopPodSandbox({ pod_sandbox_id: id })
      await plugin.runtime.RemovePodSandbox({ pod_sandbox_id: id })
    }
    plugin?.close()
    await removeCgroupParents()
    await node?.[Symbol.asyncDispose]()
  })

  const statsOf = async (cri: CriClient, id: string): Promise<ContainerStats> => (await cri.runtime.ContainerStats({ container_id: id })).stats ?? assert.fail('no stats')
  const podStatsOf = async (cri: CriClient, id: string): Promise<PodSandboxStats> => (await cri.runtime.PodSandboxStats({ pod_sandbox_id: id })).stats ?? assert.fail('no stats')
  const sameMemory = (ours: MemoryUsage | null | undefined, its: MemoryUsage | null | undefined): void => {
    for (const field of ['working_set_bytes', 'usage_bytes', 'rss_bytes', 'page_faults', 'major_page_faults'] as const) within2Percent(number(ours?.[field]), number(its?.[field]), field)
  }

  it('are the plugin\'s for a container', async () => {
    const first = await statsOf(node.cri, ids.loaded)
    const its = await statsOf(plugin, ids.loaded)
    const second = await statsOf(node.cri, ids.loaded)
    between(first.cpu?.usage_core_nano_seconds, its.cpu?.usage_core_nano_seconds, second.cpu?.usage_core_nano_seconds, 'cpu time')
    assert.ok(number(first.cpu?.usage_core_nano_seconds) > 10_000_000)
    sameMemory(second.memory, its.memory)
    assert.ok(number(second.memory?.usage_bytes) > 40e6, 'the files in /dev/shm and in the page cache')
    within2Percent(number(second.memory?.available_bytes), number(its.memory?.available_bytes), 'available bytes')
    assert.deepEqual(second.attributes, its.attributes)
  })

  it('are the plugin\'s for what a container has written, also of one that has ended', async () => {
    for (const [id, least] of [[ids.loaded, 20e6], [ids.ended, 3e6]] as const) {
      const [ours, its] = await until('both have measured', async () => {
        // The plugin's ContainerStats fails without a task, its list does not.
        const [own, { stats: [listed] }] = await Promise.all([statsOf(node.cri, id), plugin.runtime.ListContainerStats({ filter: { id } })])
        return listed !== undefined && [own, listed].every((stats) => number(stats.writable_layer?.used_bytes) >= least) ? [own, listed] as const : undefined
      })
      within2Percent(number(ours.writable_layer?.used_bytes), number(its.writable_layer?.used_bytes), 'used bytes')
      assert.deepEqual(ours.writable_layer?.inodes_used, its.writable_layer?.inodes_used)
      assert.deepEqual(ours.writable_layer?.fs_id, its.writable_layer?.fs_id)
    }
    const ended = await statsOf(node.cri, ids.ended)
    assert.deepEqual([ended.cpu, ended.memory, ended.swap], [null, null, null])
    assert.ok((await statsOf(node.cri, ids.created)).writable_layer)
  })

  it('are the plugin\'s for a pod with its network', async () => {
    const first = await podStatsOf(node.cri, podId)
    const its = await podStatsOf(plugin, podId)
    const second = await podStatsOf(node.cri, podId)
    between(first.linux?.cpu?.usage_core_nano_seconds, its.linux?.cpu?.usage_core_nano_seconds, second.linux?.cpu?.usage_core_nano_seconds, 'cpu time')
    sameMemory(second.linux?.memory, its.linux?.memory)
    assert.deepEqual(second.linux?.process?.process_count, its.linux?.process?.process_count)
    assert.equal(number(second.linux?.process?.process_count), 3, 'the shell and two sleeps')
    const [a, b, c] = [first, its, second].map(({ linux }) => linux?.network?.default_interface ?? assert.fail('no network')) as [NetworkInterfaceUsage, NetworkInterfaceUsage, NetworkInterfaceUsage]
    assert.equal(c.name, 'eth0')
    for (const field of ['rx_bytes', 'rx_errors', 'tx_bytes', 'tx_errors'] as const) between(a[field], b[field], c[field], field)
    assert.ok(number(c.rx_bytes) >= 3_000_000)
    assert.deepEqual(second.linux?.network?.interfaces.map(({ name }) => name), ['eth0'])
    assert.deepEqual(second.linux.containers.map(({ attributes }) => attributes?.id ?? '').sort(), [ids.loaded, ids.ended, ids.created].sort())
    assert.deepEqual({ ...second.attributes, labels: { ...second.attributes?.labels } }, { ...its.attributes, labels: { ...its.attributes?.labels } })
  })

  it('tell how many cores are used, to everybody who asks, from the sampler', async () => {
    const cores = async (): Promise<number> => number((await statsOf(node.cri, ids.busy)).cpu?.usage_nano_cores)
    await until('two samples', async () => (await cores()) > 1e6 || undefined)
    assert.ok((await cores()) < 1.1e9, 'it has one thread')
    // No cgroup parent: the pod is the sum of what is in it.
    const { linux } = await podStatsOf(node.cri, bareId)
    const busy = linux?.containers.find(({ attributes }) => attributes?.id === ids.busy)
    assert.ok(number(linux?.cpu?.usage_core_nano_seconds) >= number(busy?.cpu?.usage_core_nano_seconds))
    assert.ok(number(linux?.memory?.usage_bytes) > number(busy?.memory?.usage_bytes), 'the pause process counts')
    assert.equal(number(linux?.cpu?.usage_nano_cores), number(busy?.cpu?.usage_nano_cores))
  })

  it('take every filter, in lists and in streams', async () => {
    const list = async (filter: object): Promise<string[]> => (await node.cri.runtime.ListPodSandboxStats({ filter })).stats.map(({ attributes }) => attributes?.id ?? '').sort()
    assert.deepEqual(await list({}), [podId, bareId].sort())
    assert.deepEqual(await list({ id: podId.slice(0, 12) }), [podId])
    assert.deepEqual(await list({ label_selector: { app: 'bare' } }), [bareId])
    assert.deepEqual(await list({ id: podId, label_selector: { app: 'bare' } }), [])
    const streamed: string[] = []
    for await (const { pod_sandbox_stats } of node.cri.runtime.StreamPodSandboxStats({ filter: { id: bareId } })) streamed.push(...pod_sandbox_stats.map(({ attributes }) => attributes?.id ?? ''))
    assert.deepEqual(streamed, [bareId])
    await assert.rejects(node.cri.runtime.PodSandboxStats({ pod_sandbox_id: 'nosuch' }), /no pod sandbox with id nosuch/)
  })

  it('are in the metrics too, with the labels that are described', async () => {
    const { descriptors } = await node.cri.runtime.ListMetricDescriptors({})
    const keys = new Map(descriptors.map(({ name, label_keys }) => [name, label_keys]))
    const { pod_metrics: pods } = await node.cri.runtime.ListPodSandboxMetrics({})
    const streamed: PodSandboxMetrics[] = []
    for await (const message of node.cri.runtime.StreamPodSandboxMetrics({})) streamed.push(...message.pod_sandbox_metrics)
    assert.deepEqual(streamed.map(({ pod_sandbox_id }) => pod_sandbox_id).sort(), pods.map(({ pod_sandbox_id }) => pod_sandbox_id).sort())
    const pod = pods.find(({ pod_sandbox_id }) => pod_sandbox_id === podId) ?? assert.fail('no metrics of the pod')
    assert.deepEqual(pod.container_metrics.map(({ container_id }) => container_id), [ids.loaded])
    const ofContainer = pod.container_metrics[0]?.metrics ?? []
    for (const { name, label_values } of [...pod.metrics, ...ofContainer]) assert.equal(label_values.length, keys.get(name)?.length, name)
    const value = (metrics: typeof ofContainer, name: string, labels: Readonly<Record<string, string>> = {}): number => {
      const found = metrics.filter((metric) => metric.name === name && Object.entries(labels).every(([key, wanted]) => metric.label_values[keys.get(name)?.indexOf(key) ?? -1] === wanted))
      assert.equal(found.length, 1, `${name} ${JSON.stringify(labels)}`)
      return number(found[0]?.value)
    }
    const stats = await statsOf(node.cri, ids.loaded)
    const labels = { container: 'loaded', pod: 'loaded', namespace: 'restart', name: ids.loaded, id: `${cgroupParent}/loaded/${ids.loaded}` }
    assert.equal(value(ofContainer, 'container_cpu_usage_seconds_total', { ...labels, cpu: 'total' }), Math.floor(number(stats.cpu?.usage_core_nano_seconds) / 1e9))
    within2Percent(value(ofContainer, 'container_memory_working_set_bytes', labels), number(stats.memory?.working_set_bytes), 'working set')
    within2Percent(value(ofContainer, 'container_memory_rss', labels), number(stats.memory?.rss_bytes), 'rss')
    assert.equal(value(ofContainer, 'container_fs_usage_bytes'), number(stats.writable_layer?.used_bytes))
    assert.equal(value(ofContainer, 'container_processes'), 3)
    assert.equal(value(ofContainer, 'container_spec_memory_limit_bytes'), 256 * megabyte)
    assert.deepEqual([value(ofContainer, 'container_spec_cpu_quota'), value(ofContainer, 'container_spec_cpu_period'), value(ofContainer, 'container_spec_cpu_shares')], [80_000, 100_000, 512])
    assert.ok(value(ofContainer, 'container_file_descriptors') >= 9, 'three processes with three each')
    assert.ok(value(ofContainer, 'container_ulimits_soft', { ulimit: 'max_open_files' }) >= 1024)
    assert.ok(value(ofContainer, 'container_start_time_seconds') > 1.7e9)
    assert.ok(value(pod.metrics, 'container_network_receive_bytes_total', { interface: 'eth0', container: '', pod: 'loaded' }) >= 3_000_000)
    assert.ok(value(pod.metrics, 'container_memory_usage_bytes', { container: '', name: '', id: `${cgroupParent}/loaded` }) >= value(ofContainer, 'container_memory_usage_bytes'))
  })

  it('tell image layers and writable layers apart, per image too', async () => {
    const { image_filesystems: [images], container_filesystems: [containers] } = await node.cri.image.ImageFsInfo({})
    const { image_filesystems: [its] } = await plugin.image.ImageFsInfo({})
    assert.deepEqual(images?.fs_id, its?.fs_id)
    within2Percent(number(images?.used_bytes) + number(containers?.used_bytes), number(its?.used_bytes), 'used bytes')
    within2Percent(number(images?.inodes_used) + number(containers?.inodes_used), number(its?.inodes_used), 'inodes')
    assert.ok(number(containers?.used_bytes) >= 23e6)
    const { info } = await node.cri.image.ImageStatus({ image: script('c', '').image ?? {}, verbose: true })
    const { usage } = JSON.parse(info['info'] ?? '{}') as { usage?: { bytes: number; inodes: number } }
    assert.ok((usage?.bytes ?? 0) > megabyte && (usage?.bytes ?? 0) <= number(images?.used_bytes))
  })
})

function number(value: { readonly value: string } | null | undefined): number {
  return value ? Number(value.value) : Number.NaN
}

/** A counter that was read in between. */
function between(first: Parameters<typeof number>[0], middle: Parameters<typeof number>[0], last: Parameters<typeof number>[0], what: string): void {
  assert.ok(number(first) <= number(middle) && number(middle) <= number(last), `${what}: ${number(first)} <= ${number(middle)} <= ${number(last)}`)
}

function within2Percent(ours: number, its: number, what: string): void {
  assert.ok(Math.abs(ours - its) <= 0.02 * its, `${what}: ${ours} instead of ${its}`)
}

async function send(host: string, port: number, bytes: number): Promise<void> {
  const socket = connect(port, host)
  await once(socket, 'connect')
  socket.end(Buffer.alloc(bytes))
  await once(socket, 'close')
}

/** The parents of the pods' cgroups are the caller's, as they are the kubelet's on a node. */
async function removeCgroupParents(): Promise<void> {
  const roots = ['/sys/fs/cgroup', ...(await readdir('/sys/fs/cgroup')).map((name) => join('/sys/fs/cgroup', name))]
  for (const root of roots) {
    for (const dir of [`${cgroupParent}/loaded`, cgroupParent]) {
      await rmdir(join(root, dir)).catch((error: NodeJS.ErrnoException) => { if (error.code !== 'ENOENT' && error.code !== 'ENOTDIR') throw error })
    }
  }
}
