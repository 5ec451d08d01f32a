import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { PodSandboxConfig } from '../generated/cri.ts'
import { fromGoJson, toGoJson } from '../state/go-json.ts'
import { type Layout, readJson, writeJson } from '../state/status-file.ts'

/**
 * Written before the first thing of a sandbox is made and removed when the last one is: a sandbox that still has this file at start-up
 * was cut off half-way, and the file says what there may be to undo.
 */
export interface SandboxIntent {
  readonly id: string
  readonly name: string
  readonly config: PodSandboxConfig
  readonly netnsPath: string
  readonly runtimeHandler: string
}

function path(layout: Layout, id: string): string {
  return join(layout.sandboxDir(id), 'making.json')
}

export async function writeIntent(layout: Layout, intent: SandboxIntent): Promise<void> {
  await writeJson(path(layout, intent.id), { ...intent, config: toGoJson('runtime.v1.PodSandboxConfig', intent.config) })
}

export async function clearIntent(layout: Layout, id: string): Promise<void> {
  await rm(path(layout, id), { force: true })
}

/** Undefined when the sandbox was made to the end, or is none of ours. */
export async function readIntent(layout: Layout, id: string): Promise<SandboxIntent | undefined> {
  const value = await readJson(path(layout, id))
  if (value === null || typeof value !== 'object') return undefined
  const { name, config, netnsPath, runtimeHandler } = value as Readonly<Record<string, unknown>>
  if (typeof name !== 'string' || typeof netnsPath !== 'string' || typeof runtimeHandler !== 'string') return undefined
  return { id, name, netnsPath, runtimeHandler, config: fromGoJson('runtime.v1.PodSandboxConfig', config) }
}
