import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import assert from 'node:assert/strict'
import { type ContainerConfig, type ContainerStatus, ContainerState, type PodSandboxConfig } from '../../src/generated/cri.ts'
import type { Init } from '../../src/generated/int64.ts'
import { type Containerd, startContainerd } from '../fixtures/containerd.ts'
import { type CriClient, connectCri } from '../fixtures/cri-client.ts'
import { type CriShim, startCriShim } from '../fixtures/cri-shim.ts'
import { leakLines } from '../fixtures/leaks.ts'
import { writeHostsToml } from '../fixtures/registry/hosts-toml.ts'
import { startRegistry } from '../fixtures/registry/registry.ts'
import { busyboxRootfs } from '../images/busybox.ts'
import { type ImageRunConfig, addImage, addLayer } from '../images/image.ts'
import { ContentDir } from '../images/layout.ts'
import { type TarEntry, directory, file } from '../images/tar.ts'
import { hostArchitecture, pauseProgram } from '../images/tiny-elf.ts'

const host = 'registry.k8s.io'
const pause = `${host}/pause:3.10`
/** A shell with busybox's tools. */
export const shellImage = `${host}/cri-shim/shell:1`

/** An image beside the shell: the same root file system with a layer on top. */
export interface ExtraImage {
  readonly name: string
  readonly entries?: readonly TarEntry[]
  readonly config: ImageRunConfig
}

export interface Pod {
  readonly id: string
  readonly config: Init<PodSandboxConfig>
  readonly logDir: string
}

export interface Started {
  readonly id: string
  readonly log: string
}

/** A node: a private containerd, a registry and cri-shim, with the images of one test file pulled. */
export interface ContainerNode extends AsyncDisposable {
  readonly dir: string
  readonly cri: CriClient
  readonly shim: CriShim
  readonly containerd: Containerd
  /** Runs a pod; `overrides` replace fields of its configuration. */
  pod(name: string, overrides?: Init<PodSandboxConfig>): Promise<Pod>
  /** CreateContainer. Without an image in `config` the shell. */
  create(pod: Pod, name: string, config: Init<ContainerConfig>): Promise<Started>
  /** CreateContainer and StartContainer. */
  start(pod: Pod, name: string, config: Init<ContainerConfig>): Promise<Started>
  /** The same with `sh -c script`, until it has ended: its status and its log's content, stdout alone. */
  run(pod: Pod, name: string, script: string, config?: Init<ContainerConfig>): Promise<{ readonly status: ContainerStatus; readonly output: string; readonly id: string }>
  status(id: string): Promise<ContainerStatus>
  /** Asks for the status until it fits; CRI has no event for it. Rejects after 30 s with the last status. */
  until(id: string, fits: (status: ContainerStatus) => boolean): Promise<ContainerStatus>
  exited(id: string): Promise<ContainerStatus>
  removePod(pod: Pod): Promise<void>
}

/** Starts a node with the shell image and `extra`; `end` of it fails on anything that its pods leave behind. */
export async function startContainerNode(extra: readonly ExtraImage[] = [], criSettings = ''): Promise<ContainerNode> {
  const cleanup = new AsyncDisposableStack()
  try {
    return await start(cleanup, extra, criSettings)
  } catch (error) {
    await cleanup.disposeAsync()
    throw error
  }
}

async function start(cleanup: AsyncDisposableStack, extra: readonly ExtraImage[], criSettings: string): Promise<ContainerNode> {
  const dir = await mkdtemp(join(tmpdir(), 'cri-shim-containers-'))
  cleanup.defer(async () => { await rm(dir, { recursive: true, force: true }) })
  const [contentDir, certsDir] = [join(dir, 'content'), join(dir, 'certs.d')]
  await buildImages(contentDir, extra)
  const registry = cleanup.use(await startRegistry({ contentDir }))
  await writeHostsToml(certsDir, [host], registry.url)
  const containerd = await startContainerd({ dir, certsDir, sandboxImage: pause, criSettings })
  cleanup.defer(async () => {
    const left = leakLines(await containerd.stop())
    assert.deepEqual(left, [], 'something was left behind')
  })
  const shim = cleanup.use(await startCriShim({ dir, containerdSocket: containerd.socket, configFile: containerd.configFile }))
  const cri = cleanup.use(connectCri(shim.socket))
  const pods = new Set<Pod>()
  const removePod = async (pod: Pod): Promise<void> => {
    await cri.runtime.StopPodSandbox({ pod_sandbox_id: pod.id })
    await cri.runtime.RemovePodSandbox({ pod_sandbox_id: pod.id })
    pods.delete(pod)
  }
  cleanup.defer(async () => { for (const pod of pods) await removePod(pod) })
  for (const image of [shellImage, ...extra.map(({ name }) => imageName(name))]) await cri.image.PullImage({ image: { image } })

  const status = async (id: string): Promise<ContainerStatus> => {
    const answer = await cri.runtime.ContainerStatus({ container_id: id })
    assert.ok(answer.status)
    return answer.status
  }
  const until = async (id: string, fits: (found: ContainerStatus) => boolean): Promise<ContainerStatus> => {
    const deadline = Date.now() + 30_000
    for (;;) {
      const found = await status(id)
      if (fits(found)) return found
      if (Date.now() > deadline) assert.fail(`container ${id} did not get there: ${JSON.stringify(found)}`)
      await new Promise((resolve) => { setTimeout(resolve, 10) })
    }
  }
  const exited = async (id: string): Promise<ContainerStatus> => until(id, ({ state }) => state === ContainerState.CONTAINER_EXITED)
  const create = async (pod: Pod, name: string, config: Init<ContainerConfig>): Promise<Started> => {
    const log = `${name}.log`
    const request = { pod_sandbox_id: pod.id, sandbox_config: pod.config, config: { metadata: { name, attempt: 0 }, image: { image: shellImage }, log_path: log, linux: {}, ...config } }
    const { container_id: id } = await cri.runtime.CreateContainer(request)
    return { id, log: join(pod.logDir, log) }
  }
  const startContainer = async (pod: Pod, name: string, config: Init<ContainerConfig>): Promise<Started> => {
    const made = await create(pod, name, config)
    await cri.runtime.StartContainer({ container_id: made.id })
    return made
  }
  return {
    dir, cri, shim, containerd, status, until, exited, create, start: startContainer, removePod,
    pod: async (name, overrides = {}) => {
      const logDir = join(dir, 'logs', name)
      await mkdir(logDir, { recursive: true })
      const config = { metadata: { name, uid: `${name}-uid`, namespace: 'tests', attempt: 0 }, hostname: name, log_directory: logDir, linux: {}, ...overrides }
      const { pod_sandbox_id: id } = await cri.runtime.RunPodSandbox({ config })
      const pod = { id, config, logDir }
      pods.add(pod)
      return pod
    },
    run: async (pod, name, script, config = {}) => {
      const { id, log } = await startContainer(pod, name, { command: ['sh', '-c', script], ...config })
      const ended = await exited(id)
      return { id, status: ended, output: (await logEntries(log)).filter(({ stream }) => stream === 'stdout').map(({ text, tag }) => (tag === 'F' ? `${text}\n` : text)).join('') }
    },
    [Symbol.asyncDispose]: async () => { await cleanup.disposeAsync() },
  }
}

/** The full name of an extra image. */
export const imageName = (name: string): string => `${host}/cri-shim/${name}:1`

async function buildImages(dir: string, extra: readonly ExtraImage[]): Promise<void> {
  const content = new ContentDir(dir)
  await mkdir(dir, { recursive: true })
  const base = await addLayer(content, await busyboxRootfs())
  content.name(shellImage, await addImage(content, [base], hostArchitecture(), { Cmd: ['sh'] }))
  for (const { name, entries = [], config } of extra) {
    const layers = entries.length === 0 ? [base] : [base, await addLayer(content, entries)]
    content.name(imageName(name), await addImage(content, layers, hostArchitecture(), config))
  }
  const layer = await addLayer(content, [directory('dev'), file('pause', pauseProgram(hostArchitecture()), 0o755)])
  content.name(pause, await addImage(content, [layer], hostArchitecture(), { Entrypoint: ['/pause'], User: '65535:65535' }))
  await content.finish()
}

export interface LogEntry {
  readonly time: string
  readonly stream: string
  /** P: the line goes on in the next entry of the stream. */
  readonly tag: string
  readonly text: string
}

/** The entries of a CRI log file; fails on a line that is none. */
export async function logEntries(path: string): Promise<LogEntry[]> {
  const text = await readFile(path, 'utf8')
  if (text === '') return []
  assert.ok(text.endsWith('\n'), `${path} ends in the middle of an entry`)
  return text.slice(0, -1).split('\n').map((line) => {
    const match = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d)) (stdout|stderr) ([PF])(?: (.*))?$/.exec(line)
    assert.ok(match, `no log entry: ${JSON.stringify(line.slice(0, 200))}`)
    const [, time = '', stream = '', tag = '', content = ''] = match
    return { time, stream, tag, text: content }
  })
}

/** What a promise rejects with: a gRPC status. Fails when it resolves. */
export async function statusOf(call: Promise<unknown>): Promise<{ readonly code: number; readonly details: string }> {
  try {
    await call
  } catch (error) {
    assert.ok(error instanceof Error && 'code' in error && 'details' in error, `no gRPC status: ${String(error)}`)
    return error as unknown as { code: number; details: string }
  }
  return assert.fail('the call succeeded')
}
