import assert from 'node:assert/strict'
import { chmod, mkdir, readdir, rm, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, afterEach, before, describe, it } from 'node:test'
import { ContainerState, PodSandboxState } from '../../src/generated/cri.ts'
import { command, output } from '../fixtures/command.ts'
import { criShimBinary, startCriShim } from '../fixtures/cri-shim.ts'
import { webServerImage } from '../images/catalog.ts'
import { type TestNode, failure, script, startTestNode, until } from './restart-node.ts'

const { CONTAINER_RUNNING } = ContainerState
const { SANDBOX_NOTREADY, SANDBOX_READY } = PodSandboxState
const skip = process.getuid?.() === 0 ? false : 'needs root'
const realPlugins = '/usr/lib/cni'

/** Makes plugins that do what the real ones do, wait while there is a FIFO `wait-ADD` that nobody has written to, and fail as long as there is a file `fail-DEL` (`fail-ADD`) in `dir`. */
async function breakablePlugins(dir: string): Promise<void> {
  await mkdir(dir)
  for (const name of await readdir(realPlugins)) await symlink(join(realPlugins, name), join(dir, name))
  const wrapper = `#!/bin/sh
[ ! -p "${dir}/wait-$CNI_COMMAND" ] || read -r line < "${dir}/wait-$CNI_COMMAND"
if [ -e "${dir}/fail-$CNI_COMMAND" ]; then
  cat > /dev/null
  echo '{"cniVersion":"0.4.0","code":11,"msg":"told to fail"}'
  exit 1
fi
exec ${realPlugins}/portmap
`
  await rm(join(dir, 'portmap'))
  await writeFile(join(dir, 'portmap'), wrapper)
  await chmod(join(dir, 'portmap'), 0o755)
}

describe('stopping in order, and what cannot be taken down at once', { skip }, () => {
  let node: TestNode
  let plugins: string
  before(async () => {
    node = await startTestNode({
      configure: async (toml, dir) => {
        plugins = join(dir, 'plugins')
        await breakablePlugins(plugins)
        return toml.replace(/bin_dir = .*/, `bin_dir = "${plugins}"`)
      },
    })
  })
  afterEach(async () => {
    for (const name of ['fail-ADD', 'fail-DEL', 'wait-ADD']) await rm(join(plugins, name), { force: true })
    await node.removeAll()
  })
  after(async () => { await node[Symbol.asyncDispose]() })

  const stateOf = async (id: string): Promise<number | undefined> => (await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: id })).status?.state

  it('SIGTERM with calls in flight: they end as they would, or say why not; nothing is left half-way', async () => {
    const { cri } = node
    const pod = node.pod('busy')
    const podId = await node.runPod(pod)
    const waiting = await node.run(podId, pod, script('waiting', 'exec sleep 1000'))
    const created = await node.create(podId, pod, script('created', 'exec sleep 1000'))
    const other = node.pod('busy-too')
    const short = [
      cri.runtime.ExecSync({ container_id: waiting, cmd: ['sh', '-c', 'echo running > /tmp/exec; sleep 0.3; echo done'], timeout: '20' }),
      cri.runtime.StartContainer({ container_id: created }),
      cri.runtime.RunPodSandbox({ config: other }),
    ] as const
    const held = Promise.withResolvers<void>()
    await cri.image.RemoveImage({ image: { image: webServerImage } })
    node.registry.requests.length = 0
    const release = node.registry.fault({ match: ({ kind }) => kind === 'blob', action: { kind: 'hold', afterBytes: 10, until: held.promise } })
    const pull = cri.image.PullImage({ image: { image: webServerImage } })
    await until('the pull has begun', async () => node.registry.requests.some(({ kind }) => kind === 'blob') || undefined)
    const settled = Promise.allSettled([...short, pull])
    const ending = node.shim.end('SIGTERM')
    await until('new calls are refused', async () => cri.runtime.ListPodSandbox({}).then(() => undefined, () => true))
    held.resolve()
    release()
    await ending
    const [exec, start, run, pulled] = await settled
    assert.equal(exec.status === 'fulfilled' ? exec.value.stdout.toString() : exec.reason, 'done\n')
    assert.equal(start.status, 'fulfilled')
    assert.equal(run.status, 'fulfilled')
    assert.equal(pulled.status, 'fulfilled')
    await node.shim.start()
    await node.ready()
    assert.deepEqual((await cri.runtime.ListPodSandbox({})).items.map(({ state }) => state), [SANDBOX_READY, SANDBOX_READY])
    assert.equal((await cri.runtime.ContainerStatus({ container_id: created })).status?.state, CONTAINER_RUNNING)
    await node.removeAll()
    await node.nothingLeft()
  })

  it('two services with one root: the second refuses and says who has it', async () => {
    const second = await command(criShimBinary, [
      'serve', '--config', node.containerd.configFile, '--listen', `unix://${join(node.dir, 'second.sock')}`, '--containerd', `unix://${node.containerd.socket}`,
      '--root', join(node.dir, 'shim-root'), '--state', join(node.dir, 'second-state'), '--metrics-address', '',
    ], { timeoutMs: 30_000 })
    assert.equal(second.code, 1)
    assert.match(second.stderr + second.stdout, /shim-root\/lock/)
    assert.match(second.stderr + second.stdout, new RegExp(`\\b${node.shim.pid}\\b`))
    await node.cri.runtime.ListPodSandbox({})
    // With a root of its own it is another service, although on the same containerd.
    await mkdir(join(node.dir, 'other'))
    await using third = await startCriShim({ dir: join(node.dir, 'other'), containerdSocket: node.containerd.socket, configFile: node.containerd.configFile })
    assert.notEqual(third.pid, node.shim.pid)
  })

  for (const restart of [false, true]) {
    it(`a network that cannot be taken down${restart ? ', the service killed meanwhile' : ''}: the pod stays listed until it can`, async () => {
      const { cri } = node
      const pod = node.pod('stuck', { port_mappings: [{ host_port: 0, container_port: 80 }] })
      const podId = await node.runPod(pod)
      const id = await node.run(podId, pod, script('c', 'exec sleep 1000'))
      await writeFile(join(plugins, 'fail-DEL'), '')
      assert.match((await failure(cri.runtime.StopPodSandbox({ pod_sandbox_id: podId }))).message, /told to fail/)
      assert.equal(await stateOf(podId), SANDBOX_NOTREADY)
      assert.notEqual((await cri.runtime.ContainerStatus({ container_id: id })).status?.state, CONTAINER_RUNNING)
      assert.equal((await node.containerd.leaks()).addresses.length, 1)
      assert.match((await failure(cri.runtime.RemovePodSandbox({ pod_sandbox_id: podId }))).message, /told to fail/)
      if (restart) await node.restart('SIGKILL')
      assert.deepEqual((await cri.runtime.ListPodSandbox({})).items.map((item) => [item.id, item.state]), [[podId, SANDBOX_NOTREADY]])
      assert.match((await failure(cri.runtime.StopPodSandbox({ pod_sandbox_id: podId }))).message, /told to fail/)
      await rm(join(plugins, 'fail-DEL'))
      await node.removePod(podId)
      assert.deepEqual((await cri.runtime.ListPodSandbox({})).items, [])
      await node.nothingLeft()
    })

    it(`a network that can neither be made nor undone${restart ? ', the service killed meanwhile' : ''}: what is left of the pod is listed until it is removed`, async () => {
      const { cri } = node
      const pod = node.pod('stuck-in-the-making')
      for (const name of ['fail-ADD', 'fail-DEL']) await writeFile(join(plugins, name), '')
      assert.match((await failure(cri.runtime.RunPodSandbox({ config: pod }))).message, /told to fail/)
      if (restart) await node.restart('SIGKILL')
      const [left, ...more] = (await cri.runtime.ListPodSandbox({})).items
      assert.deepEqual([left?.state, left?.metadata?.name, more], [SANDBOX_NOTREADY, 'stuck-in-the-making', []])
      assert.equal((await failure(cri.runtime.RunPodSandbox({ config: pod }))).code, 6)
      assert.match((await failure(cri.runtime.StopPodSandbox({ pod_sandbox_id: left?.id ?? '' }))).message, /told to fail/)
      for (const name of ['fail-ADD', 'fail-DEL']) await rm(join(plugins, name))
      await node.removePod(left?.id ?? '')
      await node.nothingLeft()
      await node.removePod(await node.runPod(pod))
    })
  }

  it('calls that containerd is taken from end with an error, what they made is listed or gone, and the retry succeeds', async () => {
    const { cri } = node
    const pod = node.pod('in-flight')
    const podId = await node.runPod(pod)
    const waiting = await node.run(podId, pod, script('waiting', 'trap "" TERM; while :; do sleep 1; done'))
    await cri.image.RemoveImage({ image: { image: webServerImage } })
    const held = Promise.withResolvers<void>()
    const release = node.registry.fault({ match: ({ kind }) => kind === 'blob', action: { kind: 'hold', afterBytes: 10, until: held.promise } })
    node.registry.requests.length = 0
    await output('mkfifo', [join(plugins, 'wait-ADD')])
    const other = node.pod('in-flight-too')
    const settled = Promise.allSettled([
      cri.runtime.RunPodSandbox({ config: other }),
      cri.runtime.ExecSync({ container_id: waiting, cmd: ['sleep', '1000'], timeout: '0' }),
      cri.runtime.StopContainer({ container_id: waiting, timeout: '2' }),
      cri.image.PullImage({ image: { image: webServerImage } }),
    ])
    await until('the pull has begun', async () => node.registry.requests.some(({ kind }) => kind === 'blob') || undefined)
    await until('the pause process waits to be started', async () => /CREATED$/m.test(await node.ctr('tasks', 'ls')) || undefined)
    await until('the command runs', async () => (await output('ps', ['-eo', 'args'])).includes('sleep 1000') || undefined)
    await node.containerd.end('SIGKILL')
    await until('calls are refused', async () => cri.runtime.ListPodSandbox({}).then(() => undefined, () => true))
    await writeFile(join(plugins, 'wait-ADD'), 'go on\n')
    held.resolve()
    release()
    const [run, exec, , pull] = await settled
    assert.deepEqual([run.status, exec.status, pull.status], ['rejected', 'rejected', 'rejected'])
    await rm(join(plugins, 'wait-ADD'))
    await node.containerd.start()
    await node.ready()
    await cri.image.PullImage({ image: { image: webServerImage } })
    // As a kubelet: what is not ready is removed and made anew.
    for (const { id, metadata, state } of (await cri.runtime.ListPodSandbox({})).items) {
      if (metadata?.name !== 'in-flight-too') continue
      assert.equal(state, SANDBOX_NOTREADY)
      await node.removePod(id)
    }
    const again = await node.runPod(other)
    assert.equal((await cri.runtime.ContainerStatus({ container_id: waiting })).status?.state, CONTAINER_RUNNING)
    await cri.runtime.StopContainer({ container_id: waiting, timeout: '0' })
    for (const id of [podId, again]) await node.removePod(id)
    await node.nothingLeft()
  })
})
