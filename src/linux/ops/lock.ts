import { ftruncateSync, readFileSync, writeSync } from 'node:fs'
import { failedPrecondition } from '../../errors/cri-error.ts'
import { errnoError, fromNodeError } from '../errno.ts'
import { K, lastErrno, libc, openPath } from '../libc.ts'
import { absolute, type OpContext } from './context.ts'

/** Takes an exclusive flock and gives the raw descriptor that holds it: let go by closing it, or by the end of the process, however it ends. */
export function takeLock(context: OpContext, path: string): number {
  const target = absolute(path)
  const fd = openPath(`open lock file ${target}`, target, K.O_RDWR | K.O_CREAT | K.O_NOFOLLOW | K.O_NONBLOCK, 0o600)
  try {
    if (libc.flock(fd, K.LOCK_EX | K.LOCK_NB) === -1) {
      const name = lastErrno()
      if (name === 'EAGAIN') {
        const remedy = 'two services must not share one directory; stop that one or use another --root'
        throw failedPrecondition(`${target} is locked by ${holder(fd)}: ${remedy}`, { reason: 'LOCKED' })
      }
      throw errnoError(`lock ${target}`, name)
    }
    ftruncateSync(fd)
    writeSync(fd, `${process.pid}\n`, 0)
    context.commit()
    return fd
  } catch (error) {
    libc.close(fd)
    throw fromNodeError(`lock ${target}`, error)
  }
}

/** Who wrote the file last: a hint for a person, the lock itself does not depend on it. */
function holder(fd: number): string {
  const pid = Number(readFileSync(fd, 'latin1').trim())
  if (!Number.isInteger(pid) || pid <= 0) return 'another process'
  try {
    return `process ${pid} (${readFileSync(`/proc/${pid}/comm`, 'utf8').trim()})`
  } catch {
    return `process ${pid}`
  }
}
