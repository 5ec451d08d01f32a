import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Settings } from '../../config/settings.ts'
import { errnoOf, failedPrecondition, messageOf } from '../../errors/cri-error.ts'
import type { Linux } from '../../linux/linux.ts'
import type { Logger } from '../../observability/logger.ts'
import type { RuntimeFeatureProbe } from './runtime-features.ts'
import { sandboxRuntime } from './runtimes.ts'

const limitFile = '/proc/sys/user/max_user_namespaces'
/** Their snapshots are directories that the kernel can mount with mapped ids. */
const mappable = ['overlayfs', 'native']

export interface UserNamespaceOptions {
  readonly settings: Settings
  readonly log: Logger
  readonly linux: Linux
  readonly features: RuntimeFeatureProbe
  /** Where a snapshotter has its snapshots. */
  readonly snapshotterRoot: (snapshotter: string) => string
  readonly stateDir: string
}

/** Whether pods can have user namespaces here: which takes the kernel, the file system of the snapshots and the runtime. */
export class UserNamespaces {
  readonly #options: UserNamespaceOptions
  /** By the directory of a snapshotter: why what is in it cannot be id-mapped. */
  readonly #layers = new Map<string, Promise<string | undefined>>()

  constructor(options: UserNamespaceOptions) {
    this.#options = options
  }

  /** Finds out anew what depends on containerd and the kernel. */
  forget(): void {
    this.#layers.clear()
  }

  /** The part that is missing for pods of a runtime handler, and the remedy; undefined when there is none. */
  async problem(handler: string): Promise<string | undefined> {
    const { settings, features } = this.#options
    if (!(await features.of(handler)).userNamespaces) {
      const program = features.describe(handler)
      return `the runtime ${program} does not say that it has them ("${program} features" is how it would): use runc 1.1 or crun 1.9 or newer`
    }
    const limit = await limitOfUserNamespaces()
    if (limit !== undefined) return limit
    const { snapshotter } = sandboxRuntime(settings, handler)
    if (!mappable.includes(snapshotter)) return `the ids of snapshots of ${snapshotter} cannot be mapped: use the snapshotter overlayfs for this runtime handler`
    return this.#layerProblem(this.#options.snapshotterRoot(snapshotter))
  }

  /** Throws FAILED_PRECONDITION that names the part. */
  async require(handler: string): Promise<void> {
    const problem = await this.problem(handler)
    if (problem !== undefined) throw failedPrecondition(`user namespaces are not possible for this pod: ${problem}`, { reason: 'NoUserNamespaces' })
  }

  async #layerProblem(root: string): Promise<string | undefined> {
    const known = this.#layers.get(root) ?? this.#tryLayers(root)
    this.#layers.set(root, known)
    return known
  }

  async #tryLayers(root: string): Promise<string | undefined> {
    const { linux, log, stateDir } = this.#options
    const scratch = join(stateDir, 'idmap-probe')
    try {
      await mkdir(scratch, { recursive: true, mode: 0o700 })
      const problem = await linux.idmapProblem(root, scratch)
      if (problem !== undefined) log.info({ root, problem }, 'pods cannot have user namespaces: the layers of images cannot be id-mapped')
      return problem
    } catch (error) {
      this.#layers.delete(root)
      return messageOf(error)
    }
  }
}

async function limitOfUserNamespaces(): Promise<string | undefined> {
  try {
    return Number(await readFile(limitFile, 'utf8')) > 0 ? undefined : 'the sysctl user.max_user_namespaces is 0: raise it'
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return 'this kernel is built without user namespaces (CONFIG_USER_NS)'
  }
}
