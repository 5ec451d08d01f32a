import type { Server } from '@grpc/grpc-js'
import { EventEmitter } from 'node:events'

const header = 'grpc-timeout'
/** The longest time that a Node timer can wait, in milliseconds: 24.8 days. */
const maxTimerMs = 2 ** 31 - 1
const unitMs: Readonly<Record<string, number>> = { H: 3_600_000, M: 60_000, S: 1000, m: 1, u: 1e-3, n: 1e-6 }

/** Whether the value of a grpc-timeout header is more than a timer can wait. */
function exceedsTimer(timeout: string): boolean {
  const [, digits, unit] = /^(\d{1,8})([HMSmun])$/.exec(timeout) ?? []
  return digits !== undefined && unit !== undefined && Number(digits) * (unitMs[unit] ?? 0) > maxTimerMs
}

/**
 * A kubelet that stops a container with a grace period of a month asks with a deadline of a month. grpc-js reduces that to 32 bits, and
 * what is left is often negative: the call would fail at once, the container could never be stopped. Such a deadline is dropped before
 * grpc-js sees it; the client's own still counts.
 *
 * grpc-js has no hook before its own reading of the header, so this listens on its HTTP/2 servers (a private field; the tests of this folder fail
 * if it moves). Call it after the connection injector was made.
 */
export function dropUnboundedTimeouts(server: Server): void {
  const http2Servers: unknown = Reflect.get(server, 'http2Servers')
  if (!(http2Servers instanceof Map)) throw new TypeError('this version of grpc-js keeps its HTTP/2 servers elsewhere')
  for (const http2Server of http2Servers.keys()) {
    if (!(http2Server instanceof EventEmitter)) continue
    http2Server.prependListener('stream', (_stream: unknown, headers: Record<string, string | string[] | undefined>) => {
      const timeout = headers[header]
      if (typeof timeout === 'string' && exceedsTimer(timeout)) delete headers[header]
    })
  }
}
