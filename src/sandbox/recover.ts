import type { ContainerRecord } from '../containerd/containers.ts'
import type { TaskProcess } from '../containerd/tasks.ts'
import { toNanoseconds } from '../containerd/timestamp.ts'
import type { Ctx } from '../observability/context.ts'
import { decodeSandboxMetadata, type SandboxMetadata } from '../state/metadata.ts'
import type { Sandbox } from '../state/records.ts'
import { namesIn } from '../state/status-file.ts'
import type { SandboxDeps } from './deps.ts'
import { usesHostNetwork } from './files.ts'
import { readIntent } from './making.ts'
import { pluginDirsOf, removeSandbox, takeNetworkDown } from './stop-sandbox.ts'

/** The sandbox in containerd's record as it is now; its metadata unreadable is an error that names the container. */
export function sandboxFromRecord(record: ContainerRecord, task: TaskProcess | undefined): Sandbox {
  const metadata = readMetadata(record)
  // A shim that does not say (`unknown`) is not one that has ended.
  const running = task !== undefined && task.state !== 'stopped'
  return {
    id: record.id, metadata, createdAt: toNanoseconds(record.created_at), state: running ? 'ready' : 'notready', pid: running ? task.pid : 0,
    networkDown: usesHostNetwork(metadata.config), byPlugin: pluginDirsOf(record).length > 0,
  }
}

function readMetadata(record: ContainerRecord): SandboxMetadata {
  try {
    const metadata = decodeSandboxMetadata(record.extensions)
    if (metadata !== undefined) return metadata
  } catch (error) {
    throw new TypeError(`the sandbox metadata of container ${record.id} in containerd cannot be read`, { cause: error })
  }
  throw new TypeError(`container ${record.id} in containerd is labelled a sandbox and has no sandbox metadata`)
}

/**
 * Undoes the sandboxes that a crash cut off half-way, and with `present` those whose record containerd does not have (any more). Returns those
 * that could not be undone, as sandboxes that are not ready: they are listed, so that the kubelet stops and removes them, which tries again.
 */
export async function undoHalfMade(deps: SandboxDeps, ctx: Ctx, present?: ReadonlySet<string>): Promise<Sandbox[]> {
  const { layout } = deps
  const stuck: Sandbox[] = []
  const ids = new Set([...await namesIn(layout.sandboxesDir()), ...await namesIn(layout.sandboxesStateDir())])
  for (const id of ids) {
    if (present?.has(id) === true) continue
    const intent = await readIntent(layout, id, present !== undefined)
    if (present === undefined && intent === undefined) continue
    ctx.log.info({ sandbox: id, pod: intent?.name }, present === undefined ? 'undoing a sandbox that was cut off half-way' : 'removing what is left of a sandbox that containerd does not know')
    try {
      await deps.teardown.destroy(ctx, id)
      if (intent !== undefined) await takeNetworkDown(deps, ctx.signal, intent)
      await removeSandbox(deps, ctx, { id })
    } catch (error) {
      ctx.signal.throwIfAborted()
      ctx.log.error({ err: error, sandbox: id }, 'cannot undo a sandbox; it is listed as not ready and its removal tries again')
      if (intent === undefined) continue
      stuck.push({
        id, state: 'notready', pid: 0, createdAt: 0n, networkDown: false,
        metadata: { ...intent, ips: [], cniResult: undefined, processLabel: '' },
      })
    }
  }
  return stuck
}
