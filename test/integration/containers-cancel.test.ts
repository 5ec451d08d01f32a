// Callers that give up in the middle of a call: what was begun is finished or taken back, and nothing is left.
import assert from 'node:assert/strict'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, it } from 'node:test'
import { Code } from '../../src/errors/cri-error.ts'
import { ContainerState } from '../../src/generated/cri.ts'
import { command } from '../fixtures/command.ts'
import { type ContainerNode, type Pod, shellImage, startContainerNode, statusOf } from './container-node.ts'

let node: ContainerNode
let pod: Pod

before(async () => {
  node = await startContainerNode()
  pod = await node.pod('pod')
})
after(async () => { await node[Symbol.asyncDispose]() })

/** The call with a caller who gives up after so many milliseconds: not to wait for something, but to strike at another moment each time. */
async function givingUp<T>(afterMs: number, call: (signal: AbortSignal) => Promise<T>): Promise<T | undefined> {
  const abort = new AbortController()
  const timer = setTimeout(() => abort.abort(), afterMs)
  try {
    return await call(abort.signal)
  } catch (error) {
    assert.equal((error as { code: number }).code, Code.CANCELLED, String(error))
    return undefined
  } finally {
    clearTimeout(timer)
  }
}

/** Until cri-shim, containerd and the disk know of these containers (and the pod's) alone. */
async function nothingBut(ids: readonly string[]): Promise<void> {
  const ctr = async (...args: readonly string[]): Promise<string[]> => (await command('ctr', ['-a', node.containerd.socket, '-n', 'k8s.io', ...args])).stdout.trim().split('\n').slice(1).map((line) => line.split(' ')[0] ?? '')
  const wanted = [...ids].sort()
  const deadline = Date.now() + 30_000
  for (;;) {
    const seen = {
      listed: (await node.cri.runtime.ListContainers({})).containers.map(({ id }) => id).sort(),
      records: (await ctr('containers', 'ls')).filter((id) => id !== pod.id).sort(),
      snapshots: (await ctr('snapshots', 'ls')).filter((id) => !id.startsWith('sha256:') && id !== pod.id).sort(),
      directories: (await readdir(join(node.dir, 'shim-root', 'containers'))).sort(),
    }
    try {
      for (const [what, found] of Object.entries(seen)) assert.deepEqual(found, wanted, what)
      return
    } catch (error) {
      if (Date.now() > deadline) throw error
      await new Promise((resolve) => { setTimeout(resolve, 50) })
    }
  }
}

it('CreateContainer', async () => {
  for (let round = 0; round < 20; round++) {
    const request = { pod_sandbox_id: pod.id, sandbox_config: pod.config, config: { metadata: { name: 'created' }, image: { image: shellImage }, command: ['true'], linux: {} } }
    await givingUp(round * 2, async (signal) => node.cri.runtime.CreateContainer(request, { signal }))
    // Either it is there, or its name is free again.
    const deadline = Date.now() + 20_000
    for (;;) {
      const { containers } = await node.cri.runtime.ListContainers({})
      const id = containers[0]?.id ?? await node.cri.runtime.CreateContainer(request).then((made) => made.container_id, () => undefined)
      if (id !== undefined) {
        await node.cri.runtime.RemoveContainer({ container_id: id })
        break
      }
      assert.ok(Date.now() < deadline, 'the name does not become free')
      await new Promise((resolve) => { setTimeout(resolve, 20) })
    }
  }
  await nothingBut([])
})

it('StartContainer: it runs, or it has ended and says why; either way it can be removed at once', async () => {
  const states = new Set<number>()
  for (let round = 0; round < 24; round++) {
    const { id } = await node.create(pod, 'started', { command: ['sleep', '100000'] })
    await givingUp(round * 5, async (signal) => node.cri.runtime.StartContainer({ container_id: id }, { signal }))
    if (round % 2 === 0) {
      const { state, reason } = await node.until(id, (status) => status.state !== ContainerState.CONTAINER_CREATED || round === 0)
      states.add(state)
      if (state === ContainerState.CONTAINER_EXITED) assert.equal(reason, 'StartError')
    }
    await node.cri.runtime.RemoveContainer({ container_id: id })
    assert.equal((await statusOf(node.status(id))).code, Code.NOT_FOUND)
  }
  await nothingBut([])
  assert.ok((await node.containerd.leaks()).processes.every((line) => !line.includes('100000')))
  assert.ok((await command('ctr', ['-a', node.containerd.socket, '-n', 'k8s.io', 'tasks', 'ls'])).stdout.trim().split('\n').length === 2, 'the pod\'s own task alone')
})

it('StopContainer and RemoveContainer: the next call finishes it', async () => {
  for (let round = 0; round < 16; round++) {
    const { id } = await node.start(pod, 'removed', { command: ['sleep', '100000'] })
    await givingUp(round * 3, async (signal) => (round % 2 === 0 ? node.cri.runtime.RemoveContainer({ container_id: id }, { signal }) : node.cri.runtime.StopContainer({ container_id: id, timeout: '0' }, { signal })))
    await node.cri.runtime.RemoveContainer({ container_id: id })
    assert.equal((await statusOf(node.status(id))).code, Code.NOT_FOUND)
  }
  await nothingBut([])
})
