import type { Counters } from './counters.ts'
import type { OutputBuffer } from './cri-formatter.ts'
import type { Descriptors } from '../../linux/descriptors.ts'
import type { WallClock } from './entry-clock.ts'
import type { WorkerLog } from './worker-log.ts'

/** What all pumps and captures of the worker share. */
export interface WorkerEnvironment {
  readonly descriptors: Descriptors
  readonly counters: Counters
  readonly log: WorkerLog
  readonly wall: WallClock
  readonly readBuffer: Buffer
  readonly output: OutputBuffer
}
