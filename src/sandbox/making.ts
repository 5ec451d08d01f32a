import { rename } from 'node:fs/promises'
import { join } from 'node:path'
import type { PodSandboxConfig } from '../generated/cri.ts'
import { fromGoJson, toGoJson } from '../state/go-json.ts'
import { type Layout, readJson, writeJson } from '../state/status-file.ts'

/**
 * Written before the first thing of a sandbox is made: it says what there may be to undo. A sandbox whose file still has its first name at
 * start-up was cut off half-way. One that was made keeps the file under its second name, for the case that containerd's record of it is lost.
 */
export interface SandboxIntent {
  readonly id: string
  readonly name: string
  readonly config: PodSandboxConfig
  readonly netnsPath: string
  readonly runtimeHandler: string
}

function path(layout: Layout, id: string, made = false): string {
  return join(layout.sandboxDir(id), made ? 'made.json' : 'making.json')
}

export async function writeIntent(layout: Layout, intent: SandboxIntent): Promise<void> {
  await writeJson(path(layout, intent.id), { ...intent, config: toGoJson('runtime.v1.PodSandboxConfig', intent.config) })
}

/** The sandbox is made to the end. */
export async function clearIntent(layout: Layout, id: string): Promise<void> {
  await rename(path(layout, id), path(layout, id, true))
}

/** Undefined when the sandbox was made to the end (not made, if `made`), or is none of ours. */
export async function readIntent(layout: Layout, id: string, made = false): Promise<SandboxIntent | undefined> {
  const value = await readJson(path(layout, id, made))
  if (value === null || typeof value !== 'object') return undefined
  const { name, config, netnsPath, runtimeHandler } = value as Readonly<Record<string, unknown>>
  if (typeof name !== 'string' || typeof netnsPath !== 'string' || typeof runtimeHandler !== 'string') return undefined
  try {
    return { id, name, netnsPath, runtimeHandler, config: fromGoJson('runtime.v1.PodSandboxConfig', config) }
  } catch {
    // One that cannot be read must not keep the service from starting.
    return undefined
  }
}
