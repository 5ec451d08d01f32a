import { isAbsolute, join, relative } from 'node:path'
import { CriError, invalidArgument, isNotFound } from '../errors/cri-error.ts'
import type { Device } from '../generated/cri.ts'
import type { FileStat } from '../linux/linux.ts'
import type { ResolvedDevice } from '../oci-spec/input.ts'
import type { ContainerHost } from './deps.ts'

const types: Partial<Record<FileStat['type'], ResolvedDevice['type']>> = { 'block-device': 'b', 'character-device': 'c', 'fifo': 'p' }

/**
 * The request's devices as nodes, symbolic links followed. A directory gives every device in it and below, at the same place below its
 * container_path, as Docker and containerd do. INVALID_ARGUMENT for what is missing or no device.
 */
export async function resolveDevices(host: Pick<ContainerHost, 'resolvePath' | 'statPath' | 'devicesIn'>, devices: readonly Device[]): Promise<ResolvedDevice[]> {
  return (await Promise.all(devices.map(async (device) => {
    const { host_path: hostPath, container_path: containerPath, permissions } = device
    if (!/^[rwm]{1,3}$/.test(permissions) || new Set(permissions).size !== permissions.length) throw invalidArgument(`device ${hostPath}: permissions ${JSON.stringify(permissions)} must be letters out of "rwm"`)
    if (!isAbsolute(hostPath) || !isAbsolute(containerPath)) throw invalidArgument(`device ${hostPath}: host_path and container_path must be absolute paths`)
    if (containerPath.includes('\0')) throw invalidArgument(`device ${hostPath}: container_path has a NUL byte in it`)
    const path = await host.resolvePath(hostPath).catch((error: unknown) => {
      throw isNotFound(error) ? invalidArgument(`device ${hostPath} does not exist on this node`, { cause: error }) : CriError.from(error, `device ${hostPath}`)
    })
    const stat = await host.statPath(path)
    if (stat?.type === 'directory') {
      const found = await host.devicesIn(path)
      return found.flatMap((one) => nodeOf(join(containerPath, relative(path, one.path)), one, permissions) ?? [])
    }
    const node = stat === undefined ? undefined : nodeOf(containerPath, stat, permissions)
    if (node === undefined) throw invalidArgument(`device ${hostPath}: ${stat === undefined ? 'does not exist' : `is a ${stat.type}, not a device`}`)
    return [node]
  }))).flat()
}

function nodeOf(path: string, stat: FileStat, permissions: string): ResolvedDevice | undefined {
  const type = types[stat.type]
  return type === undefined ? undefined : { path, type, major: stat.major, minor: stat.minor, fileMode: stat.mode & 0o7777, uid: stat.uid, gid: stat.gid, permissions }
}
