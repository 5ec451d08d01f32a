import assert from 'node:assert/strict'
import { chown, mkdir, readFile, readlink, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { type ContainerConfig, MountPropagation, NamespaceMode, type PodSandboxConfig, type UserNamespace } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { command } from '../fixtures/command.ts'
import { busyboxImage } from '../images/catalog.ts'
import { eventually, exec, failureOf, podConfig, type PrivateNode, pull, removePods, restart, runPod, skipUnlessRoot, startContainer, startNode } from './private-node.ts'

const hostBase = 300_000
const size = 65_536
const ids = [{ container_id: 0, host_id: hostBase, length: size }]
const userns: Init<UserNamespace> = { mode: NamespaceMode.POD, uids: ids, gids: ids }

describe('pods with a user namespace', { skip: skipUnlessRoot }, () => {
  let node: PrivateNode
  let podId = ''
  let pod: Init<PodSandboxConfig>
  let id = ''
  let volume = ''

  const inPod = (options: Init<UserNamespace> = userns): Init<PodSandboxConfig> => podConfig(node, { hostname: 'web', linux: { security_context: { namespace_options: { userns_options: options } } } })
  const container = (more: Init<ContainerConfig> = {}): Init<ContainerConfig> => ({ ...more, linux: { ...more.linux, security_context: { ...more.linux?.security_context, namespace_options: { userns_options: userns } } } })

  before(async () => {
    node = await startNode()
    await pull(node, busyboxImage)
    volume = join(node.dir, 'volume')
    await mkdir(volume)
    await writeFile(join(volume, 'of-root'), 'hello')
    await writeFile(join(volume, 'of-1000'), '')
    await chown(join(volume, 'of-1000'), 1000, 1000)
    pod = inPod()
    podId = await runPod(node, pod)
    id = await startContainer(node, podId, pod, container({
      mounts: [{ container_path: '/data', host_path: volume, propagation: MountPropagation.PROPAGATION_PRIVATE, uidMappings: ids, gidMappings: ids }, { container_path: '/file', host_path: join(volume, 'of-root'), uidMappings: ids, gidMappings: ids }],
    }))
  })
  after(async () => {
    if (node === undefined) return
    assert.deepEqual(await node.stop(), [])
  })

  it('are possible here, as Status says', async () => {
    const { runtime_handlers: handlers } = await node.cri.runtime.Status({})
    const runc = handlers.find(({ name }) => name === 'runc')
    assert.deepEqual(runc?.features, { recursive_read_only_mounts: true, user_namespaces: true })
    assert.deepEqual(handlers.find(({ name }) => name === '')?.features, runc.features)
  })

  it('have the ids of their mapping, and the files of the image belong to the right ones', async () => {
    assert.match(await exec(node, id, 'cat', '/proc/self/uid_map'), /^\s*0\s+300000\s+65536\n$/)
    assert.match(await exec(node, id, 'cat', '/proc/self/gid_map'), /^\s*0\s+300000\s+65536\n$/)
    assert.equal(await exec(node, id, 'id', '-u'), '0\n')
    assert.equal(await exec(node, id, 'stat', '-c', '%u:%g', '/', '/bin', '/bin/busybox', '/etc/hosts', '/etc/resolv.conf', '/etc/hostname', '/dev/shm'), '0:0\n'.repeat(7))
    // On the node the process is an ordinary user without any capability.
    const pid = (await node.cri.runtime.ContainerStatus({ container_id: id, verbose: true })).info['info'] ?? '{}'
    const status = await readFile(`/proc/${(JSON.parse(pid) as { pid: number }).pid}/status`, 'utf8')
    assert.match(status, /^Uid:\s+300000\s/m)
  })

  it('write to their root file system, their files and /dev/shm', async () => {
    await exec(node, id, 'sh', '-c', 'echo x > /made && echo x > /bin/made && echo x > /dev/shm/made && echo "10.0.0.1 other" >> /etc/hosts && chown 1000:1000 /made && mkdir /d && mv /bin/made /d')
    assert.equal(await exec(node, id, 'stat', '-c', '%u:%g', '/made', '/d/made', '/dev/shm/made'), '1000:1000\n0:0\n0:0\n')
    await exec(node, id, 'sh', '-c', 'mkdir /tmpdir && mount -t tmpfs none /tmpdir 2>/dev/null || true; hostname')
  })

  it('own their network namespace', async () => {
    const { status } = await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: podId })
    assert.match(status?.network?.ip ?? '', /^10\./)
    assert.match(await exec(node, id, 'cat', '/sys/class/net/eth0/operstate'), /up|unknown/)
    assert.match(await exec(node, id, 'ip', 'addr', 'show', 'lo'), /127\.0\.0\.1/)
  })

  it('see volumes with their own ids, and what they write there is root\'s on the node', async () => {
    assert.equal(await exec(node, id, 'stat', '-c', '%u', '/data', '/data/of-root', '/data/of-1000', '/file'), '0\n0\n1000\n0\n')
    await exec(node, id, 'sh', '-c', 'echo x > /data/made && chown 7:8 /data/made && echo more >> /file')
    const made = await stat(join(volume, 'made'))
    assert.deepEqual([made.uid, made.gid], [7, 8])
    assert.equal(await readFile(join(volume, 'of-root'), 'utf8'), 'hellomore\n')
  })

  it('see images that they mount with their own ids', async () => {
    const other = await startContainer(node, podId, pod, container({ mounts: [{ container_path: '/image', image: { image: busyboxImage }, readonly: true }, { container_path: '/sub', image: { image: busyboxImage }, image_sub_path: 'bin/busybox', readonly: true }] }))
    assert.equal(await exec(node, other, 'stat', '-c', '%u:%g', '/image', '/image/bin/busybox', '/sub'), '0:0\n'.repeat(3))
    await node.cri.runtime.StopContainer({ container_id: other, timeout: '0' })
    await node.cri.runtime.RemoveContainer({ container_id: other })
  })

  it('give a program that is not root its output', async () => {
    const other = await startContainer(node, podId, pod, container({ command: ['sh', '-c', 'echo out > /dev/stdout; echo err > /dev/stderr; id -u; sleep 100000'], linux: { security_context: { run_as_user: { value: '1000' } } } }))
    const path = (await node.cri.runtime.ContainerStatus({ container_id: other })).status?.log_path ?? ''
    await eventually('the output', async () => (await readFile(path, 'utf8')).includes(' F 1000\n'))
    for (const line of [/ stdout F out$/m, / stderr F err$/m, / stdout F 1000$/m]) assert.match(await readFile(path, 'utf8'), line)
    assert.equal(await exec(node, other, 'id', '-u'), '1000\n')
    await node.cri.runtime.StopContainer({ container_id: other, timeout: '0' })
    await node.cri.runtime.RemoveContainer({ container_id: other })
  })

  it('share one user namespace, which is not the node\'s', async () => {
    const other = await startContainer(node, podId, pod, container())
    const own = await readlink('/proc/self/ns/user')
    const [first, second] = [await exec(node, id, 'readlink', '/proc/self/ns/user'), await exec(node, other, 'readlink', '/proc/self/ns/user')]
    assert.equal(first, second)
    assert.notEqual(first.trim(), own)
    await node.cri.runtime.StopContainer({ container_id: other, timeout: '0' })
    await node.cri.runtime.RemoveContainer({ container_id: other })
  })

  it('leave no mount of ours while they run', async () => {
    const { stdout } = await command('findmnt', ['--noheadings', '--raw', '--output', 'TARGET'])
    assert.deepEqual(stdout.split('\n').filter((target) => target.startsWith(node.dir) && /\/(?:idmap|userns)/.test(target)), [])
  })

  it('survive a restart: containers are made and started in them', async () => {
    const made = (await node.cri.runtime.CreateContainer({ pod_sandbox_id: podId, sandbox_config: pod, config: {
      metadata: { name: 'before', attempt: 0 }, image: { image: busyboxImage }, command: ['sleep', '100000'],
      ...container({ mounts: [{ container_path: '/data', host_path: volume, uidMappings: ids, gidMappings: ids }] }),
    } })).container_id
    await node.shim.end('SIGKILL')
    await restart(node)
    await node.cri.runtime.StartContainer({ container_id: made })
    assert.equal(await exec(node, made, 'stat', '-c', '%u', '/', '/data/of-1000'), '0\n1000\n')
    assert.equal(await exec(node, await startContainer(node, podId, pod, container()), 'stat', '-c', '%u', '/bin'), '0\n')
  })

  it('are refused when their mappings contradict themselves, each other or the pod', async () => {
    const one = (container_id: number, host_id: number, length: number): Init<UserNamespace> => {
      const mapping = [{ container_id, host_id, length }]
      return { mode: NamespaceMode.POD, uids: mapping, gids: mapping }
    }
    for (const [options, message] of [
      [{ ...userns, uids: [...ids, { container_id: size, host_id: 1, length: 1 }] }, /exactly one uid mapping/],
      [{ ...userns, gids: [] }, /exactly one gid mapping/],
      [{ ...userns, gids: [{ container_id: 0, host_id: hostBase, length: 10 }] }, /same/],
      [one(1, hostBase, size), /uid 0 of the container must be mapped/],
      [one(0, 2 ** 32 - 1, 2), /beyond the largest/],
      [one(0, hostBase, 10), /does not exist in the pod's user namespace/],
      [{ mode: NamespaceMode.CONTAINER }, /only POD and NODE/],
      [{ mode: NamespaceMode.TARGET }, /only POD and NODE/],
      [{ ...userns, mode: NamespaceMode.NODE }, /without id mappings/],
    ] as const) {
      const message_ = await failureOf(runPod(node, inPod(options)))
      assert.match(message_, /^INVALID_ARGUMENT/)
      assert.match(message_, message)
    }
    const create = (config: Init<ContainerConfig>): Promise<unknown> => node.cri.runtime.CreateContainer({ pod_sandbox_id: podId, sandbox_config: pod, config: { metadata: { name: 'refused', attempt: 0 }, image: { image: busyboxImage }, ...config } })
    assert.match(await failureOf(create({})), /INVALID_ARGUMENT.*differ from those of its pod/)
    assert.match(await failureOf(create(container({ linux: { security_context: { run_as_user: { value: '70000' } } } }))), /INVALID_ARGUMENT.*uid 70000 does not exist/)
    const proc = container({ mounts: [{ container_path: '/p', host_path: '/proc/sys', readonly: true, uidMappings: ids, gidMappings: ids }] })
    const made = await node.cri.runtime.CreateContainer({ pod_sandbox_id: podId, sandbox_config: pod, config: { metadata: { name: 'proc', attempt: 0 }, image: { image: busyboxImage }, command: ['sleep', '1'], ...proc } })
    assert.match(await failureOf(node.cri.runtime.StartContainer({ container_id: made.container_id })), /proc/)
    await node.cri.runtime.RemoveContainer({ container_id: made.container_id })
  })

  it('leave nothing when they cannot be made, nor do their containers', async () => {
    const mountsOf = async (): Promise<string[]> => (await command('findmnt', ['--noheadings', '--raw', '--output', 'TARGET'])).stdout.split('\n').filter((target) => target.startsWith(node.dir)).toSorted()
    const before = await mountsOf()
    assert.match(await failureOf(runPod(node, { ...inPod(), linux: { ...inPod().linux, sysctls: { 'net.ipv4.no_such_thing': '1' } } })), /no_such_thing/)
    const { container_id } = await node.cri.runtime.CreateContainer({ pod_sandbox_id: podId, sandbox_config: pod, config: {
      metadata: { name: 'fails', attempt: 0 }, image: { image: busyboxImage }, command: ['/no/such/program'], ...container({ mounts: [{ container_path: '/data', host_path: volume, uidMappings: ids, gidMappings: ids }] }),
    } })
    assert.match(await failureOf(node.cri.runtime.StartContainer({ container_id })), /no such file/)
    await node.cri.runtime.RemoveContainer({ container_id })
    assert.deepEqual(await mountsOf(), before)
  })

  it('may be on the node\'s: NODE says so', async () => {
    const config = inPod({ mode: NamespaceMode.NODE })
    const nodePod = await runPod(node, config)
    const nodeContainer = await startContainer(node, nodePod, config, { linux: { security_context: { namespace_options: { userns_options: { mode: NamespaceMode.NODE } } } } })
    assert.equal(await exec(node, nodeContainer, 'cat', '/proc/self/uid_map'), await readFile('/proc/self/uid_map', 'utf8'))
    await removePods(node, nodePod)
  })

  it('go without a trace', async () => {
    await removePods(node, podId)
    // (containerd collects snapshots at the same time: what is gone by then is passed over)
    const { stdout } = await command('find', [node.dir, '(', '-name', 'idmap', '-o', '-name', '*userns', ')'])
    const state = stdout.split('\n').filter((path) => path !== '' && !path.includes('idmap-probe'))
    assert.deepEqual(state, [])
  })
})
