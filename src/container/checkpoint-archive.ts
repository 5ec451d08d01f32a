import { constants } from 'node:fs'
import { copyFile, type FileHandle, lstat, mkdir, open, readdir, rename, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { ContainerRecord } from '../containerd/containers.ts'
import { errnoOf, failedPrecondition, invalidArgument } from '../errors/cri-error.ts'
import type { ContainerStatus as CriContainerStatus } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import { fromNodeError } from '../linux/errno.ts'
import type { Ctx } from '../observability/context.ts'
import { stringifyOciJson } from '../oci-spec/json.ts'
import { toGoJson } from '../state/go-json.ts'
import type { Container } from '../state/records.ts'

export interface CheckpointContents {
  readonly container: Container
  readonly record: ContainerRecord
  /** As CRI gives it. */
  readonly status: Init<CriContainerStatus>
  /** What the container changed, as a layer. */
  readonly rootfsDiff: AsyncIterable<Buffer>
}

export interface ArchivePaths {
  /** Beside the location: what the archive is called until it is complete. */
  readonly partial: string
  /** A directory that is not there yet, for what goes into the archive. */
  readonly contents: string
}

/**
 * The archive of a checkpoint: a tar with the file names of checkpoint-restore/checkpointctl (lib/metadata.go), which containerd's CRI plugin and CRI-O write
 * and read too. It is complete when it has its name; until then it is beside it.
 */
export class CheckpointArchive implements AsyncDisposable {
  readonly #location: string
  readonly #file: FileHandle
  readonly #partial: string
  readonly #contents: string

  private constructor(location: string, paths: ArchivePaths, file: FileHandle) {
    this.#location = location
    this.#partial = paths.partial
    this.#contents = paths.contents
    this.#file = file
  }

  /** FAILED_PRECONDITION when the directory is missing, INVALID_ARGUMENT when the path is that of a directory. */
  static async open(location: string, paths: ArchivePaths): Promise<CheckpointArchive> {
    const found = await lstat(location).catch(() => undefined)
    if (found?.isDirectory() === true) throw invalidArgument(`location ${location} is a directory: name the file that the checkpoint is to become`)
    await mkdir(join(paths.contents, 'checkpoint'), { recursive: true, mode: 0o700 })
    try {
      return new CheckpointArchive(location, paths, await open(paths.partial, 'wx', 0o600))
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') throw failedPrecondition(`the checkpoint cannot be written: there is no directory ${dirname(location)}; make it first`, { reason: 'ENOENT', cause: error })
      throw fromNodeError(`the checkpoint cannot be written to ${location}`, error)
    }
  }

  /** Where CRIU writes: memory and processes, and its log and figures. */
  get dirs(): { readonly images: string; readonly work: string } {
    return { images: join(this.#contents, 'checkpoint'), work: this.#contents }
  }

  /** Adds what CRIU does not know, and gives the archive its name; what had that name is replaced. */
  async finish(ctx: Ctx, contents: CheckpointContents): Promise<void> {
    try {
      await this.#describe(contents)
      await writeFile(join(this.#contents, 'rootfs-diff.tar'), contents.rootfsDiff, { mode: 0o600, flag: 'wx', signal: ctx.signal })
      // Loaded when it is needed, which on most nodes is never.
      const { create } = await import('tar')
      const names = (await readdir(this.#contents)).sort()
      await this.#file.writeFile(create({ cwd: this.#contents }, names), { signal: ctx.signal })
      await this.#file.sync()
      await rename(this.#partial, this.#location)
    } catch (error) {
      ctx.signal.throwIfAborted()
      throw fromNodeError(`the checkpoint cannot be written to ${this.#location}`, error)
    }
  }

  async #describe({ container, record, status }: CheckpointContents): Promise<void> {
    const { status: now, metadata: { name, config: { image: asked }, imageRef, logPath } } = container
    const image = asked?.user_specified_image || asked?.image || imageRef
    const config = {
      id: container.id, name, rootfsImage: image, rootfsImageRef: imageRef, rootfsImageName: image, runtime: record.runtime?.name ?? '',
      createdTime: new Date(Number(now.createdAt / 1_000_000n)).toISOString(), checkpointedTime: new Date().toISOString(), restoredTime: '0001-01-01T00:00:00Z', restored: false,
    }
    const known = { CreatedAt: now.createdAt, StartedAt: now.startedAt, FinishedAt: now.finishedAt, ExitCode: now.exitCode, Pid: now.pid, Reason: now.reason, Message: now.message }
    await this.#write('config.dump', JSON.stringify(config))
    await this.#write('spec.dump', record.spec?.value ?? '{}')
    await this.#write('status.dump', stringifyOciJson(toGoJson('runtime.v1.ContainerStatus', status) as object))
    await this.#write('status', stringifyOciJson(known))
    if (logPath === '') return
    await copyFile(logPath, join(this.#contents, 'container.log'), constants.COPYFILE_EXCL).catch((error: unknown) => {
      if (errnoOf(error) !== 'ENOENT') throw error
    })
  }

  async #write(name: string, data: string | Buffer): Promise<void> {
    await writeFile(join(this.#contents, name), data, { mode: 0o600, flag: 'wx' })
  }

  /** Removes what did not become complete. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close()
    await rm(this.#partial, { force: true })
  }
}
