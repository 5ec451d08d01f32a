import { BoundedQueue } from '../concurrency/bounded-queue.ts'
import { Code, CriError, failedPrecondition, internal } from '../errors/cri-error.ts'
import { pluginInput } from './capabilities.ts'
import { isJsonObject } from './json.ts'
import { findPlugin } from './plugin-path.ts'
import { inheritedEnv, type PluginExit, runPluginProcess } from './plugin-process.ts'
import { withVersion } from './result.ts'
import type { JsonObject, NetworkList, ObservePlugin, PluginConf } from './types.ts'

export type CniCommand = 'ADD' | 'DEL' | 'CHECK' | 'STATUS'

/** What a plugin is run for. */
export interface Attachment {
  readonly list: NetworkList
  readonly containerId: string
  /** `namespace/name` of the pod, for messages; empty when it is not known any more. */
  readonly podName: string
  readonly ifName: string
  readonly netns: string
  readonly cniArgs: readonly (readonly [string, string])[]
  readonly capabilityArgs: JsonObject
}

/** What a plugin said that has failed (CNI specification, section 5, "Error"). */
export interface PluginFailure {
  readonly code: number | undefined
  readonly msg: string
  readonly details: string
  /** The same for the user. */
  readonly error: CriError
}

export type PluginOutcome = { readonly failure: undefined; readonly result: JsonObject } | { readonly failure: PluginFailure }

export interface PluginInvokerOptions {
  readonly binDirs: readonly string[]
  /** Per plugin, in milliseconds. */
  readonly timeoutMs: number
  readonly concurrency: number
  readonly observe?: ObservePlugin | undefined
  /** Told what a plugin that succeeded printed on standard error. */
  readonly onStderr: (plugin: string, command: CniCommand, containerId: string, stderr: string) => void
}

/** Runs plugins, no more than so many at once on the whole node; those that are further on in their chain go first, so that pods get finished. */
export class PluginInvoker {
  readonly #options: PluginInvokerOptions
  readonly #queue: BoundedQueue
  /** Taken once: reading process.env costs a tenth of a millisecond per run. */
  readonly #inherited = inheritedEnv(process.env)

  constructor(options: PluginInvokerOptions) {
    this.#options = options
    this.#queue = new BoundedQueue({ name: 'CNI plugins', concurrency: options.concurrency, maxWaiting: 4096 })
  }

  /** The queue of plugin runs, for metrics. */
  get queue(): BoundedQueue {
    return this.#queue
  }

  /** FAILED_PRECONDITION that names every plugin of the list whose binary is missing. */
  requireBinaries(list: NetworkList): void {
    const problems = list.plugins.flatMap(({ type }) => {
      const found = findPlugin(type, this.#options.binDirs)
      return found.path === undefined ? [found.problem] : []
    })
    if (problems.length > 0) throw failedPrecondition(`CNI network ${JSON.stringify(list.name)}: ${[...new Set(problems)].join('; ')}`, { reason: 'CNI_PLUGIN_MISSING' })
  }

  /**
   * Runs one plugin. A failure that the plugin reports is an outcome; that it cannot be run, takes too long or is aborted rejects.
   * `priority`: higher goes first when there is a queue.
   */
  async invoke(command: CniCommand, plugin: PluginConf, attachment: Attachment, prevResult: JsonObject | undefined, signal: AbortSignal, priority: number): Promise<PluginOutcome> {
    const { list } = attachment
    const found = findPlugin(plugin.type, this.#options.binDirs)
    if (found.path === undefined) {
      throw failedPrecondition(`CNI network ${JSON.stringify(list.name)}, ${command}${forPod(attachment)}: ${found.problem}`, { reason: 'CNI_PLUGIN_MISSING' })
    }
    const path = found.path
    return this.#inQueue(signal, priority, async () => {
      const started = performance.now()
      let failed = true
      try {
        const exit = await runPluginProcess({
          path,
          env: { ...this.#inherited, ...this.#env(command, attachment) },
          stdin: pluginInput(plugin, list, attachment.capabilityArgs, prevResult),
          timeoutMs: this.#options.timeoutMs,
          signal,
          what: `${plugin.type} ${command} of network ${JSON.stringify(list.name)}${forPod(attachment)}`,
        })
        const outcome = this.#outcome(command, plugin, attachment, exit)
        failed = outcome.failure !== undefined
        return outcome
      } finally {
        this.#options.observe?.(plugin.type, command, (performance.now() - started) / 1000, failed)
      }
    })
  }

  /** While it waits, an abort takes it out of the queue; once it runs, its place is free only when the plugin is dead. */
  async #inQueue<T>(signal: AbortSignal, priority: number, work: () => Promise<T>): Promise<T> {
    const waiting = new AbortController()
    const onAbort = (): void => waiting.abort(signal.reason)
    signal.throwIfAborted()
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      return await this.#queue.add(
        async () => {
          signal.removeEventListener('abort', onAbort)
          return work()
        },
        { signal: waiting.signal, priority },
      )
    } finally {
      signal.removeEventListener('abort', onAbort)
    }
  }

  #env(command: CniCommand, attachment: Attachment): Record<string, string> {
    const path = this.#options.binDirs.join(':')
    if (command === 'STATUS') return { CNI_COMMAND: command, CNI_PATH: path }
    return {
      CNI_COMMAND: command,
      CNI_CONTAINERID: attachment.containerId,
      CNI_NETNS: attachment.netns,
      CNI_IFNAME: attachment.ifName,
      CNI_ARGS: attachment.cniArgs.map(([key, value]) => `${key}=${value}`).join(';'),
      CNI_PATH: path,
    }
  }

  #outcome(command: CniCommand, plugin: PluginConf, attachment: Attachment, exit: PluginExit): PluginOutcome {
    const stderr = exit.stderr.trim()
    const printed = objectIn(exit.stdout)
    if (exit.code === 0) {
      if (stderr !== '') this.#options.onStderr(plugin.type, command, attachment.containerId, stderr)
      if (command !== 'ADD') return { failure: undefined, result: {} }
      if (printed !== undefined) return { failure: undefined, result: withVersion(printed, attachment.list.cniVersion) }
      return { failure: failureOf(command, plugin, attachment, undefined, `printed no result but ${excerpt(exit.stdout)}`, '', stderr) }
    }
    const msg = printed?.['msg']
    if (typeof msg === 'string') {
      const code = typeof printed?.['code'] === 'number' ? printed['code'] : undefined
      const details = typeof printed?.['details'] === 'string' ? printed['details'] : ''
      return { failure: failureOf(command, plugin, attachment, code, msg, details, stderr) }
    }
    const how = exit.signal === null ? `exit code ${exit.code}` : `killed by ${exit.signal}${exit.signal === 'SIGKILL' ? ' (out of memory, perhaps: see dmesg)' : ''}`
    const said = exit.stdout.trim() === '' ? 'and no error message' : `and ${excerpt(exit.stdout)}`
    return { failure: failureOf(command, plugin, attachment, undefined, `ended with ${how} ${said}`, '', stderr) }
  }
}

function failureOf(command: CniCommand, plugin: PluginConf, attachment: Attachment, code: number | undefined, msg: string, details: string, stderr: string): PluginFailure {
  const { status, remedy } = adviceFor(code, `${msg} ${details}`, plugin, attachment.list)
  const message = [
    `CNI network ${JSON.stringify(attachment.list.name)}: plugin ${plugin.type} failed to ${command}${forPod(attachment)}: ${msg.trim()}`,
    details === '' ? '' : `; ${details}`,
    code === undefined ? '' : ` (CNI error ${code})`,
    stderr === '' ? '' : `; standard error: ${excerpt(stderr)}`,
    remedy === '' ? '' : `; ${remedy}`,
  ].join('')
  return { code, msg, details, error: new CriError(status, message, { reason: 'CNI_PLUGIN' }) }
}

/** What to do, where the plugin's own words leave it open. Codes: CNI specification, section 5. */
function adviceFor(code: number | undefined, said: string, plugin: PluginConf, list: NetworkList): { readonly status: Code; readonly remedy: string } {
  if (/no IP addresses available|range is (full|exhausted)/i.test(said)) {
    return { status: Code.RESOURCE_EXHAUSTED, remedy: 'every address of the range is taken: run fewer pods on this node or enlarge the range' }
  }
  if (/executable file not found/i.test(said)) return { status: Code.INTERNAL, remedy: 'install the program that it misses (package iptables or nftables, for most)' }
  if (/failed to find plugin/i.test(said)) return { status: Code.FAILED_PRECONDITION, remedy: 'install that plugin (an IPAM plugin, most likely) beside the others' }
  if (code === 1) return { status: Code.FAILED_PRECONDITION, remedy: `the installed ${plugin.type} does not speak version ${JSON.stringify(list.cniVersion)}: update it or lower "cniVersion" in the network's configuration` }
  if (code === 2 || code === 6 || code === 7) return { status: Code.FAILED_PRECONDITION, remedy: "correct the network's configuration" }
  if (code === 11) return { status: Code.UNAVAILABLE, remedy: 'the plugin asks to try again later' }
  if (code === 50 || code === 51) return { status: Code.UNAVAILABLE, remedy: 'the plugin is not ready to take pods: see the pods of the network add-on' }
  if (/connection refused|dial (unix|tcp)|connect: no such file/i.test(said)) {
    return { status: Code.UNAVAILABLE, remedy: "the plugin's own daemon does not answer: see the pods of the network add-on on this node" }
  }
  return { status: Code.INTERNAL, remedy: '' }
}

/**
 * Whether a failed DEL only says that what it should remove is gone, which is what DEL is for. A plugin whose tool or daemon is missing has removed
 * nothing and is not meant.
 */
export function saysGone(failure: PluginFailure, netns: string): boolean {
  if (failure.code === 3) return true
  const said = `${failure.msg} ${failure.details}`
  if (/executable file not found|failed to find plugin|dial |connection refused|connect: /i.test(said)) return false
  if (/not found|no such device|cannot find (device|network namespace)|unknown FS magic|does not exist/i.test(said)) return true
  return /no such file or directory/i.test(said) && (netns === '' || said.includes(netns) || /netns|namespace/i.test(said))
}

function forPod({ podName, containerId }: Attachment): string {
  if (containerId === '') return ''
  return podName === '' ? ` for sandbox ${containerId}` : ` for pod ${podName}`
}

function objectIn(text: string): JsonObject | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return isJsonObject(value) ? value : undefined
  } catch {
    return undefined
  }
}

function excerpt(text: string): string {
  const line = text.trim()
  return line === '' ? 'nothing' : JSON.stringify(line.length > 500 ? `${line.slice(0, 250)} … ${line.slice(-250)}` : line)
}

/** An error for several that happened side by side; the first one gives the code. */
export function combined(errors: readonly unknown[]): CriError {
  const all = errors.map((error) => CriError.from(error))
  const [first] = all
  if (first === undefined) return internal('nothing failed')
  if (all.length === 1) return first
  return new CriError(first.code, all.map(({ message }) => message).join('; '), { reason: first.reason, cause: new AggregateError(errors) })
}
