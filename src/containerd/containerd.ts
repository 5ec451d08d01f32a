import { ContainerdClient, type ContainerdClientOptions } from './client.ts'
import { ContainersService } from './containers.ts'
import { ContentService } from './content.ts'
import { DiffService } from './diff.ts'
import { EventsService } from './events.ts'
import { ImagesService } from './images.ts'
import { IntrospectionService } from './introspection.ts'
import { LeasesService } from './leases.ts'
import { SnapshotsService } from './snapshots.ts'
import { TasksService } from './tasks.ts'

export interface ContainerdOptions extends ContainerdClientOptions {
  /** Writes the file system that holds a path to the disk, for a containerd that cannot be asked to. Default: it stays undone. */
  readonly syncFileSystem?: (path: string) => Promise<void>
}

/** One connection to containerd and its services. */
export class Containerd {
  readonly client: ContainerdClient
  readonly containers: ContainersService
  readonly content: ContentService
  readonly diff: DiffService
  readonly events: EventsService
  readonly images: ImagesService
  readonly introspection: IntrospectionService
  readonly leases: LeasesService
  readonly snapshots: SnapshotsService
  readonly tasks: TasksService

  constructor(options: ContainerdOptions) {
    this.client = new ContainerdClient(options)
    this.containers = new ContainersService(this.client)
    this.content = new ContentService(this.client)
    this.events = new EventsService(this.client)
    this.images = new ImagesService(this.client)
    this.introspection = new IntrospectionService(this.client)
    this.diff = new DiffService(this.client, { introspection: this.introspection, syncFileSystem: options.syncFileSystem ?? (async () => undefined) })
    this.leases = new LeasesService(this.client)
    this.snapshots = new SnapshotsService(this.client)
    this.tasks = new TasksService(this.client)
  }

  close(): void {
    this.client.close()
  }
}
