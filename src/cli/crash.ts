import type { Logger } from '../observability/logger.ts'

/**
 * Logs what nobody caught. A rejection leaves the process running: it is work that failed, and its state is its own. After an exception nothing can
 * be relied on any more: `exit` is called and the service manager starts a new process, which finds every pod where it was.
 */
export function logCrashes(log: Logger, exit: () => void): () => void {
  const onRejection = (reason: unknown): void => log.error({ err: reason instanceof Error ? reason : new Error(String(reason)) }, 'a promise was rejected and nobody noticed; please report this')
  const onException = (error: unknown, origin: string): void => {
    log.fatal({ err: error instanceof Error ? error : new Error(String(error)), origin }, 'unexpected exception; the process ends, pods go on. Please report this')
    exit()
  }
  process.on('unhandledRejection', onRejection)
  process.on('uncaughtException', onException)
  return () => {
    process.off('unhandledRejection', onRejection)
    process.off('uncaughtException', onException)
  }
}
