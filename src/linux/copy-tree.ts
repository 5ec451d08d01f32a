import { execFile } from 'node:child_process'
import { lstat, readlink } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { errnoOf, failedPrecondition, internal, messageOf } from '../errors/cri-error.ts'

const run = promisify(execFile)
const maxLinks = 40

/**
 * The host path of `path` inside `root`, every symlink on the way resolved inside `root`; undefined when there is nothing. Only for a tree
 * that nobody else changes meanwhile (a snapshot that no container runs in): between the look and the use there is no lock.
 */
export async function resolveInQuietRoot(root: string, path: string): Promise<string | undefined> {
  const parts = path.split('/').filter((part) => part !== '')
  const done: string[] = []
  let links = 0
  for (let part = parts.shift(); part !== undefined; part = parts.shift()) {
    if (part === '.') continue
    if (part === '..') {
      done.pop()
      continue
    }
    const here = join(root, ...done, part)
    let stat
    try {
      stat = await lstat(here)
    } catch (error) {
      if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return undefined
      throw error
    }
    if (!stat.isSymbolicLink()) {
      done.push(part)
      continue
    }
    links += 1
    if (links > maxLinks) throw failedPrecondition(`${path} goes through more than ${maxLinks} symbolic links`)
    const target = await readlink(here)
    if (target.startsWith('/')) done.length = 0
    parts.unshift(...target.split('/').filter((each) => each !== ''))
  }
  return join(root, ...done)
}

/**
 * Copies what the directory `path` inside `root` holds into `target`, with owners, modes, times, links and extended attributes, and gives
 * `target` the directory's own owner and mode. Nothing when there is no such directory.
 */
export async function copyFromRoot(root: string, path: string, target: string): Promise<void> {
  const source = await resolveInQuietRoot(root, path)
  if (source === undefined || !(await lstat(source)).isDirectory()) return
  try {
    // coreutils is essential on every node; its cp knows every kind of file there is.
    await run('cp', ['--archive', '--no-target-directory', '--', source, target], { timeout: 10 * 60_000 })
  } catch (error) {
    throw internal(`cannot fill the volume ${path} from the image: ${messageOf(error)}`, { cause: error })
  }
}
