import type { Duplex } from 'node:stream'
import { pingFrame } from './spdy/frames.ts'

/** Of our side's (even), and none that the connection comes to: nobody waits for its answer. */
const keepAlivePingId = 0x7fff_fffe

/**
 * While input waits for its consumer the connection is not read, and its end not seen: writing something now and then finds a peer
 * that is gone. (TCP's own probes do not help: their result is seen only by who reads or writes.)
 */
export function keepAlive(transport: Duplex, everyMs: number): void {
  const timer = setInterval(() => {
    if (transport.isPaused() && transport.writable && transport.writableLength === 0) transport.write(pingFrame(keepAlivePingId))
  }, everyMs)
  transport.once('close', () => clearInterval(timer))
}

/** Resolves when everything written so far has been handed to the kernel, or the transport is closed. */
export async function written(transport: Duplex): Promise<void> {
  if (transport.writableLength === 0 || !transport.writable) return
  const done = Promise.withResolvers<void>()
  transport.once('close', done.resolve)
  transport.write('', () => done.resolve())
  await done.promise
}
