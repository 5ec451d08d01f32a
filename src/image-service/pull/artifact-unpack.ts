import { randomBytes } from 'node:crypto'
import { chmod, mkdir, open } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { KeyedMutex } from '../../concurrency/keyed-mutex.ts'
import type { Containerd } from '../../containerd/containerd.ts'
import { CriError, errnoOf, internal, isAlreadyExists, messageOf, resourceExhausted } from '../../errors/cri-error.ts'
import type { Mount } from '../../generated/containerd.ts'
import { type Ctx, withSignal } from '../../observability/context.ts'
import type { Artifact, ArtifactFile } from '../../state/records.ts'
import { artifactSnapshot } from './artifact.ts'
import type { UnpackOptions, Unpacker } from './unpack.ts'

/** Mounts what a snapshotter gave, runs `work` on it and unmounts again, whatever happens. */
export type WithMounts = <T>(mounts: readonly Mount[], work: (dir: string) => Promise<T>) => Promise<T>

/**
 * Writes an artifact's files into a snapshot. From then on an artifact is to a container what an image is: a view of a committed snapshot, which
 * containerd keeps by the manifest's label, whatever the snapshotter and however many pods mount it.
 */
export class ArtifactUnpacker {
  readonly #containerd: Containerd
  readonly #unpacker: Pick<Unpacker, 'exists'>
  readonly #withMounts: WithMounts
  readonly #mutex = new KeyedMutex()

  constructor(options: { readonly containerd: Containerd; readonly unpacker: Pick<Unpacker, 'exists'>; readonly withMounts: WithMounts }) {
    this.#containerd = options.containerd
    this.#unpacker = options.unpacker
    this.#withMounts = options.withMounts
  }

  /** Its blobs must be in the content store: NOT_FOUND when one is not. */
  async unpack(ctx: Ctx, manifestDigest: string, artifact: Artifact, options: UnpackOptions): Promise<void> {
    const name = artifactSnapshot(manifestDigest)
    await this.#mutex.run(`${options.snapshotter}/${name}`, async () => {
      if (artifact.problem !== undefined || await this.#unpacker.exists(ctx, name, options)) return
      const { snapshots } = this.#containerd
      const { snapshotter, lease } = options
      const key = `extract-${Date.now()}-${randomBytes(4).toString('hex')} ${name}`
      const mounts = await snapshots.prepare(ctx, snapshotter, key, '', {}, { lease })
      try {
        await this.#withMounts(mounts, async (dir) => {
          await chmod(dir, 0o755)
          for (const file of artifact.files) await this.#write(ctx, dir, file, options.syncFs)
        })
        await snapshots.commit(ctx, snapshotter, name, key, {}, { lease })
      } catch (error) {
        await snapshots.remove(withSignal(ctx, AbortSignal.timeout(60_000)), snapshotter, key).catch((failure: unknown) => ctx.log.warn({ err: failure, key }, 'cannot remove a half unpacked artifact; it goes with the lease'))
        if (!isAlreadyExists(error)) throw error
      }
    }, ctx.signal)
  }

  /** The directory is fresh and nobody else's, and names were checked: there is no link to follow. */
  async #write(ctx: Ctx, dir: string, file: ArtifactFile, sync: boolean): Promise<void> {
    const path = join(dir, file.path)
    try {
      for (let parent = await mkdir(dirname(path), { recursive: true }); parent !== undefined && parent !== dir;) {
        // Modes are exact, whatever the service's umask: any user of a container may read.
        await chmod(parent, 0o755)
        parent = nextBelow(parent, dirname(path))
      }
      await using handle = await open(path, 'wx')
      await handle.chmod(0o644)
      let written = 0
      for await (const chunk of this.#containerd.content.stream(ctx, file.digest)) {
        for (let at = 0; at < chunk.length;) at += (await handle.write(chunk, at)).bytesWritten
        written += chunk.length
      }
      if (written !== file.sizeBytes) throw internal(`its content has ${written} bytes and the manifest says ${file.sizeBytes}`)
      if (sync) await handle.sync()
    } catch (error) {
      ctx.signal.throwIfAborted()
      if (error instanceof CriError) throw CriError.from(error, `file ${file.path} of the artifact`)
      const errno = errnoOf(error)
      const message = `file ${file.path} of the artifact cannot be written: ${messageOf(error)}`
      throw errno === 'ENOSPC' || errno === 'EDQUOT' ? resourceExhausted(`${message}; free space on the disk of containerd's snapshots`, { reason: errno, cause: error }) : internal(message, { cause: error })
    }
  }
}

/** The directory below `parent` on the way to `target`; undefined when that is reached. */
function nextBelow(parent: string, target: string): string | undefined {
  if (parent === target) return undefined
  const [first] = target.slice(parent.length + 1).split('/')
  return first === undefined ? undefined : join(parent, first)
}
