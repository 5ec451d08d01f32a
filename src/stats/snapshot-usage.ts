import { BoundedQueue } from '../concurrency/bounded-queue.ts'
import { pause } from '../concurrency/deadline.ts'
import { abortable } from '../concurrency/keyed-mutex.ts'
import type { SnapshotsService } from '../containerd/snapshots.ts'
import { isNotFound } from '../errors/cri-error.ts'
import { snapshots_Kind } from '../generated/containerd.ts'
import { withSignal, type Ctx } from '../observability/context.ts'

/** What one snapshot, or several together, take up on the disk. */
export interface DiskUsage {
  /** When it was measured, in milliseconds since 1970. */
  readonly measuredMs: number
  readonly bytes: number
  readonly inodes: number
}

export interface FileSystem {
  /** `/dev/sda1`; whatever the mount table calls it. */
  readonly device: string
  readonly totalBytes: number
  readonly totalInodes: number
  readonly freeInodes: number
}

export interface SnapshotUsageDeps {
  readonly snapshots: Pick<SnapshotsService, 'list' | 'usage'>
  /** Every snapshotter that pods may use; the default one first. */
  readonly snapshotters: () => readonly string[]
  /** What the file system is that a snapshotter keeps its snapshots on. */
  readonly fileSystem: (snapshotter: string) => Promise<FileSystem>
  /** Milliseconds between two measurements of a snapshot that changes. */
  readonly periodMs: number
  readonly ctx: Ctx
}

interface Known {
  usage: DiskUsage
  parent: string
  /** Committed snapshots do not change. */
  committed: boolean
  /** When to measure it again, on the clock of performance.now(). */
  dueMs: number
  intervalMs: number
}

interface Snapshotter {
  readonly known: Map<string, Known>
  fileSystem: FileSystem | undefined
  /** When all of them had been gone through last, in milliseconds since 1970. */
  passMs: number
}

/** The background walk uses the disk for this part of the time at most: containerd goes through every file of a writable layer. */
const maxShare = 0.2
/** Its debt is paid in pauses of at least so many milliseconds. */
const shortestPauseMs = 50
/** A layer whose size stays the same is measured at this many periods at last. */
const maxPeriods = 3
/** A walk over millions of files on a slow disk. */
const walkTimeoutMs = 10 * 60_000
/** Layers that somebody waits for. */
const concurrentWalks = 4
const waitAtMostMs = 2000

/**
 * What snapshots use, measured in the background: image layers once, writable layers every period, one at a time and with pauses as long as the
 * disk needs to serve others. Questions are answered with the last measurement, whose time says how old it is.
 */
export class SnapshotUsage {
  readonly #deps: SnapshotUsageDeps
  readonly #snapshotters = new Map<string, Snapshotter>()
  readonly #measuring = new Map<string, Promise<DiskUsage | undefined>>()
  readonly #asked = new BoundedQueue({ name: 'measuring writable layers', concurrency: concurrentWalks, maxWaiting: 10_000 })
  readonly #firstPass = Promise.withResolvers<void>()

  constructor(deps: SnapshotUsageDeps) {
    this.#deps = deps
    this.#firstPass.promise.catch(() => undefined)
  }

  /** Measures until `signal` aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const ctx = withSignal(this.#deps.ctx, signal)
    while (!signal.aborted) {
      const started = performance.now()
      for (const [index, snapshotter] of this.#deps.snapshotters().entries()) {
        try {
          await this.#pass(ctx, snapshotter)
          if (index === 0) this.#firstPass.resolve()
        } catch (error) {
          if (signal.aborted) break
          // containerd is away, which everybody is told by other means, or has no such snapshotter.
          ctx.log.debug({ err: error, snapshotter }, 'cannot measure snapshots')
        }
      }
      await pause(Math.max(this.#deps.periodMs - (performance.now() - started), shortestPauseMs), signal).catch(() => undefined)
    }
    this.#firstPass.reject(signal.reason)
  }

  /** The last measurement of a snapshot. */
  of(snapshotter: string, key: string): DiskUsage | undefined {
    return this.#snapshotters.get(snapshotter)?.known.get(key)?.usage
  }

  /** The same of several, where those that were never measured are waited for: two seconds at most. */
  async ofAll(ctx: Ctx, wanted: readonly { readonly snapshotter: string; readonly key: string }[]): Promise<(DiskUsage | undefined)[]> {
    const missing = wanted.filter(({ snapshotter, key }) => this.of(snapshotter, key) === undefined)
    if (missing.length > 0) {
      const enough = new AbortController()
      const timer = setTimeout(() => enough.abort(), waitAtMostMs)
      try {
        await abortable(Promise.all(missing.map(({ snapshotter, key }) => this.#measure(snapshotter, key, enough.signal))), AbortSignal.any([ctx.signal, enough.signal]))
      } catch (error) {
        ctx.signal.throwIfAborted()
        if (!enough.signal.aborted) throw error
      } finally {
        clearTimeout(timer)
        enough.abort()
      }
    }
    return wanted.map(({ snapshotter, key }) => this.of(snapshotter, key))
  }

  /** Image layers (committed snapshots) and writable layers together; waits for the first pass through the default snapshotter's. Undefined for a snapshotter that nobody uses. */
  async totals(ctx: Ctx, snapshotter: string): Promise<{ readonly images: DiskUsage; readonly containers: DiskUsage } | undefined> {
    await abortable(this.#firstPass.promise, ctx.signal)
    const found = this.#snapshotters.get(snapshotter)
    if (found === undefined) return undefined
    const totals = { images: { measuredMs: found.passMs, bytes: 0, inodes: 0 }, containers: { measuredMs: found.passMs, bytes: 0, inodes: 0 } }
    for (const { usage, committed } of found.known.values()) {
      const total = committed ? totals.images : totals.containers
      total.bytes += usage.bytes
      total.inodes += usage.inodes
    }
    return totals
  }

  /** What the layers of an image use unpacked, by its topmost snapshot; undefined when it is not unpacked, or not measured yet. Layers that images share count for each. */
  ofImage(snapshotter: string, topmost: string): Omit<DiskUsage, 'measuredMs'> | undefined {
    const known = this.#snapshotters.get(snapshotter)?.known
    let [bytes, inodes] = [0, 0]
    for (let name = topmost; name !== '';) {
      const layer = known?.get(name)
      if (layer === undefined) return undefined
      bytes += layer.usage.bytes
      inodes += layer.usage.inodes
      name = layer.parent
    }
    return topmost === '' ? undefined : { bytes, inodes }
  }

  /** The file system that a snapshotter is on, as it was at the last pass. */
  fileSystem(snapshotter: string): FileSystem | undefined {
    return this.#snapshotters.get(snapshotter)?.fileSystem
  }

  async #pass(ctx: Ctx, snapshotter: string): Promise<void> {
    const { snapshots, periodMs } = this.#deps
    const listed = await snapshots.list(ctx, snapshotter)
    const found = this.#snapshotter(snapshotter)
    try {
      found.fileSystem = await this.#deps.fileSystem(snapshotter)
    } catch (error) {
      ctx.signal.throwIfAborted()
      ctx.log.debug({ err: error, snapshotter }, 'cannot look at the file system of a snapshotter')
    }
    const names = new Set(listed.map(({ name }) => name))
    for (const name of found.known.keys()) if (!names.has(name)) found.known.delete(name)
    let debtMs = 0
    for (const { name, kind, parent } of listed) {
      const known = found.known.get(name)
      const committed = kind !== snapshots_Kind.ACTIVE
      const started = performance.now()
      if (known !== undefined && known.committed === committed && (committed || started < known.dueMs)) continue
      const usage = await this.#walk(ctx, snapshotter, name)
      if (usage === undefined) continue
      const before = found.known.get(name)
      const same = before !== undefined && before.usage.bytes === usage.bytes && before.usage.inodes === usage.inodes
      const intervalMs = same ? Math.min(before.intervalMs * 2, maxPeriods * periodMs) : periodMs
      // Half a period early is better than half a period late: passes do not begin to the millisecond.
      found.known.set(name, { usage, parent, committed, intervalMs, dueMs: started + intervalMs - periodMs / 2 })
      debtMs += (performance.now() - started) * (1 / maxShare - 1)
      if (debtMs < shortestPauseMs) continue
      await pause(debtMs, ctx.signal)
      debtMs = 0
    }
    found.passMs = Date.now()
  }

  #snapshotter(name: string): Snapshotter {
    const found = this.#snapshotters.get(name) ?? { known: new Map<string, Known>(), fileSystem: undefined, passMs: Date.now() }
    this.#snapshotters.set(name, found)
    return found
  }

  /** For somebody who waits; one walk however many do. It is not begun when `giveUp` has aborted. */
  async #measure(snapshotter: string, key: string, giveUp: AbortSignal): Promise<void> {
    const id = `${snapshotter} ${key}`
    let measuring = this.#measuring.get(id)
    if (measuring === undefined) {
      measuring = this.#asked.add(() => this.#walk(this.#deps.ctx, snapshotter, key), { signal: giveUp }).catch(() => undefined).finally(() => this.#measuring.delete(id))
      this.#measuring.set(id, measuring)
    }
    const usage = await measuring
    const { known } = this.#snapshotter(snapshotter)
    if (usage !== undefined && !known.has(key)) known.set(key, { usage, parent: '', committed: false, intervalMs: this.#deps.periodMs, dueMs: performance.now() + this.#deps.periodMs / 2 })
  }

  /** Undefined when it cannot be measured: removed since it was listed, or being removed. */
  async #walk(ctx: Ctx, snapshotter: string, key: string): Promise<DiskUsage | undefined> {
    try {
      const { sizeBytes, inodes } = await this.#deps.snapshots.usage(ctx, snapshotter, key, { timeoutMs: walkTimeoutMs })
      return { measuredMs: Date.now(), bytes: Number(sizeBytes), inodes: Number(inodes) }
    } catch (error) {
      ctx.signal.throwIfAborted()
      if (!isNotFound(error)) ctx.log.debug({ err: error, snapshot: key }, 'cannot measure a snapshot')
      return undefined
    }
  }
}
