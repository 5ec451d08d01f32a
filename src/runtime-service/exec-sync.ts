import { execSync as run } from '../container/exec-sync.ts'
import { invalidArgument, notFound } from '../errors/cri-error.ts'
import type { Any } from '../generated/containerd.ts'
import type { ExecSyncRequest, ExecSyncResponse } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import { ociProcessAny } from '../oci-spec/json.ts'
import { execProcess } from '../oci-spec/process.ts'
import type { RuntimeServiceDeps } from './deps.ts'
import { specOf } from './spec-of.ts'

type Deps = Pick<RuntimeServiceDeps, 'container' | 'containers' | 'operation' | 'execProcesses'>

/** ExecSync: a command's output and exit code; a command that takes longer than `timeout` seconds is killed with its process group. */
export async function execSync(deps: Deps, ctx: Ctx, request: ExecSyncRequest): Promise<Init<ExecSyncResponse>> {
  const seconds = Number(request.timeout)
  if (seconds < 0) throw invalidArgument(`timeout ${request.timeout} is negative`)
  const container = deps.containers.find(request.container_id)
  const makeProcess = async (): Promise<Init<Any>> => {
    const known = deps.execProcesses.get(container.id)
    if (known !== undefined) return ociProcessAny(execProcess({ process: known }, { cmd: request.cmd, tty: false }))
    const spec = specOf(await deps.container.containerd.containers.get(ctx, container.id))
    if (spec === null) throw notFound(`container ${container.id} is gone from containerd`)
    deps.execProcesses.keep(container.id, spec)
    return ociProcessAny(execProcess(spec, { cmd: request.cmd, tty: false }))
  }
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
