import { constants } from 'node:os'
import { getSystemErrorMap } from 'node:util'
import { Code, CriError, errnoOf, messageOf } from '../errors/cri-error.ts'

const nameOf = new Map<number, string>()
for (const [name, value] of Object.entries(constants.errno)) if (!nameOf.has(value)) nameOf.set(value, name)
nameOf.set(constants.errno.EAGAIN, 'EAGAIN')
nameOf.set(constants.errno.EOPNOTSUPP, 'EOPNOTSUPP')

const textOf = new Map<string, string>(getSystemErrorMap().values())
for (const [name, text] of [
  ['EDQUOT', 'disk quota exceeded'],
  ['ESTALE', 'stale file handle: the remote file system no longer knows it'],
  ['EOPNOTSUPP', 'operation not supported'],
  ['ECHILD', 'no child process'],
  ['ENODEV', 'no such device, or the kernel does not know this file system type'],
] as const) {
  textOf.set(name, text)
}

const codes: Readonly<Record<string, Code>> = {
  ENOENT: Code.NOT_FOUND,
  ESRCH: Code.NOT_FOUND,
  EEXIST: Code.ALREADY_EXISTS,
  EACCES: Code.PERMISSION_DENIED,
  EPERM: Code.PERMISSION_DENIED,
  ENOSPC: Code.RESOURCE_EXHAUSTED,
  EDQUOT: Code.RESOURCE_EXHAUSTED,
  EMFILE: Code.RESOURCE_EXHAUSTED,
  ENFILE: Code.RESOURCE_EXHAUSTED,
  ENOMEM: Code.RESOURCE_EXHAUSTED,
  EINVAL: Code.INVALID_ARGUMENT,
  ENAMETOOLONG: Code.INVALID_ARGUMENT,
  ENOTDIR: Code.FAILED_PRECONDITION,
  EISDIR: Code.FAILED_PRECONDITION,
  ENOTEMPTY: Code.FAILED_PRECONDITION,
  EBUSY: Code.FAILED_PRECONDITION,
  EROFS: Code.FAILED_PRECONDITION,
  EXDEV: Code.FAILED_PRECONDITION,
  ELOOP: Code.FAILED_PRECONDITION,
  ENODEV: Code.FAILED_PRECONDITION,
  ENOSYS: Code.UNIMPLEMENTED,
  EOPNOTSUPP: Code.UNIMPLEMENTED,
  EAGAIN: Code.UNAVAILABLE,
  ESTALE: Code.UNAVAILABLE,
  ENOTCONN: Code.UNAVAILABLE,
  EHOSTDOWN: Code.UNAVAILABLE,
  EHOSTUNREACH: Code.UNAVAILABLE,
  ETIMEDOUT: Code.DEADLINE_EXCEEDED,
}

/** The name of an errno value, `E<number>` for one that Node does not know. */
export function errnoName(errno: number): string {
  return nameOf.get(errno) ?? `E${errno}`
}

/** The CriError for a failed system call: `what` says what was tried on which thing, `name` is the errno's name (and becomes `reason`). */
export function errnoError(what: string, name: string, cause?: unknown): CriError {
  const text = textOf.get(name)
  return new CriError(codes[name] ?? Code.INTERNAL, text === undefined ? `${what}: ${name}` : `${what}: ${name} (${text})`, { reason: name, cause })
}

/** An error of node:fs as a CriError that names `what`; a CriError goes through as it is. */
export function fromNodeError(what: string, error: unknown): CriError {
  if (error instanceof CriError) return error
  const name = errnoOf(error)
  return name === undefined || !/^E[A-Z0-9]+$/.test(name) || name.startsWith('ERR_')
    ? new CriError(Code.INTERNAL, `${what}: ${messageOf(error)}`, { cause: error })
    : errnoError(what, name, error)
}

/** Runs `action`; its node:fs errors come out as CriErrors that name `what`. */
export function naming<T>(what: string, action: () => T): T {
  try {
    return action()
  } catch (error) {
    throw fromNodeError(what, error)
  }
}
