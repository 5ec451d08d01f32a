import type { Mount } from '../generated/containerd.ts'

/** A root file system's mounts with an SELinux label for every file in it (`context=`); as they are for an empty one. The quotes are the kernel's: levels have commas in them. */
export function labelledMounts(mounts: readonly Mount[], label: string): Mount[] {
  return mounts.map((mount) => (label === '' ? mount : { ...mount, options: [...mount.options, `context="${label}"`] }))
}
