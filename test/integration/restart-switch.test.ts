import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { it } from 'node:test'
import { ContainerState, PodSandboxState } from '../../src/generated/cri.ts'
import { connectCri } from '../fixtures/cri-client.ts'
import { type TestNode, logLines, script, startTestNode, until } from './restart-node.ts'

const { CONTAINER_CREATED, CONTAINER_EXITED } = ContainerState
const { SANDBOX_NOTREADY, SANDBOX_READY } = PodSandboxState
const skip = process.getuid?.() === 0 ? false : 'needs root'

/** Ends containerd and starts it on the same root and state with its own CRI plugin, or without. */
async function switchPlugin(node: TestNode, on: boolean): Promise<void> {
  await node.containerd.end('SIGTERM')
  const toml = await readFile(node.containerd.configFile, 'utf8')
  await writeFile(node.containerd.configFile, toml.replace(/^disabled_plugins = .*$/m, `disabled_plugins = [${on ? '' : '"io.containerd.grpc.v1.cri"'}]`))
  await node.containerd.start()
}

/** Orders rows by what stands first in them: an id. */
const byFirst = (a: readonly unknown[], b: readonly unknown[]): number => String(a[0]).localeCompare(String(b[0]))

const brief = ({ id, metadata, labels, annotations, state, image_ref: image, exit_code: exitCode, reason }: {
  readonly id: string; readonly metadata: unknown; readonly labels: object; readonly annotations: object; readonly state: number; readonly image_ref?: string; readonly exit_code?: number; readonly reason?: string
}): unknown => ({ id, metadata, labels, annotations, state, image, exitCode, reason })

it('pods of containerd\'s own CRI plugin are taken over in place, and go without a trace', { skip }, async () => {
  await using node = await startTestNode()
  await node.shim.end('SIGTERM')
  await switchPlugin(node, true)
  using plugin = connectCri(node.containerd.socket)
  const pod = node.pod('of-the-plugin', { port_mappings: [{ host_port: 0, container_port: 80 }] })
  const gone = node.pod('stopped-by-the-plugin')
  const image = { image: script('c', '').image ?? {} }
  await plugin.image.PullImage(image)
  const podId = (await plugin.runtime.RunPodSandbox({ config: pod })).pod_sandbox_id
  const goneId = (await plugin.runtime.RunPodSandbox({ config: gone })).pod_sandbox_id
  const make = async (name: string, text: string, start = true): Promise<string> => {
    const { container_id } = await plugin.runtime.CreateContainer({ pod_sandbox_id: podId, config: script(name, text, { labels: { app: name } }), sandbox_config: pod })
    if (start) await plugin.runtime.StartContainer({ container_id })
    return container_id
  }
  const created = await make('created', 'echo it runs; exec sleep 1000', false)
  const exited = await make('exited', 'exit 3')
  const counting = await make('counting', 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done')
  const log = join(node.dir, 'logs', 'of-the-plugin', 'counting.log')
  await until('output', async () => (await logLines(log)).length > 10 || undefined)
  await until('the end of a container', async () => (await plugin.runtime.ContainerStatus({ container_id: exited })).status?.state === CONTAINER_EXITED || undefined)
  await plugin.runtime.StopPodSandbox({ pod_sandbox_id: goneId })
  const { status: was } = await plugin.runtime.PodSandboxStatus({ pod_sandbox_id: podId })
  const containersWere = (await plugin.runtime.ListContainers({})).containers.map((each) => [each.id, each.metadata?.name, each.labels, each.annotations, each.state]).toSorted(byFirst)

  await switchPlugin(node, false)
  await node.shim.start()
  await node.ready()
  const { cri } = node
  const { status } = await cri.runtime.PodSandboxStatus({ pod_sandbox_id: podId })
  assert.ok(was && status)
  assert.deepEqual(brief(status), brief(was))
  assert.equal(status.network?.ip, was.network?.ip)
  assert.equal(status.created_at, was.created_at)
  assert.deepEqual((await cri.runtime.ListPodSandbox({})).items.map(({ id, state }) => [id, state]).toSorted(byFirst), [[podId, SANDBOX_READY], [goneId, SANDBOX_NOTREADY]].toSorted(byFirst))
  assert.deepEqual((await cri.runtime.ListContainers({})).containers.map((each) => [each.id, each.metadata?.name, each.labels, each.annotations, each.state]).toSorted(byFirst), containersWere)
  const ended = (await cri.runtime.ContainerStatus({ container_id: exited })).status
  assert.deepEqual([ended?.exit_code, ended?.reason], [3, 'Error'])
  assert.equal((await cri.runtime.ContainerStatus({ container_id: created })).status?.state, CONTAINER_CREATED)

  // The running one goes on, and its output comes to the same file.
  assert.equal((await cri.runtime.ExecSync({ container_id: counting, cmd: ['true'], timeout: '20' })).exit_code, 0)
  const before = (await logLines(log)).length
  await until('the log goes on', async () => (await logLines(log)).length > before + 10 || undefined)
  await cri.runtime.StartContainer({ container_id: created })
  await until('the log of what the plugin made and we start', async () => (await logLines(join(node.dir, 'logs', 'of-the-plugin', 'created.log'))).includes('it runs') || undefined)
  await cri.runtime.StopContainer({ container_id: counting, timeout: '0' })
  assert.equal((await node.inState(counting, CONTAINER_EXITED)).exit_code, 137)
  await cri.runtime.RemoveContainer({ container_id: exited })
  for (const id of [podId, goneId]) await node.removePod(id)
  await node.nothingLeft()
})

it('pods of cri-shim are listed by containerd\'s own CRI plugin, and none the worse for it when cri-shim is back', { skip }, async () => {
  await using node = await startTestNode()
  const { cri } = node
  const pod = node.pod('of-cri-shim')
  const podId = await node.runPod(pod)
  const gone = node.pod('stopped')
  const goneId = await node.runPod(gone)
  await cri.runtime.StopPodSandbox({ pod_sandbox_id: goneId })
  const running = await node.run(podId, pod, script('running', 'exec sleep 1000', { labels: { app: 'c' } }))
  const { status: was } = await cri.runtime.PodSandboxStatus({ pod_sandbox_id: podId })
  const { status: containerWas } = await cri.runtime.ContainerStatus({ container_id: running })
  await node.shim.end('SIGTERM')
  await switchPlugin(node, true)
  using plugin = connectCri(node.containerd.socket)
  await until('the plugin serves', async () => plugin.runtime.Status({}).then(() => true, () => undefined))
  const { status } = await plugin.runtime.PodSandboxStatus({ pod_sandbox_id: podId })
  assert.ok(was && status)
  assert.deepEqual(brief(status), brief(was))
  assert.equal(status.network?.ip, was.network?.ip)
  assert.deepEqual((await plugin.runtime.ListPodSandbox({})).items.map(({ id, state }) => [id, state]).toSorted(byFirst), [[podId, SANDBOX_READY], [goneId, SANDBOX_NOTREADY]].toSorted(byFirst))
  // What cri-shim stopped the plugin can remove.
  await plugin.runtime.RemovePodSandbox({ pod_sandbox_id: goneId })
  await switchPlugin(node, false)
  await node.shim.start()
  await node.ready()
  assert.deepEqual((await cri.runtime.ListPodSandbox({})).items.map(({ id }) => id), [podId])
  assert.deepEqual((await cri.runtime.PodSandboxStatus({ pod_sandbox_id: podId })).status, was)
  assert.deepEqual((await cri.runtime.ContainerStatus({ container_id: running })).status, containerWas)
  assert.equal((await cri.runtime.ExecSync({ container_id: running, cmd: ['true'], timeout: '20' })).exit_code, 0)
  await node.removePod(podId)
  await node.nothingLeft()
})
