// The reason OOMKilled: whoever of the container the out-of-memory killer took, and whichever of its event and the exit comes first.
import assert from 'node:assert/strict'
import { after, before, it } from 'node:test'
import { type ContainerNode, type Pod, startContainerNode } from './container-node.ts'

/** 16 MiB, swap included. */
const linux = { resources: { memory_limit_in_bytes: '16777216', memory_swap_limit_in_bytes: '16777216' } }

let node: ContainerNode
let pod: Pod

before(async () => {
  node = await startContainerNode()
  pod = await node.pod('pod')
})
after(async () => { await node[Symbol.asyncDispose]() })

it('says OOMKilled twenty times out of twenty, four at a time', async () => {
  const rounds = Array.from({ length: 20 }, (_, index) => index)
  const worker = async (): Promise<void> => {
    for (let round = rounds.pop(); round !== undefined; round = rounds.pop()) {
      const { status } = await node.run(pod, `own-${round}`, 'exec tail /dev/zero', { linux })
      assert.equal(status.reason, 'OOMKilled', `round ${round}: ${JSON.stringify(status)}`)
      assert.equal(status.exit_code, 137)
      await node.cri.runtime.RemoveContainer({ container_id: status.id })
    }
  }
  await Promise.all([worker(), worker(), worker(), worker()])
})

it('says OOMKilled when a child was killed and the container failed for it', async () => {
  for (let round = 0; round < 5; round++) {
    const { status, output } = await node.run(pod, `child-${round}`, 'tail /dev/zero; code=$?; echo "child $code"; exit 1', { linux })
    assert.equal(output, 'child 137\n')
    assert.equal(status.exit_code, 1)
    assert.equal(status.reason, 'OOMKilled')
  }
})

it('keeps the reason through a restart of the service, and after one in which the container ended', async () => {
  const { id: before } = await node.run(pod, 'before-restart', 'exec tail /dev/zero', { linux })
  const meanwhile = await node.start(pod, 'meanwhile', { command: ['sh', '-c', 'while [ ! -e /dev/shm/go ]; do sleep 0.05; done; exec tail /dev/zero'], linux })
  const keeper = await node.start(pod, 'keeper', { command: ['sh', '-c', 'while [ ! -e /dev/shm/end ]; do [ -e /dev/shm/go ] || { sleep 0.3; touch /dev/shm/go; }; sleep 0.05; done'] })
  await node.shim.end('SIGKILL')
  await node.shim.start()
  assert.equal((await node.status(before)).reason, 'OOMKilled')
  const status = await node.exited(meanwhile.id)
  assert.equal(status.exit_code, 137)
  assert.equal(status.reason, 'OOMKilled')
  await node.cri.runtime.StopContainer({ container_id: keeper.id, timeout: '0' })
})

it('does not say so of a container that was killed otherwise, or that stayed within its memory', async () => {
  assert.equal((await node.run(pod, 'killed', 'kill -KILL $$', { linux })).status.reason, 'Error')
  assert.equal((await node.run(pod, 'modest', 'true', { linux })).status.reason, 'Completed')
})
