/** The worker thread's entry: every log pump and exec capture of the service runs here. Started by IoWorker, nothing is exported. */
import { isMainThread, parentPort, workerData } from 'node:worker_threads'
import { CriError, messageOf, notFound } from '../../errors/cri-error.ts'
import { Counters } from './counters.ts'
import { Descriptors } from '../../linux/descriptors.ts'
import { WallClock } from './entry-clock.ts'
import { ExecCapture } from './exec-capture.ts'
import { LogPump } from './log-pump.ts'
import type { CapturedOutput, FromWorker, Request, ToWorker, WorkerMemory } from './protocol.ts'
import type { WorkerEnvironment } from './worker-environment.ts'
import { errorFields } from './worker-log.ts'

/** As much as a FIFO holds by default: one read empties it. */
const readBufferBytes = 64 * 1024
const outputBufferBytes = 256 * 1024

if (isMainThread || parentPort === null) throw new Error('io-worker.ts runs as a worker thread only')
const port = parentPort
const memory = workerData as WorkerMemory
const logs = new Map<number, LogPump>()
const captures = new Map<number, ExecCapture>()

function post(message: FromWorker, transfer: ArrayBuffer[] = []): void {
  port.postMessage(message, transfer)
}

const environment: WorkerEnvironment = {
  descriptors: new Descriptors(memory.descriptors),
  counters: new Counters(memory.counters),
  log: (level, fields, message) => post({ type: 'log', level, fields, message }),
  wall: new WallClock(),
  readBuffer: Buffer.allocUnsafeSlow(readBufferBytes),
  output: { bytes: Buffer.allocUnsafeSlow(outputBufferBytes) },
}

function known<T>(table: ReadonlyMap<number, T>, handle: number): T {
  const found = table.get(handle)
  if (found === undefined) throw notFound('this output is not open any more')
  return found
}

/** Closing is idempotent: what is closed already is closed. */
async function closeIn(table: Map<number, { close(): Promise<void> }>, handle: number): Promise<void> {
  const found = table.get(handle)
  table.delete(handle)
  await found?.close()
}

async function perform(request: Request): Promise<CapturedOutput | undefined> {
  let output: CapturedOutput | undefined
  switch (request.type) {
    case 'openLog': {
      const { handle, spec } = request
      logs.set(handle, new LogPump(spec, environment, () => post({ type: 'ended', handle })))
      break
    }
    case 'reopenLog':
      known(logs, request.handle).reopen()
      break
    case 'closeLog':
      await closeIn(logs, request.handle)
      break
    case 'attach': {
      const { client, spec } = request
      try {
        known(logs, request.handle).attach(spec, request.port, (how) => post({ type: 'detached', client, how }))
      } catch (error) {
        request.port.close()
        throw error
      }
      break
    }
    case 'openCapture':
      captures.set(request.handle, new ExecCapture(request.spec, environment))
      break
    case 'captureResult': {
      const capture = known(captures, request.handle)
      output = await capture.result(request.drainTimeoutMs)
      captures.delete(request.handle)
      break
    }
    case 'closeCapture':
      await closeIn(captures, request.handle)
      break
  }
  return output
}

async function answer(seq: number, request: Request): Promise<void> {
  try {
    const value = await perform(request)
    post({ type: 'answer', seq, value }, value === undefined ? [] : [value.stdout, value.stderr])
  } catch (error) {
    const { code, message, reason } = CriError.from(error)
    post({ type: 'failure', seq, code, message, reason })
  }
}

async function answerless(...work: Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(work)) {
    if (result.status === 'rejected') environment.log('error', errorFields(result.reason), `closing failed: ${messageOf(result.reason)}`)
  }
}

async function shutdown(): Promise<void> {
  await answerless(...[...logs.values(), ...captures.values()].map((each) => each.close()))
  port.close()
}

port.on('message', (message: ToWorker) => {
  switch (message.type) {
    case 'call':
      void answer(message.seq, message.request)
      break
    case 'started':
      logs.get(message.handle)?.started()
      captures.get(message.handle)?.started()
      break
    case 'abandon':
      void answerless(closeIn(logs, message.handle), closeIn(captures, message.handle))
      break
    case 'shutdown':
      void shutdown()
      break
  }
})
post({ type: 'ready' })
