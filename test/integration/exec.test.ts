// ExecSync for real: what it answers, and that nothing of a command stays, however it ends.
import assert from 'node:assert/strict'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { Code } from '../../src/errors/cri-error.ts'
import type { ExecSyncResponse } from '../../src/generated/cri.ts'
import { command } from '../fixtures/command.ts'
import { type ContainerNode, type Pod, startContainerNode, statusOf } from './container-node.ts'

let node: ContainerNode
let pod: Pod
let id: string

before(async () => {
  node = await startContainerNode([], '  drain_exec_sync_io_timeout = "300ms"')
  pod = await node.pod('pod')
  id = (await node.start(pod, 'main', { command: ['sleep', '100000'], envs: [{ key: 'GIVEN', value: Buffer.from('yes') }], working_dir: '/tmp', linux: { security_context: { run_as_user: { value: '1002' }, supplemental_groups: ['77'] } } })).id
})
after(async () => { await node[Symbol.asyncDispose]() })

async function exec(cmd: readonly string[], timeout = 30, container = id): Promise<ExecSyncResponse> {
  return node.cri.runtime.ExecSync({ container_id: container, cmd, timeout: String(timeout) })
}
const shell = async (script: string, timeout?: number): Promise<ExecSyncResponse> => exec(['sh', '-c', script], timeout)

/** The processes of a container, its init aside: `PID COMMAND LINE`. */
async function others(container = id): Promise<string[]> {
  const { info } = await node.cri.runtime.ContainerStatus({ container_id: container, verbose: true })
  const { pid } = JSON.parse(info['info'] ?? '') as { pid: number }
  const own = await readFile(`/proc/${pid}/cgroup`, 'utf8')
  const found: string[] = []
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name) || Number(name) === pid) continue
    try {
      const state = /^State:\s+(\w)/m.exec(await readFile(`/proc/${name}/status`, 'utf8'))?.[1]
      if (state !== 'Z' && await readFile(`/proc/${name}/cgroup`, 'utf8') === own) found.push(`${name} ${(await readFile(`/proc/${name}/cmdline`, 'utf8')).replaceAll('\0', ' ')}`)
    } catch {
      continue // it ended while it was looked at
    }
  }
  return found
}

/** What is left of execs: FIFOs, what the shim has of them, processes. Asked again for a while: a cancelled call is cleaned up after its answer. */
async function nothingLeft(container = id): Promise<void> {
  const deadline = Date.now() + 20_000
  for (;;) {
    const fifos = (await readdir(join(node.dir, 'shim-state', 'containers', container, 'io'))).filter((name) => name.startsWith('exec-'))
    const pids = (await others(container))
    const { stdout } = await command('find', [join(node.dir, 'state', 'io.containerd.runtime.v2.task', 'k8s.io', container), '-name', '*.pid', '-not', '-name', 'init.pid', '-not', '-name', 'shim.pid'])
    if (fifos.length === 0 && pids.length === 0 && stdout === '') return
    assert.ok(Date.now() < deadline, `left: ${JSON.stringify({ fifos, pids, execs: stdout })}`)
    await new Promise((resolve) => { setTimeout(resolve, 20) })
  }
}

describe('what a command answers', () => {
  it('keeps exit code, standard output and standard error apart', async () => {
    const { exit_code, stdout, stderr } = await shell('echo out; echo err >&2; printf "no newline"; exit 42')
    assert.equal(exit_code, 42)
    assert.equal(stdout.toString(), 'out\nno newline')
    assert.equal(stderr.toString(), 'err\n')
    await nothingLeft()
  })

  it('runs as the container does, and with nothing of a shell in between', async () => {
    const { stdout } = await shell('id -u; id -G; pwd; echo $GIVEN; echo $HOSTNAME')
    assert.equal(stdout.toString(), '1002\n0 77\n/tmp\nyes\npod\n')
    assert.equal((await exec(['echo', '$HOME', 'a  b', ''])).stdout.toString(), '$HOME a  b \n')
  })

  it('brings bytes as they are', async () => {
    const { stdout } = await shell('printf "\\000\\377\\012\\303"')
    assert.deepEqual(stdout, Buffer.from([0, 255, 10, 195]))
  })

  it('says how a signal ended it', async () => {
    assert.equal((await shell('kill -KILL $$')).exit_code, 137)
    assert.equal((await shell('kill -SEGV $$')).exit_code, 139)
  })

  it('has an empty standard input', async () => {
    assert.equal((await exec(['cat'], 10)).stdout.length, 0)
  })

  it('cuts output off at 16 MiB, reads on so that the command ends, and gives an answer that a kubelet takes', async () => {
    const one = await shell('head -c 17000000 /dev/zero | tr "\\0" o; echo few >&2; exit 3')
    assert.equal(one.exit_code, 3)
    assert.equal(one.stderr.toString(), 'few\n')
    assert.ok(one.stdout.length > 16_700_000 && one.stdout.length < 16 * 1024 * 1024, `${one.stdout.length} bytes`)
    assert.ok(one.stdout.every((byte) => byte === 0x6f))
    const both = await shell('head -c 17000000 /dev/zero | tr "\\0" o; head -c 20000000 /dev/zero | tr "\\0" e >&2; exit 4')
    assert.equal(both.exit_code, 4)
    assert.equal(both.stdout.length, both.stderr.length)
    assert.ok(both.stdout.length > 8_380_000, `${both.stdout.length} bytes each`)
    assert.ok(both.stdout.every((byte) => byte === 0x6f) && both.stderr.every((byte) => byte === 0x65))
  })

  it('answers although a child in the background holds the pipe', async () => {
    const { exit_code, stdout } = await shell('echo before; sleep 1000 & exit 5', 0)
    assert.equal(exit_code, 5)
    assert.equal(stdout.toString(), 'before\n')
    for (const line of await others()) process.kill(Number(line.split(' ')[0]), 'SIGKILL')
    await nothingLeft()
  })

  it('answers fifty at once, each its own', async () => {
    const answers = await Promise.all(Array.from({ length: 50 }, async (_, index) => shell(`echo ${index}; exit ${index}`, 60)))
    for (const [index, { exit_code, stdout }] of answers.entries()) {
      assert.equal(exit_code, index)
      assert.equal(stdout.toString(), `${index}\n`)
    }
    await nothingLeft()
  })
})

describe('a command that takes too long', () => {
  it('is killed with all its children, and DEADLINE_EXCEEDED says so', async () => {
    const { code, details } = await statusOf(shell('sleep 1000 & (sleep 1000; true) & sleep 1000', 1))
    assert.equal(code, Code.DEADLINE_EXCEEDED)
    assert.match(details, /sleep 1000.*did not end within 1 s and was killed/)
    assert.deepEqual(await others(), [])
    await nothingLeft()
  })

  it('may take as long as it likes with timeout 0, and with one of months', async () => {
    assert.equal((await shell('sleep 0.2', 0)).exit_code, 0)
    assert.equal((await shell('sleep 0.2; exit 9', 3_000_000)).exit_code, 9)
    assert.equal((await shell('sleep 0.2; exit 9', 9_000_000_000)).exit_code, 9)
  })

  it('is killed when the client gives up, whenever that is', async () => {
    const marker = 'sleep 4242'
    for (let round = 0; round < 24; round++) {
      const abort = new AbortController()
      const call = statusOf(node.cri.runtime.ExecSync({ container_id: id, cmd: ['sh', '-c', `${marker} & ${marker}`], timeout: '0' }, { signal: abort.signal }))
      // Not to wait for something, but to strike at another moment of the call each time.
      await new Promise((resolve) => { setTimeout(resolve, round * 6) })
      abort.abort()
      assert.equal((await call).code, Code.CANCELLED)
    }
    await nothingLeft()
  })

  it('is killed at the client\'s own deadline', async () => {
    assert.equal((await statusOf(node.cri.runtime.ExecSync({ container_id: id, cmd: ['sleep', '1000'], timeout: '0' }, { timeoutMs: 700 }))).code, Code.DEADLINE_EXCEEDED)
    await nothingLeft()
  })
})

describe('a command that cannot be run', () => {
  const failures: readonly (readonly [string, readonly string[], number, RegExp])[] = [
    ['not there', ['no-such-command'], Code.INVALID_ARGUMENT, /cannot be run in container [0-9a-f]{64}.*no-such-command.*not found/],
    ['not there, by path', ['/no/such/command'], Code.INVALID_ARGUMENT, /no such file/],
    ['not executable', ['/etc/passwd'], Code.INVALID_ARGUMENT, /permission denied/],
    ['empty', [], Code.INVALID_ARGUMENT, /no command specified/],
    ['with a NUL', ['echo', 'a\0b'], Code.INVALID_ARGUMENT, /NUL/],
  ]
  for (const [what, cmd, code, pattern] of failures) {
    it(what, async () => {
      const status = await statusOf(exec(cmd))
      assert.equal(status.code, code)
      assert.match(status.details, pattern)
      await nothingLeft()
    })
  }

  it('with a negative timeout', async () => {
    const { code, details } = await statusOf(exec(['true'], -1))
    assert.equal(code, Code.INVALID_ARGUMENT)
    assert.match(details, /timeout -1 is negative/)
  })

  it('where nothing runs', async () => {
    assert.equal((await statusOf(exec(['true'], 1, 'nosuchcontainer'))).code, Code.NOT_FOUND)
    assert.equal((await statusOf(exec(['true'], 1, ''))).code, Code.INVALID_ARGUMENT)
    const created = await node.create(pod, 'created', { command: ['sleep', '1000'] })
    const before = await statusOf(exec(['true'], 1, created.id))
    assert.equal(before.code, Code.FAILED_PRECONDITION)
    assert.match(before.details, /is created/)
    await node.cri.runtime.StartContainer({ container_id: created.id })
    await node.cri.runtime.StopContainer({ container_id: created.id })
    const after = await statusOf(exec(['true'], 1, created.id))
    assert.equal(after.code, Code.FAILED_PRECONDITION)
    assert.match(after.details, /is exited/)
  })
})

describe('a container that ends', () => {
  it('ends the commands in it, and every caller gets an answer', async () => {
    const { id: ending } = await node.start(pod, 'ending', { command: ['sleep', '1000'] })
    const calls = Array.from({ length: 5 }, async () => exec(['sh', '-c', 'sleep 1000'], 0, ending).then(({ exit_code }) => exit_code, (error: unknown) => (error as { code: number }).code))
    while ((await others(ending)).length < 5) await new Promise((resolve) => { setTimeout(resolve, 20) })
    await node.cri.runtime.StopContainer({ container_id: ending, timeout: '0' })
    for (const answer of await Promise.all(calls)) assert.ok(answer === 137 || answer === Code.FAILED_PRECONDITION || answer === Code.NOT_FOUND, `answered ${answer}`)
    await node.cri.runtime.RemoveContainer({ container_id: ending })
  })

  it('is not held up by commands that come all the time', async () => {
    const { id: busy } = await node.start(pod, 'busy', { command: ['sleep', '1000'] })
    const stopped = new AbortController()
    const codes = new Set<number>()
    const callers = Array.from({ length: 4 }, async () => {
      while (!stopped.signal.aborted) await exec(['true'], 10, busy).catch((error: unknown) => codes.add((error as { code: number }).code))
    })
    await exec(['true'], 10, busy)
    await node.cri.runtime.StopContainer({ container_id: busy, timeout: '0' })
    await statusOf(exec(['true'], 10, busy))
    stopped.abort()
    await Promise.all(callers)
    for (const code of codes) assert.ok(code === Code.FAILED_PRECONDITION || code === Code.NOT_FOUND, `answered ${code}`)
    await node.cri.runtime.RemoveContainer({ container_id: busy })
  })
})
