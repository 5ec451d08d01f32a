import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { errnoOf } from '../errors/cri-error.ts'
import type { LinuxContainerResources } from '../generated/cri.ts'
import { toGoJson } from './go-json.ts'
import type { ContainerStatus } from './records.ts'
import { type StoredStatus, writeJson } from './status-file.ts'

/**
 * Where containerd's own CRI plugin keeps files of a pod and its containers: its root and its state directory, as far as these mounts of a
 * container of that pod tell (the pod's /etc/hosts, /etc/resolv.conf and /dev/shm come from there). Empty for a pod that this service made.
 * Only paths that name the pod's own id count: a pod may mount what it likes, but it cannot know that id beforehand.
 */
export function pluginDirs(mounts: readonly { readonly source?: string | undefined }[], sandboxId: string): string[] {
  const found = mounts.flatMap(({ source = '' }) => {
    const [dir = '', rest] = source.split(`/sandboxes/${sandboxId}/`)
    return rest !== undefined && sandboxId !== '' && /^\/.*\/io\.containerd\.(grpc\.v1\.cri|cri\.v1\.runtime)$/.test(dir) ? [dir] : []
  })
  return [...new Set(found)]
}

/**
 * What the plugin knew of a container when it ran last (containerd internal/cri/store/container/status.go, version v1). Undefined when
 * it has no such file, or none that can be understood.
 */
export async function readPluginStatus(dirs: readonly string[], id: string): Promise<StoredStatus | undefined> {
  for (const dir of dirs) {
    try {
      return decode(await readFile(join(dir, 'containers', id, 'status'), 'utf8'))
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT' && !(error instanceof SyntaxError)) throw error
    }
  }
  return undefined
}

/**
 * Tells the plugin's status file of a container other resources than it had when the plugin ran last: it takes them from there, not from the spec.
 * Nothing happens when the plugin has none of it.
 */
export async function writePluginResources(dirs: readonly string[], id: string, resources: LinuxContainerResources): Promise<void> {
  for (const dir of dirs) {
    const path = join(dir, 'containers', id, 'status')
    let text
    try {
      text = await readFile(path, 'utf8')
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') continue
      throw error
    }
    const value: unknown = JSON.parse(text, keepWide)
    if (value === null || typeof value !== 'object' || !('Version' in value) || value.Version !== 'v1') continue
    await writeJson(path, { ...value, Resources: toGoJson('runtime.v1.ContainerResources', { linux: resources }) })
  }
}

/** Nanoseconds do not fit a JavaScript number: they are written as they were read. */
function keepWide(_key: string, value: unknown, context?: { readonly source?: string }): unknown {
  // JSON.rawJSON is in the engine; TypeScript's library has no type for it yet.
  return typeof value === 'number' && !Number.isSafeInteger(value) ? (JSON as unknown as { rawJSON(text: string): unknown }).rawJSON(context?.source ?? String(value)) : value
}

function decode(text: string): StoredStatus | undefined {
  // Nanoseconds do not fit a JavaScript number.
  const value: unknown = JSON.parse(text.replaceAll(/"(CreatedAt|StartedAt|FinishedAt)":(\d+)/g, '"$1":"$2"'))
  if (value === null || typeof value !== 'object') return undefined
  const fields = value as Readonly<Record<string, unknown>>
  if (fields['Version'] !== 'v1') return undefined
  const [createdAt, startedAt, finishedAt] = [nanoseconds(fields['CreatedAt']), nanoseconds(fields['StartedAt']), nanoseconds(fields['FinishedAt'])]
  const state: ContainerStatus['state'] = finishedAt !== 0n ? 'exited' : startedAt !== 0n ? 'running' : createdAt !== 0n ? 'created' : 'unknown'
  const { Pid: pid, ExitCode: exitCode, Reason: reason, Message: message } = fields
  return {
    oomKilled: reason === 'OOMKilled',
    cgroups: undefined,
    status: {
      state, createdAt, startedAt, finishedAt,
      pid: typeof pid === 'number' ? pid : 0,
      exitCode: typeof exitCode === 'number' ? exitCode : 0,
      // The plugin works these two out when it is asked.
      reason: typeof reason === 'string' && reason !== '' ? reason : state !== 'exited' ? '' : exitCode === 0 ? 'Completed' : 'Error',
      message: typeof message === 'string' ? message : '',
    },
  }
}

function nanoseconds(value: unknown): bigint {
  return typeof value === 'string' ? BigInt(value) : 0n
}
