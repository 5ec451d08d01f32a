import { type Stats, chmodSync, lstatSync } from 'node:fs'
import { lstat, mkdir, stat, unlink } from 'node:fs/promises'
import { type Server, connect } from 'node:net'
import { dirname } from 'node:path'
import { CriError, Code, errnoOf, failedPrecondition, messageOf } from '../errors/cri-error.ts'
import { withDirectoryLock } from './directory-lock.ts'
import { socketOwner } from './socket-owner.ts'

/** How long a listener may take to accept our question whether it is there, in milliseconds. */
const probeTimeoutMs = 2000

const remedies: Readonly<Record<string, string>> = {
  EACCES: 'run as root',
  EPERM: 'run as root',
  EROFS: 'the file system is read-only',
  ENOSPC: 'make room on the file system',
}

/** Whether somebody accepts connections on a unix socket. One that is there but does not answer in time counts as alive. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const probe = connect(path)
    const timer = setTimeout(() => done(true), probeTimeoutMs)
    const done = (alive: boolean): void => {
      clearTimeout(timer)
      probe.destroy()
      resolve(alive)
    }
    probe.once('connect', () => done(true))
    probe.once('error', (error) => {
      const errno = errnoOf(error)
      if (errno === 'ECONNREFUSED' || errno === 'ENOENT') done(false)
      // The queue of connections is full: whoever it is, is busy.
      else if (errno === 'EAGAIN') done(true)
      else {
        clearTimeout(timer)
        reject(new CriError(Code.INTERNAL, `cannot find out whether anybody listens on ${path}: ${error.message}`, { cause: error }))
      }
    })
  })
}

async function found(path: string): Promise<Stats | undefined> {
  try {
    return await lstat(path)
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw error
  }
}

async function inUse(path: string, setting: string): Promise<CriError> {
  const owner = await socketOwner(path)
  const who = owner === undefined ? 'another process' : `process ${owner.pid} (${owner.command})`
  return failedPrecondition(`${path}: ${who} listens there already; stop it, or choose another socket with ${setting}`)
}

/** Removes a socket that a dead process left. */
async function removeStale(path: string, setting: string): Promise<void> {
  const there = await found(path)
  if (there === undefined) return
  if (!there.isSocket()) {
    throw failedPrecondition(`${path} is there already and is not a socket; remove it if nobody needs it, or choose another socket with ${setting}`)
  }
  if (await answers(path)) throw await inUse(path, setting)
  await unlink(path)
}

async function prepareDirectory(directory: string): Promise<void> {
  if ((await found(directory)) === undefined) {
    await mkdir(dirname(directory), { recursive: true })
    await mkdir(directory, { mode: 0o700 }).catch((error: unknown) => {
      if (errnoOf(error) !== 'EEXIST') throw error
    })
  }
  if (!(await stat(directory)).isDirectory()) throw new Error(`${directory} is not a directory`)
}

/** Binds with a umask that leaves the socket to its owner: there is no moment at which somebody else could connect. */
function bindPrivately(server: Server, path: string): void {
  const before = process.umask(0o177)
  try {
    server.listen({ path })
  } finally {
    process.umask(before)
  }
}

/**
 * Listens on a unix socket of mode 0600, in a directory that is created with mode 0700 if it is missing. A socket on which nobody
 * answers is replaced; FAILED_PRECONDITION if somebody does, or if the path is something else than a socket. The main thread only
 * (a worker has no umask). `setting` is what the remedy in a message names.
 */
export async function listenOnUnixSocket(server: Server, path: string, setting = '--listen'): Promise<void> {
  try {
    await prepareDirectory(dirname(path))
    // Of two services that start at the same moment, the second must not take the new socket of the first for a dead one.
    await withDirectoryLock(dirname(path), async () => {
      await removeStale(path, setting)
      const listening = Promise.withResolvers<void>()
      server.once('error', listening.reject)
      server.once('listening', listening.resolve)
      bindPrivately(server, path)
      await listening.promise
      server.removeListener('error', listening.reject)
    })
    // A directory with a default ACL overrides the umask.
    if ((lstatSync(path).mode & 0o777) !== 0o600) chmodSync(path, 0o600)
  } catch (error) {
    if (error instanceof CriError) throw error
    if (errnoOf(error) === 'EADDRINUSE') throw await inUse(path, setting)
    const remedy = remedies[errnoOf(error) ?? '']
    throw failedPrecondition(`cannot listen on ${path}: ${messageOf(error)}${remedy === undefined ? '' : `; ${remedy}, or choose another socket with ${setting}`}`, { cause: error })
  }
}
