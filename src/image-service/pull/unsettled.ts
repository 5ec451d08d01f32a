import { createHash } from 'node:crypto'
import { readdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { pause, withDeadline } from '../../concurrency/deadline.ts'
import { KeyedMutex } from '../../concurrency/keyed-mutex.ts'
import type { Containerd } from '../../containerd/containerd.ts'
import type { SnapshotInfo } from '../../containerd/snapshots.ts'
import { toNanoseconds } from '../../containerd/timestamp.ts'
import { CriError, messageOf } from '../../errors/cri-error.ts'
import type { Timestamp } from '../../generated/containerd.ts'
import type { Ctx } from '../../observability/context.ts'
import { readJson, writeJson } from '../../state/status-file.ts'

/** What a pull, or an unpacking for another snapshotter, is about to make. */
export interface PullNote {
  /** Of image records. */
  readonly names: readonly string[]
  readonly snapshotter: string
  /** Manifests, configuration, layers. */
  readonly digests: readonly string[]
  /** Names of its committed snapshots. */
  readonly snapshots: readonly string[]
}

interface StoredNote extends PullNote {
  readonly boot: string
  /** Milliseconds since 1970. What was there before is not in question. */
  readonly since: number
}

export interface UnsettledPullsOptions {
  readonly containerd: Containerd
  /** Below the service's root: survives a reboot. */
  readonly dir: string
  /** Writes the file systems of containerd's content and of these snapshotters to the disk. */
  readonly sync: (snapshotters: readonly string[]) => Promise<void>
  readonly ctx: Ctx
  /** From the end of a pull to that: the kernel has written most of it by then. Default: 30,000. */
  readonly settleMs?: number
}

/** A note as it goes on. */
interface Unsettled {
  readonly snapshotter: string
  readonly since: number
  /** Pulls that have not ended. */
  running: number
  /** Pulls in all. */
  begun: number
}

/** Why a snapshotter, which may run outside of containerd, does not say what it has. */
const awayReasons: ReadonlySet<string> = new Set(['SnapshotterUnavailable', 'NoSnapshotter'])

/** A clock may be set back a little while a pull begins. */
const clockSlackMs = 10_000

/**
 * What was pulled and may not be on the disk yet. containerd syncs its database, not what it unpacks: after a power cut an image is listed whose files
 * are empty. Each pull is noted before it makes anything, until its bytes were synced; a note that another boot has left names what cannot be trusted.
 */
export class UnsettledPulls {
  readonly #options: UnsettledPullsOptions
  /** By file. */
  readonly #unsettled = new Map<string, Unsettled>()
  /** Notes of another boot, by snapshotters that were away when they were read. */
  readonly #distrusted = new Map<string, Map<string, StoredNote>>()
  readonly #mutex = new KeyedMutex()
  readonly #settling = new KeyedMutex()
  #isSettling = false
  #boot: string | undefined

  constructor(options: UnsettledPullsOptions) {
    this.#options = options
  }

  /** Returns what is to be called when the pull has ended, whatever its end. Rejects when the snapshotter does not say which of its snapshots cannot be trusted. */
  async begin(note: PullNote): Promise<() => void> {
    if (this.#distrusted.has(note.snapshotter)) await this.#mutex.run(note.snapshotter, () => this.#distrustLate(note.snapshotter))
    const file = join(this.#options.dir, `${createHash('sha256').update(JSON.stringify([note.names, note.snapshotter, note.digests, note.snapshots])).digest('hex').slice(0, 32)}.json`)
    // What is pulled again before it was settled is in question from its first pull on.
    const state = this.#entry(file, note.snapshotter, Date.now() - clockSlackMs)
    state.running += 1
    state.begun += 1
    const end = (): void => {
      state.running -= 1
      this.#settleLater()
    }
    try {
      const stored: StoredNote = { ...note, boot: await this.#bootId(), since: state.since }
      await this.#mutex.run(file, () => writeJson(file, stored, { synced: true }))
    } catch (error) {
      end()
      throw error
    }
    return end
  }

  #entry(file: string, snapshotter: string, since: number): Unsettled {
    const entry = this.#unsettled.get(file) ?? { snapshotter, since, running: 0, begun: 0 }
    this.#unsettled.set(file, entry)
    return entry
  }

  /** At the start, before anything is listed: takes away what pulls of an earlier boot made and may have lost. */
  async recover(): Promise<void> {
    const { dir } = this.#options
    const boot = await this.#bootId()
    for (const name of await readdir(dir).catch(() => [])) {
      const file = join(dir, name)
      // A crash came while it was written: nothing was pulled yet.
      if (name.endsWith('.tmp')) await rm(file, { force: true })
      if (!name.endsWith('.json')) continue
      const note = storedNote(await readJson(file))
      if (note !== undefined && note.boot === boot) this.#entry(file, note.snapshotter, note.since)
      else if (note === undefined || await this.#distrust(file, note)) await rm(file, { force: true })
    }
    this.#settleLater()
  }

  /** Takes away what a note names. False when its snapshots are left: their snapshotter is away. */
  async #distrust(file: string, note: StoredNote): Promise<boolean> {
    const { containerd, ctx } = this.#options
    if (note.names.length > 0) ctx.log.warn({ image: note.names[0] }, 'the machine went down before this image was on the disk: it is removed, and pulled again when it is needed')
    for (const name of note.names) await containerd.images.delete(ctx, name, false)
    for (const digest of note.digests) {
      const info = await containerd.content.info(ctx, digest)
      if (info !== undefined && isSince(note, info.created_at)) await containerd.content.delete(ctx, digest)
    }
    const rest: StoredNote = { ...note, names: [], digests: [] }
    try {
      await this.#distrustSnapshots(rest)
      return true
    } catch (error) {
      if (!(error instanceof CriError) || !awayReasons.has(error.reason)) throw error
      ctx.log.warn({ err: error, snapshotter: note.snapshotter }, `snapshotter ${note.snapshotter} is away, and has layers that may not be on the disk: they are removed before the next pull for it`)
      await writeJson(file, rest)
      const notes = this.#distrusted.get(note.snapshotter) ?? new Map<string, StoredNote>()
      this.#distrusted.set(note.snapshotter, notes.set(file, rest))
      return false
    }
  }

  async #distrustLate(snapshotter: string): Promise<void> {
    const notes = this.#distrusted.get(snapshotter)
    for (const [file, note] of notes ?? []) {
      await this.#distrustSnapshots(note)
      await rm(file, { force: true })
      notes?.delete(file)
    }
    this.#distrusted.delete(snapshotter)
  }

  async #distrustSnapshots(note: StoredNote): Promise<void> {
    const { containerd, ctx } = this.#options
    // Whatever was made from them goes too: nothing of it runs after a boot.
    const all = await containerd.snapshots.list(ctx, note.snapshotter)
    const made = all.filter((snapshot) => note.snapshots.includes(snapshot.name) && isSince(note, snapshot.created_at)).map(({ name }) => name)
    for (const snapshot of withDescendants(all, made)) await containerd.snapshots.remove(ctx, note.snapshotter, snapshot)
  }

  #settleLater(): void {
    if (this.#isSettling || this.#ended().length === 0) return
    this.#isSettling = true
    void this.#settle()
  }

  async #settle(): Promise<void> {
    const { ctx, settleMs = 30_000 } = this.#options
    try {
      while (this.#ended().length > 0) {
        await pause(settleMs, ctx.signal)
        await this.#syncEnded()
      }
    } catch (error) {
      if (!ctx.signal.aborted) ctx.log.warn({ err: error }, `pulled images cannot be synced to the disk (${messageOf(error)}): after a power cut they are pulled again`)
    } finally {
      this.#isSettling = false
    }
  }

  /** When the service stops in order, as it does before the machine is shut down: what has ended is settled now. What the disk does not take in time stays noted. */
  async close(timeoutMs: number): Promise<void> {
    try {
      await withDeadline('syncing pulled images to the disk', timeoutMs, () => this.#syncEnded())
    } catch (error) {
      this.#options.ctx.log.warn({ err: error }, 'pulled images cannot be synced to the disk before the stop: after a reboot they are pulled again')
    }
  }

  #ended(): [string, Unsettled][] {
    return [...this.#unsettled].filter(([, { running }]) => running === 0)
  }

  /** One at a time: whoever stops the service waits for the notes that are just being removed, too. */
  async #syncEnded(): Promise<void> {
    await this.#settling.run('', () => this.#syncAndForget())
  }

  async #syncAndForget(): Promise<void> {
    const batch = this.#ended().map(([file, entry]) => ({ file, entry, begun: entry.begun }))
    if (batch.length === 0) return
    await this.#options.sync([...new Set(batch.map(({ entry }) => entry.snapshotter))])
    for (const { file, entry, begun } of batch) {
      // What was pulled again meanwhile is not settled.
      if (entry.running > 0 || entry.begun !== begun || this.#unsettled.get(file) !== entry) continue
      this.#unsettled.delete(file)
      await this.#mutex.run(file, () => rm(file, { force: true }))
    }
  }

  async #bootId(): Promise<string> {
    return (this.#boot ??= (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim())
  }
}

function isSince(note: StoredNote, created: Timestamp | null | undefined): boolean {
  return created === null || created === undefined || Number(toNanoseconds(created) / 1_000_000n) >= note.since
}

/** The snapshots of these names and all that stand on them, the uppermost first. */
export function withDescendants(all: readonly Pick<SnapshotInfo, 'name' | 'parent'>[], names: readonly string[]): string[] {
  const children = new Map<string, string[]>()
  for (const { name, parent } of all) children.set(parent, [...children.get(parent) ?? [], name])
  const present = new Set(all.map(({ name }) => name))
  const order = new Set<string>()
  const visit = (name: string): void => {
    if (order.has(name)) return
    for (const child of children.get(name) ?? []) visit(child)
    order.add(name)
  }
  for (const name of names) if (present.has(name)) visit(name)
  return [...order]
}

function storedNote(value: unknown): StoredNote | undefined {
  if (typeof value !== 'object' || value === null) return undefined
  const { names, snapshotter, digests, snapshots, boot, since } = value as Readonly<Record<string, unknown>>
  const strings = (list: unknown): list is string[] => Array.isArray(list) && list.every((entry) => typeof entry === 'string')
  if (!strings(names) || !strings(digests) || !strings(snapshots) || typeof snapshotter !== 'string' || typeof boot !== 'string' || typeof since !== 'number') return undefined
  return { names, snapshotter, digests, snapshots, boot, since }
}
