import { CniManager } from '../../cni/manager.ts'
import type { CniStatus } from '../../cni/status.ts'
import type { Settings } from '../../config/settings.ts'
import type { Logger } from '../../observability/logger.ts'
import type { Metrics } from '../../observability/metrics.ts'

/** The pod networks: one manager per CNI directory that the default settings or a runtime handler name. */
export class Networks {
  readonly #settings: Settings
  readonly #managers = new Map<string, CniManager>()

  constructor(settings: Settings, log: Logger, metrics: Metrics) {
    this.#settings = settings
    for (const handler of ['', ...Object.keys(settings.runtimes)]) {
      const { confDir, maxConfNum } = this.#directory(handler)
      const key = `${confDir}\n${maxConfNum}`
      if (this.#managers.has(key)) continue
      const { cni } = settings
      this.#managers.set(key, new CniManager({
        confDir, maxConfNum, binDirs: cni.binDirs, confTemplate: cni.confTemplate, setupSerially: cni.setupSerially, ipPref: cni.ipPref, log: log.child({ component: 'cni' }),
        observe: (plugin, command, seconds, failed) => metrics.stepSeconds.observe({ operation: `cni ${command}`, step: plugin, result: failed ? 'error' : 'ok' }, seconds),
      }))
    }
  }

  #directory(handler: string): { readonly confDir: string; readonly maxConfNum: number } {
    const { cni } = this.#settings
    const own = handler === '' ? undefined : this.#settings.runtimes[handler]
    return own === undefined || own.cniConfDir === '' ? { confDir: cni.confDir, maxConfNum: cni.maxConfNum } : { confDir: own.cniConfDir, maxConfNum: own.cniMaxConfNum }
  }

  /** For a handler that is not configured any more the default one's: it still finds in CNI's records what a pod is attached to. */
  of(handler: string): CniManager {
    const { confDir, maxConfNum } = this.#directory(handler)
    const manager = this.#managers.get(`${confDir}\n${maxConfNum}`)
    if (manager === undefined) throw new TypeError(`no CNI manager for ${confDir}`)
    return manager
  }

  /** The ids of the pods that CNI plugins were told of and not yet told to forget. */
  async attached(): Promise<ReadonlySet<string>> {
    return new Set((await this.of('').listCached()).map(({ containerId }) => containerId))
  }

  async status(): Promise<CniStatus> {
    return this.of('').probeStatus()
  }

  async start(): Promise<void> {
    await Promise.all([...this.#managers.values()].map((manager) => manager.start()))
  }

  async close(): Promise<void> {
    await Promise.all([...this.#managers.values()].map((manager) => manager.close()))
  }
}
