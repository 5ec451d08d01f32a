import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { asGo, exitCodeOf, openCommand, openForward, runCommand } from '../../test/fixtures/streaming/client.ts'
import { concurrencies } from '../operations.ts'
import { inParallel } from '../parallel.ts'
import { planPod } from '../pod.ts'
import { type RunContext, callSettings, inTurn, recorder, settle, timed } from '../run-context.ts'
import type { Side } from '../side.ts'
import { type StartedPod, startPod, stopPod } from './pods.ts'

const callsPerTurn = 5
const streamCount = 20
const listCalls = { full: 300, quick: 60 }
/** Of a stream whose throughput is measured. */
const sizeBytes = { full: 256 * 1024 * 1024, quick: 64 * 1024 * 1024 }
const stdoutOnly = { stdout: true }

/** Exec and port-forward as kubectl uses them, over SPDY; and what List calls take while streams run flat out. */
export async function streamStage(context: RunContext): Promise<void> {
  const most = Math.max(...concurrencies)
  const bytes = context.options.quick ? sizeBytes.quick : sizeBytes.full
  const pods = await Promise.all(context.sides.map(async (side) => inParallel(most, async (index) => startPod(context, side, await planPod(side, `streams-${index}`), ['main'], () => undefined))))
  const podOf = (side: Side, index = 0): StartedPod => pods[context.sides.indexOf(side)]?.[index] as StartedPod
  const servers: ChildProcess[] = []
  try {
    const ports = await Promise.all(context.sides.map(async (side) => serve(context, side, podOf(side), bytes, servers)))
    await settle(context)
    const rounds = Math.max(2, Math.ceil(context.options.rounds / 4))
    for (const concurrency of concurrencies) {
      await context.phase(`exec over SPDY, ${concurrency} at a time`, () => inTurn(context, 'Exec', concurrency, rounds, async (side, record) => {
        await inParallel(concurrency, async (index) => {
          for (let call = 0; call < callsPerTurn; call++) {
            const { stdout, status } = await timed(record, 'exec round trip', async () => runCommand(await execUrl(context, side, podOf(side, index), ['/bin/echo', 'alive']), 'spdy', stdoutOnly, '', asGo))
            if (exitCodeOf(status) !== 0 || stdout !== 'alive\n') throw new Error(`Exec of \`echo alive\` gave ${JSON.stringify({ stdout, status })}`)
          }
        })
      }))
    }
    const megabytes = `${bytes / 1024 / 1024} MB`
    await context.phase(`exec that prints ${megabytes}`, () => inTurn(context, `exec of ${megabytes}`, 1, rounds, async (side, record) => {
      await timed(record, 'exec output', async () => {
        const command = await openCommand(await execUrl(context, side, podOf(side), ['/bin/dd', 'if=/dev/zero', 'bs=1048576', `count=${bytes / 1024 / 1024}`]), 'spdy', stdoutOnly, asGo)
        await Promise.all([counted(command.stdout, bytes), command.status])
      })
    }))
    await context.phase(`port-forward of ${megabytes}`, () => inTurn(context, `port-forward of ${megabytes}`, 1, rounds, async (side, record) => {
      await timed(record, 'port-forward', async () => {
        const { url } = await side.cri.runtime.PortForward({ pod_sandbox_id: podOf(side).podId }, callSettings(context))
        const forward = await openForward(url, 'spdy', asGo)
        const { data, error } = forward.connect(ports[context.sides.indexOf(side)] ?? 0)
        data.end()
        await counted(data, bytes)
        const said = await error
        if (said !== '') throw new Error(said)
        forward.vanish()
      })
    }))
    await context.phase(`lists beside ${streamCount} streams`, async () => {
      for (const side of context.sides) {
        await listed(context, side, 'ListContainers idle')
        await using _streams = await flatOut(context, side, podOf(side))
        await listed(context, side, 'ListContainers beside 20 streams')
      }
    })
  } finally {
    for (const server of servers) server.kill()
  }
  await Promise.all(context.sides.map(async (side) => inParallel(most, async (index) => stopPod(context, side, podOf(side, index), () => undefined))))
}

async function execUrl(context: RunContext, side: Side, pod: StartedPod, cmd: readonly string[], stdin = false): Promise<string> {
  return (await side.cri.runtime.Exec({ container_id: pod.containerIds[0] ?? '', cmd: [...cmd], stdout: true, stdin }, callSettings(context))).url
}

async function counted(stream: AsyncIterable<Buffer>, bytes: number): Promise<void> {
  let got = 0
  for await (const piece of stream) got += piece.length
  if (got !== bytes) throw new Error(`${got} bytes came in place of ${bytes}`)
}

async function listed(context: RunContext, side: Side, operation: 'ListContainers idle' | 'ListContainers beside 20 streams'): Promise<void> {
  const count = context.options.quick ? listCalls.quick : listCalls.full
  const record = recorder(context, side, 1)
  for (let call = -10; call < count; call++) await timed(call < 0 ? () => undefined : record, operation, () => side.cri.runtime.ListContainers({}, callSettings(context)))
}

/** Streams that a process of their own reads as fast as they come. They have ended, and the side is quiet, when it is disposed of. */
async function flatOut(context: RunContext, side: Side, pod: StartedPod): Promise<AsyncDisposable> {
  const urls = await inParallel(streamCount, async () => execUrl(context, side, pod, ['/bin/sh', '-c', 'cat /dev/zero & read line; kill $!'], true))
  const reader = spawn(process.execPath, [join(import.meta.dirname, '../stream-reader.ts'), ...urls], { stdio: ['ignore', 'pipe', 'inherit'] })
  const gone = once(reader, 'exit')
  await Promise.race([once(reader.stdout, 'data'), gone.then(() => { throw new Error('the process that reads streams ended') })])
  return {
    [Symbol.asyncDispose]: async () => {
      reader.kill()
      await gone
      await settle(context)
    },
  }
}

/** A server in the pod's network namespace that sends so many bytes to who connects; returns its port. */
async function serve(context: RunContext, side: Side, pod: StartedPod, bytes: number, servers: ChildProcess[]): Promise<number> {
  const { info } = await side.cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod.podId, verbose: true }, callSettings(context))
  const spec = JSON.parse(info['info'] ?? '{}') as { readonly runtimeSpec?: { readonly linux?: { readonly namespaces?: readonly { readonly type: string; readonly path?: string }[] } } }
  const netns = spec.runtimeSpec?.linux?.namespaces?.find(({ type }) => type === 'network')?.path
  if (netns === undefined) throw new Error(`${side.title} does not say where the pod's network namespace is`)
  const script = `const piece = Buffer.alloc(1048576); require('node:net').createServer({ allowHalfOpen: true }, (socket) => {
    let left = ${bytes / 1024 / 1024}; socket.resume().on('error', () => undefined)
    const send = () => { while (left-- > 0) if (!socket.write(piece)) return socket.once('drain', send); socket.end() }
    send()
  }).listen(0, '127.0.0.1', function () { console.log(this.address().port) })`
  const server = spawn('nsenter', [`--net=${netns}`, process.execPath, '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
  servers.push(server)
  const [line] = await Promise.race([once(server.stdout, 'data'), text(server.stdout).then(() => { throw new Error('the server in the pod ended') })]) as [Buffer]
  return Number(line.toString())
}
