import { isNotFound } from '../errors/cri-error.ts'
import { task_Status, type Any, type Mount, type task_Process } from '../generated/containerd.ts'
import type { Init } from '../generated/int64.ts'
import type { Ctx } from '../observability/context.ts'
import type { CallOptions, ContainerdClient } from './client.ts'
import { toNanoseconds } from './timestamp.ts'

const service = 'containerd.services.tasks.v1.Tasks'

export type TaskState = 'created' | 'running' | 'paused' | 'stopped' | 'unknown'

/** A process that a shim holds: a task's init or an exec. */
export interface TaskProcess {
  readonly containerId: string
  readonly pid: number
  readonly state: TaskState
  readonly exitStatus: number
  /** Nanoseconds since 1970, 0n while it runs. */
  readonly exitedAt: bigint
  /** The FIFOs that it was made with, empty for none. */
  readonly io?: { readonly stdin: string; readonly stdout: string; readonly stderr: string }
}

/** How a process ended. */
export interface TaskExit {
  readonly exitStatus: number
  /** Nanoseconds since 1970. */
  readonly exitedAt: bigint
}

export interface CreateTaskOptions {
  readonly containerId: string
  readonly rootfs: readonly Init<Mount>[]
  /** FIFO paths, empty for none. */
  readonly stdin: string
  readonly stdout: string
  readonly stderr: string
  readonly terminal: boolean
  readonly options: Init<Any> | undefined
  readonly runtimePath: string
}

export interface ExecOptions {
  readonly containerId: string
  readonly execId: string
  readonly stdin: string
  readonly stdout: string
  readonly stderr: string
  readonly terminal: boolean
  readonly spec: Init<Any>
}

const states: Readonly<Record<number, TaskState>> = {
  [task_Status.CREATED]: 'created',
  [task_Status.RUNNING]: 'running',
  [task_Status.STOPPED]: 'stopped',
  [task_Status.PAUSED]: 'paused',
  [task_Status.PAUSING]: 'paused',
}

function toProcess(process: task_Process): TaskProcess {
  return {
    containerId: process.container_id === '' ? process.id : process.container_id,
    pid: process.pid,
    state: states[process.status] ?? 'unknown',
    exitStatus: process.exit_status,
    exitedAt: toNanoseconds(process.exited_at),
    io: { stdin: process.stdin, stdout: process.stdout, stderr: process.stderr },
  }
}

/** containerd's tasks: one per running container, held by a shim. What changes one is not cancelled with the request (see CallOptions.throughout). */
export class TasksService {
  readonly #client: ContainerdClient

  constructor(client: ContainerdClient) {
    this.#client = client
  }

  /** Starts the shim and `runc create`. Returns the pid of the container's init. */
  async create(ctx: Ctx, options: CreateTaskOptions): Promise<number> {
    const answer = await this.#client.call(ctx, service, 'Create', {
      container_id: options.containerId, rootfs: options.rootfs, stdin: options.stdin, stdout: options.stdout, stderr: options.stderr,
      terminal: options.terminal, options: options.options, runtime_path: options.runtimePath,
    }, `container ${options.containerId}`, { throughout: true })
    return answer.pid
  }

  /** `runc start`, or the start of an exec. Returns the pid. */
  async start(ctx: Ctx, containerId: string, execId = ''): Promise<number> {
    return (await this.#client.call(ctx, service, 'Start', { container_id: containerId, exec_id: execId }, about(containerId, execId), { throughout: true })).pid
  }

  /** Undefined when there is no such task or exec. */
  async get(ctx: Ctx, containerId: string, execId = ''): Promise<TaskProcess | undefined> {
    try {
      const answer = await this.#client.call(ctx, service, 'Get', { container_id: containerId, exec_id: execId }, about(containerId, execId))
      return answer.process === null ? undefined : toProcess(answer.process)
    } catch (error) {
      if (isNotFound(error)) return undefined
      throw error
    }
  }

  async list(ctx: Ctx): Promise<TaskProcess[]> {
    return (await this.#client.call(ctx, service, 'List', {}, 'tasks')).tasks.map(toProcess)
  }

  /** `runc update`: gives a running task other limits. `resources` is the whole of them (OCI linux.resources); what it leaves out stays as it is. */
  async update(ctx: Ctx, containerId: string, resources: Init<Any>, annotations: Readonly<Record<string, string>> = {}): Promise<void> {
    await this.#client.call(ctx, service, 'Update', { container_id: containerId, resources, annotations }, about(containerId, ''), { throughout: true })
  }

  /** Freezes every process of a running task. */
  async pause(ctx: Ctx, containerId: string): Promise<void> {
    await this.#client.call(ctx, service, 'Pause', { container_id: containerId }, about(containerId, ''), { throughout: true })
  }

  /** Lets a paused task go on. */
  async resume(ctx: Ctx, containerId: string): Promise<void> {
    await this.#client.call(ctx, service, 'Resume', { container_id: containerId }, about(containerId, ''), { throughout: true })
  }

  /** Writes the state of a task's processes to where `options` says (for runc `containerd.runc.v1.CheckpointOptions`), and nothing into the content store. */
  async checkpoint(ctx: Ctx, containerId: string, options: Init<Any>, call: CallOptions): Promise<void> {
    await this.#client.call(ctx, service, 'Checkpoint', { container_id: containerId, options }, about(containerId, ''), call)
  }

  /** Sends a signal by number. NOT_FOUND when the process has exited already. */
  async kill(ctx: Ctx, containerId: string, signal: number, options: { readonly execId?: string; readonly all?: boolean } = {}): Promise<void> {
    await this.#client.call(ctx, service, 'Kill', { container_id: containerId, exec_id: options.execId ?? '', signal, all: options.all ?? false }, about(containerId, options.execId ?? ''))
  }

  /** Waits for the end of a process, a year if need be. */
  async wait(ctx: Ctx, containerId: string, execId = ''): Promise<TaskExit> {
    const answer = await this.#client.call(ctx, service, 'Wait', { container_id: containerId, exec_id: execId }, about(containerId, execId), { timeoutMs: 365 * 24 * 3_600_000 })
    return { exitStatus: answer.exit_status, exitedAt: toNanoseconds(answer.exited_at) }
  }

  /** Deletes a stopped task and ends its shim. Undefined when it is gone already. Never two at once for one task: that leaks the shim. */
  async delete(ctx: Ctx, containerId: string): Promise<TaskExit | undefined> {
    try {
      const answer = await this.#client.call(ctx, service, 'Delete', { container_id: containerId }, about(containerId, ''), { throughout: true })
      return { exitStatus: answer.exit_status, exitedAt: toNanoseconds(answer.exited_at) }
    } catch (error) {
      if (isNotFound(error)) return undefined
      throw error
    }
  }

  async exec(ctx: Ctx, options: ExecOptions): Promise<void> {
    await this.#client.call(ctx, service, 'Exec', {
      container_id: options.containerId, exec_id: options.execId, stdin: options.stdin, stdout: options.stdout, stderr: options.stderr,
      terminal: options.terminal, spec: options.spec,
    }, about(options.containerId, options.execId), { throughout: true })
  }

  /** Sets the size of a process's terminal, in cells. Nothing for one without a terminal; an error when it has ended, or was not started. */
  async resizePty(ctx: Ctx, containerId: string, execId: string, size: { readonly width: number; readonly height: number }): Promise<void> {
    await this.#client.call(ctx, service, 'ResizePty', { container_id: containerId, exec_id: execId, width: size.width, height: size.height }, about(containerId, execId))
  }

  /**
   * Closes the end of a started process's stdin FIFO that its shim holds open for writing: the process sees the end of its input once everybody
   * else has closed theirs. A terminal is hung up then (SIGHUP to its session). NOT_FOUND when the process has ended.
   */
  async closeStdin(ctx: Ctx, containerId: string, execId = ''): Promise<void> {
    await this.#client.call(ctx, service, 'CloseIO', { container_id: containerId, exec_id: execId, stdin: true }, about(containerId, execId))
  }

  /** Deletes a stopped exec. Undefined when it is gone already. */
  async deleteExec(ctx: Ctx, containerId: string, execId: string): Promise<TaskExit | undefined> {
    try {
      const answer = await this.#client.call(ctx, service, 'DeleteProcess', { container_id: containerId, exec_id: execId }, about(containerId, execId), { throughout: true })
      return { exitStatus: answer.exit_status, exitedAt: toNanoseconds(answer.exited_at) }
    } catch (error) {
      if (isNotFound(error)) return undefined
      throw error
    }
  }
}

function about(containerId: string, execId: string): string {
  return execId === '' ? `task of container ${containerId}` : `exec ${execId} in container ${containerId}`
}
