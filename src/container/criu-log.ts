import { open } from 'node:fs/promises'
import { join } from 'node:path'

/** The end of the log is read: what went wrong is said last. */
const readBytes = 64 * 1024
const maxErrors = 3

/**
 * Why CRIU refused, from the log of a dump in `workDir`: its last words of that kind, without source lines. Undefined when it says nothing of it, or
 * there is no log.
 */
export async function criuComplaint(workDir: string): Promise<string | undefined> {
  const text = await logEnd(join(workDir, 'dump.log'))
  const errors = [...text.matchAll(/^(?:\([\d.]+\) )?(?:\s*\d+: )?Error \([^)]*\): (.+)$/gm)].map(([, message = '']) => message.trim()).filter((message) => !/^Dumping FAILED\.?$/.test(message))
  return errors.length === 0 ? undefined : [...new Set(errors)].slice(-maxErrors).join('; ')
}

async function logEnd(path: string): Promise<string> {
  try {
    await using file = await open(path, 'r')
    const { size } = await file.stat()
    const buffer = Buffer.alloc(Math.min(size, readBytes))
    const { bytesRead } = await file.read(buffer, 0, buffer.length, Math.max(0, size - readBytes))
    return buffer.toString('utf8', 0, bytesRead)
  } catch {
    return ''
  }
}
