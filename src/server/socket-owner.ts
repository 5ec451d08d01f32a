import { readFile, readdir, readlink } from 'node:fs/promises'

/** A process that holds a unix socket. */
export interface SocketOwner {
  readonly pid: number
  /** The name of its executable, as the kernel reports it. */
  readonly command: string
}

/** The inode numbers of the sockets bound to `path`, from /proc/net/unix. */
async function socketInodes(path: string): Promise<Set<string>> {
  const lines = (await readFile('/proc/net/unix', 'utf8')).split('\n')
  const inodes = new Set<string>()
  for (const line of lines) {
    // Num RefCount Protocol Flags Type St Inode Path
    const [, inode, bound] = /^\S+ \S+ \S+ \S+ \S+ \S+ +(\d+) (.*)$/.exec(line) ?? []
    if (inode !== undefined && bound === path) inodes.add(`socket:[${inode}]`)
  }
  return inodes
}

/** Who listens on a unix socket, if that can be found out (it cannot without the right to look into other processes). For error messages. */
export async function socketOwner(path: string): Promise<SocketOwner | undefined> {
  try {
    const inodes = await socketInodes(path)
    if (inodes.size === 0) return undefined
    for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
      const fds = await readdir(`/proc/${pid}/fd`).catch(() => [])
      for (const fd of fds) {
        const target = await readlink(`/proc/${pid}/fd/${fd}`).catch(() => '')
        if (inodes.has(target)) return { pid: Number(pid), command: (await readFile(`/proc/${pid}/comm`, 'utf8')).trim() }
      }
    }
  } catch {
    // Nothing depends on the answer but the detail of a message.
  }
  return undefined
}
