import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { mkdir, mkdtemp, readdir, rmdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { ContainerHost } from '../../container/deps.ts'
import { CriError, invalidArgument, isNotFound } from '../../errors/cri-error.ts'
import { copyFromRoot } from '../../linux/copy-tree.ts'
import { withIdmapped } from '../../linux/idmapped-rootfs.ts'
import type { Linux } from '../../linux/linux.ts'
import { hostDevices } from '../../linux/host-devices.ts'
import { makeFifosAt } from '../../linux/fifos.ts'
import { mountOf } from '../../linux/mountinfo.ts'
import { pathExists } from '../../linux/path-exists.ts'
import type { SandboxHost } from '../../sandbox/deps.ts'

/** A big tree on a slow disk; nothing waits for it but the removal of what it belonged to. */
const removeTimeoutMs = 120_000
/** Some snapshotters fetch or check what they mount. */
const mountTimeoutMs = 60_000

/** Unmounts and removes what a crash left of looks inside snapshots. */
export async function cleanScratch(linux: Linux, scratchDir: string): Promise<void> {
  for (const name of await readdir(scratchDir).catch(() => [])) {
    await linux.unmount(join(scratchDir, name), { detach: true })
    await rmdir(join(scratchDir, name))
  }
}

/** The kernel as sandboxes and containers see it. `scratchDir` is where snapshots are mounted for a look inside. */
export function hostPort(linux: Linux, scratchDir: string): SandboxHost & ContainerHost {
  return {
    createNetns: (path, options) => linux.createNetns(path, options),
    deleteNetns: (path) => linux.deleteNetns(path),
    createUserNamespace: (path, request) => linux.createUserNamespace(path, request),
    deleteUserNamespace: (path) => linux.deleteUserNamespace(path),
    withIdmapped: (request, work) => withIdmapped(linux, request, work),
    mountShm: (path, sizeBytes, owner) => linux.mount({
      source: 'shm', target: path, fstype: 'tmpfs', flags: ['nosuid', 'nodev', 'noexec'], data: `mode=1777,size=${sizeBytes}${owner === undefined ? '' : `,uid=${owner.uid},gid=${owner.gid}`}`,
    }),
    unmount: (path) => linux.unmount(path, { detach: true }),
    mountImage: (mounts, dir, subPath, signal) => linux.mountImage(mounts, dir, { subPath, signal, timeoutMs: mountTimeoutMs }),
    removeTree: (path) => linux.removeTree(path, { timeoutMs: removeTimeoutMs }),
    resolvePath: (path) => linux.resolvePath(path),
    statPath: (path) => linux.statPath(path),
    devicesIn: hostDevices,
    mkdirAll: (path, mode) => linux.mkdirAll(path, mode),
    makeFifos: makeFifosAt,
    async withMounts(mounts, work) {
      await mkdir(scratchDir, { recursive: true, mode: 0o700 })
      const dir = await mkdtemp(join(scratchDir, 'rootfs-'))
      try {
        await linux.mountAll(mounts, dir)
        return await work(dir)
      } finally {
        await linux.unmount(dir, { detach: true })
        await rmdir(dir)
      }
    },
    async readInRoot(root, path, maxBytes) {
      try {
        return await linux.readInRoot(root, path, maxBytes)
      } catch (error) {
        if (isNotFound(error)) return undefined
        if (error instanceof CriError && (error.reason === 'NOT_A_FILE' || error.reason === 'EFBIG' || error.reason === 'ELOOP' || error.reason === 'EXDEV')) {
          throw invalidArgument(`the image's ${path} cannot be used: ${error.message}; rebuild the image`, { reason: error.reason, cause: error })
        }
        throw error
      }
    },
    copyFromRoot,
    async propagationOf(path) {
      const mount = mountOf(await linux.mountInfo(), path)
      if (mount === undefined) return { propagation: 'private', mountPoint: '/' }
      const { propagation, mountPoint } = mount
      return { propagation: propagation === 'shared+slave' ? 'shared' : propagation === 'unbindable' ? 'private' : propagation, mountPoint }
    },
    cgroupPathsOf: (pid) => linux.cgroupPathsOf(pid),
    oomKillCount: (cgroups) => linux.oomKillCount(cgroups),
    killSession: (request) => linux.killSession(request),
  }
}

/**
 * Writes the file systems that hold these paths to the disk; all that there are when one is not known or not there: nobody says where a snapshotter outside of
 * containerd has its files. Rejects when one cannot be.
 */
export async function syncFileSystems(paths: readonly (string | undefined)[]): Promise<void> {
  const known = await Promise.all(paths.map(async (path) => path !== undefined && await pathExists(path)))
  await promisify(execFile)('sync', known.every(Boolean) ? ['--file-system', ...paths.filter((path) => path !== undefined)] : [])
}
