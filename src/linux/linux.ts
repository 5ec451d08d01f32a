import type { CgroupPaths } from './cgroups.ts'
import { check, exitWithoutCleanup, K, libc } from './libc.ts'
import { connectLoopback } from './loopback.ts'
import type { ContainerdMount } from './mount-options.ts'
import type { MountInfo } from './mountinfo.ts'
import type { FileStat, FsInfo, StatOptions, WriteFileOptions } from './ops/files.ts'
import type { HostFacts } from './ops/host.ts'
import type { MountImageOptions } from './ops/image-mount.ts'
import type { IdmapMount } from './ops/idmap.ts'
import type { MountAllOptions, MountRequest, UnmountOptions } from './ops/mounts.ts'
import type { CreateNetnsOptions, InterfaceAddress } from './ops/netns.ts'
import type { OperationArgs, OperationName, OperationResult } from './ops/operations.ts'
import type { KillSessionRequest, KillSessionResult, ProcessStat, SendSignalOptions } from './ops/processes.ts'
import type { RelabelOptions } from './ops/relabel.ts'
import type { DiskUsage, DiskUsageOptions } from './ops/trees.ts'
import type { UserNamespaceRequest } from './ops/userns.ts'
import type { InterfaceCounters, NetworkTarget, UsageLevel, UsageRows, UsageTarget } from './usage.ts'
import { type LinuxLog, WorkerPool } from './worker-pool.ts'

export type { CgroupMounts, CgroupPaths } from './cgroups.ts'
export type { ContainerdMount, MountFlag } from './mount-options.ts'
export type { MountInfo } from './mountinfo.ts'
export type { FileStat, FileType, FsInfo, StatOptions, WriteFileOptions } from './ops/files.ts'
export type { HostFacts } from './ops/host.ts'
export type { MountImageOptions } from './ops/image-mount.ts'
export type { IdmapMount } from './ops/idmap.ts'
export type { MountAllOptions, MountRequest, UnmountOptions } from './ops/mounts.ts'
export type { CreateNetnsOptions, InterfaceAddress } from './ops/netns.ts'
export type { KillSessionRequest, KillSessionResult, ProcessStat, SendSignalOptions } from './ops/processes.ts'
export type { DiskUsage, DiskUsageOptions } from './ops/trees.ts'
export type { IdRange, UserNamespaceRequest } from './ops/userns.ts'
export type { LinuxLog } from './worker-pool.ts'

export interface LinuxOptions {
  readonly log: LinuxLog
  /** Threads for system calls when none hangs. Default: 2. With one, a call that hangs holds up the others for a quarter of a second. */
  readonly workers?: number | undefined
  /** How many hung calls get a replacement thread. Default: 8. */
  readonly maxHung?: number | undefined
}

/** Bounds one call. */
export interface CallOptions {
  /** Default: 10,000. The wait for a free thread counts. */
  readonly timeoutMs?: number | undefined
  /** An abort rejects at once with the signal's reason; what runs then is taken back or, past its point of no return, still answers. */
  readonly signal?: AbortSignal | undefined
}

export interface PeerCredentials {
  readonly pid: number
  readonly uid: number
  readonly gid: number
}

/** A lock on a file. The process's end releases it too. */
export interface FileLock {
  release(): Promise<void>
}

const defaultTimeoutMs = 10_000

/**
 * The kernel. Every call runs in a thread of its own pool, so that neither the event loop nor libuv's threads ever wait for a dead network
 * file system. A call that does not answer fails with DEADLINE_EXCEEDED and names itself and its path; calls on a path that hangs already
 * fail at once with UNAVAILABLE (reason `HUNG`). Other errors are CriErrors whose reason is the errno's name. Paths are absolute.
 */
export class Linux {
  readonly #pool: WorkerPool

  private constructor(pool: WorkerPool) {
    this.#pool = pool
  }

  /** Starts the threads. Rejects with INTERNAL when they do not come up. */
  static async start(options: LinuxOptions): Promise<Linux> {
    return new Linux(await WorkerPool.start({ log: options.log, workers: Math.max(1, options.workers ?? 2), maxHung: options.maxHung ?? 8 }))
  }

  /**
   * Ends the threads when their calls are done. The result describes calls that hang: as long as there is one, process.exit() would wait
   * for it, so end the process with exitProcess().
   */
  async close(): Promise<readonly string[]> {
    return this.#pool.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  /** Ends the process at once, even when threads hang (process.exit() joins them). No exit handler runs: write logs out first. */
  static exitProcess(status: number): never {
    return exitWithoutCleanup(status)
  }

  /** Calls that hang now, for metrics and Status: `statPath /data (for 12 s)`. */
  get hung(): readonly string[] {
    return this.#pool.hung
  }

  /** Threads there are, and calls that wait for one. */
  get load(): { readonly threads: number; readonly waiting: number } {
    return { threads: this.#pool.threadCount, waiting: this.#pool.waiting }
  }

  // ---- network namespaces

  /**
   * Makes a network namespace with `lo` up and the given net.* sysctls, and mounts it on `path` (directories are made, 0755). An empty file
   * there is taken for what a crash left. ALREADY_EXISTS for anything else; INVALID_ARGUMENT for a sysctl that is not namespaced or not
   * there. On failure nothing is left.
   */
  async createNetns(path: string, options: CreateNetnsOptions & CallOptions = {}): Promise<void> {
    return this.#own('createNetns', path, options, path, { sysctls: options.sysctls })
  }

  /** Unmounts and removes it. OK when it is not there; FAILED_PRECONDITION when something else is. Processes inside keep the namespace itself alive. */
  async deleteNetns(path: string, options: CallOptions = {}): Promise<void> {
    return this.#own('deleteNetns', path, options, path)
  }

  /** Whether a network namespace is mounted on `path`. */
  async netnsExists(path: string, options: CallOptions = {}): Promise<boolean> {
    return this.#own('netnsExists', path, options, path)
  }

  /** The addresses of the interfaces that are up in a network namespace, loopback included. */
  async interfaceAddresses(path: string, options: CallOptions = {}): Promise<InterfaceAddress[]> {
    return this.#own('interfaceAddresses', path, options, path)
  }

  /**
   * A TCP connection to a port on a loopback address of the network namespace mounted on `netns` (undefined: this process's own): 127.0.0.1, then ::1.
   * The result is a connected, non-blocking descriptor with O_CLOEXEC, and the caller's to close. UNAVAILABLE (reason `ECONNREFUSED`) when nothing
   * listens on either, DEADLINE_EXCEEDED when neither answers, NOT_FOUND or FAILED_PRECONDITION when there is no such namespace.
   */
  async connectLoopback(netns: string | undefined, port: number, options: CallOptions = {}): Promise<number> {
    return connectLoopback({
      openSocket: (family) => this.#own('openTcpSocket', netns ?? 'of the host', { timeoutMs: options.timeoutMs }, netns, family),
      port, timeoutMs: options.timeoutMs ?? defaultTimeoutMs, signal: options.signal,
    })
  }

  // ---- user namespaces

  /**
   * Makes a user namespace with these ids and mounts it on `path` (directories are made, 0755), and with `netns` a network namespace that belongs to it,
   * with `lo` up. ALREADY_EXISTS when something is there; FAILED_PRECONDITION (reason `UserNamespaceRefused`) with the kernel's reason. On failure nothing is left.
   */
  async createUserNamespace(path: string, request: UserNamespaceRequest, options: CallOptions = {}): Promise<void> {
    return this.#own('createUserNamespace', path, options, path, request)
  }

  /** Unmounts and removes it. OK when it is not there; FAILED_PRECONDITION when something else is. Processes and network namespaces keep the namespace itself alive. */
  async deleteUserNamespace(path: string, options: CallOptions = {}): Promise<void> {
    return this.#own('deleteUserNamespace', path, options, path)
  }

  /** Whether a user namespace is mounted on `path`. */
  async userNamespaceExists(path: string, options: CallOptions = {}): Promise<boolean> {
    return this.#own('userNamespaceExists', path, options, path)
  }

  /**
   * Shows each source at its target with the ids that are on the disk taken for ids inside the user namespace of the file `userns` (mount_setattr(2)).
   * What is mounted below a source is not part of it. Targets are made. FAILED_PRECONDITION (reason `NoIdmap`) names the kernel or the file system that cannot.
   * If one fails, those before it are undone.
   */
  async mountIdmapped(mounts: readonly IdmapMount[], userns: string, options: CallOptions = {}): Promise<void> {
    return this.#pods('mountIdmapped', mounts.map(({ source }) => source).join(', '), options, mounts, userns)
  }

  /**
   * Why the kernel could not make an overlay of directories like `path` with their ids mapped, by trying it in the directory `scratch`; undefined when it can.
   */
  async idmapProblem(path: string, scratch: string, options: CallOptions = {}): Promise<string | undefined> {
    return this.#own('idmapProblem', path, options, path, scratch)
  }

  // ---- mounts

  /** mount(2). Propagation flags and the per-mount flags of a bind mount take calls of their own, which are made here; if one fails, the mount is undone. */
  async mount(request: MountRequest, options: CallOptions = {}): Promise<void> {
    return this.#own('mount', request.target, options, request)
  }

  /** Mounts what a snapshotter returned on `target`, one over the other. If one fails, those before it are undone. */
  async mountAll(mounts: readonly ContainerdMount[], target: string, options: MountAllOptions & CallOptions = {}): Promise<void> {
    return this.#own('mountAll', target, options, mounts, target, { readonly: options.readonly })
  }

  /**
   * Mounts what a snapshotter returned for an image, for reading alone, on `volume` below `dir` (made when missing). With `subPath` only that directory
   * or file of the image: symbolic links are followed inside the image, and what is mounted is what was found, by descriptor. NOT_FOUND when it
   * is missing, INVALID_ARGUMENT (reason `ESCAPES`) when it leads out of the image. Nothing is left when it fails.
   */
  async mountImage(mounts: readonly ContainerdMount[], dir: string, options: MountImageOptions & CallOptions = {}): Promise<void> {
    return this.#own('mountImage', dir, options, mounts, dir, { subPath: options.subPath })
  }

  /** Unmounts `target` as often as something is mounted there. OK when nothing is. FAILED_PRECONDITION (EBUSY) when it is in use and not detached. */
  async unmount(target: string, options: UnmountOptions & CallOptions = {}): Promise<void> {
    return this.#own('unmount', target, options, target, { detach: options.detach })
  }

  /** Whether something is mounted on exactly this path; false when it does not exist. A symbolic link at the end is not followed. */
  async isMountPoint(path: string, options: CallOptions = {}): Promise<boolean> {
    return this.#own('isMountPoint', path, options, path)
  }

  /** All mounts of this process's mount namespace. A later entry on the same mount point lies over an earlier one. */
  async mountInfo(options: CallOptions = {}): Promise<MountInfo[]> {
    return this.#own('mountInfo', '', options)
  }

  /** The mounts on `dir` and below it, by name. */
  async mountsUnder(dir: string, options: CallOptions = {}): Promise<MountInfo[]> {
    return this.#own('mountsUnder', dir, options, dir)
  }

  // ---- files

  /** Makes a FIFO with exactly this mode. ALREADY_EXISTS when the name is taken. */
  async mkfifo(path: string, mode = 0o600, options: CallOptions = {}): Promise<void> {
    return this.#own('mkfifo', path, options, path, mode)
  }

  /** The path without symbolic links. NOT_FOUND when it does not exist. */
  async resolvePath(path: string, options: CallOptions = {}): Promise<string> {
    return this.#pods('resolvePath', path, options, path)
  }

  /** What is at `path`, undefined when nothing is. Symbolic links are followed unless `followSymlinks` is false. */
  async statPath(path: string, options: StatOptions & CallOptions = {}): Promise<FileStat | undefined> {
    return this.#pods('statPath', path, options, path, { followSymlinks: options.followSymlinks })
  }

  /** Makes a directory and those above it, with exactly this mode. OK when it is there. */
  async mkdirAll(path: string, mode = 0o755, options: CallOptions = {}): Promise<void> {
    return this.#pods('mkdirAll', path, options, path, mode)
  }

  /**
   * Removes a file or a directory with everything in it; follows no symbolic link. OK when it is not there. FAILED_PRECONDITION, before
   * anything is removed, when a mount is on it or below, and for a top-level directory of the machine.
   */
  async removeTree(path: string, options: CallOptions = {}): Promise<void> {
    return this.#pods('removeTree', path, options, path)
  }

  /** What a file or a directory with everything in it takes up on the disk, other mounts left out. The walk is bounded: see `complete`. */
  async diskUsage(path: string, options: DiskUsageOptions & CallOptions = {}): Promise<DiskUsage> {
    return this.#pods('diskUsage', path, options, path, { maxEntries: options.maxEntries })
  }

  /**
   * Gives a file, or a directory with everything in it, an SELinux label; follows no symbolic link. File systems without labels stay as they are.
   * INVALID_ARGUMENT (reason `RelabelRefused`) for a top-level directory of the machine.
   */
  async relabelTree(path: string, label: string, options: RelabelOptions & CallOptions = {}): Promise<void> {
    return this.#pods('relabelTree', path, options, path, label, { attribute: options.attribute })
  }

  /** The size and what is free of the file system that `path` is on. */
  async fsInfo(path: string, options: CallOptions = {}): Promise<FsInfo> {
    return this.#pods('fsInfo', path, options, path)
  }

  /** Replaces a file so that a reader, and a crash, find the old content or the new; on the disk when it resolves. */
  async writeFileAtomic(path: string, data: string | Uint8Array, options: WriteFileOptions & CallOptions = {}): Promise<void> {
    return this.#pods('writeFileAtomic', path, options, path, data, { mode: options.mode })
  }

  // ---- inside a container's root file system

  /**
   * Reads a regular file; symbolic links cannot lead out of `rootDir`. NOT_FOUND, FAILED_PRECONDITION (reason `NOT_A_FILE`) for a FIFO, device,
   * directory or socket, RESOURCE_EXHAUSTED (reason `EFBIG`) over `maxBytes`.
   */
  async readInRoot(rootDir: string, pathInside: string, maxBytes: number, options: CallOptions = {}): Promise<Buffer> {
    const bytes = await this.#pods('readInRoot', rootDir, options, rootDir, pathInside, maxBytes)
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  /** What is at a path inside `rootDir`, symbolic links followed inside; undefined when nothing is. */
  async statInRoot(rootDir: string, pathInside: string, options: CallOptions = {}): Promise<FileStat | undefined> {
    return this.#pods('statInRoot', rootDir, options, rootDir, pathInside)
  }

  /** Makes a directory and those above it inside `rootDir`. Links that lead nowhere yet are followed inside the root. OK when it is there. */
  async mkdirInRoot(rootDir: string, pathInside: string, mode = 0o755, options: CallOptions = {}): Promise<void> {
    return this.#pods('mkdirInRoot', rootDir, options, rootDir, pathInside, mode)
  }

  // ---- processes

  /** Sends a signal by pidfd. NOT_FOUND when the process is gone, or is not the one that started at `startTimeTicks`. */
  async sendSignal(pid: number, signal: number | NodeJS.Signals, options: SendSignalOptions & CallOptions = {}): Promise<void> {
    return this.#own('sendSignal', `${pid}`, options, pid, signal, { startTimeTicks: options.startTimeTicks })
  }

  /** What /proc says about a process; undefined when it is gone. */
  async processStat(pid: number, options: CallOptions = {}): Promise<ProcessStat | undefined> {
    return this.#own('processStat', `${pid}`, options, pid)
  }

  /** Kills (SIGKILL) what belongs to a session or process group and to the container's cgroup, until nothing is left or `waitMs` is over. */
  async killSession(request: KillSessionRequest, options: CallOptions = {}): Promise<KillSessionResult> {
    return this.#own('killSession', `${request.pid}`, { timeoutMs: (request.waitMs ?? 5000) + 5000, ...options }, request)
  }

  /** Who connected to a unix socket. `fd` is the descriptor of the accepted connection. */
  async peerCredentials(fd: number): Promise<PeerCredentials> {
    // At once and here: it cannot block, and the caller may close the descriptor.
    const credentials = Buffer.alloc(12)
    const length = Buffer.alloc(4)
    length.writeUInt32LE(credentials.length)
    check(`read the peer of socket ${fd}`, libc.getsockopt(fd, K.SOL_SOCKET, K.SO_PEERCRED, credentials, length))
    return { pid: credentials.readInt32LE(0), uid: credentials.readUInt32LE(4), gid: credentials.readUInt32LE(8) }
  }

  /** Locks a file, which is made when missing, against every other process. FAILED_PRECONDITION (reason `LOCKED`) names who holds it. */
  async lockFile(path: string, options: CallOptions = {}): Promise<FileLock> {
    const fd = await this.#own('takeLock', path, options, path)
    let held = true
    return {
      release: async () => {
        if (!held) return
        held = false
        // Here, so that it works after close() too.
        libc.close(fd)
      },
    }
  }

  // ---- the host and its cgroups

  /** What this machine is and allows. */
  async probeHost(options: CallOptions = {}): Promise<HostFacts> {
    return this.#own('probeHost', '', options)
  }

  /** The directories of the cgroups that a process is in. NOT_FOUND when it is gone. */
  async cgroupPathsOf(pid: number, options: CallOptions = {}): Promise<CgroupPaths> {
    return this.#own('cgroupPathsOf', `${pid}`, options, pid)
  }

  /** How often the kernel killed a process there for lack of memory; undefined when the cgroup is gone. */
  async oomKillCount(paths: CgroupPaths, options: CallOptions = {}): Promise<number | undefined> {
    return this.#own('oomKillCount', cgroupName(paths), options, paths)
  }

  /** What several cgroups use, in one call of a thread: a row of figures each (src/linux/usage.ts). One that is gone or cannot be read does not spoil the others. */
  async cgroupUsage(level: UsageLevel, targets: readonly UsageTarget[], options: CallOptions = {}): Promise<UsageRows> {
    return this.#own('cgroupUsage', `of ${targets.length} cgroups`, options, level, targets)
  }

  /** The counters of every interface but `lo` in several network namespaces, in one call of a thread; undefined for one that is gone. */
  async networkCounters(targets: readonly NetworkTarget[], options: CallOptions = {}): Promise<(readonly InterfaceCounters[] | undefined)[]> {
    return this.#own('networkCounters', `of ${targets.length} network namespaces`, options, targets)
  }

  /** Removes cgroups without processes, children first. OK when they are not there; FAILED_PRECONDITION (EBUSY) names the processes in them. */
  async removeCgroup(paths: CgroupPaths, options: CallOptions = {}): Promise<void> {
    return this.#own('removeCgroup', cgroupName(paths), options, paths)
  }

  /** A call on something of ours. */
  async #own<K extends OperationName>(op: K, subject: string, options: CallOptions, ...args: OperationArgs<K>): Promise<OperationResult<K>> {
    return this.#pool.call(op, { subject, podChosen: false, timeoutMs: options.timeoutMs ?? defaultTimeoutMs, signal: options.signal }, ...args)
  }

  /** A call on a path that a pod may have chosen. */
  async #pods<K extends OperationName>(op: K, subject: string, options: CallOptions, ...args: OperationArgs<K>): Promise<OperationResult<K>> {
    return this.#pool.call(op, { subject, podChosen: true, timeoutMs: options.timeoutMs ?? defaultTimeoutMs, signal: options.signal }, ...args)
  }
}

function cgroupName(paths: CgroupPaths): string {
  return paths.v1['memory'] ?? paths.v2 ?? Object.values(paths.v1)[0] ?? 'of no cgroup'
}
