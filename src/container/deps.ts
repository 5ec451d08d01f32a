import type { KeyedQueues } from '../concurrency/keyed-queues.ts'
import type { Containerd } from '../containerd/containerd.ts'
import type { TaskTeardown } from '../containerd/task-teardown.ts'
import type { Any, Mount } from '../generated/containerd.ts'
import type { ContainerConfig, PodSandboxConfig } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { CgroupPaths } from '../linux/cgroups.ts'
import type { IdmappedRequest } from '../linux/idmapped-rootfs.ts'
import type { FileStat } from '../linux/linux.ts'
import type { ResolvedDevice, ResolvedMount, ResolvedUser, SelinuxLabels } from '../oci-spec/input.ts'
import type { RuntimeFeatures } from '../oci-spec/runtime-features.ts'
import type { SelinuxLabeler } from '../oci-spec/selinux.ts'
import type { OciAny } from '../oci-spec/json.ts'
import type { OciSpec } from '../oci-spec/types.ts'
import type { ResourceUpdate } from '../oci-spec/update-resources.ts'
import type { Container, Image, Sandbox } from '../state/records.ts'
import type { Layout } from '../state/status-file.ts'
import type { Store } from '../state/store.ts'
import type { Ctx } from '../observability/context.ts'
import type { IoWorker } from './io/client.ts'
import type { UserDatabase } from './image-users.ts'
import type { RootfsMounts } from './rootfs-mounts.ts'
import type { StdinHolders } from './stdin.ts'

/** What a container asks of the kernel. Every path here may have been chosen by a pod: off the main thread, with a deadline. */
export interface ContainerHost {
  /** The path with every symlink followed. NOT_FOUND when it does not exist. */
  resolvePath(path: string): Promise<string>
  statPath(path: string): Promise<FileStat | undefined>
  /** Every device node in a directory and below. */
  devicesIn(dir: string): Promise<readonly (FileStat & { readonly path: string })[]>
  mkdirAll(path: string, mode: number): Promise<void>
  /** A directory of our own with FIFOs in it, made at once. */
  makeFifos(dir: string, paths: readonly string[]): void
  removeTree(path: string): Promise<void>
  /** Mounts a view of an image, or what `subPath` names in it, on `volume` below `dir`, for reading alone. */
  mountImage(mounts: readonly Mount[], dir: string, subPath: string, signal: AbortSignal): Promise<void>
  /** OK when nothing is mounted there. */
  unmount(path: string): Promise<void>
  /** Mounts what containerd's snapshotter gave, runs `work` on it and unmounts again, whatever happens. */
  withMounts<T>(mounts: readonly Mount[], work: (dir: string) => Promise<T>): Promise<T>
  /** Runs `work` with a root file system and volumes as the user namespace of the file `userns` has to see them. */
  withIdmapped<T>(request: IdmappedRequest<Mount>, work: (rootfs: Mount[]) => Promise<T>): Promise<T>
  /** A regular file below `root`, symlinks resolved inside it. Undefined when it is missing; INVALID_ARGUMENT when it is larger or no regular file. */
  readInRoot(root: string, path: string, maxBytes: number): Promise<Buffer | undefined>
  /** Copies the directory `path` below `root` with owners and modes into `target`; nothing when the image has no such directory. */
  copyFromRoot(root: string, path: string, target: string): Promise<void>
  /** The mount that `path` is on, and how mounts propagate there. */
  propagationOf(path: string): Promise<{ readonly propagation: 'shared' | 'slave' | 'private'; readonly mountPoint: string }>
  cgroupPathsOf(pid: number): Promise<CgroupPaths>
  /** How often the out-of-memory killer struck; undefined when the cgroup is gone. */
  oomKillCount(cgroups: CgroupPaths): Promise<number | undefined>
  /** Kills every process of the exec's session and process group that is in the same cgroup as `containerPid`. */
  killSession(request: { readonly pid: number; readonly containerPid: number }): Promise<unknown>
}

export interface ContainerRuntime {
  readonly type: string
  readonly path: string
  readonly options: Init<Any> | undefined
  readonly snapshotter: string
  /** The options of a task whose stdio belongs to somebody else than root. */
  readonly optionsFor: (owner: { readonly uid: number; readonly gid: number }) => Init<Any> | undefined
}

/** Everything that the OCI spec of a container is made from. */
export interface ContainerSpecRequest {
  readonly id: string
  readonly name: string
  readonly sandbox: Sandbox
  readonly sandboxConfig: PodSandboxConfig
  readonly config: ContainerConfig
  readonly image: Image
  readonly imageName: string
  readonly user: ResolvedUser
  readonly mounts: readonly ResolvedMount[]
  readonly devices: readonly ResolvedDevice[]
  readonly targetPid: number | undefined
  readonly selinux: SelinuxLabels | undefined
}

export interface ContainerSettings {
  readonly maxContainerLogLineSize: number
  readonly drainExecSyncIoTimeoutMs: number
  readonly ignoreImageDefinedVolumes: boolean
}

export interface ContainerDeps {
  readonly containerd: Containerd
  readonly teardown: TaskTeardown
  readonly host: ContainerHost
  readonly io: IoWorker
  readonly stdin: StdinHolders
  /** The starts of commands, by pod. */
  readonly execStarts: KeyedQueues
  readonly layout: Layout
  readonly rootfs: RootfsMounts
  readonly containers: Store<Container>
  readonly settings: ContainerSettings
  readonly runtime: (handler: string) => ContainerRuntime
  /** What the runtime of a handler can do. */
  readonly features: (handler: string) => Promise<RuntimeFeatures>
  /** Pure, but for reading a Localhost seccomp profile. */
  readonly containerSpec: (request: ContainerSpecRequest) => Promise<OciAny>
  /** A container's spec with other resources. Throws INVALID_ARGUMENT or FAILED_PRECONDITION for what cannot be. */
  readonly updatedSpec: (spec: OciSpec, update: ResourceUpdate, handler: string) => OciSpec
  /** Labels of the image that containerd may see, the container's on top. */
  readonly labels: (image: Image, labels: Readonly<Record<string, string>>) => Record<string, string>
  readonly selinux: SelinuxLabeler
  /** /etc/passwd and /etc/group of an image. */
  readonly imageUsers: (ctx: Ctx, image: Image, snapshotter: string) => Promise<UserDatabase>
}
