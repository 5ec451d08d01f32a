// Containers for real: what they run as, what they see, how they end and how they are stopped.
import assert from 'node:assert/strict'
import { chmod, chown, lstat, mkdir, readFile, stat, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { Code } from '../../src/errors/cri-error.ts'
import { ContainerState, NamespaceMode, Signal } from '../../src/generated/cri.ts'
import { file } from '../images/tar.ts'
import { type ContainerNode, type Pod, imageName, logEntries, startContainerNode, statusOf } from './container-node.ts'

const show = `#!/bin/sh
echo "args $*"
echo "cwd $(pwd)"
echo "user $(id -u):$(id -g):$(id -G)"
env | sed 's/^/env /'
`

/** Ends by the signal that it is named for, with the signal's number as exit code, and says when it is ready for it. */
const trapping = (...signals: readonly string[]): string => `${signals.map((signal) => `trap 'echo got ${signal}; exit ${signal.length}' ${signal}`).join('; ')}; echo ready; while :; do sleep 0.05; done`

let node: ContainerNode
let pod: Pod

before(async () => {
  node = await startContainerNode([
    { name: 'show', entries: [file('show', show, 0o755)], config: { Entrypoint: ['/show', 'entry'], Cmd: ['one', 'two words'], Env: ['IMAGE=image', 'BOTH=image', 'WITH=a=b'], WorkingDir: '/from/image', User: 'www-data' } },
    { name: 'group', entries: [file('show', show, 0o755)], config: { Entrypoint: ['/show'], User: '1003:users' } },
    { name: 'unknown-user', config: { Cmd: ['sh'], User: 'nobody-knows' } },
    { name: 'no-command', config: {} },
    {
      name: 'volumes',
      entries: [
        { type: 'directory', path: 'data', mode: 0o2750, uid: 33, gid: 33 },
        { type: 'file', path: 'data/file', data: Buffer.from('from the image\n'), mode: 0o640, uid: 33, gid: 100 },
        { type: 'symlink', path: 'data/link', target: 'file' },
        { type: 'directory', path: 'data/sub', mode: 0o700, uid: 1 },
      ],
      config: { Cmd: ['sh'], Volumes: { '/data': {}, '/not/in/image': {}, '/mounted': {} } },
    },
    { name: 'stop-usr1', config: { Cmd: ['sh'], StopSignal: 'SIGUSR1' } },
    { name: 'stop-nonsense', config: { Cmd: ['sh'], StopSignal: 'SIGNONSENSE' } },
  ])
  pod = await node.pod('pod')
})
after(async () => { await node[Symbol.asyncDispose]() })

/** Until the container has printed `text` as a line. */
async function printed(log: string, text: string): Promise<void> {
  const deadline = Date.now() + 30_000
  while (!(await logEntries(log)).some((entry) => entry.text === text)) {
    assert.ok(Date.now() < deadline, `${log} never said ${text}: ${await readFile(log, 'utf8')}`)
    await new Promise((resolve) => { setTimeout(resolve, 10) })
  }
}

describe('what a container runs', () => {
  const fields = async (name: string, config: Parameters<ContainerNode['start']>[2]): Promise<{ args: string; cwd: string; user: string; env: Map<string, string> }> => {
    const { id, log } = await node.start(pod, name, config)
    const status = await node.exited(id)
    assert.equal(status.exit_code, 0, JSON.stringify(status))
    const lines = (await logEntries(log)).map(({ text }) => text)
    const one = (word: string): string => lines.find((line) => line.startsWith(`${word} `))?.slice(word.length + 1) ?? ''
    const env = new Map(lines.filter((line) => line.startsWith('env ')).map((line) => [line.slice(4, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]))
    return { args: one('args'), cwd: one('cwd'), user: one('user'), env }
  }
  const image = { image: imageName('show') }

  it('takes everything from the image when the request says nothing', async () => {
    const { args, cwd, user, env } = await fields('image-all', { image })
    assert.equal(args, 'entry one two words')
    assert.equal(cwd, '/from/image')
    assert.equal(user, '33:33:33')
    assert.equal(env.get('IMAGE'), 'image')
    assert.equal(env.get('WITH'), 'a=b')
    assert.equal(env.get('HOME'), '/var/www')
    assert.equal(env.get('HOSTNAME'), 'pod')
    assert.equal(env.get('TERM'), undefined)
  })

  it('lets args replace Cmd alone, and command both', async () => {
    assert.equal((await fields('args', { image, args: ['x'] })).args, 'entry x')
    assert.equal((await fields('command', { image, command: ['/show'] })).args, '')
    assert.equal((await fields('both', { image, command: ['/show', 'a'], args: ['b', ''] })).args, 'a b ')
  })

  it('prefers the request\'s environment, directory and user', async () => {
    const { cwd, user, env } = await fields('request', {
      image, working_dir: '/made/for/it', envs: [{ key: 'BOTH', value: Buffer.from('request') }, { key: 'LINES', value: Buffer.from('ä "=" \'x\' $HOME') }],
      linux: { security_context: { run_as_user: { value: '1002' }, run_as_group: { value: '1004' }, supplemental_groups: ['50', '60'] } },
    })
    assert.equal(cwd, '/made/for/it')
    assert.equal(user, '1002:1004:1004 50 60')
    assert.equal(env.get('BOTH'), 'request')
    assert.equal(env.get('IMAGE'), 'image')
    assert.equal(env.get('LINES'), 'ä "=" \'x\' $HOME')
    assert.equal(env.get('HOME'), '/')
  })

  it('knows run_as_username by the image\'s /etc/passwd', async () => {
    assert.match((await fields('username', { image, linux: { security_context: { run_as_username: 'daemon' } } })).user, /^1:1:/)
  })

  it('resolves a group name of USER', async () => {
    assert.match((await fields('group', { image: { image: imageName('group') } })).user, /^1003:100:/)
  })

  it('says in its status whom it runs as', async () => {
    const { id } = await node.create(pod, 'status-user', { image, linux: { security_context: { supplemental_groups: ['7'] } } })
    const { user } = await node.status(id)
    assert.deepEqual(user?.linux, { uid: '33', gid: '33', supplemental_groups: ['7', '33'] })
  })

  it('refuses what cannot be run, saying why', async () => {
    const unknown = await statusOf(node.create(pod, 'unknown-user', { image: { image: imageName('unknown-user') } }))
    assert.equal(unknown.code, Code.INVALID_ARGUMENT)
    assert.match(unknown.details, /nobody-knows.*runAsUser/)
    const none = await statusOf(node.create(pod, 'no-command', { image: { image: imageName('no-command') } }))
    assert.equal(none.code, Code.INVALID_ARGUMENT)
    assert.match(none.details, /no command specified/)
  })

  it('gives back labels, annotations, mounts and resources as they were given', async () => {
    const given = {
      labels: { a: '1', 'with/slash': 'ü' }, annotations: { note: '{"json": true}' },
      linux: { resources: { cpu_shares: '512', cpu_quota: '50000', cpu_period: '100000', memory_limit_in_bytes: '67108864' } },
    }
    const { id, log } = await node.create(pod, 'given-back', given)
    const status = await node.status(id)
    assert.deepEqual({ ...status.labels }, given.labels)
    assert.deepEqual({ ...status.annotations }, given.annotations)
    assert.equal(status.log_path, log)
    assert.equal(status.resources?.linux?.memory_limit_in_bytes, '67108864')
    assert.equal(status.state, ContainerState.CONTAINER_CREATED)
    assert.match(status.image_id, /^sha256:[0-9a-f]{64}$/)
    assert.equal(status.started_at, '0')
    const { info } = await node.cri.runtime.ContainerStatus({ container_id: id, verbose: true })
    const spec = (JSON.parse(info['info'] ?? '') as { runtimeSpec: { linux: { resources: { memory: { limit: number }; cpu: { quota: number } } } } }).runtimeSpec
    assert.equal(spec.linux.resources.memory.limit, 67108864)
    assert.equal(spec.linux.resources.cpu.quota, 50000)
  })
})

describe('what a container sees', () => {
  it('mounts a host path through symlinks, read-only or not', async () => {
    const real = join(node.dir, 'real')
    await mkdir(real)
    await writeFile(join(real, 'file'), 'on the host\n')
    await symlink(real, join(node.dir, 'one'))
    await symlink('one', join(node.dir, 'two'))
    const { output } = await node.run(pod, 'symlinked', 'cat /mnt/file; echo back > /mnt/written; echo no > /ro/x || echo read-only; cat /afile', {
      mounts: [
        { host_path: join(node.dir, 'two'), container_path: '/mnt' },
        { host_path: join(node.dir, 'two'), container_path: '/ro', readonly: true },
        { host_path: join(node.dir, 'two', 'file'), container_path: '/afile', readonly: true },
      ],
    })
    assert.equal(output, 'on the host\nread-only\non the host\n')
    assert.equal(await readFile(join(real, 'written'), 'utf8'), 'back\n')
  })

  it('makes a host path that is missing', async () => {
    const missing = join(node.dir, 'not', 'there', 'yet')
    const { status } = await node.run(pod, 'missing-host-path', 'touch /mnt/x', { mounts: [{ host_path: missing, container_path: '/mnt' }] })
    assert.equal(status.exit_code, 0)
    assert.ok((await stat(missing)).isDirectory())
    assert.ok((await stat(join(missing, 'x'))).isFile())
  })

  it('fills the image\'s volumes with the image\'s content, owners and modes, and lets the request replace one', async () => {
    const mounted = join(node.dir, 'mounted')
    await mkdir(mounted)
    await writeFile(join(mounted, 'mine'), '')
    const image = { image: imageName('volumes') }
    const script = 'stat -c "%n %a %u %g %F" /data /data/file /data/link /data/sub; cat /data/link; ls /mounted; ls -A /not/in/image; echo changed > /data/file; grep -c " /data " /proc/self/mountinfo'
    const first = await node.run(pod, 'volumes', script, { image, mounts: [{ host_path: mounted, container_path: '/mounted/' }] })
    const expected = [
      '/data 2750 33 33 directory', '/data/file 640 33 100 regular file', '/data/link 777 0 0 symbolic link', '/data/sub 700 1 0 directory', 'from the image', 'mine', '1', '',
    ].join('\n')
    assert.equal(first.output, expected)
    const second = await node.run(pod, 'volumes-again', 'cat /data/file', { image })
    assert.equal(second.output, 'from the image\n', 'each container has volumes of its own')
  })

  it('has the devices that it asks for, with no more access than it asks for', async () => {
    const script = '(: > /dev/mine) && echo writable; (: < /dev/mine) 2>/dev/null || echo not-readable; (: > /dev/fuse) 2>/dev/null; test -c /dev/fuse || echo no-other'
    const { output } = await node.run(pod, 'devices', script, { devices: [{ host_path: '/dev/kmsg', container_path: '/dev/mine', permissions: 'w' }] })
    assert.equal(output, 'writable\nnot-readable\nno-other\n')
  })

  it('sees the host\'s devices when privileged, and only then', async () => {
    const probe = 'test -c /dev/kmsg && echo kmsg; test -c /dev/null && echo null'
    assert.equal((await node.run(pod, 'unprivileged', probe)).output, 'null\n')
    const privileged = await node.pod('privileged', { linux: { security_context: { privileged: true } } })
    const { output } = await node.run(privileged, 'privileged', `${probe}; grep CapEff /proc/self/status`, { linux: { security_context: { privileged: true } } })
    const own = /CapEff.*/.exec(await readFile('/proc/self/status', 'utf8'))?.[0]
    const kmsg = await lstat('/dev/kmsg').then(() => 'kmsg\n', () => '')
    assert.equal(output, `${kmsg}null\n${own}\n`)
  })

  it('cannot write a read-only root file system, but its volumes and /dev/shm', async () => {
    const { output } = await node.run(pod, 'read-only', 'touch /x 2>/dev/null || echo root; touch /dev/shm/x && echo shm; touch /etc/hosts 2>/dev/null || echo hosts; touch /v/x && echo volume', {
      mounts: [{ host_path: join(node.dir, 'volume'), container_path: '/v' }], linux: { security_context: { readonly_rootfs: true } },
    })
    assert.equal(output, 'root\nshm\nhosts\nvolume\n')
  })

  it('lets a user that is not root use a mount it owns', async () => {
    const owned = join(node.dir, 'owned')
    await mkdir(owned)
    await chmod(owned, 0o700)
    await chown(owned, 1002, 1002)
    const { output } = await node.run(pod, 'owned', 'echo mine > /v/file && id -u', { mounts: [{ host_path: owned, container_path: '/v' }], linux: { security_context: { run_as_user: { value: '1002' } } } })
    assert.equal(output, '1002\n')
    assert.equal((await stat(join(owned, 'file'))).uid, 1002)
  })
})

describe('how a container ends', () => {
  const cases = [
    { name: 'completed', script: 'exit 0', exit_code: 0, reason: 'Completed' },
    { name: 'error', script: 'exit 1', exit_code: 1, reason: 'Error' },
    { name: 'largest', script: 'exit 255', exit_code: 255, reason: 'Error' },
    { name: 'killed', script: 'kill -KILL $$', exit_code: 137, reason: 'Error' },
    { name: 'segmentation-fault', script: 'kill -SEGV $$', exit_code: 139, reason: 'Error' },
    { name: 'terminated', script: 'kill -TERM $$', exit_code: 143, reason: 'Error' },
  ]
  for (const { name, script, exit_code, reason } of cases) {
    it(`${script}: ${exit_code}, ${reason}`, async () => {
      const { status } = await node.run(pod, name, script)
      assert.equal(status.exit_code, exit_code)
      assert.equal(status.reason, reason)
      assert.equal(status.message, '')
      const times = [status.created_at, status.started_at, status.finished_at].map(BigInt)
      assert.ok(times[0] !== undefined && times[1] !== undefined && times[2] !== undefined && times[0] > 0n && times[0] <= times[1] && times[1] <= times[2], `created, started, finished: ${times.join(', ')}`)
    })
  }

  it('keeps created ≤ started ≤ finished for programs that end at once', async () => {
    for (let round = 0; round < 10; round++) {
      const { status } = await node.run(pod, `short-${round}`, '', { command: ['true'] })
      assert.ok(BigInt(status.created_at) <= BigInt(status.started_at) && BigInt(status.started_at) <= BigInt(status.finished_at), `${status.created_at} ${status.started_at} ${status.finished_at}`)
    }
  })

  const failures = [
    { name: 'no-such-file', command: ['/no/such/program'], exit_code: 127, reason: 'ContainerCannotRun' },
    { name: 'no-such-name', command: ['no-such-program'], exit_code: 127, reason: 'ContainerCannotRun' },
    { name: 'not-executable', command: ['/etc/passwd'], exit_code: 126, reason: 'ContainerCannotRun' },
    { name: 'a-directory', command: ['/etc'], exit_code: 126, reason: 'ContainerCannotRun' },
  ]
  for (const { name, command, exit_code, reason } of failures) {
    it(`cannot start ${command.join(' ')}: ${exit_code}, ${reason}`, async () => {
      const { id } = await node.create(pod, name, { command })
      const failure = await statusOf(node.cri.runtime.StartContainer({ container_id: id }))
      assert.match(failure.details, new RegExp(`container ${id} cannot be started.*${command.join(' ')}`))
      assert.equal(failure.code, Code.INVALID_ARGUMENT)
      const status = await node.status(id)
      assert.equal(status.state, ContainerState.CONTAINER_EXITED)
      assert.equal(status.exit_code, exit_code, status.message)
      assert.equal(status.reason, reason)
      assert.match(status.message, new RegExp(command.join(' ')))
      assert.equal((await statusOf(node.cri.runtime.StartContainer({ container_id: id }))).code, Code.FAILED_PRECONDITION)
      await node.cri.runtime.StopContainer({ container_id: id })
      await node.cri.runtime.RemoveContainer({ container_id: id })
    })
  }

  it('cannot start with a mount that runc refuses: 128, StartError', async () => {
    const { id } = await node.create(pod, 'start-error', { command: ['true'], mounts: [{ host_path: node.dir, container_path: '/etc/passwd' }] })
    const failure = await statusOf(node.cri.runtime.StartContainer({ container_id: id }))
    assert.match(failure.details, /etc\/passwd/)
    const status = await node.status(id)
    assert.equal(status.exit_code, 128, status.message)
    assert.equal(status.reason, 'StartError')
  })

  it('does not start twice, however often at once it is asked', async () => {
    const { id, log } = await node.create(pod, 'twice', { command: ['sh', '-c', 'echo started; sleep 1000'] })
    const results = await Promise.allSettled(Array.from({ length: 4 }, async () => node.cri.runtime.StartContainer({ container_id: id })))
    assert.equal(results.filter(({ status }) => status === 'fulfilled').length, 1)
    for (const result of results) if (result.status === 'rejected') assert.equal((result.reason as { code: number }).code, Code.FAILED_PRECONDITION)
    await printed(log, 'started')
    assert.equal((await logEntries(log)).length, 1)
    await node.cri.runtime.RemoveContainer({ container_id: id })
  })
})

describe('how a container is stopped', () => {
  it('gets SIGTERM first', async () => {
    const { id, log } = await node.start(pod, 'sigterm', { command: ['sh', '-c', trapping('TERM')] })
    await printed(log, 'ready')
    await node.cri.runtime.StopContainer({ container_id: id, timeout: '20' })
    const status = await node.status(id)
    assert.equal(status.state, ContainerState.CONTAINER_EXITED)
    assert.equal(status.exit_code, 4)
    assert.equal((await logEntries(log)).at(-1)?.text, 'got TERM')
    await node.cri.runtime.StopContainer({ container_id: id, timeout: '20' })
  })

  for (const [name, expected, config] of [
    ['image', 'USR1', { image: { image: imageName('stop-usr1') } }],
    ['request', 'USR2', { stop_signal: Signal.SIGUSR2 }],
    ['request-over-image', 'HUP', { image: { image: imageName('stop-usr1') }, stop_signal: Signal.SIGHUP }],
    ['nonsense', 'TERM', { image: { image: imageName('stop-nonsense') } }],
  ] as const) {
    it(`gets the stop signal: ${name}`, async () => {
      const { id, log } = await node.start(pod, `signal-${name}`, { command: ['sh', '-c', trapping('TERM', 'USR1', 'USR2', 'HUP')], ...config })
      assert.equal((await node.status(id)).stop_signal, Signal[`SIG${expected}`])
      await printed(log, 'ready')
      await node.cri.runtime.StopContainer({ container_id: id, timeout: '20' })
      assert.equal((await logEntries(log)).at(-1)?.text, `got ${expected}`)
    })
  }

  it('is killed when the grace period is over', async () => {
    const { id, log } = await node.start(pod, 'stubborn', { command: ['sh', '-c', 'trap "echo no" TERM; echo ready; while :; do sleep 0.05; done'] })
    await printed(log, 'ready')
    await node.cri.runtime.StopContainer({ container_id: id, timeout: '1' })
    const status = await node.status(id)
    assert.equal(status.state, ContainerState.CONTAINER_EXITED)
    assert.equal(status.exit_code, 137)
    assert.equal(status.reason, 'Error')
    assert.equal((await logEntries(log)).filter(({ text }) => text === 'no').length, 1)
  })

  it('is killed at once with timeout 0', async () => {
    const { id, log } = await node.start(pod, 'at-once', { command: ['sh', '-c', trapping('TERM')] })
    await printed(log, 'ready')
    await node.cri.runtime.StopContainer({ container_id: id, timeout: '0' })
    assert.equal((await node.status(id)).exit_code, 137)
    assert.ok(!(await logEntries(log)).some(({ text }) => text === 'got TERM'))
  })

  it('as init of its own PID namespace, ignores SIGTERM and is killed with everything in it', async () => {
    const { id, log } = await node.start(pod, 'own-pids', {
      command: ['sh', '-c', 'sleep 1000 & echo ready; wait'], linux: { security_context: { namespace_options: { pid: NamespaceMode.CONTAINER } } },
    })
    await printed(log, 'ready')
    await node.cri.runtime.StopContainer({ container_id: id, timeout: '1' })
    assert.equal((await node.status(id)).exit_code, 137)
  })

  it('takes its children with it in a shared PID namespace', async () => {
    const { id, log } = await node.start(pod, 'shared-pids', { command: ['sh', '-c', 'sleep 100000 & echo ready; wait'] })
    await printed(log, 'ready')
    await node.cri.runtime.StopContainer({ container_id: id, timeout: '0' })
    assert.ok((await node.containerd.leaks()).processes.every((line) => !line.includes('100000')))
  })

  it('is stopped by the more impatient of two calls', async () => {
    const { id, log } = await node.start(pod, 'two-stops', { command: ['sh', '-c', 'trap "echo no" TERM; echo ready; while :; do sleep 0.05; done'] })
    await printed(log, 'ready')
    const patient = node.cri.runtime.StopContainer({ container_id: id, timeout: '3600' })
    await printed(log, 'no')
    await Promise.all([patient, node.cri.runtime.StopContainer({ container_id: id, timeout: '1' })])
    assert.equal((await node.status(id)).exit_code, 137)
  })

  it('goes on when the caller of StopContainer gives up in the grace period', async () => {
    const { id, log } = await node.start(pod, 'gave-up', { command: ['sh', '-c', 'trap "echo no" TERM; echo ready; while :; do sleep 0.05; done'] })
    await printed(log, 'ready')
    const abort = new AbortController()
    const stopping = statusOf(node.cri.runtime.StopContainer({ container_id: id, timeout: '3600' }, { signal: abort.signal }))
    await printed(log, 'no')
    abort.abort()
    assert.equal((await stopping).code, Code.CANCELLED)
    assert.equal((await node.status(id)).state, ContainerState.CONTAINER_RUNNING)
    await node.cri.runtime.StopContainer({ container_id: id, timeout: '0' })
  })

  it('is left as it is when it is created, and gone ones are fine', async () => {
    const { id } = await node.create(pod, 'only-created', { command: ['true'] })
    await node.cri.runtime.StopContainer({ container_id: id, timeout: '1' })
    assert.equal((await node.status(id)).state, ContainerState.CONTAINER_CREATED)
    await node.cri.runtime.RemoveContainer({ container_id: id })
    await node.cri.runtime.StopContainer({ container_id: id, timeout: '1' })
    await node.cri.runtime.RemoveContainer({ container_id: id })
    assert.equal((await statusOf(node.status(id))).code, Code.NOT_FOUND)
  })

  it('is killed and removed by RemoveContainer while it runs, also when asked several times at once', async () => {
    const { id } = await node.start(pod, 'removed', { command: ['sleep', '1000'] })
    await Promise.all(Array.from({ length: 3 }, async () => node.cri.runtime.RemoveContainer({ container_id: id })))
    assert.equal((await statusOf(node.status(id))).code, Code.NOT_FOUND)
    const again = await node.create(pod, 'removed', { command: ['true'] })
    await node.cri.runtime.RemoveContainer({ container_id: again.id })
  })

  it('may be started and removed by different callers at the same time', async () => {
    for (let round = 0; round < 5; round++) {
      const { id } = await node.create(pod, 'race', { command: ['sleep', '1000'] })
      await Promise.allSettled([node.cri.runtime.StartContainer({ container_id: id }), node.cri.runtime.StopContainer({ container_id: id, timeout: '0' }), node.cri.runtime.RemoveContainer({ container_id: id })])
      await node.cri.runtime.RemoveContainer({ container_id: id })
      assert.equal((await statusOf(node.status(id))).code, Code.NOT_FOUND)
    }
  })
})

describe('a pod that is gone', () => {
  it('takes no new container and starts none', async () => {
    const dead = await node.pod('dead')
    const { id } = await node.create(dead, 'waiting', { command: ['true'] })
    const running = await node.start(dead, 'running', { command: ['sleep', '1000'] })
    await node.cri.runtime.StopPodSandbox({ pod_sandbox_id: dead.id })
    assert.equal((await node.status(running.id)).exit_code, 137)
    const create = await statusOf(node.create(dead, 'late', { command: ['true'] }))
    assert.equal(create.code, Code.FAILED_PRECONDITION)
    assert.match(create.details, /not ready/)
    const start = await statusOf(node.cri.runtime.StartContainer({ container_id: id }))
    assert.equal(start.code, Code.FAILED_PRECONDITION)
    assert.match(start.details, /not ready/)
    await node.removePod(dead)
    assert.equal((await statusOf(node.create(dead, 'later', { command: ['true'] }))).code, Code.NOT_FOUND)
    assert.equal((await statusOf(node.status(id))).code, Code.NOT_FOUND)
  })

  it('leaves a name in use to one container alone', async () => {
    const results = await Promise.allSettled(Array.from({ length: 3 }, async () => node.create(pod, 'one-name', { command: ['true'] })))
    assert.equal(results.filter(({ status }) => status === 'fulfilled').length, 1)
    for (const result of results) {
      if (result.status !== 'rejected') continue
      assert.equal((result.reason as { code: number }).code, Code.ALREADY_EXISTS)
      assert.match((result.reason as { details: string }).details, /one-name_pod_tests_pod-uid_0 is reserved/)
    }
  })
})
