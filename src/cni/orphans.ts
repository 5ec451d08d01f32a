import { readdir, readFile } from 'node:fs/promises'
import { pause } from '../concurrency/deadline.ts'
import { errnoOf } from '../errors/cri-error.ts'

/**
 * Kills plugins that a crashed predecessor of this process left running for a container, and returns how many once they are gone. One that
 * went on with its ADD would make an address or an interface after the DEL that is about to come.
 */
export async function killOrphanedPlugins(containerId: string, signal: AbortSignal): Promise<number> {
  const wanted = `CNI_CONTAINERID=${containerId}`
  const orphans: number[] = []
  for (const entry of await readdir('/proc')) {
    const pid = Number(entry)
    if (!Number.isInteger(pid) || pid === process.pid) continue
    if (await hasVariable(pid, wanted)) orphans.push(pid)
  }
  for (const pid of orphans) {
    try {
      process.kill(pid, 'SIGKILL')
    } catch (error) {
      if (errnoOf(error) !== 'ESRCH') throw error
    }
  }
  // The end of a process that is not our child is no event here. A zombie has no environment any more, so this does not wait for its reaper.
  for (const pid of orphans) while (await hasVariable(pid, wanted)) await pause(10, signal)
  return orphans.length
}

async function hasVariable(pid: number, wanted: string): Promise<boolean> {
  try {
    const variables = (await readFile(`/proc/${pid}/environ`, 'latin1')).split('\0')
    return variables.includes(wanted) && variables.some((variable) => variable.startsWith('CNI_COMMAND='))
  } catch {
    return false
  }
}
