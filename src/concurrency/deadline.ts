import { setTimeout as sleepFor } from 'node:timers/promises'
import { deadlineExceeded } from '../errors/cri-error.ts'
import { abortable } from './keyed-mutex.ts'

/** `work`, or DEADLINE_EXCEEDED saying what took too long. The signal handed to `work` aborts at the deadline or with `signal`. */
export async function withDeadline<T>(what: string, timeoutMs: number, work: (signal: AbortSignal) => Promise<T>, signal?: AbortSignal): Promise<T> {
  const timer = new AbortController()
  const timeout = setTimeout(() => timer.abort(deadlineExceeded(`${what} took longer than ${timeoutMs / 1000} s`)), timeoutMs)
  const both = signal === undefined ? timer.signal : AbortSignal.any([signal, timer.signal])
  try {
    return await abortable(work(both), both)
  } finally {
    clearTimeout(timeout)
  }
}

/** Waits; an abort rejects with the signal's reason. For back-off and polls of things that have no event, never to hide a race. */
export async function pause(ms: number, signal?: AbortSignal): Promise<void> {
  try {
    await sleepFor(ms, undefined, signal === undefined ? {} : { signal })
  } catch (error) {
    signal?.throwIfAborted()
    throw error
  }
}
