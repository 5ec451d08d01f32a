import type { KeyedMutex } from '../concurrency/keyed-mutex.ts'
import type { Operation } from '../concurrency/operation.ts'
import type { ContainerDeps } from '../container/deps.ts'
import type { Ctx } from '../observability/context.ts'
import type { SandboxDeps } from '../sandbox/deps.ts'
import type { ImageStore } from '../state/image-store.ts'
import type { NameIndex } from '../state/name-index.ts'
import type { Container, Image, Sandbox } from '../state/records.ts'
import type { Store } from '../state/store.ts'
import type { ExecProcesses } from './exec-processes.ts'

/** What the pod and container RPCs work with. Each takes the part that it names. */
export interface RuntimeServiceDeps {
  readonly sandbox: SandboxDeps
  readonly container: ContainerDeps
  readonly sandboxes: Store<Sandbox>
  readonly containers: Store<Container>
  readonly sandboxNames: NameIndex
  readonly containerNames: NameIndex
  readonly images: ImageStore
  /** Orders the calls on one sandbox or container. */
  readonly mutex: KeyedMutex
  readonly execProcesses: ExecProcesses
  /** Begins a long operation whose steps are measured. */
  readonly operation: (name: string) => Operation
  /** The pause image, pulled when it is missing. */
  readonly pauseImage: (ctx: Ctx, handler: string) => Promise<Image>
  /** The image that a container's request names, by id or by any of its names, unpacked for the pod's runtime handler. NOT_FOUND when there is none. */
  readonly containerImage: (ctx: Ctx, name: string, handler: string) => Promise<Image>
  /** The same for an image, or an artifact, that a container mounts. */
  readonly volumeImage: (ctx: Ctx, name: string, handler: string) => Promise<Image>
}
