import { readFile } from 'node:fs/promises'
import { errnoOf } from '../../errors/cri-error.ts'
import type { Linux } from '../../linux/linux.ts'
import type { Logger } from '../../observability/logger.ts'
import { type AllocatedLabels, parsePolicyContexts, requirePolicy, type SelinuxLabeler, type SelinuxPolicy, selinuxLabels } from '../../oci-spec/selinux.ts'
import { McsLevels } from '../../state/mcs-levels.ts'
import type { Container, Sandbox } from '../../state/records.ts'
import type { Store } from '../../state/store.ts'

/** A volume may have millions of files; the kubelet's own limit on CreateContainer is what ends the wait before. */
const relabelTimeoutMs = 600_000

export interface SelinuxOptions {
  /** `enable_selinux`, and SELinux is on in the kernel. */
  readonly enabled: boolean
  /** `selinux_category_range` */
  readonly categoryRange: number
  readonly policy: SelinuxPolicy | undefined
  readonly relabelTree: Linux['relabelTree']
  /** Whether a runtime handler runs its containers in virtual machines. */
  readonly virtualMachines: (handler: string) => boolean
}

/** Gives pods and containers their SELinux labels, and knows which level belongs to whom. */
export class Selinux implements SelinuxLabeler {
  readonly #options: SelinuxOptions
  readonly #levels: McsLevels

  constructor(options: SelinuxOptions) {
    this.#options = options
    this.#levels = new McsLevels(options.categoryRange)
  }

  /** Keeps the levels of everything in the stores, from the start on (after a restart they are filled from containerd), and frees those of what goes. */
  follow(stores: readonly [Store<Sandbox>, Store<Container>]): void {
    for (const store of stores) {
      store.listen((before: Sandbox | Container | undefined, after: Sandbox | Container | undefined) => {
        if (after !== undefined) this.#levels.reserve(after.metadata.processLabel, after.id)
        else if (before !== undefined) this.#levels.release(before.id)
      })
    }
  }

  labels({ id, options, podLabel, handler }: Parameters<SelinuxLabeler['labels']>[0]): AllocatedLabels | undefined {
    if (!this.#options.enabled) return undefined
    const labels = selinuxLabels({
      policy: requirePolicy(this.#options.policy), options, podLabel, allocateLevel: () => this.#levels.allocate(id), virtualMachines: this.#options.virtualMachines(handler),
    })
    this.#levels.reserve(labels.recorded, id)
    return labels
  }

  release(id: string): void {
    this.#levels.release(id)
  }

  async relabel(path: string, mountLabel: string): Promise<void> {
    if (this.#options.enabled && mountLabel !== '') await this.#options.relabelTree(path, mountLabel, { timeoutMs: relabelTimeoutMs })
  }
}

/** What the node's policy gives containers; undefined when it knows none. `root` is for tests. */
export async function readSelinuxPolicy(root = '/'): Promise<SelinuxPolicy | undefined> {
  const common = await textOf(`${root}/usr/share/containers/selinux/contexts`)
  if (common !== undefined) return parsePolicyContexts(common)
  const name = /^\s*SELINUXTYPE=\s*"?([\w.-]+)"?\s*$/m.exec(await textOf(`${root}/etc/selinux/config`) ?? '')?.[1]
  const own = name === undefined ? undefined : await textOf(`${root}/etc/selinux/${name}/contexts/lxc_contexts`)
  return own === undefined ? undefined : parsePolicyContexts(own)
}

/** Says what an administrator who wants SELinux and does not get it should know. */
export function reportSelinux(log: Pick<Logger, 'warn'>, wanted: boolean, inKernel: boolean, policy: SelinuxPolicy | undefined): void {
  if (wanted && !inKernel) log.warn({}, 'enable_selinux = true, but the kernel runs without SELinux: containers have no labels')
  else if (wanted && policy === undefined) log.warn({}, 'SELinux is on, but its policy says nothing of containers: no pod can run; install the package container-selinux, or set enable_selinux = false')
}

async function textOf(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return undefined
    throw error
  }
}
