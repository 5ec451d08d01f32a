import { join } from 'node:path'
import { pathExists } from '../linux/path-exists.ts'

const fileSystems = ['btrfs', 'ext4', 'f2fs']

/**
 * Whether containerd may have the kernel verify what is read of its blobs (fs-verity, since containerd 2.0, where the file system knows it): it switches
 * that on as it commits, which no blob may miss. `sysfs`: default /sys.
 */
export async function mayUseVerity(containerdVersion: string, sysfs = '/sys'): Promise<boolean> {
  if (/^v?[01]\./.test(containerdVersion)) return false
  const known = await Promise.all(fileSystems.map((name) => pathExists(join(sysfs, 'fs', name, 'features/verity'))))
  return known.includes(true)
}
