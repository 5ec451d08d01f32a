import { posix } from 'node:path'
import { Code, CriError, invalidArgument } from '../../errors/cri-error.ts'

/** The state of a running call, shared with the thread that waits for it. */
export const CallState = { RUNNING: 0, CANCELLED: 1, COMMITTED: 2 } as const

/** What an operation in a syscall worker knows about the call it serves. */
export interface OpContext {
  /** Throws once nobody waits for the result any more. Long loops call it. */
  throwIfCancelled(): void
  /**
   * The point of no return of an operation that leaves something behind: from here on the caller gets its result. Throws when the
   * caller gave up before, and the operation has to take back what it did.
   */
  commit(): void
  /** The thread is no longer what it was (it could not return to its network namespace): it ends after this call. */
  retireThread(): void
}

/** The context of one call over its shared state cell. */
export function opContext(state: Int32Array, what: string): OpContext & { readonly retired: boolean } {
  let retired = false
  const gaveUp = (): CriError => new CriError(Code.CANCELLED, `${what}: the caller gave up`)
  return {
    throwIfCancelled: () => {
      if (Atomics.load(state, 0) === CallState.CANCELLED) throw gaveUp()
    },
    commit: () => {
      if (Atomics.compareExchange(state, 0, CallState.RUNNING, CallState.COMMITTED) === CallState.CANCELLED) throw gaveUp()
    },
    retireThread: () => {
      retired = true
    },
    get retired() {
      return retired
    },
  }
}

/** An absolute path without `.`, `..`, doubled and trailing slashes. Workers run with a working directory of their own, so a relative path means nothing. */
export function absolute(path: string): string {
  if (!path.startsWith('/')) throw invalidArgument(`"${path}" is not an absolute path`)
  if (path.includes('\0')) throw invalidArgument(`${JSON.stringify(path)} contains a NUL byte`)
  const normal = posix.normalize(path)
  return normal.length > 1 && normal.endsWith('/') ? normal.slice(0, -1) : normal
}
