import { join } from 'node:path'
import { pause } from '../concurrency/deadline.ts'
import type { Containerd } from '../containerd/containerd.ts'
import type { ContainerdEvent } from '../containerd/events.ts'
import type { TaskExit, TaskProcess } from '../containerd/tasks.ts'
import { nowNanoseconds, toNanoseconds } from '../containerd/timestamp.ts'
import { finish, handleExit, handleOom, unknownEnd } from '../container/exit.ts'
import { removeContainerState } from '../container/image-volumes.ts'
import { recoverCheckpoints } from '../container/checkpoint.ts'
import { recoverContainer, releaseBlockedShims, removeOrphans } from '../container/recover.ts'
import { type CriError, messageOf, unavailable } from '../errors/cri-error.ts'
import type { Background } from '../observability/background.ts'
import { type Ctx, withSignal } from '../observability/context.ts'
import { sandboxFromRecord, undoHalfMade } from '../sandbox/recover.ts'
import { labels } from '../state/metadata.ts'
import type { Container, Sandbox } from '../state/records.ts'
import { readJson, writeJson } from '../state/status-file.ts'
import type { RuntimeServiceDeps } from './deps.ts'

type Deps = Pick<RuntimeServiceDeps, 'sandbox' | 'container' | 'sandboxes' | 'containers' | 'sandboxNames' | 'containerNames' | 'mutex'>

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
  /** The ids of pods whose network is still to be taken down, as CNI's own records say. */
  readonly attachedToNetworks: () => Promise<ReadonlySet<string>>
  /** At the start: what else a crash may have left in containerd. */
  readonly removeLeftovers: (ctx: Ctx) => Promise<void>
  /** See `wordOfEndMs`, its default. */
  readonly wordOfEndMs?: number
}

/** While containerd is away. Events are told to those who are there when it is back: who comes late has missed them. */
const reconnectMs = 100
/** Between two lines of the log about that. */
const awayLogMs = 10_000
const silentShimPollMs = 2_000
/** How long a reconciliation waits for a shim that does not say what its task does. */
const silentShimMs = 15_000
/**
 * How long to wait for word of how a container ended whose task containerd (1.7 and later) deleted when it came back, because its process had ended
 * meanwhile. The pod's shim tells again what it could not tell while containerd was away: after 1, 3, 6, 10 and 15 seconds.
 */
const wordOfEndMs = 20_000
/** An exit must be handled although the service is asked to stop meanwhile; the next start would do it otherwise. */
const handleTimeoutMs = 120_000
const longestRetryMs = 60_000

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
  /** The containers whose end is being recorded. */
  readonly #ending = new Set<string>()
  /** The running containers without a task, of whose end word may still come. */
  readonly #missing = new Set<string>()

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
    let nextLogAt = 0
    while (!ctx.signal.aborted) {
      try {
        for await (const event of containerd.events.subscribe(ctx)) {
          if (event.name !== 'synced') {
            this.#dispatch(event)
            continue
          }
          await this.#reconcile()
          nextLogAt = 0
          if (this.#closedBecause !== undefined) ctx.log.info({ pods: this.#options.deps.sandboxes.size, containers: this.#options.deps.containers.size }, 'ready: following containerd')
          this.#closedBecause = undefined
          this.#loaded.resolve()
        }
      } catch (error) {
        if (ctx.signal.aborted) break
        this.#closedBecause = unavailable(`containerd is not to be reached (${messageOf(error)}); pods go on, calls are answered again when it is back`, { reason: 'ContainerdUnavailable', cause: error })
        if (performance.now() >= nextLogAt) {
          nextLogAt = performance.now() + awayLogMs
          ctx.log.warn({ err: error }, 'lost containerd')
        }
        await pause(reconnectMs, ctx.signal).catch(() => undefined)
      }
    }
    this.#loaded.reject(ctx.signal.reason)
  }

  #dispatch(event: ContainerdEvent): void {
    const { deps, background } = this.#options
    if (event.name === 'containerd.events.TaskExit' || event.name === 'containerd.events.TaskDelete') {
      const { container_id: containerId, id, pid, exit_status: exitStatus, exited_at: exitedAt } = event.message
      // An exec's end is waited for by who started it.
      if (id !== containerId && id !== '') return
      // Only what containerd deleted by itself is news.
      if (event.name === 'containerd.events.TaskDelete' && !this.#missing.has(containerId)) return
      // One that RunPodSandbox is making has only its name reserved yet.
      if (deps.sandboxes.get(containerId) !== undefined || deps.sandboxNames.holds(containerId)) background.run('handle the exit of a pod sandbox', this.#sandboxExit(containerId))
      else background.run('handle the exit of a container', this.#containerExit(containerId, { pid, exitStatus, exitedAt: toNanoseconds(exitedAt) }))
    } else if (event.name === 'containerd.events.TaskOOM') {
      background.run('note an out-of-memory kill', handleOom(deps.container, event.message.container_id))
    } else if (event.name.startsWith('containerd.services.images.')) {
      background.run('follow an image', this.#options.imageChanged(this.#handlerCtx(), (event.message as { readonly name: string }).name))
    }
  }

  /** A container that is being started is not in the way: its exit waits for its start (both hold the task). */
  async #containerExit(id: string, exit: TaskExit & { readonly pid: number }): Promise<void> {
    const { deps } = this.#options
    if (deps.containers.get(id) === undefined) return
    this.#ending.add(id)
    try {
      await this.#persistently('record the end of a container', id, async (ctx) => handleExit(deps.container, ctx, id, exit))
    } finally {
      this.#ending.delete(id)
    }
  }

  async #sandboxExit(id: string): Promise<void> {
    const { deps } = this.#options
    const ended = (now: Sandbox): Sandbox => (now.state === 'notready' && now.pid === 0 ? now : { ...now, state: 'notready', pid: 0 })
    deps.sandboxes.update(id, ended)
    // RunPodSandbox holds the mutex until the sandbox is in the store, or was undone.
    await deps.mutex.run(id, async () => {
      if (deps.sandboxes.update(id, ended) === undefined) return
      await this.#persistently('delete the task of a pod sandbox that ended', id, async (ctx) => void await deps.sandbox.teardown.destroy(ctx, id))
    }, this.#options.ctx.signal)
  }

  /** An end is told once: while containerd is away or its shim hangs this tries again, until it is done or the service stops. */
  async #persistently(what: string, id: string, work: (ctx: Ctx) => Promise<void>): Promise<void> {
    const { ctx } = this.#options
    for (let delayMs = 250; ; delayMs = Math.min(delayMs * 2, longestRetryMs)) {
      try {
        await work(this.#handlerCtx())
        return
      } catch (error) {
        ctx.log.warn({ err: error, container: id, retryInMs: delayMs }, `cannot ${what}`)
      }
      await pause(delayMs, ctx.signal).catch(() => undefined)
      if (ctx.signal.aborted) return
    }
  }

  #handlerCtx(): Ctx {
    return withSignal(this.#options.ctx, AbortSignal.timeout(handleTimeoutMs))
  }

  /** Makes the stores say what containerd says. */
  async #reconcile(): Promise<void> {
    const { deps, ctx: base } = this.#options
    const ctx = withSignal(base, AbortSignal.any([base.signal, AbortSignal.timeout(10 * 60_000)]))
    const first = this.#first
    const ours = !first || await this.#ownsRoot(ctx)
    const closeOutputs = first ? await releaseBlockedShims(deps.container, ctx) : undefined
    try {
      const present = await this.#load(ctx, first && ours)
      if (first && ours) {
        await recoverCheckpoints({ ...deps.container, background: this.#options.background, serviceCtx: base })
        await removeOrphans(deps.container, ctx, present)
        for (const stuck of await undoHalfMade(deps.sandbox, ctx, present)) this.#adopt(ctx, stuck)
      }
      if (first) await this.#options.removeLeftovers(ctx)
    } finally {
      closeOutputs?.()
    }
    this.#first = false
  }

  /**
   * Whether the service's directory speaks of this containerd. With another one (`--containerd` changed, containerd's root wiped) every
   * pod in it looks lost although it may well run: nothing is undone then.
   */
  async #ownsRoot(ctx: Ctx): Promise<boolean> {
    const { deps, containerd } = this.#options
    const path = join(deps.sandbox.layout.root, 'containerd.json')
    const uuid = await containerd.introspection.uuid(ctx)
    const noted = await readJson(path)
    if (noted === undefined) {
      await writeJson(path, { uuid })
      return true
    }
    const was = noted !== null && typeof noted === 'object' && 'uuid' in noted ? noted.uuid : undefined
    if (was === uuid) return true
    ctx.log.error({ root: deps.sandbox.layout.root, containerd: uuid, was },
      `${deps.sandbox.layout.root} belongs to another containerd: what it knows of pods that this one does not have is left alone; if those are gone for good, remove ${path} and restart cri-shim, which cleans up after them`)
    return false
  }

  /** Takes over what is in containerd; returns the ids. */
  async #load(ctx: Ctx, undo: boolean): Promise<Set<string>> {
    const { deps, containerd, background } = this.#options
    if (undo) for (const stuck of await undoHalfMade(deps.sandbox, ctx)) this.#adopt(ctx, stuck)
    const [records, taskList] = await Promise.all([containerd.containers.list(ctx), containerd.tasks.list(ctx), this.#options.reloadImages(ctx)])
    const tasks = new Map<string, TaskProcess>()
    for (const task of await Promise.all(taskList.map((listed) => this.#answered(ctx, listed)))) if (task !== undefined) tasks.set(task.containerId, task)
    const present = new Set<string>()
    for (const record of records) {
      const kind = record.labels[labels.kind]
      if (kind !== labels.kindSandbox && kind !== labels.kindContainer) continue
      present.add(record.id)
      try {
        const task = tasks.get(record.id)
        if (kind === labels.kindSandbox) await this.#reconcileSandbox(ctx, record, task)
        else await this.#reconcileContainer(ctx, record, task)
        if (task?.state === 'unknown') background.run('wait for a shim that does not answer', this.#reconcileLater(record.id))
      } catch (error) {
        ctx.signal.throwIfAborted()
        // One that cannot be understood must not keep the node from the others.
        ctx.log.error({ err: error, container: record.id }, 'cannot take over a container of containerd: it is left alone')
      }
    }
    for (const container of deps.containers.values()) if (!present.has(container.id)) await this.#vanished(ctx, container.id)
    for (const sandbox of deps.sandboxes.values()) {
      if (present.has(sandbox.id) || sandbox.state !== 'ready') continue
      // Asked again: a call that was under way may have made it since the list was taken.
      if (await containerd.containers.get(ctx, sandbox.id) === undefined) deps.sandboxes.update(sandbox.id, (now) => ({ ...now, state: 'notready', pid: 0 }))
    }
    for (const sandbox of deps.sandboxes.values()) present.add(sandbox.id)
    return present
  }

  /**
   * A task's state when its shim tells it. containerd says `unknown` when the shim is busy for more than two seconds (with a start, or on a
   * node under load): that is no reason to believe that the pod has ended. Still `unknown` when the shim goes on being silent, undefined
   * when there is no such task any more.
   */
  async #answered(ctx: Ctx, listed: TaskProcess): Promise<TaskProcess | undefined> {
    let task: TaskProcess | undefined = listed
    for (const end = performance.now() + silentShimMs; task?.state === 'unknown' && performance.now() < end;) {
      await pause(100, ctx.signal)
      task = await this.#options.containerd.tasks.get(ctx, listed.containerId)
    }
    return task
  }

  /** Goes on asking about the task of a shim that was silent during the reconciliation. */
  async #reconcileLater(id: string): Promise<void> {
    const { ctx, containerd, deps } = this.#options
    ctx.log.error({ container: id }, 'the shim of a container does not answer: it is taken for what it was last')
    for (;;) {
      await pause(silentShimPollMs, ctx.signal)
      if (this.#closedBecause !== undefined) return // The next reconciliation sees to it.
      const [record, task] = await Promise.all([containerd.containers.get(ctx, id), containerd.tasks.get(ctx, id)])
      if (record === undefined) return
      if (task?.state === 'unknown') continue
      if (deps.sandboxes.get(id) !== undefined) await this.#reconcileSandbox(ctx, record, task)
      else await this.#reconcileContainer(ctx, record, task)
      return
    }
  }

  async #reconcileSandbox(ctx: Ctx, record: Parameters<typeof sandboxFromRecord>[0], task: Parameters<typeof sandboxFromRecord>[1]): Promise<void> {
    const { deps } = this.#options
    const known = deps.sandboxes.get(record.id)
    const running = task !== undefined && task.state !== 'stopped'
    if (known === undefined) {
      // One that RunPodSandbox makes at this moment is not ours to judge.
      if (deps.sandboxNames.holds(record.id)) return
      const sandbox = sandboxFromRecord(record, task)
      const netns = sandbox.metadata.netnsPath
      // Without the namespace (a reboot, somebody unmounted it) there may still be addresses to give back.
      const networkDown = netns !== '' && !running && !await this.#options.netnsExists(netns) && !(await this.#options.attachedToNetworks()).has(record.id)
      this.#adopt(ctx, { ...sandbox, networkDown: networkDown || sandbox.networkDown })
    } else if (known.state === 'ready' && !running) deps.sandboxes.update(record.id, (now) => ({ ...now, state: 'notready', pid: 0 }))
    if (!running && task !== undefined) await deps.sandbox.teardown.destroy(ctx, record.id)
  }

  async #reconcileContainer(ctx: Ctx, record: Parameters<typeof recoverContainer>[2], task: Parameters<typeof recoverContainer>[3]): Promise<void> {
    const { deps } = this.#options
    const known = deps.containers.get(record.id)
    // A created one with a task: its shim was silent when it was to be recovered.
    if (known === undefined || (known.status.state === 'created' && !known.starting && task !== undefined)) {
      if (known === undefined && deps.containerNames.holds(record.id)) return
      try {
        await recoverContainer(deps.container, ctx, record, task, async (container) => this.#lost(ctx, container))
      } finally {
        const recovered = deps.containers.get(record.id)
        if (recovered !== undefined) this.#reserve(ctx, deps.containerNames, recovered)
      }
      return
    }
    if (known.status.state === 'exited' && task !== undefined && task.state !== 'unknown') {
      // Its start failed, or it was killed, while containerd could not be told to end it.
      await deps.container.teardown.destroy(ctx, record.id)
      return
    }
    if (known.status.state !== 'running' || this.#ending.has(record.id)) return
    if (task?.state === 'stopped') await handleExit(deps.container, ctx, record.id, { exitStatus: task.exitStatus, exitedAt: task.exitedAt })
    else if (task === undefined) await this.#lost(ctx, known)
  }

  /** Its task was not in the list. As long as the pod's shim lives it may still tell how the container ended. */
  async #lost(ctx: Ctx, { id, metadata }: Container): Promise<void> {
    const { containerd, background } = this.#options
    if (this.#missing.has(id)) return
    if (await containerd.tasks.get(ctx, metadata.sandboxId) === undefined) {
      await this.#endUnknown(ctx, id)
      return
    }
    this.#missing.add(id)
    background.run('wait for word of how a container ended', this.#awaitWord(id))
  }

  async #awaitWord(id: string): Promise<void> {
    const { deps, ctx } = this.#options
    const late = AbortSignal.timeout(this.#options.wordOfEndMs ?? wordOfEndMs)
    try {
      await deps.containers.until(id, (now) => now.status.state !== 'running', AbortSignal.any([ctx.signal, late]))
    } catch (error) {
      if (ctx.signal.aborted) return
      if (!late.aborted) throw error
      await this.#persistently('record the end of a container', id, async (handling) => this.#endUnknown(handling, id))
    } finally {
      this.#missing.delete(id)
    }
  }

  /** A start that was under way when tasks were listed is over by now, and its task is there. */
  async #endUnknown(ctx: Ctx, id: string): Promise<void> {
    const { deps, containerd } = this.#options
    await deps.container.teardown.exclusive(id, async () => {
      const known = deps.containers.get(id)
      if (known?.status.state !== 'running' || await containerd.tasks.get(ctx, id) !== undefined) return
      await finish(deps.container, ctx, known, { ...unknownEnd, finishedAt: nowNanoseconds(), oomKilled: known.oomKilled })
    }, ctx.signal)
  }

  /** Somebody removed its record behind our back: there is nothing left to report on. */
  async #vanished(ctx: Ctx, id: string): Promise<void> {
    const { deps } = this.#options
    const container = deps.containers.get(id)
    if (container === undefined || container.removing || container.starting) return
    // Asked again: a call that was under way may have made it since the list was taken.
    if (await this.#options.containerd.containers.get(ctx, id) !== undefined) return
    ctx.log.warn({ container: id }, 'the container is gone from containerd: it was removed by somebody else')
    await deps.container.io.closeLog(id)
    deps.container.stdin.release(id)
    await removeContainerState(deps.container, id)
    await deps.container.host.removeTree(deps.container.layout.containerDir(id))
    deps.containers.delete(id)
    deps.containerNames.release(container.metadata.name, id)
  }

  #adopt(ctx: Ctx, sandbox: Sandbox): void {
    const { deps } = this.#options
    deps.sandboxes.put(sandbox)
    this.#reserve(ctx, deps.sandboxNames, sandbox)
  }

  /** Two of one name are made by nobody but another client of containerd, and both are listed. */
  #reserve(ctx: Ctx, names: Deps['sandboxNames'], { id, metadata }: { readonly id: string; readonly metadata: { readonly name: string } }): void {
    try {
      names.reserve(metadata.name, id)
    } catch (error) {
      ctx.log.error({ err: error, container: id, name: metadata.name }, 'two pods or containers in containerd have one name: remove one of them')
    }
  }
}
