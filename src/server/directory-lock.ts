import { pause } from '../concurrency/deadline.ts'
import { failedPrecondition } from '../errors/cri-error.ts'
import { K, lastErrno, libc, openPath } from '../linux/libc.ts'

const retryMs = 20
const timeoutMs = 10_000

/**
 * Runs `work` while nobody else who asks the same way works on `directory`, in this process or another. The lock is an flock on the directory
 * itself: it leaves no file behind, and the end of the process, however it ends, releases it. FAILED_PRECONDITION when it is held for ten
 * seconds. A file system without flock is used without it.
 */
export async function withDirectoryLock<T>(directory: string, work: () => Promise<T>): Promise<T> {
  const fd = openPath(`open ${directory}`, directory, K.O_RDONLY | K.O_DIRECTORY)
  try {
    const until = performance.now() + timeoutMs
    while (libc.flock(fd, K.LOCK_EX | K.LOCK_NB) === -1 && lastErrno() === 'EAGAIN') {
      if (performance.now() > until) throw failedPrecondition(`${directory} has been locked by another process for ${timeoutMs / 1000} s; "lslocks" shows by which`)
      // A lock has no event to wait for.
      await pause(retryMs)
    }
    return await work()
  } finally {
    libc.close(fd)
  }
}
