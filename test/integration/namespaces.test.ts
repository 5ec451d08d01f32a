import assert from 'node:assert/strict'
import { readFile, readlink } from 'node:fs/promises'
import { hostname } from 'node:os'
import { after, before, describe, it } from 'node:test'
import { type NamespaceOption, NamespaceMode, type PodSandboxConfig } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { busyboxImage } from '../images/catalog.ts'
import { exec, failureOf, podConfig, type PrivateNode, pull, removePods, runPod, skipUnlessRoot, startContainer, startNode } from './private-node.ts'

const { POD, CONTAINER, NODE, TARGET } = NamespaceMode
const kinds = ['net', 'ipc', 'uts', 'pid', 'mnt', 'user'] as const
type Namespaces = Readonly<Record<typeof kinds[number], string>>

describe('namespaces', { skip: skipUnlessRoot }, () => {
  let node: PrivateNode
  const pods: string[] = []

  before(async () => {
    node = await startNode()
    await pull(node, busyboxImage)
  })
  after(async () => {
    if (node === undefined) return
    await removePods(node, ...pods)
    assert.deepEqual(await node.stop(), [])
  })

  const run = async (options: Init<NamespaceOption>, more: Init<PodSandboxConfig> = {}): Promise<{ readonly id: string; readonly config: Init<PodSandboxConfig> }> => {
    const config = podConfig(node, { ...more, linux: { ...more.linux, security_context: { namespace_options: options } } })
    const id = await runPod(node, config)
    pods.push(id)
    return { id, config }
  }
  const start = async (pod: Awaited<ReturnType<typeof run>>, options: Init<NamespaceOption>): Promise<string> =>
    startContainer(node, pod.id, pod.config, { linux: { security_context: { namespace_options: options } } })
  const of = async (id: string): Promise<Namespaces> => {
    const links = (await exec(node, id, 'sh', '-c', `for kind in ${kinds.join(' ')}; do readlink /proc/self/ns/$kind; done`)).trim().split('\n')
    return named(links)
  }
  const ofNode = async (): Promise<Namespaces> => named(await Promise.all(kinds.map((kind) => readlink(`/proc/self/ns/${kind}`))))

  it('POD and CONTAINER: what containers of a pod share, and with nobody else', async () => {
    const [pod, other] = [await run({ pid: POD }), await run({ pid: CONTAINER })]
    const [first, second, alone] = [await of(await start(pod, { pid: POD })), await of(await start(pod, { pid: POD })), await of(await start(pod, { pid: CONTAINER }))]
    const elsewhere = await of(await start(other, { pid: CONTAINER }))
    const host = await ofNode()
    assert.deepEqual({ ...first, mnt: '' }, { ...second, mnt: '' })
    assert.deepEqual({ ...first, mnt: '', pid: '' }, { ...alone, mnt: '', pid: '' })
    assert.notEqual(first.pid, alone.pid)
    for (const [one, two] of [[first, elsewhere], [first, host], [alone, elsewhere], [elsewhere, host]] as const) {
      for (const kind of ['net', 'ipc', 'uts', 'pid', 'mnt'] as const) assert.notEqual(one[kind], two[kind], kind)
    }
    assert.equal(first.user, host.user)
  })

  it('TARGET: a container among the processes of another one', async () => {
    const pod = await run({ pid: CONTAINER })
    const target = await start(pod, { pid: CONTAINER })
    const debug = await start(pod, { pid: TARGET, target_id: target })
    assert.equal((await of(debug)).pid, (await of(target)).pid)
    assert.match(await exec(node, debug, 'cat', '/proc/1/cmdline'), /^sleep/)
    await node.cri.runtime.StopContainer({ container_id: target, timeout: '0' })
    const late = node.cri.runtime.CreateContainer({ pod_sandbox_id: pod.id, sandbox_config: pod.config, config: {
      metadata: { name: 'late', attempt: 0 }, image: { image: busyboxImage }, linux: { security_context: { namespace_options: { pid: TARGET, target_id: target } } },
    } })
    assert.match(await failureOf(late), /^FAILED_PRECONDITION: .*does not run/)
  })

  it('NODE: the processes, IPC objects and network of the node', async () => {
    const options = { network: NODE, pid: NODE, ipc: NODE }
    const pod = await run(options)
    const id = await start(pod, options)
    const [own, host] = [await of(id), await ofNode()]
    assert.deepEqual({ ...own, mnt: '' }, { ...host, mnt: '' })
    assert.equal(await exec(node, id, 'hostname'), `${hostname()}\n`)
    assert.equal((await exec(node, id, 'cat', '/etc/hostname')).trim(), hostname())
    assert.equal(await exec(node, id, 'cat', `/proc/${process.pid}/comm`), await readFile('/proc/self/comm', 'utf8'))
  })

  it('NODE is the pod\'s to say: a container gets no more than that has', async () => {
    const pod = await run({ pid: POD })
    for (const kind of ['network', 'pid', 'ipc'] as const) {
      const create = node.cri.runtime.CreateContainer({ pod_sandbox_id: pod.id, sandbox_config: pod.config, config: {
        metadata: { name: `more-${kind}`, attempt: 0 }, image: { image: busyboxImage }, linux: { security_context: { namespace_options: { [kind]: NODE } } },
      } })
      assert.match(await failureOf(create), new RegExp(`^INVALID_ARGUMENT: .*${kind} namespace mode NODE, but its pod`))
    }
  })

  it('sysctls of a namespace of the pod are set in it, and stay as they are on the node', async () => {
    const sysctls = { 'net.ipv4.ip_local_port_range': '40000 40001', 'kernel.shm_rmid_forced': '1', 'fs.mqueue.msg_max': '20', 'net/ipv4/tcp_syncookies': '0', 'kernel.msgmax': '4096' }
    const before = await readFile('/proc/sys/net/ipv4/ip_local_port_range', 'utf8')
    const pod = await run({ pid: POD }, { linux: { sysctls } })
    const id = await start(pod, { pid: POD })
    for (const [name, value] of Object.entries(sysctls)) assert.equal((await exec(node, id, 'cat', `/proc/sys/${name.replaceAll('.', '/')}`)).trim().replaceAll('\t', ' '), value, name)
    assert.equal(await readFile('/proc/sys/net/ipv4/ip_local_port_range', 'utf8'), before)
  })

  it('a user namespace on the node\'s network', async () => {
    assert.equal((await node.cri.runtime.Status({})).features?.user_namespaces_host_network, true)
    const ids = [{ container_id: 0, host_id: 500_000, length: 65_536 }]
    const options = { network: NODE, userns_options: { mode: POD, uids: ids, gids: ids } }
    const pod = await run(options)
    const id = await start(pod, options)
    const [own, host] = [await of(id), await ofNode()]
    assert.equal(own.net, host.net)
    assert.notEqual(own.user, host.user)
    assert.match(await exec(node, id, 'cat', '/proc/self/uid_map'), /^\s*0\s+500000\s+65536\n$/)
    assert.notEqual(await exec(node, id, 'ls', '/sys/class/net'), '')
    // What is the node's is for reading alone: its sysfs, with everything below it, and the cgroups.
    const mounts = (await exec(node, id, 'cat', '/proc/mounts')).trim().split('\n').map((line) => line.split(' '))
    const kernel = mounts.filter(([, , type = '']) => type === 'sysfs' || type.startsWith('cgroup'))
    assert.ok(kernel.length > 1)
    for (const [, target = '', , flags = ''] of kernel) assert.ok(flags.split(',').includes('ro'), `${target} is writable`)
  })
})

/** The links in the order of `kinds`. */
function named([net = '', ipc = '', uts = '', pid = '', mnt = '', user = '']: readonly string[]): Namespaces {
  return { net, ipc, uts, pid, mnt, user }
}
