import { errnoOf, messageOf } from '../../errors/cri-error.ts'

/** Logging from the worker: the main thread writes the line. Fields are plain data, errors go through `errorFields`. */
export type WorkerLog = (level: 'info' | 'warn' | 'error', fields: Readonly<Record<string, unknown>>, message: string) => void

/** An error as plain data: not every error can be cloned into another thread. */
export function errorFields(error: unknown): Record<string, unknown> {
  const stack = error instanceof Error ? error.stack : undefined
  return { err: { type: error instanceof Error ? error.name : typeof error, message: messageOf(error), code: errnoOf(error), stack } }
}
