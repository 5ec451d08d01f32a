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
}

/** What of an image's configuration (OCI image-spec, Docker config v1) a container's start needs. */
export interface ImageConfig {
  readonly Env?: readonly string[] | null
  readonly Entrypoint?: readonly string[] | null
  readonly Cmd?: readonly string[] | null
  readonly User?: string
  readonly WorkingDir?: string
  readonly Volumes?: Readonly<Record<string, unknown>> | null
  readonly Labels?: Readonly<Record<string, string>> | null
  readonly StopSignal?: string
  readonly ExposedPorts?: Readonly<Record<string, unknown>> | null
}

/** An image as it is known now: one configuration digest, however many names. */
export interface Image {
  /** The digest of its configuration: `sha256:…` */
  readonly id: string
  /** Every name in containerd that points at it: `docker.io/library/busybox:1.36`, `…@sha256:…`. */
  readonly references: readonly string[]
  /** The name of its topmost snapshot. */
  readonly chainId: string
  /** Bytes of the manifest's configuration and layers, as they travel. */
  readonly sizeBytes: bigint
  /** Never taken by image garbage collection. */
  readonly pinned: boolean
  readonly config: ImageConfig
  /** The whole configuration document, for verbose status. */
  readonly document: Readonly<Record<string, unknown>>
}
