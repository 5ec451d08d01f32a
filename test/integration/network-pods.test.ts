import assert from 'node:assert/strict'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, afterEach, before, describe, it } from 'node:test'
import { MountPropagation, NamespaceMode, type PodSandboxConfig, PodSandboxState, type RunPodSandboxRequest } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { output } from '../fixtures/command.ts'
import { leakLines } from '../fixtures/leaks.ts'
import { busyboxImage } from '../images/catalog.ts'
import { exec, failureOf, podConfig, type PrivateNode, pull, removePods, restart, runPod, skipUnlessRoot, startContainer, startNode } from './private-node.ts'

const cri = 'plugins."io.containerd.grpc.v1.cri"'
const second = (state: string): string => `[${cri}.containerd.runtimes.second]\n  runtime_type = "io.containerd.runc.v2"\n  snapshotter = "native"\n  [${cri}.containerd.runtimes.second.options]\n    Root = "${state}/runc-second"\n`

describe('pods', { skip: skipUnlessRoot }, () => {
  let node: PrivateNode
  before(async () => {
    node = await startNode({ editConfig: async (toml, dir) => `${toml}\n${second(join(dir, 'state'))}` })
    await pull(node, busyboxImage)
  })
  afterEach(async () => {
    const { items } = await node.cri.runtime.ListPodSandbox({})
    await removePods(node, ...items.map((item) => item.id))
    assert.deepEqual(leakLines(await node.containerd.leaks()), [])
  })
  after(async () => {
    assert.deepEqual(await node.stop(), [])
  })

  it('have the hostname, hosts, DNS and shared memory that they ask for, in every container', async () => {
    const config = podConfig(node, {
      hostname: 'my-host.example',
      dns_config: { servers: ['10.96.0.10', 'fd00::a'], searches: ['a.svc', 'svc'], options: ['ndots:5', 'edns0'] },
    })
    const pod = await runPod(node, config)
    const [one, two] = [await startContainer(node, pod, config), await startContainer(node, pod, config)]
    for (const container of [one, two]) {
      assert.equal(await exec(node, container, 'hostname'), 'my-host.example\n')
      assert.equal(await exec(node, container, 'cat', '/etc/hostname'), 'my-host.example\n')
      assert.equal(await exec(node, container, 'cat', '/etc/resolv.conf'), 'search a.svc svc\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5 edns0\n')
      assert.equal(await exec(node, container, 'cat', '/etc/hosts'), await readFile('/etc/hosts', 'utf8'))
      assert.match(await exec(node, container, 'df', '-k', '/dev/shm'), /\s65536\s/)
      assert.match(await exec(node, container, 'stat', '-c', '%a', '/dev/shm'), /^1777$/m)
    }
    await exec(node, one, 'sh', '-c', 'echo shared > /dev/shm/file')
    assert.equal(await exec(node, two, 'cat', '/dev/shm/file'), 'shared\n')
    // A container may have its own, as the kubelet gives it /etc/hosts.
    const own = join(node.dir, 'own-hosts')
    await writeFile(own, '127.0.0.1 own\n')
    const third = await startContainer(node, pod, config, { mounts: [{ host_path: own, container_path: '/etc/hosts', propagation: MountPropagation.PROPAGATION_PRIVATE }] })
    assert.equal(await exec(node, third, 'cat', '/etc/hosts'), '127.0.0.1 own\n')
  })

  it('without a DNS configuration have that of the node, with an empty one none', async () => {
    const [plain, empty] = [podConfig(node), podConfig(node, { dns_config: {} })]
    const [first, other] = [await runPod(node, plain), await runPod(node, empty)]
    assert.equal(await exec(node, await startContainer(node, first, plain), 'cat', '/etc/resolv.conf'), await readFile('/etc/resolv.conf', 'utf8'))
    assert.equal(await exec(node, await startContainer(node, other, empty), 'cat', '/etc/resolv.conf'), '')
  })

  it('share the IPC namespace and the shared memory of the node when asked', async () => {
    const options = { namespace_options: { ipc: NamespaceMode.NODE, network: NamespaceMode.POD, pid: NamespaceMode.CONTAINER } }
    const config = podConfig(node, { linux: { security_context: options } })
    const pod = await runPod(node, config)
    const container = await startContainer(node, pod, config, { linux: { security_context: options } })
    const name = `cri-shim-${process.pid}`
    await writeFile(join('/dev/shm', name), 'node')
    try {
      assert.equal(await exec(node, container, 'cat', `/dev/shm/${name}`), 'node')
    } finally {
      await output('rm', [join('/dev/shm', name)])
    }
  })

  it('give back what they were given, and are found by every filter', async () => {
    const labels = { app: 'web', 'example.com/tier': 'front', empty: '', long: 'x'.repeat(63) }
    const annotations = { 'example.com/json': '{"a": ["ü", "\\n"]}', long: 'y'.repeat(100_000), empty: '' }
    const config = podConfig(node, { labels, annotations })
    const [pod, other] = [await runPod(node, config), await runPod(node, podConfig(node, { labels: { app: 'db' } }))]
    await node.cri.runtime.StopPodSandbox({ pod_sandbox_id: other })
    const { status, containers_statuses, timestamp } = await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod })
    assert.deepEqual([{ ...status?.labels }, { ...status?.annotations }, { ...status?.metadata }], [labels, annotations, { ...config.metadata }])
    assert.deepEqual(containers_statuses, [])
    assert.ok(BigInt(timestamp) > BigInt(status?.created_at ?? 0))
    const found = async (filter: NonNullable<Parameters<typeof node.cri.runtime.ListPodSandbox>[0]['filter']>): Promise<string[]> => {
      const listed = (await node.cri.runtime.ListPodSandbox({ filter })).items
      const streamed = []
      for await (const page of node.cri.runtime.StreamPodSandboxes({ filter })) streamed.push(...page.pod_sandboxes)
      assert.deepEqual(streamed, listed)
      return listed.map((item) => item.id).sort()
    }
    const both = [pod, other].sort()
    assert.deepEqual(await found({}), both)
    assert.deepEqual(await found({ id: pod }), [pod])
    assert.deepEqual(await found({ id: pod.slice(0, 13) }), [pod])
    assert.deepEqual(await found({ id: 'zzz' }), [])
    assert.deepEqual(await found({ state: { state: PodSandboxState.SANDBOX_READY } }), [pod])
    assert.deepEqual(await found({ state: { state: PodSandboxState.SANDBOX_NOTREADY } }), [other])
    assert.deepEqual(await found({ label_selector: { app: 'web' } }), [pod])
    assert.deepEqual(await found({ label_selector: { app: 'web', empty: '' } }), [pod])
    assert.deepEqual(await found({ label_selector: { app: 'web', missing: '' } }), [])
    assert.deepEqual(await found({ id: other.slice(0, 8), label_selector: { app: 'db' }, state: { state: PodSandboxState.SANDBOX_NOTREADY } }), [other])
    assert.deepEqual(await found({ id: other, label_selector: { app: 'web' } }), [])
    const [item] = (await node.cri.runtime.ListPodSandbox({ filter: { id: pod } })).items
    assert.deepEqual([{ ...item?.labels }, { ...item?.annotations }, { ...item?.metadata }], [labels, annotations, { ...config.metadata }])
    // The same after a start.
    await node.shim.end('SIGKILL')
    await restart(node)
    const again = await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod.slice(0, 12) })
    assert.deepEqual(again.status, status)
    assert.deepEqual(await found({ state: { state: PodSandboxState.SANDBOX_READY } }), [pod])
  })

  it('tell everything when asked verbosely', async () => {
    const pod = await runPod(node, podConfig(node, { hostname: 'verbose' }))
    const { info, status } = await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod, verbose: true })
    const shown = JSON.parse(info['info'] ?? '') as { pid: number; image: string; netNamespacePath: string; runtimeSpec: { hostname: string }; runtimeType: string; cniResult: { Interfaces: Record<string, { IPConfigs: { IP: string }[] | null }> } }
    assert.equal(shown.runtimeSpec.hostname, 'verbose')
    assert.equal(shown.runtimeType, 'io.containerd.runc.v2')
    assert.ok((await stat(`/proc/${shown.pid}`)).isDirectory())
    assert.ok((await stat(shown.netNamespacePath)).isFile())
    assert.deepEqual(shown.cniResult.Interfaces['eth0']?.IPConfigs?.map((each) => each.IP), [status?.network?.ip])
  })

  it('run under every configured runtime handler and under no other', async () => {
    const { runtime_handlers } = await node.cri.runtime.Status({})
    assert.deepEqual(runtime_handlers.map((handler) => handler.name).sort(), ['', 'runc', 'second'])
    for (const handler of ['', 'runc', 'second']) {
      const config = podConfig(node)
      const pod = await runPod(node, config, handler)
      const { status } = await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod })
      assert.equal(status?.runtime_handler, handler)
      assert.equal((await node.cri.runtime.ListPodSandbox({ filter: { id: pod } })).items[0]?.runtime_handler, handler)
      await exec(node, await startContainer(node, pod, config), 'true')
      const record = await node.api.containers.get(node.ctx, pod)
      assert.equal(record?.snapshotter, handler === 'second' ? 'native' : 'overlayfs')
    }
    assert.match(await failureOf(runPod(node, podConfig(node), 'third')), /^INVALID_ARGUMENT: runtime handler "third" is not configured on this node; there are runc, second$/)
  })

  it('can be stopped and removed after their runtime handler is gone from the configuration', async () => {
    const config = podConfig(node)
    const pod = await runPod(node, config, 'second')
    await startContainer(node, pod, config)
    const before = await readFile(node.configFile, 'utf8')
    await node.shim.end('SIGTERM')
    await writeFile(node.configFile, before.slice(0, before.indexOf(`[${cri}.containerd.runtimes.second]`)))
    await restart(node)
    try {
      assert.equal((await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod })).status?.state, PodSandboxState.SANDBOX_READY)
      await node.cri.runtime.ListContainerStats({})
      assert.match(await failureOf(startContainer(node, pod, config)), /^(INVALID_ARGUMENT|FAILED_PRECONDITION): .*"second"/)
      await node.cri.runtime.StopPodSandbox({ pod_sandbox_id: pod })
      await node.cri.runtime.RemovePodSandbox({ pod_sandbox_id: pod })
      assert.deepEqual((await node.cri.runtime.ListPodSandbox({})).items, [])
      assert.equal(await node.api.snapshots.stat(node.ctx, 'native', pod), undefined)
    } finally {
      await node.shim.end('SIGTERM')
      await writeFile(node.configFile, before)
      await restart(node)
    }
  })

  const metadata = { name: 'bad', uid: 'u', namespace: 'tests', attempt: 0 }
  const pod = (more: Init<PodSandboxConfig>): Init<RunPodSandboxRequest> => ({ config: { metadata, ...more } })
  const namespaces = (options: { network?: number; pid?: number; ipc?: number }): Init<RunPodSandboxRequest> => pod({ linux: { security_context: { namespace_options: { network: 0, pid: 1, ipc: 0, ...options } } } })
  const bad: readonly [string, Init<RunPodSandboxRequest>, RegExp][] = [
    ['no configuration', {}, /config is missing/],
    ['no metadata', { config: {} }, /config\.metadata is missing/],
    ['no name', pod({ metadata: { ...metadata, name: '' } }), /metadata\.name is empty/],
    ['no uid', pod({ metadata: { ...metadata, uid: '' } }), /metadata\.uid is empty/],
    ['no namespace', pod({ metadata: { ...metadata, namespace: '' } }), /metadata\.namespace is empty/],
    ['a slash in the name', pod({ metadata: { ...metadata, name: 'a/b' } }), /metadata\.name "a\/b"/],
    ['a semicolon in the name', pod({ metadata: { ...metadata, name: 'a;K8S_POD_NAME=b' } }), /a;K8S_POD_NAME=b/],
    ['a long name', pod({ metadata: { ...metadata, name: 'x'.repeat(254) } }), /longer than 253/],
    ['a label that containerd cannot keep', pod({ labels: { big: 'x'.repeat(5000) } }), /config\.labels: the label big/],
    ['a label of the runtime', pod({ labels: { 'io.cri-containerd.kind': 'container' } }), /reserved for the runtime/],
    ['a hostname with spaces', pod({ hostname: 'a b' }), /hostname "a b"/],
    ['a long hostname', pod({ hostname: 'x'.repeat(65) }), /hostname/],
    ['a hostname of hyphens', pod({ hostname: '-' }), /hostname "-"/],
    ['a hostname on the network of the node', pod({ hostname: 'mine', linux: { security_context: { namespace_options: { network: NamespaceMode.NODE } } } }), /hostname "mine"/],
    ['a DNS server with a line break', pod({ dns_config: { servers: ['1.1.1.1\nnameserver 6.6.6.6'] } }), /dns_config\.servers/],
    ['an empty search domain', pod({ dns_config: { searches: [''] } }), /dns_config\.searches/],
    ['a DNS option of two words', pod({ dns_config: { options: ['a b'] } }), /dns_config\.options/],
    ['a network that is none', namespaces({ network: 17 }), /namespace_options\.network/],
    ['the network of a container', namespaces({ network: NamespaceMode.CONTAINER }), /namespace_options\.network/],
    ['processes of a target', namespaces({ pid: NamespaceMode.TARGET }), /namespace_options\.pid/],
    ['a host port that is none', pod({ port_mappings: [{ container_port: 80, host_port: 70_000 }] }), /port_mappings.*70000/],
    ['a container port that is none', pod({ port_mappings: [{ container_port: -1, host_port: 80 }] }), /port_mappings.*-1/],
    ['a negative host port', pod({ port_mappings: [{ container_port: 80, host_port: -80 }] }), /port_mappings.*-80/],
    ['a protocol that is none', pod({ port_mappings: [{ protocol: 9, container_port: 80, host_port: 8080 }] }), /port_mappings.*9/],
    ['a host address that is none', pod({ port_mappings: [{ container_port: 80, host_port: 8080, host_ip: 'localhost' }] }), /port_mappings.*"localhost"/],
    ['a Windows pod', pod({ windows: {} }), /windows/],
    ['a parent cgroup above the root', pod({ linux: { cgroup_parent: '../../..' } }), /cgroup_parent/],
    ['a sysctl of the node', pod({ linux: { sysctls: { 'kernel.panic': '1' } } }), /kernel\.panic/],
  ]
  for (const [what, request, expected] of bad) {
    it(`are refused with ${what}`, async () => {
      const failure = await failureOf(node.cri.runtime.RunPodSandbox(request))
      assert.match(failure, /^INVALID_ARGUMENT: /)
      assert.match(failure, expected)
      assert.deepEqual((await node.cri.runtime.ListPodSandbox({})).items, [])
    })
  }

  it('are refused to those who ask for what is not there', async () => {
    for (const pod_sandbox_id of ['', 'nothing']) {
      assert.match(await failureOf(node.cri.runtime.PodSandboxStatus({ pod_sandbox_id })), /^(NOT_FOUND|INVALID_ARGUMENT): no pod sandbox/)
      assert.match(await failureOf(node.cri.runtime.CreateContainer({ pod_sandbox_id, config: { metadata: { name: 'c' }, image: { image: busyboxImage } }, sandbox_config: { metadata } })), /^(NOT_FOUND|INVALID_ARGUMENT): no pod sandbox/)
    }
    const config = podConfig(node)
    const pod = await runPod(node, config)
    const create = async (more: object): Promise<string> => failureOf(node.cri.runtime.CreateContainer({ pod_sandbox_id: pod, sandbox_config: config, config: { metadata: { name: 'c', attempt: 0 }, image: { image: busyboxImage }, ...more } }))
    assert.match(await create({ metadata: null }), /^INVALID_ARGUMENT: config\.metadata is missing/)
    assert.match(await create({ metadata: { name: '' } }), /^INVALID_ARGUMENT: config\.metadata\.name is empty/)
    assert.match(await create({ image: null }), /^INVALID_ARGUMENT: config\.image is missing/)
    assert.match(await create({ image: { image: 'Not An Image' } }), /^INVALID_ARGUMENT: image name/)
    assert.match(await create({ image: { image: 'not-here' } }), /^NOT_FOUND: image not-here is not on this node: pull it first/)
    for (let round = 0; round < 5; round++) {
      assert.match(await failureOf(startContainer(node, pod, config, { command: ['/no-such-program'] })), /no-such-program/)
      const { containers } = await node.cri.runtime.ListContainers({ filter: { pod_sandbox_id: pod } })
      for (const { id } of containers) await node.cri.runtime.RemoveContainer({ container_id: id })
    }
    await exec(node, await startContainer(node, pod, config), 'true')
    await node.cri.runtime.StopPodSandbox({ pod_sandbox_id: pod })
    assert.match(await create({}), /^FAILED_PRECONDITION: .*not ready/)
  })
})
