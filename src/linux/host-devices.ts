import { lstat, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { errnoOf } from '../errors/cri-error.ts'
import { type FileStat, fileStat } from './ops/files.ts'

/** Not devices of the machine: terminals, shared memory and message queues are each container's own. */
const passedOver = new Set(['pts', 'shm', 'fd', 'mqueue', '.lxc', '.lxd-mounts', '.udev', 'console'])

export interface HostDevice extends FileStat {
  readonly path: string
}

/** Every device node below /dev, for privileged containers. */
export async function hostDevices(dir = '/dev'): Promise<HostDevice[]> {
  const found: HostDevice[] = []
  const walk = async (folder: string, top: boolean): Promise<void> => {
    for (const name of await readdir(folder)) {
      if (top && passedOver.has(name)) continue
      const path = join(folder, name)
      let stat
      try {
        stat = await lstat(path)
      } catch (error) {
        // Devices come and go.
        if (errnoOf(error) === 'ENOENT') continue
        throw error
      }
      if (stat.isDirectory()) await walk(path, false)
      else if (stat.isBlockDevice() || stat.isCharacterDevice()) found.push({ path, ...fileStat(stat) })
    }
  }
  await walk(dir, true)
  return found
}
