import type { Containerd } from '../containerd/containerd.ts'
import type { ImageStore } from '../state/image-store.ts'
import type { Image } from '../state/records.ts'
import type { ImageCatalog } from './catalog.ts'
import type { PullCoordinator } from './pull/coordinator.ts'

/** What the image RPCs work with. Each takes the part that it names. */
export interface ImageServiceDeps {
  readonly containerd: Containerd
  readonly images: ImageStore
  readonly catalog: ImageCatalog
  readonly pulls: PullCoordinator
  /** Whether an image of this normalised name is one that garbage collection leaves alone (`pinned_images`, `sandbox_image`). */
  readonly pinned: (name: string) => boolean
  /** The id of a container that mounts the image as a volume, undefined when none does. */
  readonly mountedBy: (image: Image) => string | undefined
  /** The snapshotter of a runtime handler; of all when the handler is empty. INVALID_ARGUMENT for one that is not configured. */
  readonly snapshotterOf: (handler: string) => string
  /** Where a snapshotter keeps its snapshots. */
  readonly snapshotterRoot: (snapshotter: string) => string
}
