import type { StreamKind, StreamResult } from './types.ts'

/** What the client is told at the end, in both forms: a Status object (v4 and later), or text in case of an error (before). */
export interface RemoteStatus {
  /** A metav1.Status as JSON. */
  readonly json: string
  /** Empty: success. */
  readonly text: string
}

/** The words are those of k8s.io/cri-streaming's remotecommand: kubectl reads the causes, people the message. */
const doing = { exec: 'error executing command in container', attach: 'error attaching to container', portforward: 'error forwarding' } as const

/** The status for the end of an exec or attach. `command` is what was run, for the message. An attach succeeds whatever the exit code. */
export function remoteStatus(kind: StreamKind, result: StreamResult, command: readonly string[] = []): RemoteStatus {
  if ('error' in result) {
    const message = `Internal error occurred: ${doing[kind]}: ${result.error}`
    return failure({ message, reason: 'InternalError', code: 500 })
  }
  const { exitCode } = result
  if (exitCode === 0 || kind !== 'exec') return { json: '{"metadata":{},"status":"Success"}', text: '' }
  return failure({
    message: `command terminated with non-zero exit code: error executing command [${command.join(' ')}], exit code ${exitCode}`,
    reason: 'NonZeroExitCode',
    details: { causes: [{ reason: 'ExitCode', message: String(exitCode) }] },
  })
}

function failure(fields: { readonly message: string, readonly reason: string, readonly details?: unknown, readonly code?: number }): RemoteStatus {
  return { json: JSON.stringify({ metadata: {}, status: 'Failure', ...fields }), text: fields.message }
}
