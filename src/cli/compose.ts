import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { bandwidthFromAnnotations } from '../cni/bandwidth.ts'
import { KeyedMutex } from '../concurrency/keyed-mutex.ts'
import { KeyedQueues } from '../concurrency/keyed-queues.ts'
import { Operation } from '../concurrency/operation.ts'
import type { Settings } from '../config/settings.ts'
import { mountedBy } from '../container/image-volumes.ts'
import { ImageUsers } from '../container/image-users.ts'
import { IoWorker } from '../container/io/client.ts'
import { RootfsMounts } from '../container/rootfs-mounts.ts'
import { StdinHolders } from '../container/stdin.ts'
import type { ContainerDeps } from '../container/deps.ts'
import { Containerd } from '../containerd/containerd.ts'
import { removeLeftoverIngests } from '../containerd/leftover-ingests.ts'
import { mayUseVerity } from '../containerd/verity.ts'
import { TaskTeardown } from '../containerd/task-teardown.ts'
import { CriError } from '../errors/cri-error.ts'
import { ImageCatalog } from '../image-service/catalog.ts'
import { imageFsInfo } from '../image-service/image-fs-info.ts'
import { imageStatus } from '../image-service/image-status.ts'
import { listImages, streamImages } from '../image-service/list-images.ts'
import { pullImage, pullNow } from '../image-service/pull-image.ts'
import { PullCoordinator } from '../image-service/pull/coordinator.ts'
import { PullProgress } from '../image-service/pull/progress.ts'
import { isPullLease } from '../image-service/pull/pull-leases.ts'
import { Puller } from '../image-service/pull/puller.ts'
import { UnsettledPulls } from '../image-service/pull/unsettled.ts'
import { removeImage } from '../image-service/remove-image.ts'
import { findImage, requireContainerImage, requireVolumeImage } from '../image-service/resolve-image.ts'
import { ImageUnpacker } from '../image-service/unpack-image.ts'
import { cleanIdmapped } from '../linux/idmapped-rootfs.ts'
import { Linux } from '../linux/linux.ts'
import { pathExists } from '../linux/path-exists.ts'
import { Background } from '../observability/background.ts'
import { backgroundCtx, type Ctx } from '../observability/context.ts'
import type { Logger } from '../observability/logger.ts'
import type { Metrics } from '../observability/metrics.ts'
import { safeImageLabels } from '../oci-spec/image-labels.ts'
import { normalizeRef, parseImageRef } from '../registry-mirrors/image-ref.ts'
import { RegistryClient } from '../registry-mirrors/registry-client.ts'
import { attach } from '../runtime-service/attach.ts'
import { checkpointContainer } from '../runtime-service/checkpoint-container.ts'
import { containerStats, listContainerStats, streamContainerStats } from '../runtime-service/container-stats.ts'
import { containerStatus } from '../runtime-service/container-status.ts'
import { createContainer } from '../runtime-service/create-container.ts'
import type { RuntimeServiceDeps } from '../runtime-service/deps.ts'
import { ContainerEvents } from '../runtime-service/container-events.ts'
import { exec } from '../runtime-service/exec.ts'
import { ExecProcesses } from '../runtime-service/exec-processes.ts'
import { execSync } from '../runtime-service/exec-sync.ts'
import { getContainerEvents } from '../runtime-service/get-container-events.ts'
import { Lifecycle } from '../runtime-service/lifecycle.ts'
import { listContainers, streamContainers } from '../runtime-service/list-containers.ts'
import { listPodSandbox, streamPodSandboxes } from '../runtime-service/list-pod-sandbox.ts'
import { podSandboxStatus } from '../runtime-service/pod-sandbox-status.ts'
import { portForward } from '../runtime-service/port-forward.ts'
import { removeContainer } from '../runtime-service/remove-container.ts'
import { removePodSandbox } from '../runtime-service/remove-pod-sandbox.ts'
import { reopenContainerLog } from '../runtime-service/reopen-container-log.ts'
import { listMetricDescriptors, listPodSandboxMetrics, streamPodSandboxMetrics } from '../runtime-service/pod-sandbox-metrics.ts'
import { listPodSandboxStats, podSandboxStats, streamPodSandboxStats } from '../runtime-service/pod-sandbox-stats.ts'
import { runPodSandbox } from '../runtime-service/run-pod-sandbox.ts'
import { runtimeConfig } from '../runtime-service/runtime-config.ts'
import { startContainer } from '../runtime-service/start-container.ts'
import { status } from '../runtime-service/status.ts'
import { stopContainer } from '../runtime-service/stop-container.ts'
import { stopPodSandbox } from '../runtime-service/stop-pod-sandbox.ts'
import { updateContainerResources } from '../runtime-service/update-container-resources.ts'
import { updatePodSandboxResources } from '../runtime-service/update-pod-sandbox-resources.ts'
import { updateRuntimeConfig } from '../runtime-service/update-runtime-config.ts'
import { version } from '../runtime-service/version.ts'
import type { SandboxDeps } from '../sandbox/deps.ts'
import { encoded, type HandlerTable } from '../server/handlers.ts'
import type { Service } from '../server/service.ts'
import { ImageStore } from '../state/image-store.ts'
import { labels } from '../state/metadata.ts'
import { NameIndex } from '../state/name-index.ts'
import type { Container, Image, Sandbox } from '../state/records.ts'
import { Layout } from '../state/status-file.ts'
import { Store } from '../state/store.ts'
import { versions } from './version-info.ts'
import { AuditWiring } from './wiring/audit.ts'
import { CdiSpecifications } from './wiring/cdi.ts'
import { registerGauges } from './wiring/gauges.ts'
import { Health } from './wiring/health.ts'
import { cleanScratch, hostPort, syncFileSystems } from './wiring/host.ts'
import { Networks } from './wiring/networks.ts'
import { RuntimeFeatureProbe } from './wiring/runtime-features.ts'
import { runtimeHandlers } from './wiring/runtime-handlers.ts'
import { ResourceClasses } from './wiring/resource-classes.ts'
import { podRuntime, runtimeSettings, sandboxRuntime, usesSystemdCgroup } from './wiring/runtimes.ts'
import { readSelinuxPolicy, reportSelinux, Selinux } from './wiring/selinux.ts'
import { SpecFacts } from './wiring/spec-facts.ts'
import { SpecWiring } from './wiring/specs.ts'
import { streamDrainMs, streamingServer } from './wiring/streaming.ts'
import { StatsWiring } from './wiring/stats.ts'
import { startTracing, tracedSteps, tracingCloseMs } from './wiring/tracing.ts'
import { UserNamespaces } from './wiring/user-namespaces.ts'

/** A pod's shim (containerd 1.6, 1.7) misses exits for up to a minute when some thirty commands of one pod start at once. */
const execStartLimits = { concurrency: 8, maxWaiting: 1000 }

/** How long a stop waits for what was pulled in the last half minute to be on the disk. */
const settleAtStopMs = 5_000

/** The composition root: every part is made here, once, and given what it needs. */
export async function composeService(settings: Settings, log: Logger, metrics: Metrics): Promise<Service> {
  const { shim } = settings
  const closing = new AbortController()
  const base = backgroundCtx(log, 'service', closing.signal)
  const background = new Background(log, metrics)
  const layout = new Layout(shim.root, shim.state)
  for (const dir of [shim.root, shim.state, layout.sandboxesDir(), layout.containersDir()]) await mkdir(dir, { recursive: true, mode: 0o711 })

  // One thread as long as nothing hangs: each takes 10 MB, and what is asked of it takes a millisecond.
  const linux = await Linux.start({ log: log.child({ component: 'linux' }), workers: 1 })
  const lock = await linux.lockFile(join(shim.root, 'lock'))
  const [io, facts] = await Promise.all([
    IoWorker.start({ log: log.child({ component: 'io' }) }),
    SpecFacts.probe({ linux, log, containerdSocket: shim.containerd.replace(/^unix:\/\//, ''), enableSelinux: settings.enableSelinux, disableApparmor: settings.disableApparmor, stateDir: shim.state }),
  ])
  const tracing = await startTracing(shim.tracing, process.env, log.child({ component: 'tracing' }), metrics)
  const containerd = new Containerd({ address: shim.containerd, metrics, tracer: tracing, syncFileSystem: (path) => syncFileSystems([path]) })
  const registry = new RegistryClient({ ...settings.registry, log: log.child({ component: 'registry' }), userAgent: `cri-shim/${versions.criShim}`, metrics: metrics.registry })
  const networks = new Networks(settings, log, metrics)

  const sandboxes = new Store<Sandbox>('pod sandbox')
  const containers = new Store<Container>('container')
  const images = new ImageStore()
  const platform = { os: 'linux', architecture: facts.machine.arch }
  const catalog = new ImageCatalog({ containerd, images, platform })
  const operation = (name: string): Operation => new Operation(name, {
    ...tracedSteps(tracing),
    onStep: (operationName, step, seconds, failed) => metrics.stepSeconds.observe({ operation: operationName, step, result: failed ? 'error' : 'ok' }, seconds),
  })

  const scratch = join(shim.state, 'scratch')
  await cleanScratch(linux, scratch)
  await cleanIdmapped(linux, shim.state)
  const host = hostPort(linux, scratch)
  const pullProgress = new PullProgress()
  const unsettled = new UnsettledPulls({
    containerd, dir: join(shim.root, 'pulls'), ctx: base,
    sync: (snapshotters) => syncFileSystems([...snapshotters.map((name) => snapshotterRoots.get(name)), containerd.content.root]),
  })
  const pulls = new PullCoordinator(new Puller({ progress: pullProgress, unsettled, containerd, registry, settings, platform, operation, withMounts: (mounts, work) => host.withMounts(mounts, work) }))
  const teardown = new TaskTeardown(containerd.tasks, new KeyedMutex())
  const users = new ImageUsers(containerd, host)
  const imageUsers: ContainerDeps['imageUsers'] = (ctx, image, snapshotter) => users.read(ctx, image, snapshotter)
  const snapshotterRoots = new Map<string, string>()
  const snapshotterRoot = (snapshotter: string): string => snapshotterRoots.get(snapshotter) ?? `/var/lib/containerd/io.containerd.snapshotter.v1.${snapshotter}`
  const features = new RuntimeFeatureProbe({
    settings, log: log.child({ component: 'runtimes' }), kernel: facts.facts.kernel, searchPath: () => facts.searchPath,
    askShim: (path, options) => containerd.introspection.runtimeFeatures(base, path, options),
  })
  const userNamespaces = new UserNamespaces({ settings, log, linux, features, snapshotterRoot, stateDir: shim.state })
  const selinuxPolicy = settings.enableSelinux ? await readSelinuxPolicy() : undefined
  reportSelinux(log, settings.enableSelinux, facts.machine.selinuxEnabled, selinuxPolicy)
  const selinux = new Selinux({
    enabled: facts.facts.selinuxEnabled, categoryRange: settings.selinuxCategoryRange, policy: selinuxPolicy, relabelTree: (path, label, options) => linux.relabelTree(path, label, options),
    virtualMachines: (handler) => runtimeSettings(settings, handler).runtimeType.startsWith('io.containerd.kata'),
  })
  selinux.follow([sandboxes, containers])
  const specs = new SpecWiring({
    selinux,
    settings, facts, layout, imageUsers, features, userNamespaces, exists: pathExists,
    classes: new ResourceClasses({ settings, log, statPath: (path) => linux.statPath(path) }),
    cdi: settings.enableCdi ? new CdiSpecifications({ dirs: settings.cdiSpecDirs, log, lstat: (path) => linux.statPath(path, { followSymlinks: false }) }) : undefined,
  })
  const runtime = (handler: string): ReturnType<typeof sandboxRuntime> => sandboxRuntime(settings, handler)
  const mergedLabels = (image: Image, own: Readonly<Record<string, string>>): Record<string, string> => ({ ...safeImageLabels(image.config.Labels), ...own })
  const stdin = new StdinHolders()
  const snapshotterOf = (handler: string): string => runtime(handler).snapshotter

  const sandboxDeps: SandboxDeps = {
    containerd, teardown, host, layout, sandboxes, runtime: (handler) => podRuntime(settings, handler), netnsDir: settings.netnsMountsUnderStateDir ? join(shim.state, 'netns') : '/var/run/netns',
    networks: (handler) => {
      const manager = networks.of(handler)
      return {
        add: async (pod, signal) => {
          const bandwidth = bandwidthFromAnnotations(pod.annotations ?? {})
          return manager.add({ ...pod, ...(bandwidth === undefined ? {} : { bandwidth }) }, signal)
        },
        del: (pod, signal) => manager.del(pod, signal),
      }
    },
    sandboxSpec: specs.sandbox, labels: mergedLabels, selinux,
  }
  const execStarts = new KeyedQueues('starting commands in a pod', execStartLimits)
  const containerDeps: ContainerDeps = { rootfs: new RootfsMounts(), containerd, teardown, host, io, stdin, execStarts, layout, containers, settings, runtime, features: (handler) => features.of(handler), containerSpec: specs.container, updatedSpec: specs.updated, labels: mergedLabels, imageUsers, selinux }

  const unpacker = new ImageUnpacker({ containerd, platform, syncFs: settings.imagePullWithSyncFs, unsettled, withMounts: (mounts, work) => host.withMounts(mounts, work) })
  const pinnedNames = new Set(Object.values(settings.pinnedImages).filter((name) => name !== '').map(normalizeRef))

  async function pauseImage(ctx: Ctx, handler: string): Promise<Image> {
    const pullPause = (): Promise<Image> => pullNow({ pulls, catalog, images }, ctx, { ref: parseImageRef(settings.sandboxImage), auth: null, snapshotter: snapshotterOf(handler), pinned: true })
    const known = findImage(images, settings.sandboxImage)
    if (known === undefined) return pullPause()
    try {
      await unpacker.ensure(ctx, known, snapshotterOf(handler))
    } catch (error) {
      if (!(error instanceof CriError) || error.reason !== 'NotUnpacked') throw error
      return pullPause()
    }
    if (known.pinned) return known
    for (const name of known.references) await containerd.images.setLabel(ctx, name, labels.pinned, labels.pinnedValue)
    return { ...known, pinned: true }
  }

  const unpacked = (find: typeof requireContainerImage) => async (ctx: Ctx, name: string, handler: string): Promise<Image> => {
    const image = find(images, name)
    await unpacker.ensure(ctx, image, snapshotterOf(handler))
    return image
  }

  const execProcesses = new ExecProcesses()
  containers.listen((before, after) => {
    if (before === undefined || after !== undefined) return
    execProcesses.forget(before.id)
    containerDeps.rootfs.forget(before.id)
  })
  const stats = new StatsWiring({ settings, linux, machine: facts.machine, snapshots: containerd.snapshots, sandboxes, containers, images, snapshotterRoot, ctx: base })
  const deps: RuntimeServiceDeps = {
    sandbox: sandboxDeps, container: containerDeps, sandboxes, containers, sandboxNames: new NameIndex('pod sandbox'), containerNames: new NameIndex('container'), images,
    mutex: new KeyedMutex(), execProcesses, operation, pauseImage, containerImage: unpacked(requireContainerImage), volumeImage: unpacked(requireVolumeImage),
  }
  const events = new ContainerEvents({ deps, log: log.child({ component: 'events' }), metrics })
  let recovery: Promise<void> | undefined
  /** Once: later notes are of this boot. */
  const recovered = async (): Promise<void> => {
    recovery ??= unsettled.recover().then(() => removeLeftoverIngests(base, containerd, isPullLease))
    await recovery.catch((error: unknown) => {
      recovery = undefined
      throw error
    })
  }
  const lifecycle = new Lifecycle({
    deps, containerd, background, ctx: base, netnsExists: (path) => linux.netnsExists(path),
    attachedToNetworks: () => networks.attached(),
    removeLeftovers: (ctx) => users.removeLeftovers(ctx),
    reloadImages: async (ctx) => {
      await facts.refresh()
      features.forget()
      userNamespaces.forget()
      const link = !await mayUseVerity((await containerd.introspection.version(ctx)).version)
      for (const plugin of await containerd.introspection.plugins(ctx, ['type==io.containerd.snapshotter.v1', 'type==io.containerd.content.v1,id==content'])) {
        const root = plugin.exports['root']
        if (root === undefined || root === '') continue
        if (plugin.type === 'io.containerd.content.v1') containerd.content.writeBelow(root, { link })
        else snapshotterRoots.set(plugin.id, root)
      }
      await recovered()
      await catalog.reload(ctx)
    },
    imageChanged: async (ctx, name) => void await catalog.refresh(ctx, name),
  })
  const gate = (): CriError | undefined => lifecycle.gate
  const statsDeps = { sandboxes, containers, usage: stats.usage, metrics: stats.metrics }
  const imageDeps = { containerd, images, catalog, pulls, mountedBy: (image: Image) => mountedBy(containers.values(), image)?.id, pinned: (name: string) => pinnedNames.has(name), snapshotterOf, snapshotterRoot, usage: stats.disk, snapshotters: () => stats.snapshotters() }
  const statusDeps = {
    containerd, gate, network: () => networks.status(), runtimeHandlers: () => runtimeHandlers(settings, features, userNamespaces),
    info: (): Record<string, string> => ({
      config: JSON.stringify(visibleSettings(settings)), versions: JSON.stringify(versions), pods: String(sandboxes.size), containers: String(containers.size),
      io: JSON.stringify(io.stats()), lastCNILoadStatus: JSON.stringify(networks.of('').status().message || 'OK'),
    }),
  }

  const health = new Health(containerd.introspection, base)
  registerGauges(metrics, { sandboxes, containers, images, pulls, background, io, ready: () => gate() === undefined, queues: { 'cni plugins': networks.of('').queue } })

  const audit = await AuditWiring.start({ settings: shim.audit, linux, sandboxes, containers, log: log.child({ component: 'audit' }), metrics })
  const streaming = streamingServer({ settings: settings.streaming, deps, linux, log, metrics, background, base, audit })
  const handlers = {
    Version: (ctx, request) => version({ containerd }, ctx, request),
    Status: (ctx, request) => status(statusDeps, ctx, request),
    RuntimeConfig: (ctx, request) => runtimeConfig({ systemdCgroup: usesSystemdCgroup(runtimeSettings(settings, '')) }, ctx, request),
    UpdateRuntimeConfig: (ctx, request) => updateRuntimeConfig({ setPodCidrs: (cidrs) => networks.of('').setPodCidrs(cidrs) }, ctx, request),
    RunPodSandbox: (ctx, request) => runPodSandbox(deps, ctx, request),
    StopPodSandbox: (ctx, request) => stopPodSandbox(deps, ctx, request),
    RemovePodSandbox: (ctx, request) => removePodSandbox(deps, ctx, request),
    PodSandboxStatus: (ctx, request) => podSandboxStatus(deps, ctx, request),
    ListPodSandbox: async (ctx, request) => encoded(await listPodSandbox(deps, ctx, request)),
    StreamPodSandboxes: (ctx, request, send) => streamPodSandboxes(deps, ctx, request, (message) => send(encoded(message))),
    CreateContainer: (ctx, request) => createContainer(deps, ctx, request),
    StartContainer: (ctx, request) => startContainer(deps, ctx, request),
    StopContainer: (ctx, request) => stopContainer(deps, ctx, request),
    RemoveContainer: (ctx, request) => removeContainer(deps, ctx, request),
    ListContainers: async (ctx, request) => encoded(await listContainers(deps, ctx, request)),
    StreamContainers: (ctx, request, send) => streamContainers(deps, ctx, request, (message) => send(encoded(message))),
    ContainerStatus: (ctx, request) => containerStatus(deps, ctx, request),
    ReopenContainerLog: (ctx, request) => reopenContainerLog(deps, ctx, request),
    ExecSync: (ctx, request) => execSync(deps, ctx, request),
    ContainerStats: async (ctx, request) => encoded(await containerStats(statsDeps, ctx, request)),
    ListContainerStats: async (ctx, request) => encoded(await listContainerStats(statsDeps, ctx, request)),
    StreamContainerStats: (ctx, request, send) => streamContainerStats(statsDeps, ctx, request, (message) => send(encoded(message))),
    PodSandboxStats: async (ctx, request) => encoded(await podSandboxStats(statsDeps, ctx, request)),
    ListPodSandboxStats: async (ctx, request) => encoded(await listPodSandboxStats(statsDeps, ctx, request)),
    StreamPodSandboxStats: (ctx, request, send) => streamPodSandboxStats(statsDeps, ctx, request, (message) => send(encoded(message))),
    ListMetricDescriptors: (ctx, request) => listMetricDescriptors(statsDeps, ctx, request),
    ListPodSandboxMetrics: async (ctx, request) => encoded(await listPodSandboxMetrics(statsDeps, ctx, request)),
    StreamPodSandboxMetrics: (ctx, request, send) => streamPodSandboxMetrics(statsDeps, ctx, request, (message) => send(encoded(message))),
    ListImages: (ctx, request) => listImages(imageDeps, ctx, request),
    StreamImages: (ctx, request, send) => streamImages(imageDeps, ctx, request, send),
    ImageStatus: (ctx, request) => imageStatus(imageDeps, ctx, request),
    PullImage: (ctx, request) => pullImage(imageDeps, ctx, request),
    RemoveImage: (ctx, request) => removeImage(imageDeps, ctx, request),
    ImageFsInfo: (ctx, request) => imageFsInfo(imageDeps, ctx, request),
    Exec: (ctx, request) => exec({ containers, streaming }, ctx, request),
    Attach: (ctx, request) => attach({ containers, streaming }, ctx, request),
    PortForward: (ctx, request) => portForward({ sandboxes, streaming }, ctx, request),
    UpdateContainerResources: (ctx, request) => updateContainerResources(deps, ctx, request),
    UpdatePodSandboxResources: (ctx, request) => updatePodSandboxResources({ ...deps, checkResources: specs.checkResources }, ctx, request),
    GetContainerEvents: (ctx, _request, send) => getContainerEvents({ events }, ctx, (event) => send(encoded(event))),
    CheckpointContainer: (ctx, request) => checkpointContainer({ ...deps, checkpoint: { ...containerDeps, background, serviceCtx: base }, enabled: settings.enableCriu }, ctx, request),
  } satisfies HandlerTable

  return {
    handlers,
    gate,
    listings: { '/pulls': () => pullProgress.list() },
    problem: () => health.problem(),
    tracer: tracing,
    audit,
    async start() {
      await networks.start()
      await lifecycle.start()
      events.loaded()
      // A taken port is an error now, not at the first stream.
      if (settings.streaming.port !== 0) await streaming.listen()
      stats.start(background)
    },
    async close() {
      await streaming.close(streamDrainMs)
      closing.abort(new CriError(14, 'cri-shim is shutting down', { reason: 'Shutdown' }))
      await pulls.close()
      await unsettled.close(settleAtStopMs)
      registry.close()
      await lifecycle.close()
      await background.drain()
      events.close()
      await networks.close()
      await io.close()
      stdin.close()
      containerd.close()
      await audit?.close()
      await tracing?.close(tracingCloseMs)
      await lock.release()
      const hung = await linux.close()
      if (hung.length > 0) log.warn({ hung }, 'system calls that hang in the kernel are left behind')
    },
  }
}

/** The settings without what nobody should read in `crictl info`. */
function visibleSettings(settings: Settings): unknown {
  return { ...settings, shim: { ...settings.shim, tracing: { ...settings.shim.tracing, headers: Object.keys(settings.shim.tracing.headers) } }, registry: { configPath: settings.registry.configPath, mirrors: settings.registry.mirrors } }
}
