import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import type { ContainerConfig, PodSandboxConfig } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { command, output } from '../fixtures/command.ts'
import { type Containerd, type ContainerdOptions, startContainerd } from '../fixtures/containerd.ts'
import { type CriClient, connectCri } from '../fixtures/cri-client.ts'
import { type CriShim, startCriShim } from '../fixtures/cri-shim.ts'
import { leakLines } from '../fixtures/leaks.ts'
import { writeHostsToml } from '../fixtures/registry/hosts-toml.ts'
import { type Registry, startRegistry } from '../fixtures/registry/registry.ts'
import { buildCatalog, busyboxImage, registryHosts, sandboxImage } from '../images/catalog.ts'

/** A node of a test: a registry with the test images, a private containerd, and cri-shim in front of it, each to be ended and started at will. */
export interface TestNode extends AsyncDisposable {
  readonly dir: string
  readonly registry: Registry
  readonly containerd: Containerd
  readonly shim: CriShim
  readonly cri: CriClient
  readonly ctr: (...args: string[]) => Promise<string>
  /** Ends cri-shim, starts it again and waits until it serves. */
  restart(signal: 'SIGKILL' | 'SIGTERM'): Promise<void>
  /** Resolves when cri-shim has read what there is and serves every call. */
  ready(): Promise<void>
  /** Rejects when something of a pod is there, in containerd, on the machine or in the directories of the service, with one line for each thing. */
  nothingLeft(): Promise<void>
  /** Removes every pod, after a test that failed half-way. */
  removeAll(): Promise<void>
  /** A pod of the test's own cgroup, its logs below `dir`. */
  pod(name: string, more?: Init<PodSandboxConfig>): Init<PodSandboxConfig>
  /** Runs, pulls the image that containers need; resolves with the pod's id. */
  runPod(config: Init<PodSandboxConfig>): Promise<string>
  create(podId: string, pod: Init<PodSandboxConfig>, config: Init<ContainerConfig>): Promise<string>
  /** Create and start. */
  run(podId: string, pod: Init<PodSandboxConfig>, config: Init<ContainerConfig>): Promise<string>
  /** Resolves with the status of a container once it is in this state. */
  inState(id: string, state: number): ReturnType<typeof statusOf>
  removePod(id: string): Promise<void>
}

export interface TestNodeOptions extends Omit<ContainerdOptions, 'dir'> {
  /** Makes cri-shim's configuration out of containerd's. Default: the same file. */
  readonly configure?: (toml: string, dir: string) => Promise<string>
}

const deadlineMs = 60_000

/** Asks again until there is an answer: for what the CRI has no event for. */
export async function until<T>(what: string, probe: () => Promise<T | undefined>, timeoutMs = deadlineMs): Promise<T> {
  const deadline = Date.now() + timeoutMs
  for (;;) {
    const value = await probe()
    if (value !== undefined) return value
    if (Date.now() > deadline) throw new Error(`after ${timeoutMs / 1000} s still not: ${what}`)
    await pause(20)
  }
}

async function statusOf(cri: CriClient, id: string) {
  const { status } = await cri.runtime.ContainerStatus({ container_id: id })
  if (status === null) throw new Error(`ContainerStatus of ${id} without a status`)
  return status
}

/** A container of busybox that runs a shell script. */
export function script(name: string, text: string, more: Init<ContainerConfig> = {}): Init<ContainerConfig> {
  return { metadata: { name, attempt: 0 }, image: { image: busyboxImage }, command: ['sh', '-c', text], log_path: `${name}.log`, linux: {}, ...more }
}

/** The code of a call that has to fail, and its words. */
export async function failure(call: Promise<unknown>): Promise<{ readonly code: number; readonly message: string }> {
  try {
    await call
  } catch (error) {
    if (error instanceof Error && 'code' in error && typeof error.code === 'number') return { code: error.code, message: error.message }
    throw error
  }
  throw new Error('the call succeeded and should have failed')
}

/** The lines of a container's log, tags and times taken away, partial entries joined. */
export async function logLines(path: string): Promise<string[]> {
  const text = await readFile(path, 'utf8').catch(() => '')
  const lines: string[] = []
  let line = ''
  for (const entry of text.split('\n')) {
    const match = /^\S+ (?:stdout|stderr) ([PF]) (.*)$/.exec(entry)
    if (match === null) continue
    line += (match[2] ?? '').replace(/\r$/, '')
    if (match[1] === 'P') continue
    lines.push(line)
    line = ''
  }
  return lines
}

export async function startTestNode(options: TestNodeOptions = {}): Promise<TestNode> {
  const dir = await mkdtemp(join(tmpdir(), 'restart-'))
  const stack = new AsyncDisposableStack()
  stack.defer(() => rm(dir, { recursive: true, force: true }))
  try {
    const contentDir = join(dir, 'content')
    const certsDir = join(dir, 'certs.d')
    await buildCatalog(contentDir)
    const registry = stack.use(await startRegistry({ contentDir }))
    await writeHostsToml(certsDir, registryHosts, registry.url)
    const containerd = stack.use(await startContainerd({ dir, certsDir, sandboxImage, ...options }))
    const configFile = options.configure === undefined ? containerd.configFile : join(dir, 'cri-shim.toml')
    if (options.configure !== undefined) await writeFile(configFile, await options.configure(await readFile(containerd.configFile, 'utf8'), dir))
    const shim = stack.use(await startCriShim({ dir, containerdSocket: containerd.socket, configFile, evenIfNotReady: true }))
    const cri = stack.use(connectCri(shim.socket))
    const made = node(dir, stack, { registry, containerd, shim, cri })
    await made.ready()
    return made
  } catch (error) {
    await stack.disposeAsync()
    throw error
  }
}

function node(dir: string, stack: AsyncDisposableStack, parts: Pick<TestNode, 'registry' | 'containerd' | 'shim' | 'cri'>): TestNode {
  const { cri, containerd } = parts
  const ctr = async (...args: string[]): Promise<string> => output('ctr', ['--address', containerd.socket, '--namespace', 'k8s.io', ...args])
  const create: TestNode['create'] = async (podId, pod, config) => (await cri.runtime.CreateContainer({ pod_sandbox_id: podId, config, sandbox_config: pod })).container_id
  const ready = async (): Promise<void> => {
    // The client may still be waiting to try again after a connection to the service that was stopped.
    await cri.ready(30_000)
    await until('cri-shim serves', async () => {
      const conditions = (await cri.runtime.Status({})).status?.conditions ?? []
      return conditions.every((condition) => condition.status) || undefined
    })
  }
  const removePod = async (id: string): Promise<void> => {
    await cri.runtime.StopPodSandbox({ pod_sandbox_id: id })
    await cri.runtime.RemovePodSandbox({ pod_sandbox_id: id })
  }
  return {
    dir, ...parts, ctr, create, ready,
    restart: async (signal) => {
      await parts.shim.end(signal)
      await parts.shim.start()
      await ready()
    },
    nothingLeft: async () => {
      // containerd ends shims and collects garbage after it has answered.
      let left: string[] = []
      try {
        await until('nothing is left', async () => {
          left = await leftovers(dir, containerd, ctr)
          return left.length === 0 || undefined
        }, 15_000)
      } catch (error) {
        throw new Error(`${left.length} things are left:\n${left.join('\n')}`, { cause: error })
      }
    },
    removeAll: async () => {
      for (const { id } of (await cri.runtime.ListPodSandbox({})).items) await removePod(id)
    },
    removePod,
    pod: (name, more) => ({
      metadata: { name, uid: `uid-${name}`, namespace: 'restart', attempt: 0 }, log_directory: join(dir, 'logs', name), labels: { app: name },
      annotations: { 'restart/why': 'test' }, linux: { cgroup_parent: '/cri-shim-test' }, ...more,
    }),
    runPod: async (config) => {
      await cri.image.PullImage({ image: { image: busyboxImage } })
      return (await cri.runtime.RunPodSandbox({ config })).pod_sandbox_id
    },
    run: async (podId, pod, config) => {
      const id = await create(podId, pod, config)
      await cri.runtime.StartContainer({ container_id: id })
      return id
    },
    inState: (id, state) => until(`container ${id} in state ${state}`, async () => {
      const status = await statusOf(cri, id)
      return status.state === state ? status : undefined
    }),
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  }
}

/** Nothing when no pod is left. Image layers and the leases of interrupted pulls are meant to stay. */
async function leftovers(dir: string, containerd: Containerd, ctr: TestNode['ctr']): Promise<string[]> {
  const words = (text: string): string[] => text.split('\n').map((line) => line.trim()).filter((line) => line !== '')
  const snapshots = words(await ctr('snapshots', 'ls')).filter((line) => /\b(Active|View)$/.test(line)).map((line) => `snapshot: ${line}`)
  const leases = words(await ctr('leases', 'ls', '-q')).filter((line) => !line.startsWith('cri-shim-pull-')).map((line) => `lease: ${line}`)
  const containers = words(await ctr('containers', 'ls', '-q')).map((line) => `container: ${line}`)
  const tasks = words(await ctr('tasks', 'ls', '-q')).map((line) => `task: ${line}`)
  const dirs: string[] = []
  for (const parent of ['shim-root/sandboxes', 'shim-root/containers', 'shim-state/sandboxes', 'shim-state/containers', 'shim-state/netns', 'shim-state/scratch']) {
    dirs.push(...(await readdir(join(dir, parent)).catch(() => [])).map((name) => `directory: ${parent}/${name}`))
  }
  for (const base of [containerd.root, containerd.state]) {
    for (const kind of ['sandboxes', 'containers']) {
      const parent = join(base, 'io.containerd.grpc.v1.cri', kind)
      dirs.push(...(await readdir(parent).catch(() => [])).map((name) => `directory: ${join(parent, name)}`))
    }
  }
  dirs.push(...(await readdir('/var/lib/cni/results').catch(() => [])).filter((name) => name.startsWith(containerd.network.name)).map((name) => `CNI result: ${name}`))
  const machine = leakLines(await containerd.leaks()).filter((line) => !line.startsWith(`fifos: ${join(dir, 'sync')}/`)).map((line) => line.replace(/^cgroups: .*\//, 'cgroup: '))
  return [...new Set([...containers, ...tasks, ...snapshots, ...leases, ...dirs, ...machine])]
}

/** Whether a process is there, and no zombie that waits for its parent. */
export async function isAlive(pid: number): Promise<boolean> {
  return (await command('cat', [`/proc/${pid}/cmdline`])).stdout !== ''
}
