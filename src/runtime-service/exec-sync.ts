import { execSync as run } from '../container/exec-sync.ts'
import { invalidArgument } from '../errors/cri-error.ts'
import type { Any } from '../generated/containerd.ts'
import type { ExecSyncRequest, ExecSyncResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { processOf } from './exec-processes.ts'

type Deps = Pick<RuntimeServiceDeps, 'container' | 'containers' | 'operation' | 'execProcesses'>

/** ExecSync: a command's output and exit code; a command that takes longer than `timeout` seconds is killed with its process group. */
export async function execSync(deps: Deps, ctx: Ctx, request: ExecSyncRequest): Promise<Init<ExecSyncResponse>> {
  const seconds = Number(request.timeout)
  if (seconds < 0) throw invalidArgument(`timeout ${request.timeout} is negative`)
  const container = deps.containers.find(request.container_id)
  const makeProcess = (): Promise<Init<Any>> => processOf(deps, ctx, container.id, { cmd: request.cmd, tty: false })
  const result = await run(deps.container, ctx, deps.operation('ExecSync'), container, makeProcess, { timeoutMs: seconds * 1000, command: request.cmd })
  const { stdout, stderr } = fitting(result.stdout, result.stderr)
  if (stdout.length + stderr.length < result.stdout.length + result.stderr.length) ctx.log.info({ stdoutBytes: result.stdout.length, stderrBytes: result.stderr.length }, 'the output of a command is cut off to fit an answer')
  return { stdout, stderr, exit_code: result.exitCode }
}

/** The kubelet takes no message above 16 MiB; the rest of ExecSyncResponse needs less than 64 bytes. */
const answerBytes = 16 * 1024 * 1024 - 64

/** Both streams cut off so that they fit one answer. Each has half of it, and what the other leaves. */
export function fitting(stdout: Buffer, stderr: Buffer): { readonly stdout: Buffer; readonly stderr: Buffer } {
  const half = answerBytes / 2
  return {
    stdout: stdout.subarray(0, Math.max(half, answerBytes - stderr.length)),
    stderr: stderr.subarray(0, Math.max(half, answerBytes - stdout.length)),
  }
}
