import { messageOf } from '../errors/cri-error.ts'

/** The messages of what caused an error, nearest first, as src/server logs them. */
export function causesOf(error: unknown): string[] {
  const causes: string[] = []
  for (let cause = error instanceof Error ? error.cause : undefined; cause instanceof Error; cause = cause.cause) causes.push(messageOf(cause))
  return causes
}
