// Container logs for real: their format, reopening under load, paths that would leave the pod's directory, containers that print flat out.
import assert from 'node:assert/strict'
import { lstat, mkdir, readdir, readFile, rename, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { Code } from '../../src/errors/cri-error.ts'
import { ContainerState } from '../../src/generated/cri.ts'
import { type ContainerNode, type LogEntry, type Pod, logEntries, startContainerNode, statusOf } from './container-node.ts'

let node: ContainerNode
let pod: Pod

before(async () => {
  node = await startContainerNode([], '  max_container_log_line_size = 100')
  pod = await node.pod('pod')
})
after(async () => { await node[Symbol.asyncDispose]() })

/** The entries of a container that has printed what `script` prints and ended. */
async function entriesOf(name: string, script: string, tty = false): Promise<LogEntry[]> {
  const { id, log } = await node.start(pod, name, { command: ['sh', '-c', script], tty })
  await node.exited(id)
  return logEntries(log)
}
const joined = (entries: readonly LogEntry[], stream: string): string => entries.filter((entry) => entry.stream === stream).map(({ text, tag }) => (tag === 'F' ? `${text}\n` : text)).join('')

describe('the format', () => {
  it('has one entry per line, with its stream and a time that never goes back', async () => {
    const entries = await entriesOf('lines', 'echo one; echo two >&2; echo; echo "  three  "')
    assert.deepEqual(entries.filter(({ stream }) => stream === 'stdout').map(({ tag, text }) => [tag, text]), [['F', 'one'], ['F', ''], ['F', '  three  ']])
    assert.deepEqual(entries.filter(({ stream }) => stream === 'stderr').map(({ tag, text }) => [tag, text]), [['F', 'two']])
    for (const [index, { time }] of entries.entries()) if (index > 0) assert.ok(time >= (entries[index - 1]?.time ?? ''), 'in order')
  })

  it('cuts long lines at max_container_log_line_size: P, P, F', async () => {
    const entries = await entriesOf('long', 'head -c 250 /dev/zero | tr "\\0" x; echo; head -c 100 /dev/zero | tr "\\0" y; echo; echo short')
    assert.deepEqual(entries.map(({ tag, text }) => `${tag}${text.length}`), ['P100', 'P100', 'F50', 'F100', 'F5'])
    assert.equal(joined(entries, 'stdout'), `${'x'.repeat(250)}\n${'y'.repeat(100)}\nshort\n`)
  })

  it('keeps what has no newline at the end', async () => {
    const entries = await entriesOf('unfinished', 'echo whole; printf half')
    assert.deepEqual(entries.map(({ text }) => text), ['whole', 'half'])
    assert.equal(entries[1]?.tag, 'P')
  })

  it('puts everything of a terminal on stdout', async () => {
    const entries = await entriesOf('terminal', 'echo out; echo err >&2; test -t 0 && test -t 1 && test -t 2 && echo terminal; echo $TERM', true)
    assert.deepEqual(entries.map(({ stream, text }) => `${stream} ${text}`), ['stdout out', 'stdout err', 'stdout terminal', 'stdout xterm'])
  })

  it('has the last words of a container that is killed', async () => {
    const { id, log } = await node.start(pod, 'last-words', { command: ['sh', '-c', 'i=0; while :; do i=$((i+1)); echo $i; done'] })
    while ((await readFile(log)).length < 100_000) await new Promise((resolve) => { setTimeout(resolve, 5) })
    await node.cri.runtime.StopContainer({ container_id: id, timeout: '0' })
    const entries = await logEntries(log)
    for (const [index, { text }] of entries.entries()) if (text !== String(index + 1)) assert.ok(index === entries.length - 1, `line ${index + 1} is ${text}`)
  })

  it('is not there for a pod without a log directory, and the container runs all the same', async () => {
    const quiet = await node.pod('quiet', { log_directory: '' })
    const { id } = await node.start(quiet, 'loud', { command: ['sh', '-c', 'head -c 1000000 /dev/zero; echo done'] })
    const status = await node.exited(id)
    assert.equal(status.exit_code, 0)
    assert.equal(status.log_path, '')
    assert.equal((await statusOf(node.cri.runtime.ReopenContainerLog({ container_id: id }))).code, Code.FAILED_PRECONDITION)
  })

  it('goes into directories below the pod\'s, as the kubelet names them', async () => {
    const { id } = await node.start(pod, 'nested', { command: ['echo', 'nested'], log_path: 'app/0.log' })
    await node.exited(id)
    assert.deepEqual((await logEntries(join(pod.logDir, 'app', '0.log'))).map(({ text }) => text), ['nested'])
  })
})

describe('ReopenContainerLog', () => {
  it('loses nothing of a container that prints all the time', async () => {
    const lines = 60_000
    const { id, log } = await node.start(pod, 'rotated', { command: ['sh', '-c', `i=0; while [ $i -lt ${lines} ]; do i=$((i+1)); echo $i; done`] })
    const files: string[] = []
    while ((await node.status(id)).state === ContainerState.CONTAINER_RUNNING) {
      const old = `${log}.${files.length}`
      await rename(log, old)
      files.push(old)
      const reopened = await node.cri.runtime.ReopenContainerLog({ container_id: id }).then(() => 0, (error: unknown) => (error as { code: number }).code)
      if (reopened !== 0) {
        assert.ok(reopened === Code.FAILED_PRECONDITION || reopened === Code.NOT_FOUND, `answered ${reopened}`)
        break
      }
      await new Promise((resolve) => { setTimeout(resolve, 20) }) // a rotation now and then, not all the time
    }
    await node.exited(id)
    assert.ok(files.length > 3, `${files.length} rotations`)
    const there = (await readdir(pod.logDir)).filter((name) => name === 'rotated.log').map((name) => join(pod.logDir, name))
    const all = (await Promise.all([...files, ...there].map(logEntries))).flat()
    assert.equal(joined(all, 'stdout'), Array.from({ length: lines }, (_, index) => `${index + 1}\n`).join(''))
  })

  it('answers with the right code where there is nothing to reopen', async () => {
    assert.equal((await statusOf(node.cri.runtime.ReopenContainerLog({ container_id: 'nosuchcontainer' }))).code, Code.NOT_FOUND)
    const { id } = await node.create(pod, 'not-started', { command: ['true'] })
    const created = await statusOf(node.cri.runtime.ReopenContainerLog({ container_id: id }))
    assert.equal(created.code, Code.FAILED_PRECONDITION)
    assert.match(created.details, /is created/)
  })

  it('goes on with the old file when the new one cannot be made', async () => {
    const { id, log } = await node.start(pod, 'blocked', { command: ['sh', '-c', 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done'] })
    await rename(log, `${log}.old`)
    await mkdir(log)
    const failure = await statusOf(node.cri.runtime.ReopenContainerLog({ container_id: id }))
    assert.match(failure.details, /blocked\.log/)
    const before = (await logEntries(`${log}.old`)).length
    while ((await logEntries(`${log}.old`)).length <= before) await new Promise((resolve) => { setTimeout(resolve, 10) })
    await node.cri.runtime.StopContainer({ container_id: id, timeout: '0' })
  })
})

describe('log paths', () => {
  for (const path of ['../escaped.log', 'a/../../escaped.log', '/etc/escaped.log', '..', '.', 'dir/', 'a\0b']) {
    it(`refuses ${JSON.stringify(path)}`, async () => {
      const { code, details } = await statusOf(node.create(pod, 'refused', { command: ['true'], log_path: path }))
      assert.equal(code, Code.INVALID_ARGUMENT)
      assert.match(details, /log/)
    })
  }

  it('refuses a log directory that is not absolute', async () => {
    const odd = { ...pod.config, log_directory: 'relative' }
    const { code, details } = await statusOf(node.create({ ...pod, config: odd }, 'refused', { command: ['true'] }))
    assert.equal(code, Code.INVALID_ARGUMENT)
    assert.match(details, /log_directory "relative" must be an absolute path/)
  })

  it('does not follow a symlink that was planted in the place of the file', async () => {
    const secret = join(node.dir, 'secret')
    await writeFile(secret, 'untouched')
    await symlink(secret, join(pod.logDir, 'planted.log'))
    const { id } = await node.create(pod, 'planted', { command: ['echo', 'overwritten'] })
    const { details } = await statusOf(node.cri.runtime.StartContainer({ container_id: id }))
    assert.match(details, /planted\.log/)
    assert.equal(await readFile(secret, 'utf8'), 'untouched')
    assert.ok((await lstat(join(pod.logDir, 'planted.log'))).isSymbolicLink())
    const status = await node.status(id)
    assert.equal(status.state, ContainerState.CONTAINER_EXITED)
    assert.equal(status.reason, 'StartError')
  })

  it('does not follow one that is planted while the container runs', async () => {
    const secret = join(node.dir, 'secret-too')
    await writeFile(secret, 'untouched')
    const { id, log } = await node.start(pod, 'planted-later', { command: ['sh', '-c', 'while :; do echo x; sleep 0.02; done'] })
    await rename(log, `${log}.old`)
    await symlink(secret, log)
    assert.match((await statusOf(node.cri.runtime.ReopenContainerLog({ container_id: id }))).details, /planted-later\.log/)
    await node.cri.runtime.StopContainer({ container_id: id, timeout: '0' })
    assert.equal(await readFile(secret, 'utf8'), 'untouched')
  })
})

describe('a container that prints flat out', () => {
  it('keeps nobody from working: pods, containers and commands come and go, and no byte of the others is lost', async () => {
    const { id } = await node.start(pod, 'flood', { command: ['sh', '-c', 'yes 0123456789012345678901234567890123456789'], log_path: 'flood.log' })
    const beside = await node.pod('beside')
    const results = await Promise.all(Array.from({ length: 3 }, async (_, index) => node.run(beside, `beside-${index}`, 'i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i; done')))
    for (const { status, output } of results) {
      assert.equal(status.exit_code, 0)
      assert.equal(output, Array.from({ length: 2000 }, (_, index) => `${index + 1}\n`).join(''))
    }
    assert.equal((await node.cri.runtime.ListContainers({ filter: { state: { state: ContainerState.CONTAINER_RUNNING } } })).containers.length, 1)
    assert.equal((await node.cri.runtime.ExecSync({ container_id: id, cmd: ['echo', 'here'], timeout: '30' })).stdout.toString(), 'here\n')
    assert.equal((await node.cri.runtime.Status({})).status?.conditions.find(({ type }) => type === 'RuntimeReady')?.status, true)
    await node.removePod(beside)
    await node.cri.runtime.StopContainer({ container_id: id, timeout: '0' })
    assert.equal((await node.status(id)).exit_code, 137)
    await writeFile(join(pod.logDir, 'flood.log'), '') // hundreds of megabytes by now
  })
})
