import assert from 'node:assert/strict'
import { constants } from 'node:fs'
import { mkdir, open } from 'node:fs/promises'
import { join } from 'node:path'
import { after, afterEach, before, describe, it } from 'node:test'
import { ContainerState, PodSandboxState } from '../../src/generated/cri.ts'
import { output } from '../fixtures/command.ts'
import { busyboxImage, webServerImage } from '../images/catalog.ts'
import { type TestNode, failure, isAlive, logLines, script, startTestNode, until } from './restart-node.ts'

const { CONTAINER_CREATED, CONTAINER_EXITED, CONTAINER_RUNNING } = ContainerState
const { SANDBOX_NOTREADY, SANDBOX_READY } = PodSandboxState
const unavailable = 14
const skip = process.getuid?.() === 0 ? false : 'needs root'

describe('containerd goes away and comes back under cri-shim', { skip }, () => {
  let node: TestNode
  before(async () => { node = await startTestNode() })
  afterEach(async () => { await node.removeAll() })
  after(async () => { await node[Symbol.asyncDispose]() })

  const refused = async (): Promise<string> => until('calls are refused', async () => {
    const answer = await node.cri.runtime.ListPodSandbox({}).then(() => undefined, (error: Error & { readonly code: number }) => error)
    if (answer === undefined) return undefined
    assert.equal(answer.code, unavailable)
    return answer.message
  })

  for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
    it(`containerd is ended by ${signal}: UNAVAILABLE meanwhile, then everything is as it really is, and pods notice nothing`, async () => {
      const { cri } = node
      const sync = join(node.dir, 'sync')
      await mkdir(sync, { recursive: true })
      await output('mkfifo', [join(sync, signal)])
      const mounts = [{ host_path: sync, container_path: '/sync' }]
      const pod = node.pod(`away-${signal.toLowerCase()}`)
      const podId = await node.runPod(pod)
      const dyingPod = node.pod(`dying-${signal.toLowerCase()}`)
      const dyingPodId = await node.runPod(dyingPod)
      const counting = await node.run(podId, pod, script('counting', 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done'))
      const created = await node.create(podId, pod, script('created', 'exec sleep 1000'))
      const exited = await node.run(podId, pod, script('exited', 'exit 3'))
      const ending = await node.run(podId, pod, script('ending', `read x < /sync/${signal}; echo last words; exit 7`, { mounts }))
      await node.inState(exited, CONTAINER_EXITED)
      const was = (await cri.runtime.PodSandboxStatus({ pod_sandbox_id: podId })).status
      const { pid: pausePid } = JSON.parse((await cri.runtime.PodSandboxStatus({ pod_sandbox_id: dyingPodId, verbose: true })).info['info'] ?? '') as { readonly pid: number }

      await node.containerd.end(signal)
      assert.match(await refused(), /containerd/)
      const conditions = (await cri.runtime.Status({})).status?.conditions ?? []
      assert.equal(conditions.find(({ type }) => type === 'RuntimeReady')?.status, false)
      assert.match(conditions.find(({ type }) => type === 'RuntimeReady')?.message ?? '', /containerd/)
      assert.equal((await failure(cri.image.ListImages({}))).code, unavailable)
      // What ends meanwhile.
      const fifo = await open(join(sync, signal), constants.O_RDWR | constants.O_NONBLOCK)
      await fifo.write('\n')
      process.kill(pausePid, 'SIGKILL')
      await until('the log of the ending container', async () => (await logLines(join(node.dir, 'logs', `away-${signal.toLowerCase()}`, 'ending.log'))).includes('last words') || undefined)
      await until('the pause process has ended', async () => (await isAlive(pausePid) ? undefined : true))
      await fifo.close()
      await node.containerd.start()
      await node.ready()

      assert.equal((await node.inState(ending, CONTAINER_EXITED)).exit_code, 7)
      assert.equal((await cri.runtime.ContainerStatus({ container_id: exited })).status?.exit_code, 3)
      assert.equal((await cri.runtime.ContainerStatus({ container_id: created })).status?.state, CONTAINER_CREATED)
      assert.deepEqual((await cri.runtime.PodSandboxStatus({ pod_sandbox_id: podId })).status, was)
      await until('the pod whose pause process was killed is not ready', async () => (await cri.runtime.PodSandboxStatus({ pod_sandbox_id: dyingPodId })).status?.state === SANDBOX_NOTREADY || undefined)
      assert.equal((await cri.runtime.ContainerStatus({ container_id: counting })).status?.state, CONTAINER_RUNNING)
      assert.equal((await cri.runtime.ExecSync({ container_id: counting, cmd: ['true'], timeout: '20' })).exit_code, 0)
      await cri.runtime.StartContainer({ container_id: created })
      const log = join(node.dir, 'logs', `away-${signal.toLowerCase()}`, 'counting.log')
      const before = (await logLines(log)).length
      await until('the count goes on', async () => (await logLines(log)).length > before || undefined)
      await cri.runtime.StopContainer({ container_id: counting, timeout: '0' })
      assert.equal((await node.inState(counting, CONTAINER_EXITED)).exit_code, 137)
      const lines = await logLines(log)
      assert.deepEqual(lines, lines.map((_, index) => String(index + 1)))
      for (const id of [podId, dyingPodId]) await node.removePod(id)
      await node.nothingLeft()
    })
  }

  it('containerd is not there when cri-shim starts: the socket answers and says so, and it comes up with containerd', async () => {
    const { cri } = node
    const pod = node.pod('late')
    const podId = await node.runPod(pod)
    await node.shim.end('SIGTERM')
    await node.containerd.end('SIGTERM')
    await node.shim.start()
    const { code, message } = await failure(cri.runtime.ListPodSandbox({}))
    assert.equal(code, unavailable)
    assert.match(message, /containerd|starting/)
    await until('the reason is known', async () => /containerd\.sock/.test((await failure(cri.runtime.ListPodSandbox({}))).message) || undefined)
    assert.match((await failure(cri.runtime.Version({}))).message, /containerd does not answer on .*containerd\.sock/)
    const ready = (await cri.runtime.Status({})).status?.conditions.find(({ type }) => type === 'RuntimeReady')
    assert.equal(ready?.status, false)
    assert.match(ready?.message ?? '', /containerd\.sock/)
    await node.containerd.start()
    await node.ready()
    assert.deepEqual((await cri.runtime.ListPodSandbox({})).items.map(({ id, state }) => [id, state]), [[podId, SANDBOX_READY]])
    await node.removePod(podId)
    await node.nothingLeft()
  })
})

describe('things are removed behind the back of cri-shim', { skip }, () => {
  let node: TestNode
  before(async () => { node = await startTestNode() })
  afterEach(async () => { await node.removeAll() })
  after(async () => { await node[Symbol.asyncDispose]() })

  const shimOf = async (id: string): Promise<number> => {
    const processes = await output('ps', ['-eo', 'pid,args'])
    const line = processes.split('\n').find((each) => each.includes('containerd-shim') && each.includes(id) && each.includes(node.containerd.socket))
    return Number(/^\s*(\d+)/.exec(line ?? '')?.[1] ?? Number.NaN)
  }
  const notReady = async (id: string): Promise<void> => void await until(`pod ${id} is not ready`, async () => (await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: id })).status?.state === SANDBOX_NOTREADY || undefined)

  it('tasks that are killed and deleted', async () => {
    const { cri } = node
    const pod = node.pod('killed')
    const podId = await node.runPod(pod)
    const killed = await node.run(podId, pod, script('killed', 'exec sleep 1000'))
    await node.ctr('tasks', 'kill', '-s', 'SIGKILL', killed)
    const status = await node.inState(killed, CONTAINER_EXITED)
    assert.deepEqual([status.exit_code, status.reason], [137, 'Error'])
    const deleted = await node.run(podId, pod, script('deleted', 'exec sleep 1000'))
    // (cri-shim may have deleted it before ctr does)
    await node.ctr('tasks', 'delete', '--force', deleted).catch(() => undefined)
    assert.equal((await node.inState(deleted, CONTAINER_EXITED)).exit_code, 137)
    await node.ctr('tasks', 'kill', '-s', 'SIGKILL', podId)
    await notReady(podId)
    assert.equal((await failure(node.create(podId, pod, script('late', 'true')))).code, 9)
    await cri.runtime.RemoveContainer({ container_id: killed })
    await node.removePod(podId)
    await node.nothingLeft()
  })

  it('a shim that is killed takes its pod with it', async () => {
    const pod = node.pod('no-shim')
    const podId = await node.runPod(pod)
    const id = await node.run(podId, pod, script('c', 'exec sleep 1000'))
    process.kill(await shimOf(podId), 'SIGKILL')
    const status = await node.inState(id, CONTAINER_EXITED)
    assert.ok(status.exit_code === 137 || status.exit_code === 255, `exit code ${status.exit_code}`)
    await notReady(podId)
    await node.removePod(podId)
    await node.nothingLeft()
  })

  it('a shim that is killed while cri-shim is away', async () => {
    const pod = node.pod('no-shim')
    const podId = await node.runPod(pod)
    const id = await node.run(podId, pod, script('c', 'exec sleep 1000'))
    await node.shim.end('SIGKILL')
    process.kill(await shimOf(podId), 'SIGKILL')
    await until('containerd has noticed', async () => (await node.ctr('tasks', 'ls', '-q')).trim() === '' || undefined)
    await node.shim.start()
    await node.ready()
    const status = await node.inState(id, CONTAINER_EXITED)
    assert.deepEqual([status.exit_code, status.reason], [255, 'Unknown'])
    await notReady(podId)
    await node.removePod(podId)
    await node.nothingLeft()
  })

  for (const restart of [false, true]) {
    it(`records that are deleted${restart ? ', and cri-shim restarted' : ''}`, async () => {
      const { cri } = node
      const pod = node.pod('no-record')
      const podId = await node.runPod(pod)
      const id = await node.run(podId, pod, script('c', 'exec sleep 1000'))
      const created = await node.create(podId, pod, script('created', 'exec sleep 1000'))
      if (restart) await node.shim.end('SIGKILL')
      for (const each of [id, podId]) await node.ctr('tasks', 'kill', '-s', 'SIGKILL', each)
      if (restart) for (const each of [id, podId]) await node.ctr('tasks', 'delete', '--force', each)
      await until('no task is left', async () => (await node.ctr('tasks', 'ls', '-q')).trim() === '' || undefined)
      for (const each of [id, created, podId]) await node.ctr('containers', 'delete', each)
      if (restart) {
        await node.shim.start()
        await node.ready()
        assert.deepEqual((await cri.runtime.ListPodSandbox({})).items, [])
        assert.deepEqual((await cri.runtime.ListContainers({})).containers, [])
      } else {
        await node.inState(id, CONTAINER_EXITED)
        await notReady(podId)
      }
      await node.removePod(podId)
      await node.nothingLeft()
      // The names are free again.
      await node.removePod(await node.runPod(pod))
    })
  }

  it('images', async () => {
    const { cri } = node
    await cri.image.PullImage({ image: { image: webServerImage } })
    const image = (await cri.image.ImageStatus({ image: { image: webServerImage } })).image
    await node.containerd.end('SIGTERM')
    await node.containerd.start()
    await node.ready()
    assert.deepEqual((await cri.image.ImageStatus({ image: { image: webServerImage } })).image, image)
    await node.shim.end('SIGKILL')
    for (const name of (await node.ctr('images', 'ls', '-q')).split('\n').filter((each) => each.includes('nginx') || each === image?.id)) await node.ctr('images', 'rm', name)
    await node.shim.start()
    await node.ready()
    assert.equal((await cri.image.ImageStatus({ image: { image: webServerImage } })).image, null)
    assert.ok((await cri.image.ImageStatus({ image: { image: busyboxImage } })).image)
  })

  it('a network namespace that is gone, as after a reboot: the addresses are given back all the same', async () => {
    const { cri } = node
    const pod = node.pod('rebooted')
    const podId = await node.runPod(pod)
    await node.shim.end('SIGKILL')
    await node.ctr('tasks', 'delete', '--force', podId)
    const [netns] = (await node.containerd.leaks()).networkNamespaces
    await output('umount', [netns ?? ''])
    await output('rm', [netns ?? ''])
    await node.shim.start()
    await node.ready()
    assert.equal((await cri.runtime.PodSandboxStatus({ pod_sandbox_id: podId })).status?.state, SANDBOX_NOTREADY)
    await node.removePod(podId)
    // (The plugin's iptables rules stay when it finds no namespace; a reboot takes those as well.)
    assert.deepEqual((await node.containerd.leaks()).addresses, [])
  })
})
