import { mkdir, open, readdir, readFile, rename } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { errnoOf } from '../errors/cri-error.ts'
import type { CgroupPaths } from '../linux/cgroups.ts'
import type { Container, ContainerStatus } from './records.ts'

/**
 * Where this service keeps the little that containerd forgets, and what has to be undone after a crash:
 * `<root>/sandboxes/<id>/`, `<root>/containers/<id>/`; mounts and FIFOs are under the state directory, which a reboot empties.
 */
export class Layout {
  readonly root: string
  readonly state: string

  constructor(root: string, state: string) {
    this.root = root
    this.state = state
  }

  sandboxesDir(): string {
    return join(this.root, 'sandboxes')
  }

  sandboxDir(id: string): string {
    return join(this.root, 'sandboxes', id)
  }

  /** The pod's /dev/shm is mounted here. */
  sandboxShm(id: string): string {
    return join(this.state, 'sandboxes', id, 'shm')
  }

  /** The pod's user namespace is mounted here until its first process holds it. */
  sandboxUserns(id: string): string {
    return join(this.state, 'sandboxes', id, 'userns')
  }

  /** For id-mapped mounts while a task is made. */
  sandboxIdmapDir(id: string): string {
    return join(this.state, 'sandboxes', id, 'idmap')
  }

  containerIdmapDir(id: string): string {
    return join(this.state, 'containers', id, 'idmap')
  }

  sandboxStateDir(id: string): string {
    return join(this.state, 'sandboxes', id)
  }

  containersDir(): string {
    return join(this.root, 'containers')
  }

  containerDir(id: string): string {
    return join(this.root, 'containers', id)
  }

  /** Of a checkpoint of the container that is being made, and a sign of it. */
  containerCheckpointDir(id: string): string {
    return join(this.root, 'containers', id, 'checkpoint')
  }

  containersStateDir(): string {
    return join(this.state, 'containers')
  }

  sandboxesStateDir(): string {
    return join(this.state, 'sandboxes')
  }

  /** FIFOs of a container's init and of execs in it. */
  containerIoDir(id: string): string {
    return join(this.state, 'containers', id, 'io')
  }

  /** Images that a container mounts are mounted below this. */
  containerImageVolumesDir(id: string): string {
    return join(this.state, 'containers', id, 'image-volumes')
  }

  containerStateDir(id: string): string {
    return join(this.state, 'containers', id)
  }
}

/**
 * Replaces a JSON file in one step: a reader, or a restart after a crash, sees the old one or the new one. `synced`: it is on the disk when this resolves,
 * name and all. Default: false.
 */
export async function writeJson(path: string, value: unknown, { synced = false }: { readonly synced?: boolean } = {}): Promise<void> {
  await replaceFile(path, Buffer.from(JSON.stringify(value)), synced)
  if (!synced) return
  await using dir = await open(dirname(path), 'r')
  await dir.sync()
}

async function replaceFile(path: string, data: Buffer, synced = false): Promise<void> {
  const temporary = `${path}.${process.pid}.tmp`
  let file
  try {
    file = await open(temporary, 'w', 0o600)
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error
    await mkdir(dirname(path), { recursive: true, mode: 0o700 })
    file = await open(temporary, 'w', 0o600)
  }
  try {
    await file.writeFile(data)
    if (synced) await file.sync()
  } finally {
    await file.close()
  }
  await rename(temporary, path)
}

/** One page: the kernel writes it whole or not at all, even if the process is killed in the middle. */
const pageBytes = 4096

/**
 * Like writeJson, but a file that was written by this before is changed in place when old and new fit one page: on ext4 a rename over
 * an existing file waits for the disk, which every start and stop of a container would pay for.
 */
export async function writeJsonPage(path: string, value: unknown): Promise<void> {
  const text = Buffer.from(JSON.stringify(value))
  if (text.length <= pageBytes) {
    const page = Buffer.alloc(pageBytes, ' ')
    text.copy(page)
    if (await overwritePage(path, page)) return
    await replaceFile(path, page)
  } else await replaceFile(path, text)
}

async function overwritePage(path: string, page: Buffer): Promise<boolean> {
  let file
  try {
    file = await open(path, 'r+')
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false
    throw error
  }
  try {
    if ((await file.stat()).size !== pageBytes) return false
    const { bytesWritten } = await file.write(page, 0, pageBytes, 0)
    return bytesWritten === pageBytes
  } finally {
    await file.close()
  }
}

/** Undefined when the file is missing, empty or not JSON (a power cut may leave that: what it said is then asked of containerd). */
export async function readJson(path: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(path, 'utf8'))
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || error instanceof SyntaxError) return undefined
    throw error
  }
}

const containerStates = new Set(['created', 'running', 'exited', 'unknown'])

/** How a container has ended whose task is about to be deleted, and with it containerd's knowledge of that. */
export interface StoredEnd {
  readonly exitCode: number
  /** Nanoseconds since 1970. */
  readonly finishedAt: bigint
  readonly oomKilled: boolean
}

/** What of a container its status file holds. */
export interface StoredStatus extends Pick<Container, 'status' | 'oomKilled' | 'cgroups'> {
  readonly ended?: StoredEnd | undefined
}

export function encodeStatus({ status, oomKilled, cgroups, ended }: StoredStatus): unknown {
  return {
    version: 'v1', ...status, oomKilled, cgroups, ended: ended === undefined ? undefined : { ...ended, finishedAt: String(ended.finishedAt) },
    createdAt: String(status.createdAt), startedAt: String(status.startedAt), finishedAt: String(status.finishedAt),
  }
}

/** Undefined for anything that is not a status of ours. */
export function decodeStatus(value: unknown): StoredStatus | undefined {
  if (value === null || typeof value !== 'object') return undefined
  const fields = value as Readonly<Record<string, unknown>>
  const { state, pid, exitCode, reason, message } = fields
  if (fields['version'] !== 'v1' || typeof state !== 'string' || !containerStates.has(state)) return undefined
  return {
    oomKilled: fields['oomKilled'] === true,
    cgroups: cgroupPaths(fields['cgroups']),
    ended: storedEnd(fields['ended']),
    status: {
      state: state as ContainerStatus['state'],
      pid: typeof pid === 'number' ? pid : 0,
      exitCode: typeof exitCode === 'number' ? exitCode : 0,
      reason: typeof reason === 'string' ? reason : '',
      message: typeof message === 'string' ? message : '',
      createdAt: nanoseconds(fields['createdAt']),
      startedAt: nanoseconds(fields['startedAt']),
      finishedAt: nanoseconds(fields['finishedAt']),
    },
  }
}

function storedEnd(value: unknown): StoredEnd | undefined {
  if (value === null || typeof value !== 'object') return undefined
  const { exitCode, finishedAt, oomKilled } = value as Readonly<Record<string, unknown>>
  return typeof exitCode === 'number' ? { exitCode, finishedAt: nanoseconds(finishedAt), oomKilled: oomKilled === true } : undefined
}

function cgroupPaths(value: unknown): CgroupPaths | undefined {
  if (value === null || typeof value !== 'object') return undefined
  const { v1, v2 } = value as Readonly<Record<string, unknown>>
  return { v1: stringMap(v1), v2: typeof v2 === 'string' ? v2 : undefined }
}

function stringMap(value: unknown): Readonly<Record<string, string>> {
  if (value === null || typeof value !== 'object') return {}
  return Object.fromEntries(Object.entries(value).filter((entry): entry is [string, string] => typeof entry[1] === 'string'))
}

function nanoseconds(value: unknown): bigint {
  return typeof value === 'string' && /^\d{1,20}$/.test(value) ? BigInt(value) : 0n
}

/** What is in a directory of ours; nothing when it is not there. */
export async function namesIn(dir: string): Promise<string[]> {
  try {
    return await readdir(dir)
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return []
    throw error
  }
}
