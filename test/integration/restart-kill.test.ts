import assert from 'node:assert/strict'
import { constants } from 'node:fs'
import { mkdir, open, readFile, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { after, afterEach, before, describe, it } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { ContainerState, PodSandboxState } from '../../src/generated/cri.ts'
import { output } from '../fixtures/command.ts'
import { busyboxImage, webServerImage } from '../images/catalog.ts'
import { type TestNode, failure, logLines, script, startTestNode, until } from './restart-node.ts'

const { CONTAINER_CREATED, CONTAINER_EXITED, CONTAINER_RUNNING } = ContainerState
const alreadyExists = 6
const skip = process.getuid?.() === 0 ? false : 'needs root'

describe('cri-shim is killed and started again', { skip }, () => {
  let node: TestNode
  before(async () => { node = await startTestNode() })
  afterEach(async () => { await node.removeAll() })
  after(async () => { await node[Symbol.asyncDispose]() })

  it('every pod and container is as before, and what ended meanwhile has its real exit code', async () => {
    const { cri } = node
    const sync = join(node.dir, 'sync')
    await mkdir(sync)
    await output('mkfifo', [join(sync, 'go'), join(sync, 'oom')])
    const mounts = [{ host_path: sync, container_path: '/sync' }]
    const pod = node.pod('states')
    const podId = await node.runPod(pod)
    const stoppedPod = node.pod('stopped')
    const stoppedPodId = await node.runPod(stoppedPod)
    await cri.runtime.StopPodSandbox({ pod_sandbox_id: stoppedPodId })
    const hostPod = node.pod('host', { linux: { cgroup_parent: '/cri-shim-test', security_context: { namespace_options: { network: 2 } } } })
    const hostPodId = await node.runPod(hostPod)
    const run = async (...args: Parameters<typeof script>): Promise<string> => node.run(podId, pod, script(...args))

    const commandRuns = async (): Promise<true | undefined> => (/^sleep 4242$/m.test(await output('ps', ['-eo', 'args'])) ? true : undefined)
    const counting = 'i=0; while :; do i=$((i+1)); echo $i; done'
    const created = await node.create(podId, pod, script('created', 'echo it runs; exec sleep 1000'))
    const running = await run('running', 'echo up; trap "exit 4" TERM; while :; do sleep 0.1; done')
    const exited = await run('exited', 'exit 3')
    const away = await run('away', 'echo first words; read x < /sync/go; exit 7', { mounts })
    const oom = await run('oom', 'read x < /sync/oom; exec dd if=/dev/zero of=/dev/null bs=200M', { mounts, linux: { resources: { memory_limit_in_bytes: String(32 << 20) } } })
    const flood = await run('flood', counting)
    const tty = await run('tty', 'test -t 1 || exit 9; i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done', { tty: true })
    await node.inState(exited, CONTAINER_EXITED)
    const logOf = (name: string): string => join(node.dir, 'logs', 'states', `${name}.log`)
    for (const [name, lines] of Object.entries({ flood: 10, tty: 10, away: 1 })) await until(`output of ${name}`, async () => (await logLines(logOf(name))).length >= lines || undefined)

    const unchanged = [created, running, exited, flood, tty]
    const snapshot = async (): Promise<unknown> => ({
      containers: await Promise.all(unchanged.map(async (id) => (await cri.runtime.ContainerStatus({ container_id: id })).status)),
      pods: await Promise.all([podId, stoppedPodId, hostPodId].map(async (id) => (await cri.runtime.PodSandboxStatus({ pod_sandbox_id: id })).status)),
      list: (await cri.runtime.ListPodSandbox({})).items.toSorted((a, b) => a.id.localeCompare(b.id)),
    })
    const was = await snapshot()
    const cutOff = failure(cri.runtime.ExecSync({ container_id: running, cmd: ['sh', '-c', 'sleep 4242; true'], timeout: '0' }))
    await until('the command runs', async () => commandRuns())
    const before = (await logLines(logOf('flood'))).length
    await node.shim.end('SIGKILL')
    for (const name of ['go', 'oom']) {
      const fifo = await open(join(sync, name), constants.O_RDWR | constants.O_NONBLOCK)
      await fifo.write('\n')
      await until(`${name} ended`, async () => new RegExp(`^${name === 'go' ? away : oom}\\s+\\d+\\s+STOPPED$`, 'm').test(await node.ctr('tasks', 'ls')) || undefined)
      await fifo.close()
    }
    await node.shim.start()
    await node.ready()

    assert.deepEqual(await snapshot(), was)
    assert.equal((await cutOff).code, 14)
    await until('the command whose caller is gone has been ended', async () => (await commandRuns() === undefined ? true : undefined))
    assert.deepEqual((await readdir(join(node.dir, 'shim-state', 'containers', running, 'io'))).filter((name) => name.startsWith('exec-')), [])
    const ended = await node.inState(away, CONTAINER_EXITED)
    assert.equal(ended.exit_code, 7)
    assert.equal(ended.reason, 'Error')
    assert.ok(BigInt(ended.finished_at) > BigInt(ended.started_at))
    const killed = await node.inState(oom, CONTAINER_EXITED)
    assert.deepEqual([killed.exit_code, killed.reason], [137, 'OOMKilled'])
    assert.deepEqual(await logLines(logOf('away')), ['first words'])
    assert.equal((await cri.runtime.ListContainers({ filter: { state: { state: CONTAINER_RUNNING } } })).containers.length, 3)

    // Names are still taken.
    assert.equal((await failure(cri.runtime.RunPodSandbox({ config: pod }))).code, alreadyExists)
    assert.equal((await failure(node.create(podId, pod, script('running', 'true')))).code, alreadyExists)

    // And everything works.
    const { exit_code, stdout } = await cri.runtime.ExecSync({ container_id: running, cmd: ['echo', 'hello'], timeout: '20' })
    assert.deepEqual([exit_code, stdout.toString()], [0, 'hello\n'])
    await cri.runtime.StartContainer({ container_id: created })
    await until('the log of what was created before', async () => (await logLines(logOf('created'))).includes('it runs') || undefined)
    for (const name of ['flood', 'tty']) {
      const now = (await logLines(logOf(name))).length
      await until(`more output of ${name}`, async () => (await logLines(logOf(name))).length > now + 10 || undefined)
    }
    await cri.runtime.StopContainer({ container_id: running, timeout: '30' })
    assert.equal((await node.inState(running, CONTAINER_EXITED)).exit_code, 4)
    for (const id of [flood, tty]) await cri.runtime.StopContainer({ container_id: id, timeout: '0' })
    assertOneGap(await logLines(logOf('flood')), before)
    assertOneGap(await logLines(logOf('tty')), 0)
    await cri.runtime.RemoveContainer({ container_id: running })
    for (const id of [podId, stoppedPodId, hostPodId]) await node.removePod(id)
    await node.nothingLeft()
  })

  it('a container whose start was cut off leaves nothing when it is removed instead of started again', async () => {
    const pod = node.pod('cut-off')
    const podId = await node.runPod(pod)
    const id = await node.create(podId, pod, script('cut-off', 'exec sleep 1000'))
    const start = node.cri.runtime.StartContainer({ container_id: id }).then(() => 'done', () => 'cut off')
    // The task is being made, or will be in a moment.
    const io = join(node.dir, 'shim-state', 'containers', id, 'io')
    while ((await readdir(io).catch(() => [])).length === 0);
    await node.restart('SIGKILL')
    assert.equal(await start, 'cut off')
    assert.equal((await node.inState(id, CONTAINER_CREATED)).started_at, '0')
    await node.removePod(podId)
    await node.nothingLeft()
    assert.match(await readFile(node.shim.logFile, 'utf8'), new RegExp(`"container":"${id}","msg":"the start of this container was cut off`))
  })

  it('a container with stdin waits on for input', async () => {
    const pod = node.pod('stdin')
    const podId = await node.runPod(pod)
    const id = await node.run(podId, pod, script('stdin', 'echo up; cat; echo the input has ended; exit 5', { stdin: true }))
    const log = join(node.dir, 'logs', 'stdin', 'stdin.log')
    await until('it is up', async () => (await logLines(log)).includes('up') || undefined)
    await node.restart('SIGKILL')
    const { exit_code } = await node.cri.runtime.ExecSync({ container_id: id, cmd: ['true'], timeout: '20' })
    assert.equal(exit_code, 0)
    assert.deepEqual(await logLines(log), ['up'])
    await node.removePod(podId)
    await node.nothingLeft()
  })

  it('at any moment of a call: half-made things are finished or undone, and the retry succeeds', async (t) => {
    const seed = Number(process.env['SEED'] ?? Math.floor(Math.random() * 2 ** 31))
    t.diagnostic(`SEED=${seed}`)
    const random = mulberry32(seed)
    const { cri } = node
    const counts = new Map<string, number>()
    // How long each takes when left alone, in milliseconds: the kill comes somewhere in it.
    const calls = { RunPodSandbox: 220, CreateContainer: 25, StartContainer: 100, StopPodSandbox: 150, RemovePodSandbox: 120, PullImage: 100 }
    const names = Object.keys(calls) as (keyof typeof calls)[]
    await node.removePod(await node.runPod(node.pod('warm-up')))
    for (let round = 0; round < 24; round++) {
      const name = names[round % names.length] ?? 'RunPodSandbox'
      const afterMs = random() * calls[name] * 1.2
      const what = `round ${round}: ${name} after ${afterMs.toFixed(1)} ms (SEED=${seed})`
      const pod = node.pod(`round-${round}`)
      let podId = name === 'RunPodSandbox' || name === 'PullImage' ? '' : await node.runPod(pod)
      const config = script('c', 'exec sleep 1000')
      let id = name === 'StartContainer' || name === 'StopPodSandbox' || name === 'RemovePodSandbox' ? await node.create(podId, pod, config) : ''
      if (name === 'StopPodSandbox') await cri.runtime.StartContainer({ container_id: id })
      if (name === 'RemovePodSandbox' && round % 2 === 0) await cri.runtime.StopPodSandbox({ pod_sandbox_id: podId })
      if (name === 'PullImage') await cri.image.RemoveImage({ image: { image: webServerImage } })
      const call = {
        RunPodSandbox: () => cri.runtime.RunPodSandbox({ config: pod }),
        CreateContainer: () => node.create(podId, pod, config),
        StartContainer: () => cri.runtime.StartContainer({ container_id: id }),
        StopPodSandbox: () => cri.runtime.StopPodSandbox({ pod_sandbox_id: podId }),
        RemovePodSandbox: () => cri.runtime.RemovePodSandbox({ pod_sandbox_id: podId }),
        PullImage: () => cri.image.PullImage({ image: { image: webServerImage } }),
      }[name]()
      const outcome = call.then(() => 'done', () => 'cut off')
      await delay(afterMs) // the moment of the kill is what is varied
      await node.restart('SIGKILL')
      const was = await outcome
      counts.set(`${name} ${was}`, (counts.get(`${name} ${was}`) ?? 0) + 1)

      // What a kubelet does: look what there is, go on with what is ready, make what is missing.
      try {
        if (name === 'PullImage') {
          await cri.image.PullImage({ image: { image: webServerImage } })
          assert.ok((await cri.image.ImageStatus({ image: { image: webServerImage } })).image)
          continue
        }
        const pods = (await cri.runtime.ListPodSandbox({})).items
        assert.ok(pods.length <= 1)
        const [known] = pods
        if (name === 'RunPodSandbox') {
          if (was === 'done') assert.equal(known?.state, PodSandboxState.SANDBOX_READY)
          if (known === undefined) podId = (await cri.runtime.RunPodSandbox({ config: pod })).pod_sandbox_id
          else podId = known.id
        } else if (name !== 'RemovePodSandbox') {
          assert.equal(known?.id, podId)
        }
        const containers = (await cri.runtime.ListContainers({})).containers
        if (name === 'RunPodSandbox' || name === 'CreateContainer') {
          assert.ok(containers.length <= 1)
          if (was === 'done') assert.equal(containers[0]?.state, name === 'CreateContainer' ? CONTAINER_CREATED : undefined)
          id = containers[0]?.id ?? await node.create(podId, pod, config)
        }
        if (name === 'RunPodSandbox' || name === 'CreateContainer' || name === 'StartContainer') {
          const { status } = await cri.runtime.ContainerStatus({ container_id: id })
          if (name === 'StartContainer' && was === 'done') assert.equal(status?.state, CONTAINER_RUNNING)
          if (status?.state !== CONTAINER_RUNNING) {
            assert.equal(status?.state, CONTAINER_CREATED)
            await cri.runtime.StartContainer({ container_id: id })
          }
          assert.equal((await cri.runtime.ExecSync({ container_id: id, cmd: ['true'], timeout: '20' })).exit_code, 0)
          const pods = await cri.runtime.PodSandboxStatus({ pod_sandbox_id: podId })
          assert.match(pods.status?.network?.ip ?? '', /^10\./)
        }
        if (name === 'StopPodSandbox' && was === 'done') assert.equal(known?.state, PodSandboxState.SANDBOX_NOTREADY)
        await node.removePod(podId)
        try {
          await node.nothingLeft()
        } catch (error) {
          if (was === 'done' || !await removeIdleShims(error)) throw error
          counts.set('idle shim', (counts.get('idle shim') ?? 0) + 1)
          await node.nothingLeft()
        }
      } catch (error) {
        throw new Error(what, { cause: error })
      }
    }
    t.diagnostic([...counts].map(([what, count]) => `${what}: ${count}`).toSorted((a, b) => a.localeCompare(b)).join(', '))
    assert.deepEqual((await cri.runtime.ListPodSandbox({})).items, [])
    await node.nothingLeft()
    assert.ok((await cri.image.ListImages({})).images.some((image) => image.repo_tags.includes(busyboxImage)))
    assert.doesNotMatch(await readFile(node.shim.logFile, 'utf8'), /"level":60/)
  })
})

/**
 * containerd 1.6 gives up the deletion of a task when its client is gone in the middle of it: it has forgotten the task by then, and a shim
 * without any task stays, which no call of its API reaches. Removes exactly that; false when anything else is left.
 */
async function removeIdleShims(error: unknown): Promise<boolean> {
  const lines = error instanceof Error ? error.message.split('\n').slice(1) : []
  const found = lines.map((line) => /^processes: (\d+) \S*containerd-shim-runc-v2 -namespace \S+ -id \S+ -address \S+$|^fifos: (\/.*\/io\.containerd\.runtime\.v2\.task\/.*)\/log$/.exec(line))
  if (found.length === 0 || found.includes(null)) return false
  for (const match of found) {
    if (match?.[1] !== undefined) process.kill(Number(match[1]), 'SIGKILL')
    if (match?.[2] !== undefined) await rm(match[2], { recursive: true, force: true })
  }
  return true
}

/** Numbers in order; where the service was killed, what it had read and not yet written may be missing: at most 64 KiB. */
function assertOneGap(lines: readonly string[], before: number): void {
  assert.ok(lines.length > before)
  let gaps = 0
  let last = 0
  for (const line of lines) {
    const value = Number(line)
    if (value !== last + 1) {
      gaps += 1
      // The first line after the gap may lack its beginning; the next one tells the number.
      if (!Number.isInteger(value) || value <= last) continue
      assert.ok((value - last) * line.length <= (64 << 10) + 16, `${value - last} lines are lost`)
    }
    last = value
  }
  assert.ok(gaps <= 2, `${gaps} gaps`)
}

function mulberry32(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
