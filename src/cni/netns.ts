import { statfs } from 'node:fs/promises'
import { errnoOf } from '../errors/cri-error.ts'

const nsfsMagic = 0x6e736673
const procMagic = 0x9fa0

/**
 * `path` when there is a network namespace, else empty: after a reboot, or when the bind mount is gone and only its mount point is left, plugins are to be
 * told that there is none (CNI specification, DEL).
 */
export async function liveNetns(path: string): Promise<string> {
  if (path === '') return ''
  try {
    const { type } = await statfs(path)
    return type === nsfsMagic || type === procMagic ? path : ''
  } catch (error) {
    const errno = errnoOf(error)
    // Anything else says nothing about the namespace: the plugins may see for themselves.
    return errno === 'ENOENT' || errno === 'ENOTDIR' || errno === 'EINVAL' ? '' : path
  }
}
