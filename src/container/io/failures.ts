import { Code, CriError, errnoOf, messageOf } from '../../errors/cri-error.ts'

const remedies: Readonly<Record<string, { readonly code: Code, readonly remedy: string }>> = {
  ENOENT: { code: Code.FAILED_PRECONDITION, remedy: 'its directory does not exist' },
  ENOTDIR: { code: Code.FAILED_PRECONDITION, remedy: 'a part of its path is not a directory' },
  ELOOP: { code: Code.FAILED_PRECONDITION, remedy: 'it is a symlink, which is not followed: remove it' },
  ENXIO: { code: Code.FAILED_PRECONDITION, remedy: 'it is not a regular file: remove it' },
  EISDIR: { code: Code.FAILED_PRECONDITION, remedy: 'it is a directory: remove it' },
  EROFS: { code: Code.FAILED_PRECONDITION, remedy: 'its file system is read-only: look for disk errors in the kernel log and mount it read-write again' },
  ENOSPC: { code: Code.RESOURCE_EXHAUSTED, remedy: 'its file system is full: free space or inodes' },
  EDQUOT: { code: Code.RESOURCE_EXHAUSTED, remedy: 'the disk quota is used up' },
  EMFILE: { code: Code.RESOURCE_EXHAUSTED, remedy: 'this service has too many files open: raise its limit (LimitNOFILE)' },
  ENFILE: { code: Code.RESOURCE_EXHAUSTED, remedy: 'the machine has too many files open: raise fs.file-max' },
}

/** A failed open as an error for the person who reads the pod's events. */
export function openFailure(what: string, error: unknown, path: string): CriError {
  const errno = errnoOf(error)
  const known = errno === undefined ? undefined : remedies[errno]
  const cause = known?.remedy ?? messageOf(error)
  return new CriError(known?.code ?? Code.INTERNAL, `cannot open ${what}: ${cause}`, { reason: errno ?? 'OPEN', cause: { error, path } })
}
