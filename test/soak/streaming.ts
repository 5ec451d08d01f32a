// node test/soak/streaming.ts [--quick]
// What takes too long for every test run: streams of a gigabyte, hundreds of sessions at once, a thousand clients that vanish, on a node of its own.
// Prints what it measured, and fails when bytes differ or something is left: descriptors, threads, FIFOs, processes, execs in shims. Needs root.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readdir, readFile, readlink } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable, Writable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { exitCodeOf, openCommand, openForward, runCommand, type Transport, transports, type Wanted } from '../fixtures/streaming/client.ts'
import { type Pod, startContainerNode } from '../integration/container-node.ts'

const quick = process.argv.includes('--quick')
const totalBytes = quick ? 64 * 1024 * 1024 : 1024 * 1024 * 1024
const sessions = quick ? 40 : 200
const vanishing = quick ? 100 : 1000
const both = { stdout: true, stderr: true }

await using node = await startContainerNode()
const { pid } = node.shim
const pod = await node.pod('soak')
const { id: shell } = await node.start(pod, 'shell', { command: ['sleep', '1000000'], stdin: true })
const { id: talker } = await node.start(pod, 'talker', { stdin: true, command: ['sh', '-c', 'while true; do echo line; sleep 0.01; done'] })
const netns = await netnsOf(pod)
const server = spawn('nsenter', [`--net=${netns}`, process.execPath, '-e', 'require("node:net").createServer({ allowHalfOpen: true }, (socket) => { socket.on("error", () => undefined); socket.pipe(socket) }).listen(8080, "127.0.0.1", 511, () => console.log("up"))'], { stdio: ['ignore', 'pipe', 'inherit'] })
try {
  await once(server.stdout, 'data')
  for (const transport of transports) await warmUp(transport)
  const before = await leftovers()
  console.log('at the start', JSON.stringify(before))
  for (const transport of transports) {
    await measured(`${totalBytes / 1e6} MB through exec stdin to stdout, ${transport}`, totalBytes, async () => execEcho(transport))
    await measured(`${totalBytes / 1e6} MB through port-forward and back, ${transport}`, totalBytes, async () => forwardEcho(transport))
    await measured(`${sessions} execs at once, ${transport}`, undefined, async () => manyExecs(transport))
    await measured(`${vanishing} clients that attach and vanish, ${transport}`, undefined, async () => attachAndVanish(transport))
    await measured(`${vanishing / 10} resizes after a failed exec, ${transport}`, undefined, async () => resizeFailed(transport))
  }
  await back(before)
} finally {
  server.kill()
}

async function execUrl(cmd: readonly string[], wanted: Wanted): Promise<string> {
  return (await node.cri.runtime.Exec({ container_id: shell, cmd: [...cmd], ...wanted }, { timeoutMs: 120_000 })).url
}

async function warmUp(transport: Transport): Promise<void> {
  await runCommand(await execUrl(['true'], both), transport, both)
  await vanishOnce(transport)
  const forward = await openForward((await node.cri.runtime.PortForward({ pod_sandbox_id: pod.id })).url, transport)
  const { data } = forward.connect(8080)
  data.end('x')
  await text(data)
  forward.vanish()
}

async function measured(title: string, bytes: number | undefined, work: () => Promise<void>): Promise<void> {
  const started = performance.now()
  await work()
  const seconds = (performance.now() - started) / 1000
  console.log(`${title}: ${seconds.toFixed(2)} s${bytes === undefined ? '' : `, ${(bytes / 1e6 / seconds).toFixed(0)} MB/s each way`}; RSS ${await residentMegabytes()} MB`)
}

/** Writes random bytes and checks that the same come back, in order. */
async function echoed(input: Writable, output: Readable): Promise<void> {
  const [sent, received] = [createHash('sha256'), createHash('sha256')]
  const piece = randomBytes(1024 * 1024)
  const write = async (): Promise<void> => {
    for (let at = 0; at < totalBytes; at += piece.length) {
      piece.writeUInt32LE(at >>> 0, at % (piece.length - 4))
      sent.update(piece)
      if (!input.write(Buffer.from(piece))) await once(input, 'drain')
    }
    input.end()
  }
  const read = async (): Promise<void> => {
    for await (const bytes of output) received.update(bytes as Buffer)
  }
  await Promise.all([write(), read()])
  assert.equal(received.digest('hex'), sent.digest('hex'), 'other bytes came back')
}

async function execEcho(transport: Transport): Promise<void> {
  const wanted = { stdin: true, stdout: true }
  const command = await openCommand(await execUrl(['cat'], wanted), transport, wanted)
  await echoed(command.stdin, command.stdout)
  assert.equal(exitCodeOf(await command.status), 0)
}

async function forwardEcho(transport: Transport): Promise<void> {
  const forward = await openForward((await node.cri.runtime.PortForward({ pod_sandbox_id: pod.id })).url, transport)
  const { data, error } = forward.connect(8080)
  await echoed(data, data)
  assert.equal(await error, '')
  forward.vanish()
}

async function manyExecs(transport: Transport): Promise<void> {
  const wanted = { stdin: true, stdout: true, stderr: true }
  const commands = await Promise.all(Array.from({ length: sessions }, async () => openCommand(await execUrl(['sh', '-c', 'echo up; read line; echo "$line"; exit 3'], wanted), transport, wanted)))
  // All of them run before the first may end.
  await Promise.all(commands.map(({ stdout }) => once(stdout, 'data')))
  await Promise.all(commands.map(async (command, index) => {
    command.stdin.end(`session ${index}\n`)
    const [out, , status] = await Promise.all([text(command.stdout), text(command.stderr), command.status])
    assert.equal(out, `session ${index}\n`)
    assert.equal(exitCodeOf(status), 3)
  }))
}

async function vanishOnce(transport: Transport): Promise<void> {
  const wanted = { stdin: true, stdout: true, stderr: true }
  const client = await openCommand((await node.cri.runtime.Attach({ container_id: talker, ...wanted })).url, transport, wanted)
  client.status.catch(() => undefined)
  client.stderr.resume()
  await once(client.stdout, 'data')
  client.vanish()
}

async function attachAndVanish(transport: Transport): Promise<void> {
  for (let done = 0; done < vanishing; done += 20) await Promise.all(Array.from({ length: 20 }, async () => vanishOnce(transport)))
}

async function resizeFailed(transport: Transport): Promise<void> {
  const wanted = { stdin: true, stdout: true, tty: true }
  for (let done = 0; done < vanishing / 10; done++) {
    const command = await openCommand(await execUrl(['no-such-command'], wanted), transport, wanted)
    for (let size = 20; size < 40; size++) command.resize(size * 2, size)
    command.stdout.resume()
    const status = await command.status
    assert.match(status.message ?? '', /executable file not found/)
  }
}

interface Leftovers {
  readonly descriptors: number
  readonly threads: number
  readonly fifos: number
  readonly processes: number
  readonly execs: number
}

async function leftovers(): Promise<Leftovers> {
  const files = await readdir(node.dir, { recursive: true }).catch(() => [])
  const { stdout } = await node.cri.runtime.ExecSync({ container_id: shell, cmd: ['ps', '-o', 'stat,args'], timeout: '20' })
  return {
    descriptors: (await readdir(`/proc/${pid}/fd`)).length,
    threads: (await readdir(`/proc/${pid}/task`)).length,
    fifos: files.filter((path) => /exec-(stdin|stdout|stderr)$/.test(path)).length,
    // Zombies stay for the container's first process to take leave of, which never does; the talker always has a sleep.
    processes: stdout.toString().split('\n').filter((line) => line !== '' && !line.startsWith('Z') && !line.includes('sleep 0.01') && !line.includes('ps -o')).length,
    execs: files.filter((path) => /exec-[0-9a-f]{32}$/.test(path)).length,
  }
}

/** What the last sessions had goes within moments, without an event. */
async function back(before: Leftovers): Promise<void> {
  const deadline = Date.now() + 60_000
  let now = await leftovers()
  while (Date.now() < deadline && grown(now, before).length > 0) {
    await new Promise((resolve) => { setTimeout(resolve, 500) })
    now = await leftovers()
  }
  console.log('at the end  ', JSON.stringify(now))
  if (grown(now, before).length > 0) {
    const links = await Promise.all((await readdir(`/proc/${pid}/fd`)).map(async (fd) => readlink(join(`/proc/${pid}/fd`, fd)).catch(() => 'gone')))
    console.log(links.sort().join('\n'))
  }
  assert.deepEqual(grown(now, before), [], 'something was left behind')
}

/** A connection of the start may have been counted that was about to close: less is no news. */
function grown(now: Leftovers, before: Leftovers): string[] {
  return (Object.keys(now) as (keyof Leftovers)[]).filter((key) => now[key] > before[key])
}

async function residentMegabytes(): Promise<number> {
  return Math.round(Number(/VmRSS:\s+(\d+)/.exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1000)
}

async function netnsOf({ id }: Pod): Promise<string> {
  const { info } = await node.cri.runtime.PodSandboxStatus({ pod_sandbox_id: id, verbose: true })
  return /"type":"network","path":"([^"]+)"|"path":"([^"]+)","type":"network"/.exec(info['info']?.replaceAll(/\s/g, '') ?? '')?.slice(1).find((path) => path !== undefined) ?? assert.fail('no network namespace')
}
