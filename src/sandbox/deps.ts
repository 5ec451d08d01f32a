import type { CniPod, PodNetwork } from '../cni/types.ts'
import type { Containerd } from '../containerd/containerd.ts'
import type { TaskTeardown } from '../containerd/task-teardown.ts'
import type { Any, Mount } from '../generated/containerd.ts'
import type { PodSandboxConfig } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { IdmappedRequest } from '../linux/idmapped-rootfs.ts'
import type { UserNamespaceRequest } from '../linux/linux.ts'
import type { Ctx } from '../observability/context.ts'
import type { SelinuxLabels } from '../oci-spec/input.ts'
import type { SelinuxLabeler } from '../oci-spec/selinux.ts'
import type { Image, Sandbox } from '../state/records.ts'
import type { Layout } from '../state/status-file.ts'
import type { Store } from '../state/store.ts'

/** What the sandbox asks of the kernel. */
export interface SandboxHost {
  createNetns(path: string, options?: { readonly sysctls?: Readonly<Record<string, string>> }): Promise<void>
  deleteNetns(path: string): Promise<void>
  /** A user namespace mounted on `path`, and with `netns` a network namespace of its own. */
  createUserNamespace(path: string, request: UserNamespaceRequest): Promise<void>
  deleteUserNamespace(path: string): Promise<void>
  /** A tmpfs whose root directory belongs to `owner`; to root when that is undefined. */
  mountShm(path: string, sizeBytes: bigint, owner: Owner | undefined): Promise<void>
  /** Runs `work` with a root file system as the user namespace of the file `userns` has to see it. */
  withIdmapped<T>(request: IdmappedRequest<Mount>, work: (rootfs: Mount[]) => Promise<T>): Promise<T>
  unmount(path: string): Promise<void>
  removeTree(path: string): Promise<void>
}

/** Ids of the node. */
export interface Owner {
  readonly uid: number
  readonly gid: number
}

/** The pod network as one runtime handler configures it. */
export interface PodNetworks {
  add(pod: CniPod, signal: AbortSignal): Promise<PodNetwork>
  del(pod: CniPod, signal: AbortSignal): Promise<void>
}

/** A runtime handler as containerd is told of it. */
export interface SandboxRuntime {
  /** The handler's name as pods ask for it; empty for the default one. */
  readonly handler: string
  /** `io.containerd.runc.v2` */
  readonly type: string
  /** Path of the shim binary; empty to find it by the type. */
  readonly path: string
  readonly options: Init<Any> | undefined
  readonly snapshotter: string
  /** The options of a task whose stdio belongs to somebody else than root. */
  readonly optionsFor: (owner: Owner) => Init<Any> | undefined
}

export interface SandboxDeps {
  readonly containerd: Containerd
  readonly teardown: TaskTeardown
  readonly host: SandboxHost
  readonly layout: Layout
  readonly sandboxes: Store<Sandbox>
  /** Where network namespaces are bound: /var/run/netns, or under the state directory. */
  readonly netnsDir: string
  /** Throws INVALID_ARGUMENT for a handler that is not configured. */
  readonly runtime: (handler: string) => SandboxRuntime
  readonly networks: (handler: string) => PodNetworks
  /** The OCI spec of the pause container. */
  readonly sandboxSpec: (ctx: Ctx, input: { readonly id: string; readonly config: PodSandboxConfig; readonly netnsPath: string; readonly usernsPath: string | undefined; readonly image: Image; readonly runtimeHandler: string; readonly selinux: SelinuxLabels | undefined }) => Promise<Init<Any>>
  readonly selinux: SelinuxLabeler
  /** Labels of the image that containerd may see, the pod's on top. */
  readonly labels: (image: Image, labels: Readonly<Record<string, string>>) => Record<string, string>
}
