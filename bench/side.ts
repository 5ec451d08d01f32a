import { mkdir, readFile, readdir, rm, rmdir } from 'node:fs/promises'
import { join } from 'node:path'
import { command } from '../test/fixtures/command.ts'
import { type Containerd, startContainerd } from '../test/fixtures/containerd.ts'
import { startCriShim } from '../test/fixtures/cri-shim.ts'
import { type CriClient, connectCri } from '../test/fixtures/cri-client.ts'
import { leakLines } from '../test/fixtures/leaks.ts'
import { sandboxImage } from '../test/images/catalog.ts'
import { writeCniChain } from './network.ts'
import { ProcessMeter } from './process-meter.ts'
import type { SideName } from './statistics.ts'

/** One of the two services, on a containerd of its own. */
export interface Side {
  readonly name: SideName
  /** For progress and the report: `plugin`, `cri-shim`. */
  readonly title: string
  readonly dir: string
  readonly cri: CriClient
  readonly containerd: Containerd
  /** Below which all cgroups of this side's pods are. */
  readonly cgroupParent: string
  /** The process that answers CRI calls. */
  readonly service: ProcessMeter
  /** The containerd behind it, when that is another process. */
  readonly backend: ProcessMeter | undefined
  /** cri-shim's metrics in the Prometheus text format; undefined when they are not collected. */
  metrics(): Promise<string | undefined>
  /**
   * Ends the service and its containerd, removes everything of theirs, and returns a line for each thing that the pods had left behind.
   * `afterFailure`: pods may be running, so what is there is no news; only what cannot be removed is returned.
   */
  stop(afterFailure: boolean): Promise<string[]>
}

export interface SideOptions {
  readonly name: SideName
  /** `plugin`: containerd's own CRI plugin answers; `cri-shim`: cri-shim in front of a containerd without it. */
  readonly service: 'plugin' | 'cri-shim'
  readonly title: string
  /** An existing directory, for this side alone. */
  readonly dir: string
  readonly binary: string
  readonly certsDir: string
  readonly withMetrics: boolean
}

/** Starts a side. Rejects with the cause, after taking back what was started, when it does not come up. */
export async function startSide(options: SideOptions): Promise<Side> {
  const { name, service, title, dir, binary, certsDir } = options
  const stack = new AsyncDisposableStack()
  try {
    const containerd = stack.use(await startContainerd({ dir, cri: service === 'plugin', certsDir, sandboxImage, binary }))
    await writeCniChain(containerd)
    await containerd.end('SIGTERM')
    await containerd.start() // the plugin reads the network at its start
    const shim = service === 'plugin' ? undefined : stack.use(await startCriShim({
      dir, containerdSocket: containerd.socket, configFile: containerd.configFile, ...(options.withMetrics ? { metricsAddress: '127.0.0.1:0' } : {}),
    }))
    const metricsUrl = shim === undefined || !options.withMetrics ? undefined : await metricsUrlIn(shim.logFile)
    const cri = stack.use(connectCri(shim?.socket ?? containerd.socket))
    await cri.ready(10_000)
    const cgroupParent = `/cri-shim-bench-${process.pid}-${name}`
    await mkdir(join(dir, 'logs'))
    const started = stack.move()
    return {
      name, title, dir, cri, containerd, cgroupParent,
      service: new ProcessMeter(shim?.pid ?? containerd.pid),
      backend: shim === undefined ? undefined : new ProcessMeter(containerd.pid),
      metrics: async () => (metricsUrl === undefined ? undefined : readMetrics(metricsUrl)),
      stop: async (afterFailure) => {
        cri.close()
        await shim?.end('SIGTERM')
        const left = leakLines(await containerd.stop())
        const stuck = [...leakLines(await containerd.leaks()), ...await removeCgroups(cgroupParent)].map((line) => `cannot be removed: ${line}`)
        left.push(...await removeCachedResults(containerd))
        await started.disposeAsync()
        return afterFailure ? stuck : [...left, ...stuck]
      },
    }
  } catch (error) {
    await stack.disposeAsync()
    throw error
  }
}

/** The pods' cgroups are gone with their containers; their common parent is the caller's, as it is the kubelet's on a node. */
async function removeCgroups(parent: string): Promise<string[]> {
  const { stdout } = await command('find', ['/sys/fs/cgroup', '-depth', '-type', 'd', '-path', `*${parent}*`])
  const paths = stdout.split('\n').filter((path) => path !== '')
  const left: string[] = []
  for (const path of paths) await rmdir(path).catch((error: unknown) => left.push(`cgroup ${path}: ${String(error)}`))
  return left
}

/** Removes what libcni caches of networks whose pods were never stopped; returns a line for each file. The plugin's loopback network is known by the pod, for whom it has a directory. */
async function removeCachedResults({ cniCacheDir, network, root }: Containerd): Promise<string[]> {
  const pods = await readdir(join(root, 'io.containerd.grpc.v1.cri/sandboxes')).catch(() => [])
  const dir = join(cniCacheDir, 'results')
  const names = await readdir(dir).catch(() => [])
  const ours = names.filter((name) => name.startsWith(`${network.name}-`) || pods.some((pod) => name.includes(pod)))
  for (const name of ours) await rm(join(dir, name), { force: true })
  return ours.map((name) => `cached CNI result ${name}`)
}

/** Where cri-shim serves its metrics, from the log line that says where it listens. */
async function metricsUrlIn(logFile: string): Promise<string> {
  const address = /"metrics":"([^"]+)"/.exec(await readFile(logFile, 'utf8'))?.[1]
  if (address === undefined) throw new Error('the log of cri-shim does not say where it serves its metrics')
  return `http://${address}/metrics`
}

async function readMetrics(url: string): Promise<string> {
  const response = await fetch(url, { signal: AbortSignal.timeout(10_000) })
  if (!response.ok) throw new Error(`${url} answers ${response.status}: ${await response.text()}`)
  return response.text()
}
