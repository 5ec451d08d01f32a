/** The real worker with a fault in it: a stream of the container `crash` is an error that belongs to no connection. */
import { parentPort } from 'node:worker_threads'
import './worker.ts'

parentPort?.on('message', (message: { readonly type: string; readonly session?: { readonly containerId?: string } }) => {
  if (message.type !== 'redeemed' || message.session?.containerId !== 'crash') return
  setImmediate(() => {
    throw new Error('deliberate fault')
  })
})
