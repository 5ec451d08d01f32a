/** The gRPC status codes that this service answers with (numbers of grpc.status). */
export const Code = {
  CANCELLED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  OUT_OF_RANGE: 11,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  DATA_LOSS: 15,
  UNAUTHENTICATED: 16,
} as const
export type Code = (typeof Code)[keyof typeof Code]

/** The name of a status code, `CODE(n)` for one that gRPC does not define. */
export function codeName(code: number): string {
  return Object.entries(Code).find(([, value]) => value === code)?.[0] ?? `CODE(${code})`
}

export interface CriErrorOptions {
  /** A short word for metrics and for callers that branch on the kind of failure. Default: the code's name. */
  readonly reason?: string | undefined
  /** What happened below: for the log, never sent to the client. */
  readonly cause?: unknown
}

/**
 * The one error class of this service. The message is what the client sees (`kubectl describe pod`): what failed, on which thing,
 * what to do. Secrets do not belong in it.
 */
export class CriError extends Error {
  override readonly name = 'CriError'
  readonly code: Code
  readonly reason: string

  constructor(code: Code, message: string, options: CriErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.reason = options.reason ?? codeName(code)
  }

  /**
   * Any thrown thing as a CriError, the original as its cause. The reason of `AbortSignal.timeout()` becomes DEADLINE_EXCEEDED, an AbortError
   * CANCELLED, what is unknown INTERNAL.
   */
  static from(error: unknown, context?: string): CriError {
    if (error instanceof CriError) {
      return context === undefined ? error : new CriError(error.code, `${context}: ${error.message}`, { reason: error.reason, cause: error })
    }
    const code = error instanceof Error && error.name === 'TimeoutError' ? Code.DEADLINE_EXCEEDED : error instanceof Error && error.name === 'AbortError' ? Code.CANCELLED : Code.INTERNAL
    const message = messageOf(error)
    return new CriError(code, context === undefined ? message : `${context}: ${message}`, { cause: error })
  }
}

export const invalidArgument = (message: string, options?: CriErrorOptions): CriError => new CriError(Code.INVALID_ARGUMENT, message, options)
export const notFound = (message: string, options?: CriErrorOptions): CriError => new CriError(Code.NOT_FOUND, message, options)
export const failedPrecondition = (message: string, options?: CriErrorOptions): CriError => new CriError(Code.FAILED_PRECONDITION, message, options)
export const unavailable = (message: string, options?: CriErrorOptions): CriError => new CriError(Code.UNAVAILABLE, message, options)
export const resourceExhausted = (message: string, options?: CriErrorOptions): CriError => new CriError(Code.RESOURCE_EXHAUSTED, message, options)
export const deadlineExceeded = (message: string, options?: CriErrorOptions): CriError => new CriError(Code.DEADLINE_EXCEEDED, message, options)
/** Somebody else's call came between: the same call may succeed now. */
export const aborted = (message: string, options?: CriErrorOptions): CriError => new CriError(Code.ABORTED, message, options)
export const internal = (message: string, options?: CriErrorOptions): CriError => new CriError(Code.INTERNAL, message, options)

/** Whether an error says that the thing is not there. */
export function isNotFound(error: unknown): error is CriError {
  return error instanceof CriError && error.code === Code.NOT_FOUND
}

/** Whether an error says that the thing is there already. */
export function isAlreadyExists(error: unknown): error is CriError {
  return error instanceof CriError && error.code === Code.ALREADY_EXISTS
}

/** The message of any thrown thing. */
export function messageOf(error: unknown): string {
  if (error instanceof AggregateError && error.message === '') return error.errors.map(messageOf).join('; ')
  if (error instanceof Error) return error.message
  return String(error)
}

/** The errno name of a system error (`ENOENT`), undefined for anything else. */
export function errnoOf(error: unknown): string | undefined {
  if (error instanceof Error && 'code' in error && typeof error.code === 'string') return error.code
  return undefined
}
