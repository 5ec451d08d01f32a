import { pause } from '../concurrency/deadline.ts'
import type { Containerd } from '../containerd/containerd.ts'
import type { ContainerdEvent } from '../containerd/events.ts'
import { toNanoseconds } from '../containerd/timestamp.ts'
import { finish, handleExit, handleOom } from '../container/exit.ts'
import { recoverContainer } from '../container/recover.ts'
import { type CriError, messageOf, unavailable } from '../errors/cri-error.ts'
import type { Background } from '../observability/background.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import { sandboxFromRecord, undoHalfMade } from '../sandbox/recover.ts'
import { labels } from '../state/metadata.ts'
import type { Sandbox } from '../state/records.ts'
import type { RuntimeServiceDeps } from './deps.ts'

type Deps = Pick<RuntimeServiceDeps, 'sandbox' | 'container' | 'sandboxes' | 'containers' | 'sandboxNames' | 'containerNames'>

export interface LifecycleOptions {
  readonly deps: Deps
  readonly containerd: Containerd
  readonly background: Background
  /** For everything that runs here; its signal ends it. */
  readonly ctx: Ctx
  /** Asked at each reconciliation, before the gate opens: the image store follows containerd too. */
  readonly reloadImages: (ctx: Ctx) => Promise<void>
  /** An image record of containerd was made, changed or removed. */
  readonly imageChanged: (ctx: Ctx, name: string) => Promise<void>
  readonly netnsExists: (path: string) => Promise<boolean>
}

const longestBackOffMs = 2_000
/** An exit must be handled although the service is asked to stop meanwhile; the next start would do it otherwise. */
const handleTimeoutMs = 120_000

/**
 * Follows containerd: loads what is there at start, hears of exits and out-of-memory kills, and puts everything right after a containerd
 * that was away is back. While it is away the gate is closed and says why.
 */
export class Lifecycle {
  readonly #options: LifecycleOptions
  readonly #loaded = Promise.withResolvers<void>()
  #closedBecause: CriError | undefined = unavailable('cri-shim is starting: it reads what pods and containers there are', { reason: 'Starting' })
  #running: Promise<void> | undefined
  #first = true

  constructor(options: LifecycleOptions) {
    this.#options = options
    this.#loaded.promise.catch(() => undefined)
  }

  /** Undefined when calls may run. */
  get gate(): CriError | undefined {
    return this.#closedBecause
  }

  /** Begins to follow; resolves when everything is loaded for the first time. */
  async start(): Promise<void> {
    this.#running ??= this.#follow()
    return this.#loaded.promise
  }

  /** Resolves when nothing of it runs any more; the ctx's signal must have been aborted. */
  async close(): Promise<void> {
    await this.#running
  }

  async #follow(): Promise<void> {
    const { ctx, containerd } = this.#options
    let backOffMs = 50
    while (!ctx.signal.aborted) {
      try {
        for await (const event of containerd.events.subscribe(ctx)) {
          if (event.name !== 'synced') {
            this.#dispatch(event)
            continue
          }
          await this.#reconcile()
          backOffMs = 50
          if (this.#closedBecause !== undefined) ctx.log.info({ pods: this.#options.deps.sandboxes.size, containers: this.#options.deps.containers.size }, 'ready: following containerd')
          this.#closedBecause = undefined
          this.#loaded.resolve()
        }
      } catch (error) {
        if (ctx.signal.aborted) break
        this.#closedBecause = unavailable(`containerd is not to be reached (${messageOf(error)}); pods go on, calls are answered again when it is back`, { reason: 'ContainerdUnavailable', cause: error })
        ctx.log.warn({ err: error, retryInMs: backOffMs }, 'lost containerd')
        await pause(backOffMs, ctx.signal).catch(() => undefined)
        backOffMs = Math.min(backOffMs * 2, longestBackOffMs)
      }
    }
    this.#loaded.reject(ctx.signal.reason)
  }

  #dispatch(event: ContainerdEvent): void {
    const { deps, background } = this.#options
    const ctx = this.#handlerCtx()
    if (event.name === 'containerd.events.TaskExit') {
      const { container_id: containerId, id, exit_status: exitStatus, exited_at: exitedAt } = event.message
      // An exec's end is waited for by who started it.
      if (id !== containerId && id !== '') return
      if (deps.sandboxes.get(containerId) !== undefined) background.run('handle the exit of a pod sandbox', this.#sandboxExit(ctx, containerId))
      else background.run('handle the exit of a container', this.#containerExit(ctx, containerId, exitStatus, toNanoseconds(exitedAt)))
    } else if (event.name === 'containerd.events.TaskOOM') {
      background.run('note an out-of-memory kill', handleOom(deps.container, event.message.container_id))
    } else if (event.name.startsWith('containerd.services.images.')) {
      background.run('follow an image', this.#options.imageChanged(ctx, (event.message as { readonly name: string }).name))
    }
  }

  /** A container that is being started is not in the way: its exit waits for its start (both hold the task). */
  async #containerExit(ctx: Ctx, id: string, exitStatus: number, exitedAt: bigint): Promise<void> {
    if (this.#options.deps.containers.get(id) === undefined) return
    await handleExit(this.#options.deps.container, ctx, id, { exitStatus, exitedAt })
  }

  async #sandboxExit(ctx: Ctx, id: string): Promise<void> {
    const { deps } = this.#options
    await deps.sandbox.teardown.destroy(ctx, id)
    deps.sandboxes.update(id, (now) => (now.state === 'notready' ? now : { ...now, state: 'notready', pid: 0 }))
  }

  #handlerCtx(): Ctx {
    return withSignal(this.#options.ctx, AbortSignal.timeout(handleTimeoutMs))
  }

  /** Makes the stores say what containerd says. */
  async #reconcile(): Promise<void> {
    const { deps, containerd, ctx: base } = this.#options
    const ctx = withSignal(base, AbortSignal.any([base.signal, AbortSignal.timeout(10 * 60_000)]))
    if (this.#first) {
      for (const stuck of await undoHalfMade(deps.sandbox, ctx, (handler) => deps.sandbox.runtime(handler).snapshotter)) this.#adopt(stuck)
    }
    const [records, taskList] = await Promise.all([containerd.containers.list(ctx), containerd.tasks.list(ctx), this.#options.reloadImages(ctx)])
    const tasks = new Map(taskList.map((task) => [task.containerId, task]))
    const present = new Set<string>()
    for (const record of records) {
      const kind = record.labels[labels.kind]
      if (kind !== labels.kindSandbox && kind !== labels.kindContainer) continue
      present.add(record.id)
      try {
        if (kind === labels.kindSandbox) await this.#reconcileSandbox(ctx, record, tasks.get(record.id))
        else await this.#reconcileContainer(ctx, record, tasks.get(record.id))
      } catch (error) {
        ctx.signal.throwIfAborted()
        // One that cannot be understood must not keep the node from the others.
        ctx.log.error({ err: error, container: record.id }, 'cannot take over a container of containerd: it is left alone')
      }
    }
    for (const container of deps.containers.values()) if (!present.has(container.id)) await this.#vanished(ctx, container.id)
    for (const sandbox of deps.sandboxes.values()) {
      if (!present.has(sandbox.id) && sandbox.state === 'ready') deps.sandboxes.update(sandbox.id, (now) => ({ ...now, state: 'notready', pid: 0 }))
    }
    this.#first = false
  }

  async #reconcileSandbox(ctx: Ctx, record: Parameters<typeof sandboxFromRecord>[0], task: Parameters<typeof sandboxFromRecord>[1]): Promise<void> {
    const { deps } = this.#options
    const known = deps.sandboxes.get(record.id)
    const running = task !== undefined && task.state !== 'stopped' && task.state !== 'unknown'
    if (known === undefined) {
      // One that RunPodSandbox makes at this moment is not ours to judge.
      if (deps.sandboxNames.holds(record.id)) return
      const netns = sandboxFromRecord(record, task, false).metadata.netnsPath
      this.#adopt(sandboxFromRecord(record, task, netns !== '' && !running && !await this.#options.netnsExists(netns)))
    } else if (known.state === 'ready' && !running) deps.sandboxes.update(record.id, (now) => ({ ...now, state: 'notready', pid: 0 }))
    if (!running && task !== undefined) await deps.sandbox.teardown.destroy(ctx, record.id)
  }

  async #reconcileContainer(ctx: Ctx, record: Parameters<typeof recoverContainer>[2], task: Parameters<typeof recoverContainer>[3]): Promise<void> {
    const { deps } = this.#options
    const known = deps.containers.get(record.id)
    if (known === undefined) {
      if (deps.containerNames.holds(record.id)) return
      if (await recoverContainer(deps.container, ctx, record, task)) {
        const recovered = deps.containers.get(record.id)
        if (recovered !== undefined) deps.containerNames.reserve(recovered.metadata.name, recovered.id)
      }
      return
    }
    if (known.status.state !== 'running') return
    if (task?.state === 'stopped') await handleExit(deps.container, ctx, record.id, { exitStatus: task.exitStatus, exitedAt: task.exitedAt })
    else if (task === undefined) {
      await finish(deps.container, ctx, known, {
        exitCode: 255, finishedAt: BigInt(Date.now()) * 1_000_000n, oomKilled: known.oomKilled, reason: 'Unknown',
        message: 'the container\'s shim died while containerd was away: its exit code is not known',
      })
    }
  }

  /** Somebody removed its record behind our back: there is nothing left to report on. */
  async #vanished(ctx: Ctx, id: string): Promise<void> {
    const { deps } = this.#options
    const container = deps.containers.get(id)
    if (container === undefined || container.removing || container.starting) return
    ctx.log.warn({ container: id }, 'the container is gone from containerd: it was removed by somebody else')
    await deps.container.io.closeLog(id)
    deps.container.stdin.release(id)
    await deps.container.host.removeTree(deps.container.layout.containerStateDir(id))
    await deps.container.host.removeTree(deps.container.layout.containerDir(id))
    deps.containers.delete(id)
    deps.containerNames.release(container.metadata.name, id)
  }

  #adopt(sandbox: Sandbox): void {
    const { deps } = this.#options
    deps.sandboxes.put(sandbox)
    deps.sandboxNames.reserve(sandbox.metadata.name, sandbox.id)
  }
}
