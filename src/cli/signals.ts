import { type Logger, nextLevel } from '../observability/logger.ts'

/** The part of `process` that signals come through. */
export interface SignalSource {
  on(signal: NodeJS.Signals, listener: (signal: NodeJS.Signals) => void): unknown
  off(signal: NodeJS.Signals, listener: (signal: NodeJS.Signals) => void): unknown
}

export interface SignalHandlers {
  /** Aborts at the first SIGTERM or SIGINT, with its name as the reason. */
  readonly stop: AbortSignal
  /** Takes the listeners away again. */
  dispose(): void
}

export interface SignalOptions {
  readonly log: Logger
  /** Called at the second SIGTERM or SIGINT. */
  readonly exitNow: (signal: NodeJS.Signals) => void
  /** Called at SIGHUP. */
  readonly onReload: () => void
}

/**
 * SIGTERM and SIGINT stop the service in order, a second one at once; SIGUSR1 goes on to the next log level (Node's own use of it, the
 * inspector, ends with that); SIGHUP is answered, although nothing is read again while the service runs.
 */
export function handleSignals(source: SignalSource, options: SignalOptions): SignalHandlers {
  const { log } = options
  const stop = new AbortController()
  const onStop = (signal: NodeJS.Signals): void => {
    if (stop.signal.aborted) {
      log.warn({ signal }, 'second signal: leaving at once')
      options.exitNow(signal)
      return
    }
    log.info({ signal }, 'stopping; pods go on. A second signal ends the process at once')
    stop.abort(signal)
  }
  const onLevel = (): void => {
    const from = log.level
    log.level = nextLevel(from)
    log.info({ from, to: log.level }, 'log level changed by SIGUSR1')
  }
  const onReload = (): void => {
    log.warn('SIGHUP: the audit log is opened anew; the configuration is read at the start only: restart the service to read it again (pods go on)')
    options.onReload()
  }
  source.on('SIGTERM', onStop)
  source.on('SIGINT', onStop)
  source.on('SIGUSR1', onLevel)
  source.on('SIGHUP', onReload)
  return {
    stop: stop.signal,
    dispose(): void {
      source.off('SIGTERM', onStop)
      source.off('SIGINT', onStop)
      source.off('SIGUSR1', onLevel)
      source.off('SIGHUP', onReload)
    },
  }
}
