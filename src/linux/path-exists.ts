import { access } from 'node:fs/promises'

/** Whether there is something under a path. Something that cannot be looked at, whatever the reason, is as good as nothing. */
export async function pathExists(path: string): Promise<boolean> {
  return access(path).then(() => true, () => false)
}
