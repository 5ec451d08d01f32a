import { BoundedQueue } from '../../concurrency/bounded-queue.ts'

export interface PullerSettings {
  /** Layers of one image that download at once; 0: no limit. */
  readonly maxConcurrentDownloads: number
  /** 0: none. */
  readonly imagePullProgressTimeoutMs: number
  readonly imagePullWithSyncFs: boolean
  readonly discardUnpackedLayers: boolean
  readonly disableSnapshotAnnotations: boolean
  /** Of all images together, ranges counted one by one; 0: no limit. */
  readonly maxConcurrentTransfers: number
  /** Side by side, of one layer. */
  readonly parallelRanges: number
  readonly parallelRangesFromMib: number
}

/** For the downloads of one image. */
export function downloadQueue({ maxConcurrentDownloads }: PullerSettings, maxWaiting: number): BoundedQueue {
  return new BoundedQueue({ name: 'layer downloads', concurrency: unlimited(maxConcurrentDownloads), maxWaiting })
}

/** Of all pulls: each has as many waiting as it may have running. */
const maxWaitingTransfers = 65_536

/** For the transfers of all images together. */
export function transferQueue({ maxConcurrentTransfers }: PullerSettings): BoundedQueue {
  return new BoundedQueue({ name: 'transfers', concurrency: unlimited(maxConcurrentTransfers), maxWaiting: maxWaitingTransfers })
}

function unlimited(limit: number): number {
  return limit === 0 ? Infinity : limit
}
