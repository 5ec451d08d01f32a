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

type Deps = Pick<RuntimeServiceDeps, 'container' | 'containers' | 'operation'>

/** ExecSync: a command's output and exit code; a command that takes longer than `timeout` seconds is killed with its process group. */
export async function execSync(deps: Deps, ctx: Ctx, request: ExecSyncRequest): Promise<Init<ExecSyncResponse>> {
  const seconds = Number(request.timeout)
  if (seconds < 0) throw invalidArgument(`timeout ${request.timeout} is negative`)
  const container = deps.containers.find(request.container_id)
  const makeProcess = async (): Promise<Init<Any>> => {
    const spec = specOf(await deps.container.containerd.containers.get(ctx, container.id))
    if (spec === null) throw notFound(`container ${container.id} is gone from containerd`)
    return ociProcessAny(execProcess(spec, { cmd: request.cmd, tty: false }))
  }
  const result = await run(deps.container, ctx, deps.operation('ExecSync'), container, makeProcess, { timeoutMs: seconds * 1000, command: request.cmd })
  return { stdout: result.stdout, stderr: result.stderr, exit_code: result.exitCode }
}
