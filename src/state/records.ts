import type { LinuxContainerResources } from '../generated/cri.ts'
import type { CgroupPaths } from '../linux/cgroups.ts'
import type { ContainerMetadata, SandboxMetadata } from './metadata.ts'

export type SandboxState = 'ready' | 'notready'

/** A pod sandbox as it is known now. */
export interface Sandbox {
  readonly id: string
  readonly metadata: SandboxMetadata
  readonly state: SandboxState
  /** Nanoseconds since 1970. */
  readonly createdAt: bigint
  /** Of the pause process, 0 when it does not run. */
  readonly pid: number
  /** Whether the network (CNI, namespace) has been torn down already. */
  readonly networkDown: boolean
  /** containerd's own CRI plugin made it. Default: false. */
  readonly byPlugin?: boolean
}

export type ContainerState = 'created' | 'running' | 'exited' | 'unknown'

/** What containerd forgets about a container; kept in a small file beside it. */
export interface ContainerStatus {
  readonly state: ContainerState
  /** Of the container's init, 0 when it does not run. */
  readonly pid: number
  /** Nanoseconds since 1970, 0n when it has not happened. */
  readonly createdAt: bigint
  readonly startedAt: bigint
  readonly finishedAt: bigint
  readonly exitCode: number
  /** Completed, Error, OOMKilled, ContainerCannotRun, StartError, Unknown; empty while it has not ended. */
  readonly reason: string
  readonly message: string
}

/** A container as it is known now. */
export interface Container {
  readonly id: string
  readonly metadata: ContainerMetadata
  readonly status: ContainerStatus
  /** StartContainer is under way. */
  readonly starting: boolean
  /** RemoveContainer is under way. */
  readonly removing: boolean
  /** The kernel's out-of-memory killer struck in it. */
  readonly oomKilled: boolean
  /** Of the running task: still readable after its processes are gone, until it is deleted. Undefined before it was started. */
  readonly cgroups: CgroupPaths | undefined
  /** Its limits as the OCI spec has them, which an update changes; undefined without a spec. */
  readonly resources: LinuxContainerResources | undefined
  /** Whom its first process was told to run as (OCI process.user). */
  readonly user: { readonly uid: number; readonly gid: number; readonly additionalGids: readonly number[] } | undefined
}

/** The `config` object of an image's configuration (OCI image-spec), checked: every field present. The shape that src/oci-spec works on. */
export interface ImageConfig {
  readonly User: string
  readonly Env: readonly string[]
  readonly Entrypoint: readonly string[]
  readonly Cmd: readonly string[]
  readonly WorkingDir: string
  readonly Volumes: readonly string[]
  readonly Labels: Readonly<Record<string, string>>
  readonly StopSignal: string
  readonly ExposedPorts: readonly string[]
}

/** A file of an artifact: one layer of its manifest. */
export interface ArtifactFile {
  /** Relative, without `.` and `..`, checked. */
  readonly path: string
  readonly digest: string
  readonly sizeBytes: number
}

/** What is known of an OCI artifact: something that a registry keeps and that is no container image. It can be mounted, not run. */
export interface Artifact {
  /** Its artifactType, or the media type of its configuration. */
  readonly type: string
  /** Empty when there is a problem. */
  readonly files: readonly ArtifactFile[]
  /** Why it cannot be mounted: names that cannot be files of one directory, or none at all. */
  readonly problem: string | undefined
}

/** An image as it is known now: one configuration digest, however many names. */
export interface Image {
  /** The digest of its configuration, of an artifact that of its manifest: `sha256:…` */
  readonly id: string
  /** Every name in containerd that points at it: `docker.io/library/busybox:1.36`, `…@sha256:…`. */
  readonly references: readonly string[]
  /** The name of its topmost snapshot; empty for an image without layers and an artifact that cannot be mounted. */
  readonly chainId: string
  /** Undefined for a container image. */
  readonly artifact?: Artifact | undefined
  /** Bytes of the manifest's configuration and layers, as they travel. */
  readonly sizeBytes: bigint
  /** Never taken by image garbage collection. */
  readonly pinned: boolean
  readonly config: ImageConfig
  /** The whole configuration document, for verbose status. */
  readonly document: Readonly<Record<string, unknown>>
}
