/**
 * A syscall worker: a thread that makes blocking calls for the main one, one at a time. Its working directory and umask are its own, so
 * that modes are exact and a long overlay mount can be made from inside its directory, without anybody else noticing.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { CriError, internal } from '../errors/cri-error.ts'
import { check, cString, K, libc } from './libc.ts'
import { opContext } from './ops/context.ts'
import { operations } from './ops/operations.ts'
import type { WorkerData, WorkerReply, WorkerRequest } from './worker-protocol.ts'

const port = parentPort
if (port === null) throw internal('src/linux/worker.ts runs as a worker thread')
const { state } = workerData as WorkerData

check('unshare the working directory', libc.unshare(K.CLONE_FS))
check('change to /', libc.chdir(cString('/')))
libc.umask(0)

port.on('message', ({ op, args, what }: WorkerRequest) => {
  const context = opContext(state, what)
  const reply = (message: WorkerReply, transfer: ArrayBuffer[] = []): void => port.postMessage(message, transfer)
  try {
    const operation = operations[op] as (...args: unknown[]) => unknown
    const value = operation(context, ...args)
    const bytes = value instanceof Uint8Array && value.buffer instanceof ArrayBuffer ? [value.buffer] : []
    reply({ kind: 'result', value, retired: context.retired }, bytes)
  } catch (error) {
    const { code, reason, message, stack } = CriError.from(error, error instanceof CriError ? undefined : what)
    reply({ kind: 'error', error: { code, reason, message, stack }, retired: context.retired })
  }
})
port.postMessage({ kind: 'ready' } satisfies WorkerReply)
