import assert from 'node:assert/strict'
import { chmod, copyFile, readFile, rename, statfs, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import type { RuntimeHandlerFeatures } from '../../src/generated/cri.ts'
import { parseOciSpec } from '../../src/oci-spec/json.ts'
import type { OciSpec } from '../../src/oci-spec/types.ts'
import { output } from '../fixtures/command.ts'
import { busyboxImage } from '../images/catalog.ts'
import { eventually, exec, failureOf, podConfig, type PrivateNode, pull, removePods, runPod, skipUnlessRoot, startContainer, startNode, writeNodeFile } from './private-node.ts'

const handlers = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes'
const cgroup2Magic = 0x63677270

/**
 * Debian has gVisor's runsc and not its shim, so the shim of runc runs it: each container in a sandbox of its own, as Docker has it. The annotation by which
 * it would put a container into the sandbox of its pod needs gVisor's shim. Its own network stack does not come up on newer kernels in this version.
 */
const runscWrapper = `#!/bin/sh
for argument; do
  [ "$previous" != --bundle ] || sed -i 's/"io.kubernetes.cri.container-type"/"container-type"/' "$argument/config.json"
  previous=$argument
done
exec runsc --network=host --platform=ptrace "$@"
`
/** crun refuses cgroup v1 with a v2 tree beside it; it sees none in a mount namespace without that. */
const crunWrapper = `#!/bin/sh
exec unshare --mount --propagation unchanged sh -c 'mount --make-private /sys/fs/cgroup && umount /sys/fs/cgroup/unified; exec crun "$@"' crun "$@"
`
/** runc, with features that the test decides on. */
const wishWrapper = (features: string): string => `#!/bin/sh
[ "$1" != features ] || { echo '${features}'; exit; }
exec runc "$@"
`
const everything = { mountOptions: ['rro'], linux: { namespaces: ['user'], mountExtensions: { idmap: { enabled: true } } } }

const runc = (dir: string, name: string, binary: string, more = ''): string => `
[${handlers}.${name}]
  runtime_type = "io.containerd.runc.v2"
  ${more}
  [${handlers}.${name}.options]
    BinaryName = "${binary}"
    Root = "${dir}/${name}-root"
`

describe('runtime handlers', { skip: skipUnlessRoot }, () => {
  let node: PrivateNode
  let hybrid = false

  before(async () => {
    hybrid = await statfs('/sys/fs/cgroup/unified').then(({ type }) => type === cgroup2Magic, () => false)
    node = await startNode({
      editConfig: async (toml, dir) => {
        await writeNodeFile(join(dir, 'crun'), crunWrapper, 0o755)
        await writeNodeFile(join(dir, 'runsc'), runscWrapper, 0o755)
        await writeNodeFile(join(dir, 'wish'), wishWrapper('{}'), 0o755)
        await writeNodeFile(join(dir, 'shim'), `#!/bin/sh\necho "$@" >> ${dir}/shim-calls\nexec containerd-shim-runc-v2 "$@"\n`, 0o755)
        await writeNodeFile(join(dir, 'base.json'), JSON.stringify(baseSpec(JSON.parse(await output('ctr', ['oci', 'spec'])) as OciSpec)))
        const conflist = JSON.parse(await readFile(join(dir, 'net.d', '10-test.conflist'), 'utf8')) as { plugins: object[] }
        conflist.plugins.push({ type: 'tuning', sysctl: { 'net.ipv4.conf.all.log_martians': '1' } })
        await writeNodeFile(join(dir, 'other-net.d', '10-other.conflist'), JSON.stringify(conflist))
        await writeNodeFile(join(dir, 'other-net.d', '20-unused.conflist'), '{}')
        return toml + runc(dir, 'crun', hybrid ? join(dir, 'crun') : 'crun') + runc(dir, 'runsc', join(dir, 'runsc')) + runc(dir, 'wish', join(dir, 'wish')) + runc(dir, 'special', 'runc', `
  runtime_path = "${dir}/shim"
  pod_annotations = ["pod.example/*"]
  container_annotations = ["container.example/*"]
  privileged_without_host_devices = true
  base_runtime_spec = "${dir}/base.json"
  snapshotter = "native"
  cni_conf_dir = "${dir}/other-net.d"
  cni_max_conf_num = 1
`) + runc(dir, 'devices', 'runc', 'privileged_without_host_devices = true\n  privileged_without_host_devices_all_devices_allowed = true') + `
[${handlers}.elsewhere]
  runtime_type = "io.containerd.runc.v2"
  sandboxer = "shim"
[${handlers}.kata]
  runtime_type = "io.containerd.nosuch.v2"
  [${handlers}.kata.options]
    ConfigPath = "/etc/kata.toml"
`
      },
    })
    await pull(node, busyboxImage)
  })
  after(async () => {
    if (node === undefined) return
    assert.deepEqual(await node.stop(), [])
  })

  const features = async (handler: string): Promise<RuntimeHandlerFeatures | null | undefined> =>
    (await node.cri.runtime.Status({})).runtime_handlers.find(({ name }) => name === handler)?.features
  const specOf = async (id: string): Promise<OciSpec> => {
    const record = await node.api.containers.get(node.ctx, id)
    assert.ok(record?.spec)
    return parseOciSpec(record.spec.value)
  }

  for (const [handler, kernel] of [['runc', /Linux version/], ['crun', /Linux version/], ['runsc', /Linux version 4\.4\.0/]] as const) {
    it(`${handler} runs a pod: logs, commands, network, stop`, async () => {
      const pod = podConfig(node)
      const podId = await runPod(node, pod, handler)
      const { status } = await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: podId })
      assert.equal(status?.runtime_handler, handler)
      const id = await startContainer(node, podId, pod, { command: ['sh', '-c', 'echo started; sleep 100000'] })
      assert.match(await exec(node, id, 'cat', '/proc/version'), kernel)
      assert.match(await exec(node, id, 'ip', 'addr'), new RegExp(`inet ${RegExp.escape(status?.network?.ip ?? '?')}/`))
      const log = (await node.cri.runtime.ContainerStatus({ container_id: id })).status?.log_path ?? ''
      await eventually('the log', async () => (await readFile(log, 'utf8')).endsWith(' stdout F started\n'))
      await node.cri.runtime.StopContainer({ container_id: id, timeout: '0' })
      assert.equal((await node.cri.runtime.ContainerStatus({ container_id: id })).status?.exit_code, 137)
      await removePods(node, podId)
    })
  }

  it('report what their runtime says that it can do, and nothing for one that says nothing', async () => {
    assert.deepEqual(await features('runc'), { recursive_read_only_mounts: true, user_namespaces: true })
    assert.deepEqual(await features('runsc'), { recursive_read_only_mounts: false, user_namespaces: false })
    assert.deepEqual(await features('kata'), { recursive_read_only_mounts: false, user_namespaces: false })
    const ids = [{ container_id: 0, host_id: 400_000, length: 65_536 }]
    const pod = podConfig(node, { linux: { security_context: { namespace_options: { userns_options: { mode: 0, uids: ids, gids: ids } } } } })
    assert.match(await failureOf(runPod(node, pod, 'runsc')), /^FAILED_PRECONDITION: .*user namespaces are not possible for this pod: the runtime \S*runsc does not say that it has them/)
  })

  it('are asked again when the runtime is another one', async () => {
    assert.deepEqual(await features('wish'), { recursive_read_only_mounts: false, user_namespaces: false })
    const path = join(node.dir, 'wish')
    await copyFile(path, `${path}.new`)
    await writeFile(`${path}.new`, wishWrapper(JSON.stringify(everything)))
    await chmod(`${path}.new`, 0o755)
    await rename(`${path}.new`, path)
    assert.deepEqual(await features('wish'), { recursive_read_only_mounts: true, user_namespaces: true })
  })

  it('have settings of their own: shim, snapshotter, network, annotations, base spec, devices', async () => {
    const annotations = { 'pod.example/a': 'yes', 'container.example/b': 'no', 'other.example/c': 'no' }
    const pod = podConfig(node, { annotations, linux: { security_context: { privileged: true } } })
    const podId = await runPod(node, pod, 'special')
    assert.match(await readFile(join(node.dir, 'shim-calls'), 'utf8'), new RegExp(podId))
    assert.equal((await node.api.containers.get(node.ctx, podId))?.snapshotter, 'native')
    const podAnnotations = (await specOf(podId)).annotations ?? {}
    assert.equal(podAnnotations['pod.example/a'], 'yes')
    assert.deepEqual(Object.keys(podAnnotations).filter((key) => key.includes('.example/')), ['pod.example/a'])

    const id = await startContainer(node, podId, pod, { annotations: { 'container.example/d': 'yes', 'pod.example/e': 'no' }, linux: { security_context: { privileged: true } } })
    assert.equal((await node.api.containers.get(node.ctx, id))?.snapshotter, 'native')
    const spec = await specOf(id)
    assert.deepEqual(Object.keys(spec.annotations ?? {}).filter((key) => key.includes('.example/')).toSorted(), ['base.example/f', 'container.example/d', 'pod.example/a'])
    assert.equal(await exec(node, id, 'cat', '/proc/sys/net/ipv4/conf/all/log_martians'), '1\n')
    assert.equal(await exec(node, id, 'sh', '-c', 'ulimit -n'), '1234\n')
    assert.deepEqual(spec.linux?.devices ?? [], [])
    await removePods(node, podId)
  })

  it('may allow a privileged container devices that it is not given', async () => {
    const pod = podConfig(node, { linux: { security_context: { privileged: true } } })
    const podId = await runPod(node, pod, 'devices')
    const id = await startContainer(node, podId, pod, { linux: { security_context: { privileged: true } } })
    const spec = await specOf(id)
    assert.deepEqual(spec.linux?.devices ?? [], [])
    assert.deepEqual(spec.linux?.resources?.devices, [{ allow: true, access: 'rwm' }])
    await removePods(node, podId)
  })

  it('are refused when there is none of that name, or no shim for it', async () => {
    assert.match(await failureOf(runPod(node, podConfig(node), 'nosuch')), /^INVALID_ARGUMENT: runtime handler "nosuch" is not configured.*runc, crun, runsc/)
    assert.match(await failureOf(runPod(node, podConfig(node), 'elsewhere')), /^FAILED_PRECONDITION: .*sandboxer = "shim"/)
    assert.match(await failureOf(runPod(node, podConfig(node), 'kata')), /io\.containerd\.nosuch\.v2|containerd-shim-nosuch-v2/)
  })
})

/** Of a node's administrator: another limit and an annotation. */
function baseSpec(spec: OciSpec): OciSpec {
  const { process } = spec
  assert.ok(process)
  return { ...spec, annotations: { 'base.example/f': 'yes' }, process: { ...process, rlimits: [{ type: 'RLIMIT_NOFILE', hard: 1234, soft: 1234 }] } }
}
