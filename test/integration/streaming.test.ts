import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { buffer, text } from 'node:stream/consumers'
import { after, before, describe, test, type TestContext } from 'node:test'
import { Code } from '../../src/errors/cri-error.ts'
import { type ExecRequest, NamespaceMode } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { type Command, exitCodeOf, openCommand, openForward, runCommand, type Transport, transports, type Wanted } from '../fixtures/streaming/client.ts'
import { type ContainerNode, logEntries, type Pod, startContainerNode, statusOf } from './container-node.ts'
import { skipUnlessRoot } from './private-node.ts'

const both = { stdout: true, stderr: true }
const terminal = { stdin: true, stdout: true, tty: true }
/** With its own processes only, so that they can be counted. */
const alone = { linux: { security_context: { namespace_options: { pid: NamespaceMode.CONTAINER } } } }
const shellScript = (script: string): string[] => ['sh', '-c', script]
const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')

/** What a stream has given so far, and a way to wait for more. */
function watched(stream: Readable): { readonly all: string; until(fits: (all: string) => boolean): Promise<void> } {
  let all = ''
  stream.on('data', (piece: Buffer) => { all += piece.toString() })
  return {
    get all() {
      return all
    },
    async until(fits) {
      const ended = once(stream, 'close').then(() => assert.fail(`the stream ended: ${JSON.stringify(all)}`))
      ended.catch(() => undefined)
      while (!fits(all)) await Promise.race([once(stream, 'data'), ended])
    },
  }
}

describe('streaming', { skip: skipUnlessRoot, timeout: 300_000 }, () => {
  let node: ContainerNode
  let pod: Pod
  let shell: string
  before(async () => {
    node = await startContainerNode([], 'drain_exec_sync_io_timeout = "1s"\n')
    pod = await node.pod('streams')
    shell = (await node.start(pod, 'shell', { command: ['sleep', '100000'], ...alone })).id
  })
  after(async () => {
    // A command is removed when its client has the answer already.
    for (const deadline = Date.now() + 30_000; (await execsLeft()).length > 0 && Date.now() < deadline;) await new Promise((resolve) => { setTimeout(resolve, 50) })
    const left = await execsLeft()
    await node?.[Symbol.asyncDispose]()
    assert.deepEqual(left, [], 'an exec left its FIFOs behind')
  })

  const exec = async (cmd: readonly string[], wanted: Wanted, container = shell): Promise<string> =>
    (await node.cri.runtime.Exec({ container_id: container, cmd: [...cmd], ...wanted })).url
  const attach = async (container: string, wanted: Wanted): Promise<string> => (await node.cri.runtime.Attach({ container_id: container, ...wanted })).url
  const execsLeft = async (): Promise<string[]> => (await readdir(join(node.dir, 'shim-state'), { recursive: true })).filter((path) => /exec-[0-9a-f]+$/.test(path))
  const processes = async (container: string): Promise<string[]> => {
    const { stdout } = await node.cri.runtime.ExecSync({ container_id: container, cmd: ['ps', '-o', 'args'], timeout: '20' })
    return stdout.toString().split('\n').slice(1).filter((line) => line !== '' && line !== 'ps -o args' && !line.startsWith('[')) // Nobody takes leave of zombies here.
  }
  /** In the pod's network namespace: one port of 127.0.0.1, another of ::1, both of which send back what they get until its end. */
  const echoServer = async (t: TestContext): Promise<{ readonly ipv4: number; readonly ipv6: number }> => {
    const { info } = await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod.id, verbose: true })
    const netns = /"type":"network","path":"([^"]+)"/.exec(info['info']?.replaceAll(/\s/g, '') ?? '')?.[1] ?? assert.fail(info['info'])
    const script = `const net = require('node:net'); const ports = []
      for (const host of ['127.0.0.1', '::1']) { const server = net.createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket)); server.listen(0, host, () => { ports.push([host, server.address().port]); if (ports.length === 2) console.log(JSON.stringify(Object.fromEntries(ports))) }) }`
    const server = spawn('nsenter', [`--net=${netns}`, process.execPath, '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
    t.after(() => server.kill())
    const [line] = await once(server.stdout, 'data') as [Buffer]
    const ports = JSON.parse(line.toString()) as Record<string, number>
    return { ipv4: ports['127.0.0.1'] ?? 0, ipv6: ports['::1'] ?? 0 }
  }
  /** The processes of a container change without an event. */
  const untilProcesses = async (container: string, fits: (lines: readonly string[]) => boolean): Promise<void> => {
    const deadline = Date.now() + 60_000
    for (let lines = await processes(container); !fits(lines); lines = await processes(container)) {
      if (Date.now() > deadline) assert.fail(`still: ${lines.join(', ')}`)
    }
  }

  for (const transport of transports) {
    describe(`over ${transport}`, () => { eachTransport(transport) })
  }

  function eachTransport(transport: Transport): void {
    test('a command: stdout and stderr apart, its exit code, its input to the end', async () => {
      const script = 'cat; echo problem >&2; exit 7'
      const { stdout, stderr, status } = await runCommand(await exec(shellScript(script), { ...both, stdin: true }), transport, { ...both, stdin: true }, 'typed\n')
      assert.deepEqual([stdout, stderr, exitCodeOf(status)], ['typed\n', 'problem\n', 7])
      const well = await runCommand(await exec(['true'], both), transport, both)
      assert.deepEqual([well.stdout, well.stderr, exitCodeOf(well.status)], ['', '', 0])
    })

    test('32 MB go through a command and come back the same', async () => {
      const command = await openCommand(await exec(['cat'], { stdin: true, stdout: true }), transport, { stdin: true, stdout: true })
      const bytes = randomBytes(32 * 1024 * 1024)
      command.stdin.end(bytes)
      const hash = createHash('sha256')
      for await (const piece of command.stdout) hash.update(piece as Buffer)
      assert.equal(hash.digest('hex'), sha256(bytes))
      assert.equal(exitCodeOf(await command.status), 0)
    })

    test('a terminal has its size from the first moment, takes others, and what is typed', async () => {
      const command = await openCommand(await exec(shellScript('stty size; read line; while [ "$(stty size)" = "37 101" ]; do :; done; stty size; echo "<$line>"; exit 3'), terminal), transport, terminal)
      command.resize(101, 37)
      const screen = watched(command.stdout)
      await screen.until((all) => all.startsWith('37 101\r\n'))
      command.resize(80, 25)
      // What the client sends later on another stream may arrive sooner, so the program asks until it sees the change.
      command.stdin.write('typed\n')
      await command.status
      assert.match(screen.all, /\r\n25 80\r\n<typed>\r\n$/)
      assert.equal(exitCodeOf(await command.status), 3)
    })

    test('a command that is not there, or cannot be run, is an error that says so at once', async () => {
      for (const [cmd, says] of [[['no-such-command'], /executable file not found/], [['/no/such/command'], /no such file or directory/], [['/etc/passwd'], /permission denied/]] as const) {
        for (const wanted of [both, terminal]) {
          const { status, stdout } = await runCommand(await exec(cmd, wanted), transport, wanted)
          assert.equal(status.status, 'Failure')
          assert.match(status.message ?? '', says)
          assert.equal(stdout, '')
        }
      }
    })

    test('a client that vanishes takes its command along: by the end of its input, by a hang-up, in the end by force', async () => {
      const { id } = await node.start(pod, `vanish-${transport}`, { command: ['sleep', '100000'], ...alone })
      const open = async (cmd: readonly string[], wanted: Wanted): Promise<Command> => openCommand(await exec(cmd, wanted, id), transport, wanted)
      const commands = await Promise.all([
        open(['cat'], { stdin: true, stdout: true }), open(['sh'], terminal),
        // Those who heed neither are given ten seconds: once is enough.
        ...(transport === 'spdy' ? [['sleep', '50000'], shellScript('trap "" HUP; sleep 60000; sleep 70000'), shellScript('while true; do echo x; done')].map((cmd, index) => open(cmd, index === 1 ? terminal : both)) : []),
      ])
      await untilProcesses(id, (lines) => lines.length > commands.length)
      for (const command of commands) {
        command.status.catch(() => undefined)
        command.vanish()
      }
      await untilProcesses(id, (lines) => lines.length === 1)
      await node.cri.runtime.StopContainer({ container_id: id, timeout: '0' })
      await node.cri.runtime.RemoveContainer({ container_id: id })
    })

    test('something left running holds the output open: the exit code comes all the same', async () => {
      const { id } = await node.start(pod, `background-${transport}`, { command: ['sleep', '100000'] })
      const { stdout, status } = await runCommand(await exec(shellScript('sleep 90000 & echo started; exit 5'), both, id), transport, both)
      assert.deepEqual([stdout, exitCodeOf(status)], ['started\n', 5])
      await node.cri.runtime.StopContainer({ container_id: id, timeout: '0' })
      await node.cri.runtime.RemoveContainer({ container_id: id })
    })

    test('a container that ends takes its commands along', async () => {
      const { id } = await node.start(pod, `ends-${transport}`, { command: ['sleep', '100000'], ...alone })
      const command = await openCommand(await exec(['sleep', '100000'], both, id), transport, both)
      await untilProcesses(id, (lines) => lines.length === 2)
      await node.cri.runtime.StopContainer({ container_id: id, timeout: '0' })
      assert.equal((await command.status).status, 'Failure')
      await node.cri.runtime.RemoveContainer({ container_id: id })
    })

    test('several clients attach, see what comes from then on, and leave the container alone', async () => {
      const { id, log } = await node.start(pod, `attach-${transport}`, { stdin: true, command: shellScript('echo before; while read line; do echo "got $line"; echo "err $line" >&2; done; echo over') })
      const wanted = { ...both, stdin: true }
      const [first, second, reader] = await Promise.all([attach(id, wanted), attach(id, wanted), attach(id, { stdout: true })])
      const [one, two, three] = await Promise.all([openCommand(first, transport, wanted), openCommand(second, transport, wanted), openCommand(reader, transport, { stdout: true })])
      const screens = [one, two, three].map(({ stdout }) => watched(stdout))
      const errors = watched(one.stderr)
      // A client is not told when it is attached, and sees what comes from then on.
      while (screens.some(({ all }) => all === '')) {
        const seen = screens[0]?.all.length ?? 0
        one.stdin.write('ping\n')
        await screens[0]?.until((all) => all.length > seen)
      }
      one.stdin.write('1\n')
      await Promise.all(screens.map((screen) => screen.until((all) => all.includes('got 1\n'))))
      await errors.until((all) => all.includes('err 1\n'))
      two.stdin.write('2\n')
      await Promise.all(screens.map((screen) => screen.until((all) => all.includes('got 2\n'))))
      // Its input is not ended by one who leaves: that client is detached.
      one.stdin.end()
      assert.equal(exitCodeOf(await one.status), 0)
      three.status.catch(() => undefined)
      three.vanish()
      await node.cri.runtime.ReopenContainerLog({ container_id: id })
      two.stdin.write('3\n')
      await screens[1]?.until((all) => all.includes('got 3\n'))
      assert.equal((await node.status(id)).state, 1)
      await node.cri.runtime.StopContainer({ container_id: id, timeout: '0' })
      assert.equal(exitCodeOf(await two.status), 0)
      assert.deepEqual((await logEntries(log)).filter(({ stream }) => stream === 'stdout').map((entry) => entry.text).filter((line) => line !== 'got ping'), ['before', 'got 1', 'got 2', 'got 3'])
    })

    test('clients that vanish while a container talks to them are none of the others\' business', async () => {
      const { id } = await node.start(pod, `talks-${transport}`, { command: shellScript('while true; do echo line; done') })
      const stays = await openCommand(await attach(id, both), transport, both)
      stays.stdout.resume()
      for (let round = 0; round < 5; round++) {
        const clients = await Promise.all(Array.from({ length: 10 }, async () => openCommand(await attach(id, both), transport, both)))
        await Promise.all(clients.map(async (client) => {
          client.status.catch(() => undefined)
          await once(client.stdout, 'data')
          client.vanish()
        }))
      }
      await node.cri.runtime.StopContainer({ container_id: id, timeout: '0' })
      assert.equal(exitCodeOf(await stays.status), 0)
      assert.doesNotMatch(await readFile(node.shim.logFile, 'utf8'), /streaming thread failed/)
    })

    test('stdin_once: the end of the first client\'s input is the end of the container\'s, and it gets the output to the last byte', async () => {
      const { id } = await node.start(pod, `once-${transport}`, { stdin: true, stdin_once: true, command: shellScript('cat; echo over; exit 4') })
      const wanted = { ...both, stdin: true }
      const other = await openCommand(await attach(id, wanted), transport, wanted)
      for (const output of [other.stdout, other.stderr]) output.resume()
      const input = 'x'.repeat(300_000)
      const { stdout, status } = await runCommand(await attach(id, wanted), transport, wanted, input)
      assert.equal(stdout, `${input}over\n`)
      assert.equal(exitCodeOf(status), 0)
      assert.equal(exitCodeOf(await other.status), 0)
      assert.equal((await node.exited(id)).exit_code, 4)
    })

    test('a container with a terminal: everything on stdout, resized, detached without a hang-up', async () => {
      const { id } = await node.start(pod, `tty-${transport}`, { tty: true, stdin: true, stdin_once: true, command: ['sh'] })
      const command = await openCommand(await attach(id, terminal), transport, terminal)
      const screen = watched(command.stdout)
      command.stdin.write('echo here >&2\n')
      await screen.until((all) => all.includes('\r\nhere\r\n'))
      command.resize(90, 30)
      do {
        const seen = screen.all.length
        command.stdin.write('stty size\n')
        await screen.until((all) => /\r\n\d+ \d+\r\n/.test(all.slice(seen)))
      } while (!screen.all.includes('\r\n30 90\r\n'))
      command.status.catch(() => undefined)
      command.vanish()
      const again = await openCommand(await attach(id, terminal), transport, terminal)
      const after = watched(again.stdout)
      again.stdin.write('echo still $((40 + 2))\nexit\n')
      await again.status
      assert.match(after.all, /still 42\r\n/)
    })

    test('port-forward: 127.0.0.1 and ::1, many connections at once, half-closed, one refused', async (t) => {
      const server = await echoServer(t)
      const forward = await openForward((await node.cri.runtime.PortForward({ pod_sandbox_id: pod.id, port: [server.ipv4] })).url, transport)
      const echoed = async (port: number, payload: Buffer): Promise<Buffer> => {
        const { data, error } = forward.connect(port)
        data.end(payload)
        const answer = await buffer(data)
        assert.equal(await error, '')
        return answer
      }
      for (const port of [server.ipv4, server.ipv6]) assert.equal((await echoed(port, Buffer.from('up'))).toString(), 'up')
      const refused = forward.connect(9)
      refused.data.resume().on('error', () => undefined)
      assert.match(await refused.error, new RegExp(`pod ${pod.id} .*port 9 on 127\\.0\\.0\\.1 or ::1: nothing listens there`))
      const payloads = Array.from({ length: 50 }, (_, index) => Buffer.alloc(100_000 + index, index))
      const answers = await Promise.all(payloads.map((payload) => echoed(server.ipv4, payload)))
      for (const [index, answer] of answers.entries()) assert.equal(sha256(answer), sha256(payloads[index] as Buffer))
      forward.vanish()
    })
  }

  test('port-forward of a pod on the host network connects there', async (t) => {
    const { createServer } = await import('node:net')
    const server = createServer((socket) => socket.end('host')).listen(0, '127.0.0.1')
    t.after(() => server.close())
    await once(server, 'listening')
    const address = server.address()
    assert.ok(address !== null && typeof address === 'object')
    const onHost = await node.pod('on-host', { hostname: '', linux: { security_context: { namespace_options: { network: NamespaceMode.NODE } } } })
    const forward = await openForward((await node.cri.runtime.PortForward({ pod_sandbox_id: onHost.id })).url, 'spdy')
    assert.equal(await text(forward.connect(address.port).data), 'host')
    forward.vanish()
    await node.removePod(onHost)
  })

  test('what cannot be is refused before a URL is given', async () => {
    const refused = async (call: Promise<unknown>, code: number, says: RegExp): Promise<void> => {
      const status = await statusOf(call)
      assert.equal(status.code, code, status.details)
      assert.match(status.details, says)
    }
    const { runtime } = node.cri
    const request = (more: Init<ExecRequest>): Init<ExecRequest> => ({ container_id: shell, cmd: ['true'], stdout: true, ...more })
    await refused(runtime.Exec(request({ container_id: 'nobody' })), Code.NOT_FOUND, /no container with id nobody/)
    await refused(runtime.Exec(request({ container_id: '' })), Code.INVALID_ARGUMENT, /no container id/)
    await refused(runtime.Exec(request({ stdout: false })), Code.INVALID_ARGUMENT, /one of stdin, stdout and stderr/)
    await refused(runtime.Exec(request({ tty: true, stderr: true })), Code.INVALID_ARGUMENT, /tty and stderr/)
    await refused(runtime.Exec(request({ cmd: [] })), Code.INVALID_ARGUMENT, /no command/)
    await refused(runtime.Exec(request({ cmd: ['a\0b'] })), Code.INVALID_ARGUMENT, /NUL/)
    const made = await node.create(pod, 'made', { command: ['sleep', '1'] })
    await refused(runtime.Exec(request({ container_id: made.id })), Code.FAILED_PRECONDITION, /is created/)
    await refused(runtime.Attach({ container_id: made.id, stdout: true }), Code.FAILED_PRECONDITION, /is created/)
    await refused(runtime.Attach({ container_id: shell }), Code.INVALID_ARGUMENT, /one of stdin, stdout and stderr/)
    await refused(runtime.Attach({ container_id: shell, stderr: true, tty: true }), Code.INVALID_ARGUMENT, /tty and stderr/)
    await refused(runtime.PortForward({ pod_sandbox_id: 'nobody' }), Code.NOT_FOUND, /nobody/)
    for (const port of [0, -1, 65_536]) await refused(runtime.PortForward({ pod_sandbox_id: pod.id, port: [port] }), Code.INVALID_ARGUMENT, /1 to 65535/)
    const gone = await node.pod('gone')
    await runtime.StopPodSandbox({ pod_sandbox_id: gone.id })
    await refused(runtime.PortForward({ pod_sandbox_id: gone.id }), Code.FAILED_PRECONDITION, /not ready/)
    await node.removePod(gone)
  })

  test('a container that was stopped between the call and the client', async () => {
    const { id } = await node.start(pod, 'stopped', { command: ['sleep', '100000'] })
    const urls = [await exec(['true'], both, id), await attach(id, both)]
    await node.cri.runtime.StopContainer({ container_id: id, timeout: '0' })
    for (const url of urls) {
      const { status } = await runCommand(url, 'spdy', both)
      assert.match(status.message ?? '', /is exited/)
    }
  })

  test('a command goes on through a restart of containerd, and its exit code comes', async () => {
    const wanted = { ...both, stdin: true }
    const command = await openCommand(await exec(shellScript('echo up; cat; exit 6'), wanted), 'spdy', wanted)
    const screen = watched(command.stdout)
    // What it prints may be here before containerd's answer to the start.
    await screen.until((all) => all === 'up\n')
    await node.containerd.end('SIGTERM')
    command.stdin.end('still here\n')
    await node.containerd.start()
    assert.equal(exitCodeOf(await command.status), 6)
    assert.equal(screen.all, 'up\nstill here\n')
    const deadline = Date.now() + 60_000
    while ((await node.cri.runtime.Status({})).status?.conditions.some(({ status }) => !status) === true) if (Date.now() > deadline) assert.fail('containerd is back and the service has not noticed')
  })

  test('attaching after a restart of the service; running streams end with a word, their commands too', async () => {
    const { id } = await node.start(pod, 'restart', { ...alone, stdin: true, stdin_once: true, command: shellScript('while read line; do echo "got $line"; done; echo over') })
    const command = await openCommand(await exec(['sleep', '100000'], both, id), 'spdy', both)
    await untilProcesses(id, (lines) => lines.some((line) => line.startsWith('sleep')))
    await node.shim.end('SIGTERM')
    assert.match((await command.status).message ?? '', /shut/i)
    await node.shim.start()
    await node.cri.ready(30_000)
    await node.until(id, ({ state }) => state === 1)
    assert.deepEqual((await processes(id)).filter((line) => line.startsWith('sleep')), [])
    const wanted = { ...both, stdin: true }
    const { stdout } = await runCommand(await attach(id, wanted), 'websocket', wanted, 'after\n')
    assert.equal(stdout, 'got after\nover\n')
    await node.exited(id)
  })
})
