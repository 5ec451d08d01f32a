import { EventEmitter } from 'node:events'
import { availableParallelism } from 'node:os'
import { KeyedMutex } from '../concurrency/keyed-mutex.ts'
import type { UndoFailure } from '../concurrency/undo-stack.ts'
import { CriError, invalidArgument, notFound, unavailable } from '../errors/cri-error.ts'
import type { BoundedQueue } from '../concurrency/bounded-queue.ts'
import type { Logger } from '../observability/logger.ts'
import { addAttachment, addError, type AttachmentDeps, type BegunAttachment, checkRecord, delRecord, delUnrecorded, forEachNetwork, undoAttachment } from './attachments.ts'
import { capabilityArgsOf, cniArgsOf } from './capabilities.ts'
import { type ConfDir, isValidCniName, loadConfDir } from './conflist.ts'
import { DirWatcher } from './dir-watcher.ts'
import { combined, PluginInvoker } from './plugin-invoker.ts'
import { checkedCidrs, writeConflistFromTemplate } from './pod-cidr.ts'
import { podNetworkOf } from './result.ts'
import { type CacheRecord, ResultCache } from './result-cache.ts'
import { type CniStatus, describeProblem, statusOf } from './status.ts'
import type { CachedAttachment, CniPod, IpPreference, JsonObject, LoadedNetwork, NetworkList, ObservePlugin, PodNetwork } from './types.ts'
import { isAtLeast } from './version.ts'

export interface CniManagerOptions {
  /** Where conflists are. It need not exist yet. */
  readonly confDir: string
  /** Where plugin binaries are, in order. */
  readonly binDirs: readonly string[]
  /** How many networks a pod gets, the first ones by file name; 0: all. */
  readonly maxConfNum: number
  /** Template for `setPodCidrs`; empty or absent: none. */
  readonly confTemplate?: string | undefined
  /** Default: /var/lib/cni. */
  readonly cacheDir?: string | undefined
  /** Set a pod's networks up one after the other. Default: side by side. */
  readonly setupSerially?: boolean | undefined
  /** Default: ipv4. */
  readonly ipPref?: IpPreference | undefined
  readonly log: Logger
  readonly observe?: ObservePlugin | undefined
  /** For one plugin run, in milliseconds. Default: 120,000. */
  readonly execTimeoutMs?: number | undefined
  /** For taking one failed ADD back, in milliseconds. Default: 60,000. */
  readonly undoTimeoutMs?: number | undefined
  /** Plugin processes at once on the node. Default: twice the processors, at least 8. */
  readonly concurrency?: number | undefined
  /** How long the directories must be quiet before they are read again, in milliseconds. Default: 100. */
  readonly debounceMs?: number | undefined
}

interface Events {
  statusChanged: [CniStatus]
}

const nothing: ConfDir = { exists: false, networks: [], problems: [], good: new Map(), pluginDirs: [] }
const statusProbeMs = 10_000

/**
 * The pod networks of a node: which there are, attaching pods to them and releasing them again (CNI specification 0.1.0 to 1.1.0).
 * Emits `statusChanged` when readiness, reason, message or networks change.
 *
 * The interface `lo` is not the plugins' business: who makes the network namespace brings it up.
 */
export class CniManager extends EventEmitter<Events> {
  readonly #options: CniManagerOptions
  readonly #log: Logger
  readonly #deps: AttachmentDeps
  readonly #cache: ResultCache
  readonly #invoker: PluginInvoker
  readonly #watcher: DirWatcher
  readonly #containers = new KeyedMutex()
  #conf: ConfDir = nothing
  #notReady = ''
  #lastStatus = ''
  #loading: Promise<void> = Promise.resolve()
  #reloadWanted = false
  #probe: Promise<CniStatus> | undefined
  #closed = false

  constructor(options: CniManagerOptions) {
    super()
    this.#options = options
    this.#log = options.log
    this.#cache = new ResultCache(options.cacheDir ?? '/var/lib/cni')
    this.#invoker = new PluginInvoker({
      binDirs: options.binDirs,
      timeoutMs: options.execTimeoutMs ?? 120_000,
      // Plugins wait for locks and daemons more than they compute; but too many at once make every pod late instead of some early.
      concurrency: options.concurrency ?? Math.max(8, 2 * availableParallelism()),
      observe: options.observe,
      onStderr: (plugin, command, sandboxId, stderr) => this.#log.debug({ plugin, command, sandboxId, stderr }, 'a CNI plugin printed on standard error'),
    })
    this.#deps = { invoker: this.#invoker, cache: this.#cache, log: this.#log }
    this.#watcher = new DirWatcher({
      dirs: [options.confDir, ...options.binDirs],
      onChange: () => this.#reloadSoon(),
      onProblem: (message) => this.#log.error(`${message}; changes of the CNI configuration are found with delay`),
      ...(options.debounceMs === undefined ? {} : { debounceMs: options.debounceMs }),
    })
  }

  /** Reads the configuration and follows its changes from now on. Configuration that is missing or broken is a status, not an error. */
  async start(): Promise<void> {
    this.#watcher.start()
    await this.reload()
  }

  /** Ends the watching. Plugins that run are not touched. */
  async close(): Promise<void> {
    this.#closed = true
    this.#watcher.close()
    await this.#loading
  }

  /** What waits and runs, for metrics. */
  get queue(): BoundedQueue {
    return this.#invoker.queue
  }

  /** As things are now: binaries are looked up at each call, the configuration is what was loaded last. */
  status(): CniStatus {
    return statusOf({
      confDir: this.#options.confDir,
      confDirExists: this.#conf.exists,
      binDirs: this.#options.binDirs,
      networks: this.#conf.networks,
      problems: this.#conf.problems,
      notReady: this.#notReady,
      watchProblem: this.#watcher.problem,
    })
  }

  /** The same after asking the plugins of networks with CNI 1.1.0 or newer (STATUS); the answer stays part of `status()`. Calls at the same time share one probe. */
  async probeStatus(): Promise<CniStatus> {
    this.#probe ??= this.#probeStatus().finally(() => {
      this.#probe = undefined
    })
    return this.#probe
  }

  /** Reads the configuration directory again, now. */
  async reload(): Promise<void> {
    const before = this.#loading
    this.#loading = before.then(() => this.#load())
    await this.#loading
  }

  /**
   * Attaches a pod to every network: eth0, eth1 … in the order of the files. When one fails, or `signal` aborts, all is taken back before this
   * rejects; reason `CNI_ADD_NOT_UNDONE` says that `del` has to release what could not be. UNAVAILABLE when no network is configured,
   * FAILED_PRECONDITION when a plugin is not installed, INVALID_ARGUMENT for a pod that cannot be put in words for plugins.
   */
  async add(pod: CniPod, signal: AbortSignal): Promise<PodNetwork> {
    checkId(pod.id)
    const capabilityArgs = capabilityArgsOf(pod)
    const cniArgs = cniArgsOf(pod)
    return this.#containers.run(pod.id, () => this.#add(pod, cniArgs, capabilityArgs, signal), signal)
  }

  /**
   * Releases a pod from every network that `add` recorded for it, with the configuration of that time, also after a restart, when the configuration has changed or
   * the namespace is gone. Nothing to release is success. When it rejects, the record of what is left stays for the next call.
   */
  async del(pod: CniPod, signal: AbortSignal): Promise<void> {
    checkId(pod.id)
    await this.#containers.run(pod.id, () => this.#del(pod, signal), signal)
  }

  /** Asks the plugins whether the pod's network is as ADD left it. NOT_FOUND when there is no record of an ADD. */
  async check(pod: CniPod, signal: AbortSignal): Promise<void> {
    checkId(pod.id)
    await this.#containers.run(pod.id, async () => {
      const records = await this.#cache.ofContainer(pod.id, this.#networkNames())
      if (records.length === 0) throw notFound(`no CNI result is recorded for pod ${podName(pod)} (sandbox ${pod.id})`, { reason: 'CNI_CACHE' })
      await forEachNetwork(records, false, (record) => checkRecord(this.#deps, record, podName(pod), pod.netnsPath, signal))
    }, signal)
  }

  /** Every attachment on record, also other runtimes' that use the same cache directory: ask about the container id before releasing one. */
  async listCached(): Promise<CachedAttachment[]> {
    const records = await this.#cache.all(this.#networkNames())
    return records.map(({ network, containerId, ifName }) => ({ network, containerId, ifName }))
  }

  /** Releases a container whose pod is not known any more, from its records alone. Nothing on record is success. */
  async delCached(containerId: string, netnsPath?: string, signal: AbortSignal = AbortSignal.timeout(this.#undoTimeoutMs)): Promise<void> {
    checkId(containerId)
    await this.#containers.run(containerId, async () => {
      const records = await this.#cache.ofContainer(containerId, this.#networkNames())
      await this.#delRecords(records, (record) => ({ podName: '', netns: netnsPath ?? record.netns }), signal)
    }, signal)
  }

  /**
   * UpdateRuntimeConfig's pod CIDRs: renders `confTemplate` into the configuration directory. Like containerd, not when there is no template, and not
   * when a valid network is configured already. Returns whether it wrote.
   */
  async setPodCidrs(cidrs: readonly string[]): Promise<boolean> {
    const checked = checkedCidrs(cidrs.filter((cidr) => cidr.trim() !== ''))
    if (checked.length === 0) return false
    const template = this.#options.confTemplate ?? ''
    if (template === '') {
      this.#log.info('no CNI configuration template (conf_template) is set: the network add-on is expected to write the configuration')
      return false
    }
    await this.reload()
    const [inUse] = this.#conf.networks
    if (inUse !== undefined) {
      this.#log.info({ file: inUse.file }, 'a CNI network is configured: the configuration template is not used')
      return false
    }
    const file = await writeConflistFromTemplate(template, this.#options.confDir, checked)
    this.#log.info({ file, template, podCidrs: checked }, 'wrote the CNI configuration from its template')
    await this.reload()
    return true
  }

  get #undoTimeoutMs(): number {
    return this.#options.undoTimeoutMs ?? 60_000
  }

  #networkNames(): string[] {
    return this.#conf.networks.map(({ list }) => list.name)
  }

  #networkLists(): NetworkList[] {
    return this.#conf.networks.map(({ list }) => list)
  }

  async #add(pod: CniPod, cniArgs: [string, string][], capabilityArgs: JsonObject, signal: AbortSignal): Promise<PodNetwork> {
    const { networks } = this.#conf
    if (networks.length === 0) throw unavailable(`cannot set up the network of pod ${podName(pod)}: ${this.status().message}`, { reason: 'CNI_NO_NETWORK' })
    for (const { list } of networks) this.#invoker.requireBinaries(list)
    signal.throwIfAborted()

    const begun: BegunAttachment[] = []
    const results: { network: string; ifName: string; result: JsonObject }[] = []
    const others = new AbortController()
    const both = AbortSignal.any([signal, others.signal])
    const one = async ([i, { list }]: [number, LoadedNetwork]): Promise<void> => {
      // One after the other, the first failure is the end; side by side, the others are stopped and undone.
      const ifName = `eth${i}`
      const attachment: BegunAttachment = {
        attachment: { list, containerId: pod.id, podName: podName(pod), ifName, netns: pod.netnsPath, cniArgs, capabilityArgs },
        result: undefined,
      }
      try {
        both.throwIfAborted()
        begun.push(attachment)
        results[i] = { network: list.name, ifName, result: await addAttachment(this.#deps, attachment, both) }
      } catch (error) {
        failures.push(error)
        others.abort(error)
      }
    }
    const failures: unknown[] = []
    try {
      if (this.#options.setupSerially === true) {
        for (const entry of networks.entries()) if (failures.length === 0) await one(entry)
      } else await Promise.all([...networks.entries()].map(one))
      if (failures.length > 0) throw CriError.from(failures[0])
      return podNetworkOf(results, this.#options.ipPref ?? 'ipv4')
    } catch (error) {
      const left = await this.#undo(begun)
      if (left.length > 0) this.#log.error({ err: error, sandboxId: pod.id, left: left.map(({ name }) => name) }, 'a failed CNI ADD could not be taken back')
      throw addError(error, left)
    }
  }

  async #undo(begun: readonly BegunAttachment[]): Promise<UndoFailure[]> {
    // The caller's signal may be what ended the ADD.
    const signal = AbortSignal.timeout(this.#undoTimeoutMs)
    const failures = await Promise.all(begun.toReversed().map((attachment) => undoAttachment(this.#deps, attachment, signal)))
    return failures.flat()
  }

  async #del(pod: CniPod, signal: AbortSignal): Promise<void> {
    const records = await this.#cache.ofContainer(pod.id, this.#networkNames())
    const args = argsOf(pod)
    if (records.length > 0) {
      await this.#delRecords(records, () => ({ podName: podName(pod), netns: pod.netnsPath, fallbackArgs: args }), signal)
      return
    }
    // Its ADD was refused for the same reason.
    if (args === undefined) return
    const networks = [...this.#conf.networks.entries()].reverse()
    await forEachNetwork(networks, this.#options.setupSerially === true, async ([i, { list }]) => {
      const attachment = { list, containerId: pod.id, podName: podName(pod), ifName: `eth${i}`, netns: pod.netnsPath, ...args }
      await delUnrecorded(this.#deps, attachment, signal)
    })
  }

  async #delRecords(
    records: readonly CacheRecord[],
    how: (record: CacheRecord) => { podName: string; netns: string; fallbackArgs?: ReturnType<typeof argsOf> },
    signal: AbortSignal,
  ): Promise<void> {
    const newestFirst = records.toSorted((a, b) => b.ifName.localeCompare(a.ifName, 'en', { numeric: true }))
    await forEachNetwork(newestFirst, this.#options.setupSerially === true, async (record) => {
      await delRecord(this.#deps, record, { ...how(record), current: this.#networkLists() }, signal)
    })
  }

  #reloadSoon(): void {
    if (this.#reloadWanted || this.#closed) return
    this.#reloadWanted = true
    this.#loading = this.#loading.then(async () => {
      this.#reloadWanted = false
      await this.#load()
    })
  }

  /** Never rejects: what is wrong becomes the status. */
  async #load(): Promise<void> {
    if (this.#closed) return
    const { confDir, maxConfNum, binDirs } = this.#options
    const before = this.#conf
    try {
      this.#conf = await loadConfDir(confDir, maxConfNum, before.good)
    } catch (error) {
      const problem = { file: confDir, problem: `cannot be loaded: ${CriError.from(error).message}`, lastGoodInUse: before.networks.length > 0 }
      this.#conf = { ...before, problems: [problem] }
    }
    if (this.#conf !== before) this.#notReady = ''
    this.#watcher.setDirs([confDir, ...this.#conf.pluginDirs, ...binDirs])
    const known = new Set(before.problems.map(describeProblem))
    for (const problem of this.#conf.problems.map(describeProblem)) if (!known.has(problem)) this.#log.warn(`CNI configuration: ${problem}`)
    this.#announce()
  }

  #announce(): void {
    const status = this.status()
    const text = JSON.stringify(status)
    if (text === this.#lastStatus) return
    this.#lastStatus = text
    const networks = status.networks.map(({ name, file }) => ({ name, file }))
    if (status.ready) this.#log.info({ networks }, 'pod network is ready')
    else this.#log.warn({ networks, reason: status.reason }, `pod network is not ready: ${status.message}`)
    this.emit('statusChanged', status)
  }

  async #probeStatus(): Promise<CniStatus> {
    const conf = this.#conf
    const signal = AbortSignal.timeout(statusProbeMs)
    const problems: unknown[] = []
    const current = this.status()
    if (current.ready || current.reason === 'CNIPluginNotReady') {
      for (const { list } of conf.networks) {
        if (!isAtLeast(list.cniVersion, '1.1.0')) continue
        try {
          for (const plugin of list.plugins) {
            const attachment = { list, containerId: '', podName: '', ifName: '', netns: '', cniArgs: [], capabilityArgs: {} }
            const outcome = await this.#invoker.invoke('STATUS', plugin, attachment, undefined, signal, 0)
            // A plugin that does not know the command has nothing to say against pods (code 4).
            if (outcome.failure !== undefined && outcome.failure.code !== 4) throw outcome.failure.error
          }
        } catch (error) {
          problems.push(error)
        }
      }
    }
    // What was asked may not be what is configured by now.
    if (conf === this.#conf) this.#notReady = problems.length === 0 ? '' : combined(problems).message
    this.#announce()
    return this.status()
  }
}

/** Undefined for a pod that cannot be put in words for plugins. */
function argsOf(pod: CniPod): { readonly cniArgs: [string, string][]; readonly capabilityArgs: JsonObject } | undefined {
  try {
    return { cniArgs: cniArgsOf(pod), capabilityArgs: capabilityArgsOf(pod) }
  } catch {
    return undefined
  }
}

function podName({ namespace, name }: CniPod): string {
  return `${namespace}/${name}`
}

function checkId(id: string): void {
  if (!isValidCniName(id)) throw invalidArgument(`sandbox id ${JSON.stringify(id)} cannot be used as CNI container id`)
}
