import { randomUUID } from 'node:crypto'
import { open, rename, rm } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { fromNodeError } from './errno.ts'

/**
 * Replaces a file of our own so that a reader, and a crash, find the old content or the new; on the disk when it resolves. Runs on libuv's
 * threads: for a path that a pod has a say in, use Linux.writeFileAtomic.
 */
export async function writeFileAtomic(path: string, data: string | Uint8Array, options: { readonly mode?: number | undefined } = {}): Promise<void> {
  const dir = dirname(path)
  const temporary = join(dir, `.${basename(path)}.${randomUUID().slice(0, 8)}.tmp`)
  const mode = options.mode ?? 0o644
  try {
    await using file = await open(temporary, 'wx', mode)
    // The umask took its part of the mode away.
    await file.chmod(mode)
    await file.writeFile(data)
    await file.sync()
    await rename(temporary, path)
  } catch (error) {
    await rm(temporary, { force: true })
    throw fromNodeError(`write ${path}`, error)
  }
  try {
    await using parent = await open(dir, 'r')
    await parent.sync()
  } catch (error) {
    throw fromNodeError(`write ${dir} to the disk`, error)
  }
}
