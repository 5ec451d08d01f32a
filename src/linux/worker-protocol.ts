import type { Code } from '../errors/cri-error.ts'
import type { OperationName } from './ops/operations.ts'

/** What a syscall worker is started with: the cell that holds the state of its call (CallState). */
export interface WorkerData {
  readonly state: Int32Array
}

export interface WorkerRequest {
  readonly op: OperationName
  readonly args: readonly unknown[]
  /** What the call is about, for its errors. */
  readonly what: string
}

/** An error, taken apart for its way between threads. */
export interface WireError {
  readonly code: Code
  readonly reason: string
  readonly message: string
  readonly stack: string | undefined
}

export type WorkerReply =
  | { readonly kind: 'ready' }
  | { readonly kind: 'result'; readonly value: unknown; readonly retired: boolean }
  | { readonly kind: 'error'; readonly error: WireError; readonly retired: boolean }
