import { Code, CriError, failedPrecondition, messageOf, notFound } from '../errors/cri-error.ts'
import type { Logger } from '../observability/logger.ts'
import type { UndoFailure } from '../concurrency/undo-stack.ts'
import { liveNetns } from './netns.ts'
import { killOrphanedPlugins } from './orphans.ts'
import { type Attachment, combined, type PluginInvoker, saysGone } from './plugin-invoker.ts'
import type { CacheRecord, ResultCache } from './result-cache.ts'
import type { JsonObject, NetworkList } from './types.ts'
import { isAtLeast } from './version.ts'

/** DEL before ADD when there is a queue: it gives back what the ADD may be waiting for. */
const delPriority = 1000

export interface AttachmentDeps {
  readonly invoker: PluginInvoker
  readonly cache: ResultCache
  readonly log: Logger
}

/** An ADD under way: whatever becomes of it, this says how to take it back. */
export interface BegunAttachment {
  readonly attachment: Attachment
  /** The last result, undefined while there is none. */
  result: JsonObject | undefined
}

/**
 * Runs the plugins of one network with ADD, each with the result of the one before. It is written down before the first one runs and again after
 * each one, so that a crash at any point leaves a record of what is to be released.
 */
export async function addAttachment(deps: AttachmentDeps, begun: BegunAttachment, signal: AbortSignal): Promise<JsonObject> {
  const { attachment } = begun
  const { list } = attachment
  await deps.cache.write(recordOf(begun, true))
  for (const [i, plugin] of list.plugins.entries()) {
    // The note of the last result is written while the next plugin runs.
    const noted = i === 0 ? undefined : deps.cache.write(recordOf(begun, true))
    const [ran, wrote] = await Promise.allSettled([deps.invoker.invoke('ADD', plugin, attachment, begun.result, signal, i), noted])
    if (ran.status === 'rejected') throw ran.reason
    if (ran.value.failure !== undefined) throw ran.value.failure.error
    begun.result = ran.value.result
    if (wrote.status === 'rejected') throw wrote.reason
  }
  const result = begun.result ?? {}
  await deps.cache.write(recordOf(begun, false))
  return result
}

/** Takes a failed ADD back: DEL of the whole list in reverse order, past plugins that fail. The record goes only when nothing is left. */
export async function undoAttachment(deps: AttachmentDeps, begun: BegunAttachment, signal: AbortSignal): Promise<UndoFailure[]> {
  const { attachment } = begun
  const failures: UndoFailure[] = []
  const netns = await liveNetns(attachment.netns)
  for (const plugin of attachment.list.plugins.toReversed()) {
    const name = `${plugin.type} DEL of network ${JSON.stringify(attachment.list.name)}`
    try {
      const outcome = await deps.invoker.invoke('DEL', plugin, { ...attachment, netns }, prevResultFor(attachment.list, begun.result), signal, delPriority)
      if (outcome.failure !== undefined && !saysGone(outcome.failure, netns)) failures.push({ name, error: outcome.failure.error })
    } catch (error) {
      failures.push({ name, error })
    }
  }
  if (failures.length === 0) {
    try {
      await deps.cache.remove(identityOf(attachment))
    } catch (error) {
      failures.push({ name: 'removal of the cached CNI result', error })
    }
  }
  return failures
}

export interface DelOptions {
  readonly podName: string
  readonly netns: string
  /** Networks as they are configured now, for records that lost their own configuration. */
  readonly current: readonly NetworkList[]
  /** For records that lost them. */
  readonly fallbackArgs?: Pick<Attachment, 'cniArgs' | 'capabilityArgs'> | undefined
}

/** Releases one recorded attachment with the configuration, arguments and result of its ADD. Rejects, and keeps the record, when a plugin cannot do its part. */
export async function delRecord(deps: AttachmentDeps, record: CacheRecord, options: DelOptions, signal: AbortSignal): Promise<void> {
  const list = record.list ?? options.current.find(({ name }) => name === record.network)
  if (list === undefined) {
    throw failedPrecondition(
      `CNI network ${JSON.stringify(record.network)} of sandbox ${record.containerId} cannot be released: its cached configuration is damaged and none of that name is in use; ` +
        `put the network's conflist back, or remove the file ${record.network}-${record.containerId}-${record.ifName} from the CNI result cache to give its addresses up`,
      { reason: 'CNI_CACHE' },
    )
  }
  // Other runtimes bring "lo" up with a plugin and record it. It ends with its namespace.
  const loopback = record.ifName === 'lo' && list.plugins.every(({ type }) => type === 'loopback')
  if (!loopback) {
    if (record.adding) {
      const killed = await killOrphanedPlugins(record.containerId, signal)
      if (killed > 0) deps.log.warn({ sandboxId: record.containerId, killed }, 'killed CNI plugins that an earlier process of this service had left running')
    }
    const damaged = record.list === undefined ? options.fallbackArgs : undefined
    const attachment: Attachment = {
      list,
      containerId: record.containerId,
      podName: options.podName,
      ifName: record.ifName,
      netns: options.netns,
      cniArgs: damaged?.cniArgs ?? record.cniArgs,
      capabilityArgs: damaged?.capabilityArgs ?? record.capabilityArgs,
    }
    await delChain(deps, attachment, record.result, signal, false)
  }
  await deps.cache.remove(record)
}

/**
 * DEL of one network without a record: nothing that this service knows of was ever made, or the cache is lost. A plugin that is not installed cannot
 * have made anything that can be found, so it is passed over.
 */
export async function delUnrecorded(deps: AttachmentDeps, attachment: Attachment, signal: AbortSignal): Promise<void> {
  await delChain(deps, attachment, undefined, signal, true)
}

/**
 * In reverse order up to the first plugin that fails: going on would give the address back while, say, port mappings to it are still in place, and
 * they would lead into the next pod that gets it.
 */
async function delChain(deps: AttachmentDeps, attachment: Attachment, result: JsonObject | undefined, signal: AbortSignal, skipMissing: boolean): Promise<void> {
  const netns = await liveNetns(attachment.netns)
  for (const plugin of attachment.list.plugins.toReversed()) {
    try {
      const outcome = await deps.invoker.invoke('DEL', plugin, { ...attachment, netns }, prevResultFor(attachment.list, result), signal, delPriority)
      if (outcome.failure === undefined) continue
      if (!saysGone(outcome.failure, netns)) throw outcome.failure.error
      deps.log.debug({ sandboxId: attachment.containerId, plugin: plugin.type, said: outcome.failure.msg }, 'CNI DEL found nothing to remove')
    } catch (error) {
      if (!skipMissing || !(error instanceof CriError) || error.reason !== 'CNI_PLUGIN_MISSING') throw error
      deps.log.warn({ sandboxId: attachment.containerId, plugin: plugin.type }, `CNI DEL passes over a plugin that is not installed: ${messageOf(error)}`)
    }
  }
}

/** CHECK of one recorded attachment; nothing for networks too old for it or with `disableCheck`. */
export async function checkRecord(deps: AttachmentDeps, record: CacheRecord, podName: string, netns: string, signal: AbortSignal): Promise<void> {
  const { list } = record
  if (record.ifName === 'lo') return
  if (record.adding || list === undefined || record.result === undefined) {
    throw notFound(`CNI network ${JSON.stringify(record.network)} of sandbox ${record.containerId} has no complete result: its ADD did not end`, { reason: 'CNI_CACHE' })
  }
  if (!isAtLeast(list.cniVersion, '0.4.0') || list.disableCheck) return
  for (const [i, plugin] of list.plugins.entries()) {
    const attachment: Attachment = { ...record, list, podName, netns }
    const outcome = await deps.invoker.invoke('CHECK', plugin, attachment, record.result, signal, i)
    if (outcome.failure !== undefined) throw outcome.failure.error
  }
}

/** Runs work for several networks, in order or side by side; always all of it. Rejects with everything that failed. */
export async function forEachNetwork<T>(items: readonly T[], serially: boolean, work: (item: T) => Promise<void>): Promise<void> {
  const errors: unknown[] = []
  const one = async (item: T): Promise<void> => {
    try {
      await work(item)
    } catch (error) {
      errors.push(error)
    }
  }
  if (serially) for (const item of items) await one(item)
  else await Promise.all(items.map(one))
  if (errors.length > 0) throw combined(errors)
}

/** The error of a failed ADD after its undo; reason `CNI_ADD_NOT_UNDONE` when something is left that `del` must release. */
export function addError(error: unknown, undoFailures: readonly UndoFailure[]): CriError {
  const why = CriError.from(error)
  if (undoFailures.length === 0) return why
  const left = undoFailures.map(({ name, error: failure }) => `${name}: ${messageOf(failure)}`).join('; ')
  return new CriError(why.code === Code.CANCELLED ? Code.INTERNAL : why.code, `${why.message}; taking it back failed too, it is tried again when the sandbox is removed: ${left}`, {
    reason: 'CNI_ADD_NOT_UNDONE',
    cause: why,
  })
}

/** DEL gets a previous result since 0.4.0. */
function prevResultFor(list: NetworkList, result: JsonObject | undefined): JsonObject | undefined {
  return isAtLeast(list.cniVersion, '0.4.0') ? result : undefined
}

function recordOf({ attachment, result }: BegunAttachment, adding: boolean): CacheRecord & { readonly list: NetworkList } {
  return { ...identityOf(attachment), list: attachment.list, netns: attachment.netns, cniArgs: attachment.cniArgs, capabilityArgs: attachment.capabilityArgs, result, adding }
}

function identityOf({ list, containerId, ifName }: Attachment): { readonly network: string; readonly containerId: string; readonly ifName: string } {
  return { network: list.name, containerId, ifName }
}
