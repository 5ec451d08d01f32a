import type { LoadedSettings } from '../config/load-settings.ts'
import { createLogger } from '../observability/logger.ts'
import { createMetrics } from '../observability/metrics.ts'
import { ExitCode } from './command.ts'
import { logCrashes } from './crash.ts'
import { type Compose, runService } from './run-service.ts'
import { ServiceNotifier, takeNotifyEnvironment } from './sd-notify.ts'
import { handleSignals } from './signals.ts'

/** Runs the service as this process: signals, the service manager, crashes. Resolves with the exit code; rejects when the start fails. */
export async function serveProcess(loaded: LoadedSettings, loadCompose: () => Promise<Compose>): Promise<number> {
  const { settings } = loaded
  const log = createLogger(settings.shim.logLevel)
  const notifier = new ServiceNotifier(takeNotifyEnvironment(process.env), log)
  const exitNow = (): void => process.exit(ExitCode.failure)
  const stopLogging = logCrashes(log, exitNow)
  const signals = handleSignals(process, {
    log,
    exitNow,
    onReload: () => void notifier.reloading().then(() => notifier.ready(`serving on ${settings.shim.listen}`)),
  })
  for (const { severity, message, file, line } of loaded.diagnostics) log.warn({ file, line }, `configuration ${severity}: ${message}`)
  try {
    const compose = await loadCompose()
    return await runService({ settings, configFiles: loaded.files, log, metrics: createMetrics(), notifier, compose, stop: signals.stop })
  } finally {
    signals.dispose()
    stopLogging()
  }
}
