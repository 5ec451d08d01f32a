import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { access, mkdir, readdir, readFile, readlink, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { get, type IncomingMessage } from 'node:http'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { after, afterEach, before, describe, it } from 'node:test'
import { NamespaceMode, PodSandboxState, Protocol } from '../../src/generated/cri.ts'
import { command, output } from '../fixtures/command.ts'
import { conflist } from '../fixtures/containerd.ts'
import { leakLines } from '../fixtures/leaks.ts'
import { busyboxImage, webServerImage } from '../images/catalog.ts'
import { eventually, exec, failureOf, podConfig, type PrivateNode, pull, removePods, restart, runPod, skipUnlessRoot, startContainer, startNode, writeNodeFile } from './private-node.ts'

interface Conflist {
  cniVersion: string
  name: string
  plugins: { type: string; capabilities?: Record<string, boolean>; ipMasq?: boolean }[]
}

/** The last plugin of the network: says that it was reached, waits or fails when it is told to, and passes the result on. */
function gatePlugin(dir: string): string {
  return `#!/bin/sh
input=$(cat)
[ "$CNI_COMMAND" = VERSION ] && { echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'; exit 0; }
[ "$CNI_COMMAND" = ADD ] || exit 0
if [ -e '${dir}/fail' ]; then
  echo '{"cniVersion":"1.0.0","code":117,"msg":"told to fail"}'
  exit 1
fi
if [ -p '${dir}/reached' ]; then
  echo "$CNI_CONTAINERID" > '${dir}/reached'
  cat '${dir}/go-on' > /dev/null
fi
printf '%s' "$input" | sed 's/.*"prevResult":\\(.*\\)}$/\\1/'
`
}

const template = `{"cniVersion":"1.0.0","name":"from-template","plugins":[{"type":"ptp","ipMasq":false,"ipam":{"type":"host-local","dataDir":"IPAM",
"ranges":[{{range $i, $range := .PodCIDRRanges}}{{if $i}},{{end}}[{"subnet":"{{$range}}"}]{{end}}],"routes":[{{range $i, $route := .Routes}}{{if $i}},{{end}}{"dst":"{{$route}}"}{{end}}]}}]}`

describe('pod networks', { skip: skipUnlessRoot }, () => {
  let node: PrivateNode
  let gate = ''
  let confFile = ''
  const write = async (change: (list: Conflist) => void = () => undefined): Promise<void> => {
    const list = JSON.parse(conflist(node.containerd.network)) as Conflist
    list.plugins.push({ type: 'bandwidth', capabilities: { bandwidth: true } }, { type: 'gate' })
    change(list)
    await writeNodeFile(confFile, JSON.stringify(list))
  }
  before(async () => {
    node = await startNode({
      dualStack: true,
      editConfig: async (toml, dir) => {
        const [bin, templateFile] = [join(dir, 'bin'), join(dir, 'template')]
        gate = join(dir, 'gate')
        for (const each of [gate, bin]) await mkdir(each)
        for (const name of await readdir('/usr/lib/cni')) await symlink(join('/usr/lib/cni', name), join(bin, name))
        await writeFile(join(bin, 'gate'), gatePlugin(gate), { mode: 0o755 })
        await writeFile(templateFile, template.replace('IPAM', join(dir, 'ipam')))
        return toml.replace(/bin_dir = .*/, `bin_dir = "${bin}"\n    conf_template = "${templateFile}"`)
      },
    })
    confFile = join(node.containerd.cniConfDir, '10-test.conflist')
    await write()
    await eventually('the whole network', async () => (await node.cri.runtime.Status({ verbose: true })).info['cniStatus']?.includes('gate'))
    for (const image of [busyboxImage, webServerImage]) await pull(node, image)
  })
  afterEach(async () => {
    for (const file of ['fail', 'reached', 'go-on']) await rm(join(gate, file), { force: true })
    // Every test leaves the node as it found it.
    const { items } = await node.cri.runtime.ListPodSandbox({})
    await removePods(node, ...items.map((item) => item.id))
    assert.deepEqual(leakLines(await node.containerd.leaks()), [])
    assert.deepEqual(await cached(), [])
    assert.deepEqual(await readdir(join(node.dir, 'shim-root', 'sandboxes')), [])
  })
  after(async () => {
    assert.deepEqual(await node.stop(), [])
  })

  const network = async (): Promise<{ status: boolean; reason: string; message: string }> => {
    const found = (await node.cri.runtime.Status({})).status?.conditions.find((condition) => condition.type === 'NetworkReady')
    assert.ok(found)
    return found
  }
  const networkIs = async (status: boolean, message = /(?:)/): Promise<void> => {
    await eventually(`NetworkReady ${status} ${message.source}`, async () => network().then((found) => found.status === status && message.test(found.message)))
  }
  const cached = async (): Promise<string[]> => (await readdir('/var/lib/cni/results').catch(() => [])).filter((name) => name.startsWith(node.containerd.network.name) || name.startsWith('from-template'))
  const addresses = async (id: string): Promise<string[]> => {
    const { status } = await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: id })
    return [status?.network?.ip ?? '', ...(status?.network?.additional_ips ?? []).map((additional) => additional.ip)].filter((ip) => ip !== '')
  }
  const fetchText = async (url: string): Promise<string> => {
    const request = get(url, { agent: false, timeout: 10_000 })
    request.once('timeout', () => request.destroy(new Error(`${url}: nothing came`)))
    const [response] = await once(request, 'response') as [IncomingMessage]
    return text(response)
  }
  const serve = async (config: ReturnType<typeof podConfig>): Promise<string> => {
    const pod = await runPod(node, config)
    const container = await startContainer(node, pod, config, { image: { image: webServerImage }, command: [] })
    await eventually('the server listens', async () => (await exec(node, container, 'cat', '/proc/net/tcp6', '/proc/net/tcp')).includes(':0050 '))
    return pod
  }
  /** Holds the next ADD in the last plugin; resolves with a function that lets it go on, once the plugin is reached. */
  async function hold(): Promise<{ reached: Promise<string>; goOn: () => Promise<void> }> {
    for (const name of ['reached', 'go-on']) await output('mkfifo', [join(gate, name)])
    return {
      reached: readFile(join(gate, 'reached'), 'utf8').then((id) => id.trim()),
      goOn: async () => {
        await rm(join(gate, 'reached'))
        await writeFile(join(gate, 'go-on'), 'go on\n')
      },
    }
  }

  it('waits for a network that is not configured yet, and finds it without a restart', async () => {
    await node.shim.end('SIGTERM')
    await rm(node.containerd.cniConfDir, { recursive: true })
    await restart(node)
    const config = podConfig(node)
    const { status, reason, message } = await network()
    assert.deepEqual([status, reason], [false, 'CNIConfigMissing'])
    assert.match(message, new RegExp(`no network conflist in ${node.containerd.cniConfDir} \\(the directory does not exist\\): install a CNI network add-on`))
    const failure = await failureOf(runPod(node, config))
    assert.match(failure, /^UNAVAILABLE: pod tests\/pod-\d+ \(step cni add\): .*no network conflist in .*install a CNI network add-on/)
    assert.deepEqual((await node.cri.runtime.ListPodSandbox({})).items, [])
    assert.deepEqual(leakLines(await node.containerd.leaks()), [])
    await write()
    await networkIs(true)
    await removePods(node, await runPod(node, config))
  })

  it('takes a changed configuration for new pods, and releases old ones by the old', async () => {
    const before = await runPod(node, podConfig(node))
    await write((list) => {
      list.name = `${list.name}-changed`
    })
    await eventually('the new network', async () => (await node.cri.runtime.Status({ verbose: true })).info['cniStatus']?.includes('-changed'))
    const later = podConfig(node)
    const now = await runPod(node, later)
    assert.equal((await readdir(node.containerd.network.ipamDir)).length, 2)
    await removePods(node, before, now)
    for (const name of await readdir(node.containerd.network.ipamDir)) {
      assert.deepEqual((await readdir(join(node.containerd.network.ipamDir, name))).filter((file) => /^\d|:/.test(file)), [], name)
    }
    await write()
    await eventually('the old network again', async () => !(await node.cri.runtime.Status({ verbose: true })).info['cniStatus']?.includes('-changed'))
  })

  it('says what is wrong with a configuration, and follows a directory that is recreated', async () => {
    const pod = await runPod(node, podConfig(node))
    await rename(node.containerd.cniConfDir, `${node.containerd.cniConfDir}.old`)
    await networkIs(false, /does not exist/)
    await writeNodeFile(confFile, '{"cniVersion": "0.4.0", "name": ')
    await networkIs(false, /10-test\.conflist/)
    assert.match(await failureOf(runPod(node, podConfig(node))), /^UNAVAILABLE: .*10-test\.conflist/)
    await write((list) => list.plugins.push({ type: 'no-such-plugin' }))
    await networkIs(false, /no-such-plugin/)
    assert.match(await failureOf(runPod(node, podConfig(node))), /^FAILED_PRECONDITION: .*no-such-plugin/)
    await rm(node.containerd.cniConfDir, { recursive: true })
    await rename(`${node.containerd.cniConfDir}.old`, node.containerd.cniConfDir)
    await networkIs(true, /^$/)
    await removePods(node, pod, await runPod(node, podConfig(node)))
  })

  it('gives a pod addresses of both families, at which it answers', async () => {
    const pod = await serve(podConfig(node))
    const [ip4 = '', ip6 = '', ...more] = await addresses(pod)
    assert.deepEqual(more, [])
    assert.equal(ip4.replace(/\.\d+$/, '.0/24'), node.containerd.network.subnet)
    assert.ok(ip6.startsWith(node.containerd.network.subnet6?.replace('/64', '') ?? '-'), ip6)
    assert.match(await fetchText(`http://${ip4}/`), /nginx/)
    assert.match(await fetchText(`http://[${ip6}]/`), /nginx/)
    const config = podConfig(node)
    const client = await runPod(node, config)
    const container = await startContainer(node, client, config)
    assert.match(await exec(node, container, 'wget', '-q', '-O', '-', `http://${ip4}/`), /nginx/)
  })

  it('maps host ports: from the node and from another pod', async () => {
    const hostPort = randomInt(20_000, 30_000)
    const pod = await serve(podConfig(node, { port_mappings: [{ protocol: Protocol.TCP, container_port: 80, host_port: hostPort }, { protocol: Protocol.UDP, container_port: 53, host_port: 0 }] }))
    assert.match(await fetchText(`http://127.0.0.1:${hostPort}/`), /nginx/)
    const config = podConfig(node)
    const client = await runPod(node, config)
    const container = await startContainer(node, client, config)
    const gateway = node.containerd.network.subnet.replace('.0/24', '.1')
    assert.match(await exec(node, container, 'wget', '-q', '-O', '-', `http://${gateway}:${hostPort}/`), /nginx/)
    await node.cri.runtime.StopPodSandbox({ pod_sandbox_id: pod })
    await assert.rejects(fetchText(`http://127.0.0.1:${hostPort}/`), /ECONNREFUSED/)
  })

  it('shares the network of the node when asked', async () => {
    const config = podConfig(node, { linux: { security_context: { namespace_options: { network: NamespaceMode.NODE } } } })
    const pod = await runPod(node, config)
    assert.deepEqual(await addresses(pod), [])
    const container = await startContainer(node, pod, config, { linux: { security_context: { namespace_options: { network: NamespaceMode.NODE } } } })
    assert.equal((await exec(node, container, 'readlink', '/proc/self/ns/net')).trim(), await readlink('/proc/self/ns/net'))
    assert.equal((await exec(node, container, 'hostname')).trim(), (await output('hostname', [])).trim())
    assert.deepEqual(await cached(), [])
  })

  it('gives addresses back when the pod is stopped, however often that is asked', async () => {
    const pod = await runPod(node, podConfig(node))
    assert.equal((await node.containerd.leaks()).addresses.length, 2)
    const { status } = await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod })
    assert.equal(status?.state, PodSandboxState.SANDBOX_READY)
    await Promise.all(Array.from({ length: 5 }, async () => node.cri.runtime.StopPodSandbox({ pod_sandbox_id: pod })))
    await node.cri.runtime.StopPodSandbox({ pod_sandbox_id: pod })
    const left = await node.containerd.leaks()
    assert.deepEqual([left.addresses, left.networkNamespaces, left.interfaces, left.processes, await cached()], [[], [], [], [], []])
    const stopped = await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod })
    assert.equal(stopped.status?.state, PodSandboxState.SANDBOX_NOTREADY)
    assert.deepEqual(await addresses(pod), [])
    for (let time = 0; time < 2; time++) await node.cri.runtime.RemovePodSandbox({ pod_sandbox_id: pod })
    await node.cri.runtime.StopPodSandbox({ pod_sandbox_id: pod })
    await node.cri.runtime.StopPodSandbox({ pod_sandbox_id: 'no-such-pod' })
    await node.cri.runtime.RemovePodSandbox({ pod_sandbox_id: 'no-such-pod' })
    assert.match(await failureOf(node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod })), /^NOT_FOUND: /)
  })

  it('stops a pod whose network namespace somebody has deleted', async () => {
    // The bridge plugin finds its masquerading rules by the addresses in the namespace: without it they stay, whoever runs it.
    const name = `${node.containerd.network.name}-plain`
    await write((list) => {
      list.name = name
      for (const plugin of list.plugins) if (plugin.ipMasq === true) plugin.ipMasq = false
    })
    await eventually('the network', async () => (await node.cri.runtime.Status({ verbose: true })).info['cniStatus']?.includes(name))
    const pod = await runPod(node, podConfig(node))
    const held = async (): Promise<string[]> => (await readdir(join(node.containerd.network.ipamDir, name))).filter((file) => /^\d|:/.test(file))
    assert.equal((await held()).length, 2)
    const { info } = await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod, verbose: true })
    const { netNamespacePath } = JSON.parse(info['info'] ?? '') as { netNamespacePath: string }
    await output('umount', [netNamespacePath])
    await rm(netNamespacePath)
    await node.cri.runtime.StopPodSandbox({ pod_sandbox_id: pod })
    assert.deepEqual(await held(), [])
    await write()
    await eventually('the old network again', async () => !(await node.cri.runtime.Status({ verbose: true })).info['cniStatus']?.includes(name))
  })

  it('takes a failed ADD back', async () => {
    await writeFile(join(gate, 'fail'), '')
    const config = podConfig(node, { port_mappings: [{ protocol: Protocol.TCP, container_port: 80, host_port: randomInt(20_000, 30_000) }], annotations: { 'kubernetes.io/ingress-bandwidth': '10M' } })
    assert.match(await failureOf(runPod(node, config)), /^INTERNAL: pod tests\/pod-\d+ \(step cni add\): .*plugin gate failed to ADD for pod tests\/pod-\d+: told to fail/)
    assert.deepEqual((await node.cri.runtime.ListPodSandbox({})).items, [])
    assert.deepEqual(leakLines(await node.containerd.leaks()), [])
    assert.deepEqual(await cached(), [])
    assert.doesNotMatch((await command('iptables-save', ['-t', 'nat'])).stdout, new RegExp(node.containerd.network.name))
    // The name is free again.
    await rm(join(gate, 'fail'))
    await runPod(node, config)
  })

  it('says of a name in use which step its call is in, and since when', async () => {
    const { reached, goOn } = await hold()
    const config = podConfig(node)
    const running = runPod(node, config)
    const id = await reached
    assert.match(await failureOf(runPod(node, config)), new RegExp(`^ALREADY_EXISTS: the name pod-\\d+_tests_.* is reserved for pod sandbox ${id}: RunPodSandbox in flight for [\\d.]+ s, step: .*cni add.*; wait for it$`))
    await goOn()
    assert.equal(await running, id)
    assert.match(await failureOf(runPod(node, config)), new RegExp(`^ALREADY_EXISTS: .*reserved for pod sandbox ${id}; remove that first`))
    const again = { ...config, metadata: { name: config.metadata?.name ?? '', uid: config.metadata?.uid ?? '', namespace: 'tests', attempt: 1 } }
    await runPod(node, again)
  })

  it('takes everything back when the client is gone in the middle', async () => {
    const { reached } = await hold()
    const config = podConfig(node)
    const leaving = new AbortController()
    const running = node.cri.runtime.RunPodSandbox({ config }, { signal: leaving.signal })
    await reached
    leaving.abort()
    assert.match(await failureOf(running), /^CANCELLED: /)
    const left = async (): Promise<string[]> => [...leakLines(await node.containerd.leaks()).filter((line) => !line.startsWith(`fifos: ${gate}`)), ...await cached()]
    await eventually('everything taken back', async () => (await left()).length === 0)
    for (const name of ['reached', 'go-on']) await rm(join(gate, name))
    await eventually('the name is free', async () => runPod(node, config).catch((error: unknown) => {
      assert.match(String(error), /in flight/)
      return undefined
    }))
  })

  it('limits bandwidth as annotated', async () => {
    const config = podConfig(node, { annotations: { 'kubernetes.io/ingress-bandwidth': '8M', 'kubernetes.io/egress-bandwidth': '16M' } })
    await runPod(node, config)
    const shaped = await output('tc', ['-d', 'qdisc', 'show'])
    assert.match(shaped, /qdisc tbf .*rate 8Mbit/)
    assert.match(shaped, /qdisc tbf .*rate 16Mbit/)
    assert.match(await failureOf(runPod(node, podConfig(node, { annotations: { 'kubernetes.io/ingress-bandwidth': 'fast' } }))), /^INVALID_ARGUMENT: .*kubernetes\.io\/ingress-bandwidth.*"fast"/)
  })

  it('makes its network from the template when it is told the pod CIDR', async () => {
    const update = async (pod_cidr: string): Promise<unknown> => node.cri.runtime.UpdateRuntimeConfig({ runtime_config: { network_config: { pod_cidr } } })
    const generated = join(node.containerd.cniConfDir, '10-containerd-net.conflist')
    const { subnet, subnet6 = '' } = node.containerd.network
    await update(subnet)
    await assert.rejects(access(generated), 'a network is configured already')
    await rm(confFile)
    await networkIs(false)
    for (const wrong of ['10.0.0.0', '10.0.0.0/40', 'x/24', 'fd00::/200']) assert.match(await failureOf(update(wrong)), /^INVALID_ARGUMENT: pod CIDR/, wrong)
    assert.match(await failureOf(node.cri.runtime.UpdateRuntimeConfig({})), /^INVALID_ARGUMENT: /)
    await update('')
    await assert.rejects(access(generated))
    await update(`${subnet},${subnet6}`)
    const { status } = await network()
    assert.equal(status, true)
    const pod = await runPod(node, podConfig(node))
    const [ip4 = '', ip6 = ''] = await addresses(pod)
    assert.equal(ip4.replace(/\.\d+$/, '.0/24'), subnet)
    assert.ok(ip6.startsWith(subnet6.replace('/64', '')))
    await removePods(node, pod)
    await rm(generated)
    await write()
    await networkIs(true)
  })

  it('makes and removes thirty pods, six at once, without a trace', async () => {
    const work = Array.from({ length: 30 }, () => podConfig(node, { port_mappings: [{ protocol: Protocol.TCP, container_port: 80, host_port: 0 }] }))
    const seen = new Set<string>()
    await Promise.all(Array.from({ length: 6 }, async () => {
      for (let config = work.pop(); config !== undefined; config = work.pop()) {
        const pod = await runPod(node, config)
        const own = await addresses(pod)
        assert.equal(own.length, 2)
        seen.add(pod)
        await removePods(node, pod)
      }
    }))
    assert.equal(seen.size, 30)
    assert.deepEqual((await node.cri.runtime.ListPodSandbox({})).items, [])
  })
})
