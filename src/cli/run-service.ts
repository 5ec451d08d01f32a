import { abortable } from '../concurrency/keyed-mutex.ts'
import { withDeadline } from '../concurrency/deadline.ts'
import type { Settings } from '../config/settings.ts'
import type { Logger } from '../observability/logger.ts'
import type { Metrics } from '../observability/metrics.ts'
import { Endpoint } from '../server/endpoint.ts'
import { startMetricsEndpoint } from '../server/metrics-endpoint.ts'
import type { Service } from '../server/service.ts'
import { ExitCode } from './command.ts'
import type { ServiceNotifier } from './sd-notify.ts'
import { versions } from './version-info.ts'

/** Wires the service from its settings; the composition root. */
export type Compose = (settings: Settings, log: Logger, metrics: Metrics) => Promise<Service>

export interface RunServiceDeps {
  readonly settings: Settings
  /** The files that the settings came from, for the first line of the log. */
  readonly configFiles: readonly string[]
  readonly log: Logger
  readonly metrics: Metrics
  readonly notifier: ServiceNotifier
  readonly compose: Compose
  /** Aborts when the service is to stop. */
  readonly stop: AbortSignal
  /** How long calls may go on at a stop, and then take back what they did, in milliseconds. Default: 10,000 each. */
  readonly graceMs?: number
}

const defaultGraceMs = 10_000
/** How long the service may take to end what it left running, in milliseconds. */
const serviceCloseMs = 20_000
/**
 * When the service manager is told that the service is up although it still waits for containerd, in milliseconds: the socket answers by then, and
 * says why the rest does not; a unit that never comes up would only be started again.
 */
const readyAtLatestMs = 10_000

/** Runs something that must not keep the rest of the shutdown from happening. */
async function attempt(log: Logger, what: string, work: () => Promise<unknown>): Promise<boolean> {
  try {
    await work()
    return true
  } catch (error) {
    log.error({ err: error }, `${what} failed`)
    return false
  }
}

/**
 * Runs the service until `stop` aborts: listens first (a client that asks early hears why it has to wait), then starts, then stops in the opposite
 * order. Rejects when the start fails, after everything that was started is closed. Resolves with the exit code.
 */
export async function runService(deps: RunServiceDeps): Promise<number> {
  const { settings, log, metrics, notifier, stop } = deps
  const { shim } = settings
  const service = await deps.compose(settings, log, metrics)
  const closers: (() => Promise<boolean>)[] = [() => attempt(log, 'closing the service', () => withDeadline('closing the service', serviceCloseMs, () => service.close()))]
  const close = async (): Promise<boolean> => {
    let clean = true
    for (let closer = closers.pop(); closer !== undefined; closer = closers.pop()) clean = (await closer()) && clean
    notifier.close()
    return clean
  }

  try {
    stop.throwIfAborted()
    const metricsEndpoint = await startMetricsEndpoint(shim.metricsAddress, { log, metrics, notReady: () => service.gate('RunPodSandbox')?.message, problem: () => service.problem?.() ?? Promise.resolve(undefined), listings: service.listings })
    if (metricsEndpoint !== undefined) closers.push(() => attempt(log, 'closing the metrics endpoint', () => metricsEndpoint.close()))
    const endpoint = new Endpoint({ handlers: service.handlers, gate: service.gate, log, metrics, tracer: service.tracer, audit: service.audit }, { listen: shim.listen })
    await endpoint.listen()
    const graceMs = deps.graceMs ?? defaultGraceMs
    closers.push(() => attempt(log, 'closing the endpoint', () => endpoint.close({ graceMs, undoMs: graceMs })))

    log.info({
      version: versions.criShim, node: versions.node, cri: versions.cri, pid: process.pid,
      listen: shim.listen, containerd: shim.containerd, root: shim.root, state: shim.state,
      metrics: metricsEndpoint?.address, config: deps.configFiles.length === 0 ? 'built-in defaults' : deps.configFiles, logLevel: log.level,
    }, 'cri-shim listens')
    await start(deps, service)
    await aborted(stop)
  } catch (error) {
    if (!stop.aborted) {
      await notifier.stopping('the start failed')
      await close()
      throw error
    }
    // What fails during a stop fails because of it.
    log.debug({ err: error }, 'the start was interrupted')
  }
  await notifier.stopping('stopping; pods go on')
  const clean = await close()
  log.info('cri-shim stopped')
  return clean ? ExitCode.ok : ExitCode.failure
}

async function start({ log, notifier, settings, stop }: RunServiceDeps, service: Service): Promise<void> {
  const waiting = setTimeout(() => {
    log.warn({ containerd: settings.shim.containerd, reason: service.gate('RunPodSandbox')?.message }, 'still starting; calls are answered UNAVAILABLE until it is done')
    void notifier.ready(`waiting for containerd at ${settings.shim.containerd}`)
  }, readyAtLatestMs)
  try {
    await notifier.status('starting')
    await abortable(service.start(), stop)
  } finally {
    clearTimeout(waiting)
  }
  await notifier.ready(`serving on ${settings.shim.listen}`)
  log.info({ sinceProcessStartMs: Math.round(performance.now()) }, 'cri-shim is ready')
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve()
    else signal.addEventListener('abort', () => resolve(), { once: true })
  })
}
