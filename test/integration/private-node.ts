import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import type { ServiceError } from '@grpc/grpc-js'
import { Containerd as ContainerdApi } from '../../src/containerd/containerd.ts'
import { codeName } from '../../src/errors/cri-error.ts'
import type { ContainerConfig, PodSandboxConfig } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { backgroundCtx, type Ctx } from '../../src/observability/context.ts'
import { createLogger } from '../../src/observability/logger.ts'
import { createMetrics } from '../../src/observability/metrics.ts'
import { output } from '../fixtures/command.ts'
import { type Containerd, startContainerd } from '../fixtures/containerd.ts'
import { type CriClient, connectCri } from '../fixtures/cri-client.ts'
import { type CriShim, startCriShim } from '../fixtures/cri-shim.ts'
import { leakLines } from '../fixtures/leaks.ts'
import { writeHostsToml } from '../fixtures/registry/hosts-toml.ts'
import { type Registry, type RegistryOptions, startRegistry } from '../fixtures/registry/registry.ts'
import { buildCatalog, busyboxImage, registryHosts, sandboxImage } from '../images/catalog.ts'
import { ContentDir } from '../images/layout.ts'

export const skipUnlessRoot = process.getuid?.() === 0 ? false : 'needs root'

export interface PrivateNodeOptions {
  readonly dualStack?: boolean
  /** TOML lines for the table of the CRI plugin. */
  readonly criSettings?: string
  /** TOML at the end of the file. */
  readonly config?: string
  /** Makes what cri-shim's configuration needs below `dir` and changes the configuration; containerd keeps its own. */
  readonly editConfig?: (toml: string, dir: string) => Promise<string>
  /** Adds images to those of the catalogue. */
  readonly images?: (content: ContentDir) => Promise<void>
  readonly registry?: Pick<RegistryOptions, 'auth'>
  /** Further hosts whose images the registry serves. */
  readonly hosts?: readonly string[]
  /** Beside the environment of the test, for cri-shim. */
  readonly shimEnv?: Readonly<Record<string, string>>
  /** Stands between cri-shim and containerd, whose socket it is given. Default: nothing. */
  readonly between?: (containerdSocket: string, dir: string) => Promise<AsyncDisposable & { readonly socket: string }>
  /** Where cri-shim's figures are served. Default: nowhere. */
  readonly metricsAddress?: string
}

/** A node of its own: registry, containerd and cri-shim, with a client of each. */
export interface PrivateNode {
  readonly dir: string
  readonly contentDir: string
  readonly certsDir: string
  /** cri-shim's configuration; changed by writing it and restarting cri-shim. */
  readonly configFile: string
  readonly registry: Registry
  readonly containerd: Containerd
  readonly shim: CriShim
  readonly cri: CriClient
  /** containerd itself, to see what cri-shim did to it. */
  readonly api: ContainerdApi
  readonly ctx: Ctx
  ctr(...args: string[]): Promise<string>
  /** Ends everything and returns a line for each thing that was left on the machine. */
  stop(): Promise<string[]>
}

export async function startNode(options: PrivateNodeOptions = {}): Promise<PrivateNode> {
  const stack = new AsyncDisposableStack()
  try {
    const dir = await mkdtemp(join(tmpdir(), 'cri-shim-node-'))
    stack.defer(async () => rm(dir, { recursive: true, force: true }))
    // Whoever is root in a user namespace must be able to reach its root file system; a node's /run and /var/lib are like that.
    await chmod(dir, 0o711)
    const [contentDir, certsDir, configFile] = [join(dir, 'content'), join(dir, 'certs.d'), join(dir, 'cri-shim.toml')]
    await buildCatalog(contentDir)
    const content = new ContentDir(contentDir)
    await options.images?.(content)
    await content.finish()
    const registry = stack.use(await startRegistry({ contentDir, ...options.registry }))
    await writeHostsToml(certsDir, [...registryHosts, ...options.hosts ?? []], registry.url)
    const { dualStack = false, criSettings = '', config = '' } = options
    const containerd = stack.use(await startContainerd({ dir, certsDir, sandboxImage, dualStack, criSettings, config }))
    const toml = await readFile(containerd.configFile, 'utf8')
    await writeFile(configFile, await options.editConfig?.(toml, dir) ?? toml)
    const between = options.between === undefined ? containerd : stack.use(await options.between(containerd.socket, dir))
    const { shimEnv: env = {} } = options
    const shim = stack.use(await startCriShim({ dir, containerdSocket: between.socket, configFile, args: ['--log-level', 'debug'], env, ...(options.metricsAddress === undefined ? {} : { metricsAddress: options.metricsAddress }) }))
    const cri = stack.use(connectCri(shim.socket))
    const api = stack.adopt(new ContainerdApi({ address: `unix://${containerd.socket}`, metrics: createMetrics() }), (client) => client.close())
    await ready(cri)
    const all = stack.move()
    return {
      dir, contentDir, certsDir, configFile, registry, containerd, shim, cri, api, ctx: backgroundCtx(createLogger('fatal'), 'test'),
      ctr: async (...args) => output('ctr', ['--address', containerd.socket, '--namespace', 'k8s.io', ...args]),
      stop: async () => {
        try {
          cri.close()
          await shim.end('SIGTERM')
          return leakLines(await containerd.stop())
        } finally {
          await all.disposeAsync()
        }
      },
    }
  } catch (error) {
    await stack.disposeAsync()
    throw error
  }
}

/** Starts cri-shim again after it was ended, and waits until it has read what there is. */
export async function restart(node: PrivateNode): Promise<void> {
  await node.shim.start()
  await ready(node.cri)
}

async function ready(cri: CriClient): Promise<void> {
  await cri.ready(10_000)
  await eventually('RuntimeReady', async () => (await cri.runtime.Status({})).status?.conditions.find((condition) => condition.type === 'RuntimeReady')?.status)
}

let count = 0

/** A pod's configuration that no other pod of this process has. */
export function podConfig(node: PrivateNode, more: Init<PodSandboxConfig> = {}): Init<PodSandboxConfig> {
  const name = `pod-${++count}`
  return {
    metadata: { name, uid: `uid-${name}`, namespace: 'tests', attempt: 0 }, log_directory: join(node.dir, 'logs', name), ...more,
    linux: { cgroup_parent: '/cri-shim-test', ...more.linux },
  }
}

export async function runPod(node: PrivateNode, config: Init<PodSandboxConfig>, runtimeHandler = ''): Promise<string> {
  return (await node.cri.runtime.RunPodSandbox({ config, runtime_handler: runtimeHandler })).pod_sandbox_id
}

export async function removePods(node: PrivateNode, ...ids: string[]): Promise<void> {
  await Promise.all(ids.map(async (id) => {
    await node.cri.runtime.StopPodSandbox({ pod_sandbox_id: id })
    await node.cri.runtime.RemovePodSandbox({ pod_sandbox_id: id })
  }))
}

/** Makes and starts a container that does nothing until it is stopped; its image must be there. */
export async function startContainer(node: PrivateNode, podId: string, sandboxConfig: Init<PodSandboxConfig>, more: Init<ContainerConfig> = {}): Promise<string> {
  const name = `container-${++count}`
  const { container_id } = await node.cri.runtime.CreateContainer({
    pod_sandbox_id: podId, sandbox_config: sandboxConfig,
    config: { metadata: { name, attempt: 0 }, image: { image: busyboxImage }, command: ['sleep', '100000'], log_path: `${name}.log`, ...more },
  })
  await node.cri.runtime.StartContainer({ container_id })
  return container_id
}

/** What a command in a container prints; it has to succeed. */
export async function exec(node: PrivateNode, containerId: string, ...cmd: string[]): Promise<string> {
  const { stdout, stderr, exit_code } = await node.cri.runtime.ExecSync({ container_id: containerId, cmd, timeout: '30' })
  if (exit_code !== 0) throw new Error(`${cmd.join(' ')}: exit code ${exit_code}: ${stderr.toString()}`)
  return stdout.toString()
}

export async function pull(node: PrivateNode, image: string, settings?: { readonly signal?: AbortSignal }): Promise<string> {
  return (await node.cri.image.PullImage({ image: { image } }, settings)).image_ref
}

/** What a gRPC call failed with, as `CODE: message`; throws when it succeeded. */
export async function failureOf(call: Promise<unknown>): Promise<string> {
  try {
    await call
  } catch (error) {
    if (error instanceof Error && 'code' in error && 'details' in error) return `${codeName((error as ServiceError).code)}: ${String(error.details)}`
    throw error
  }
  throw new Error('the call succeeded')
}

/** For what has no event: asks until the answer is there, for 30 seconds at most. */
export async function eventually<T>(what: string, ask: () => Promise<T | undefined | false>): Promise<T> {
  const deadline = Date.now() + 30_000
  for (;;) {
    const answer = await ask()
    if (answer !== undefined && answer !== false) return answer
    if (Date.now() > deadline) throw new Error(`${what}: not within 30 s`)
    await wait(20)
  }
}

/** A file on the node, made with its directory. */
export async function writeNodeFile(path: string, text: string, mode = 0o644): Promise<void> {
  await mkdir(join(path, '..'), { recursive: true })
  await writeFile(path, text, { mode })
}
