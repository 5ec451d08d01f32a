/** The real worker with a fault in it: it dies when an exec named `crash` is opened, and hangs for ever when one named `hang` is. */
import { parentPort } from 'node:worker_threads'
import type { ToWorker } from './protocol.ts'
import './io-worker.ts'

parentPort?.on('message', (message: ToWorker) => {
  if (message.type !== 'call' || message.request.type !== 'openCapture') return
  if (message.request.spec.id === 'crash') throw new Error('deliberate fault')
  if (message.request.spec.id === 'hang') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
})
