// make run: a pod with two containers, through cri-shim, from nothing to its removal. Everything it makes is private to the run: containerd
// (unless CONTAINERD names the socket of one), images, registry, pod network. Ctrl-C, or a failure, takes all of it back.
import { once } from 'node:events'
import { access, copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ContainerState } from '../src/generated/cri.ts'
import { command } from '../test/fixtures/command.ts'
import { type Containerd, type Network, chooseNetwork, conflist, criConfiguration, startContainerd } from '../test/fixtures/containerd.ts'
import { type CriClient, connectCri } from '../test/fixtures/cri-client.ts'
import { startCriShim } from '../test/fixtures/cri-shim.ts'
import { leakLines } from '../test/fixtures/leaks.ts'
import { writeHostsToml } from '../test/fixtures/registry/hosts-toml.ts'
import { startRegistry } from '../test/fixtures/registry/registry.ts'
import { buildCatalog, busyboxImage, registryHosts, sandboxImage, webServerImage } from '../test/images/catalog.ts'

const machineSocket = process.env['CONTAINERD'] ?? ''
const control = process.env['CRI_SERVER'] === 'containerd' // containerd's own plugin in place of cri-shim, to compare
const interactive = process.stdin.isTTY && process.env['RUN_ONCE'] === undefined
const started = Date.now()
const interrupted = new AbortController()
const { signal } = interrupted
for (const name of ['SIGINT', 'SIGTERM'] as const) {
  process.on(name, () => {
    if (!signal.aborted) console.log('\nstopping: taking everything back …')
    interrupted.abort(new Error(`interrupted by ${name}`))
  })
}

const step = (what: string): void => {
  signal.throwIfAborted()
  console.log(`\u001b[1m[${((Date.now() - started) / 1000).toFixed(1).padStart(5)} s]\u001b[0m ${what}`)
}

interface Served {
  readonly socket: string
  readonly logFile: string
}

try {
  if (process.getuid?.() !== 0) throw new Error('containers are started as root: run `sudo make run`')
  await demo()
} catch (error) {
  if (!signal.aborted) {
    console.error(`\nmake run failed: ${explain(error)}`)
    process.exitCode = 1
  }
}

/** What failed, and what then failed on the way back, in words. */
function explain(error: unknown): string {
  if (error instanceof SuppressedError) return `${explain(error.suppressed)}\nand then, while cleaning up: ${explain(error.error)}`
  return error instanceof Error ? error.message : String(error)
}

async function demo(): Promise<void> {
  const dir = await mkdtemp(join(tmpdir(), 'cri-shim-demo-'))
  try {
    await demoIn(dir)
  } catch (error) {
    if (!signal.aborted) await keepLogs(dir)
    throw error
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}

/** After a failure: the logs, where they outlive the run. */
async function keepLogs(dir: string): Promise<void> {
  const kept = `${dir}-logs`
  await mkdir(kept)
  for (const name of ['cri-shim.log', 'containerd.log', 'config.toml']) await copyFile(join(dir, name), join(kept, name)).catch(() => undefined)
  console.error(`\nThe logs of this run: ${kept}`)
}

async function demoIn(dir: string): Promise<void> {
  await using cleanup = new AsyncDisposableStack()

  step('building the images (busybox, a web server, pause) from what is on this machine')
  const contentDir = join(dir, 'content')
  const certsDir = join(dir, 'certs.d')
  await buildCatalog(contentDir)
  const registry = cleanup.use(await startRegistry({ contentDir }))
  await writeHostsToml(certsDir, registryHosts, registry.url)
  step(`a registry serves them at ${registry.url}; ${certsDir}/*/hosts.toml leads ${registryHosts.join(', ')} there`)

  const { socket: containerdSocket, configFile, own } = await findContainerd(dir, certsDir, cleanup)
  let served: Served
  if (control && own !== undefined) {
    served = own
  } else {
    step('starting cri-shim')
    served = cleanup.use(await startCriShim({ dir, containerdSocket, configFile }))
  }
  const cri = connectCri(served.socket)
  cleanup.defer(() => cri.close())
  const version = await cri.runtime.Version({ version: 'v1' })
  step(`${version.runtime_name} ${version.runtime_version} answers on unix://${served.socket} (log: ${served.logFile})`)
  await runPod(cri, dir, served, cleanup)
}

/** The private containerd, or the one that CONTAINERD names with a configuration and a pod network that are private nevertheless. */
async function findContainerd(dir: string, certsDir: string, cleanup: AsyncDisposableStack): Promise<{ socket: string; configFile: string; own: Containerd | undefined }> {
  if (machineSocket === '') {
    step('starting a private containerd')
    const containerd = await startContainerd({ dir, cri: control, certsDir, sandboxImage })
    cleanup.defer(async () => {
      const left = leakLines(await containerd.stop())
      if (left.length > 0) {
        console.error(`the pods left something behind (it has been removed):\n${left.join('\n')}`)
        process.exitCode = 1
      }
    })
    return { socket: containerd.socket, configFile: containerd.configFile, own: containerd }
  }
  const socket = machineSocket.replace(/^unix:\/\//, '')
  await access(socket).catch(() => {
    throw new Error(`there is no containerd at ${socket}: start it (systemctl start containerd), or leave CONTAINERD empty for a private one`)
  })
  step(`using the containerd at ${socket}`)
  const network = await chooseNetwork(dir, false)
  const cniConfDir = join(dir, 'net.d')
  const configFile = join(dir, 'config.toml')
  await mkdir(cniConfDir)
  await writeFile(join(cniConfDir, '10-demo.conflist'), conflist(network))
  await writeFile(configFile, `version = 2\n\n${criConfiguration({ certsDir, sandboxImage }, { state: join(dir, 'state'), cniConfDir })}\n`)
  cleanup.defer(async () => { await removeBridge(network) })
  return { socket, configFile, own: undefined }
}

async function removeBridge({ bridge }: Network): Promise<void> {
  await command('ip', ['link', 'delete', bridge])
}

async function runPod(cri: CriClient, dir: string, served: Served, cleanup: AsyncDisposableStack): Promise<void> {
  for (const image of [sandboxImage, webServerImage, busyboxImage]) {
    step(`pulling ${image}`)
    const { image: there } = await cri.image.ImageStatus({ image: { image } })
    await cri.image.PullImage({ image: { image } }, { signal })
    if (there === null) cleanup.defer(async () => { await cri.image.RemoveImage({ image: { image } }) })
  }

  const logs = join(dir, 'logs')
  const config = {
    metadata: { name: 'demo', uid: `demo-${process.pid}`, namespace: 'default', attempt: 0 },
    hostname: 'demo',
    log_directory: logs,
    labels: { app: 'demo' },
    port_mappings: [{ container_port: 80 }],
    linux: {},
  }
  step('running the pod')
  const { pod_sandbox_id: pod } = await cri.runtime.RunPodSandbox({ config }, { timeoutMs: 120_000 })
  cleanup.defer(async () => {
    console.log('removing the pod')
    await cri.runtime.StopPodSandbox({ pod_sandbox_id: pod }, { timeoutMs: 120_000 })
    await cri.runtime.RemovePodSandbox({ pod_sandbox_id: pod }, { timeoutMs: 120_000 })
  })
  const containers = [
    { name: 'web', image: webServerImage, command: [] as string[] },
    { name: 'clock', image: busyboxImage, command: ['sh', '-c', 'while true; do echo "it is $(date -u +%T) in $(hostname)"; sleep 1; done'] },
  ]
  const ids: string[] = []
  for (const { name, image, command: run } of containers) {
    step(`starting the container ${name} (${image})`)
    const request = { pod_sandbox_id: pod, sandbox_config: config, config: { metadata: { name, attempt: 0 }, image: { image }, command: run, log_path: `${name}.log`, linux: {} } }
    const { container_id: id } = await cri.runtime.CreateContainer(request)
    await cri.runtime.StartContainer({ container_id: id })
    ids.push(id)
  }

  const { status } = await cri.runtime.PodSandboxStatus({ pod_sandbox_id: pod })
  const ip = status?.network?.ip ?? ''
  step(`the pod ${pod.slice(0, 13)} has the address ${ip}`)
  for (const id of ids) {
    const { status: container } = await cri.runtime.ContainerStatus({ container_id: id })
    const state = Object.entries(ContainerState).find(([, value]) => value === container?.state)?.[0]
    console.log(`    ${id.slice(0, 13)}  ${(container?.metadata?.name ?? '').padEnd(6)} ${state}  ${container?.image?.image}`)
    if (container?.state !== ContainerState.CONTAINER_RUNNING) throw new Error(`the container ${container?.metadata?.name} does not run: ${container?.reason} ${container?.message}; its log is in ${logs}`)
  }

  step(`asking the web server over the pod's address: http://${ip}/`)
  const page = await answer(`http://${ip}/`)
  console.log(page.replaceAll(/^/gm, '    ').trimEnd())

  const [, clock = ''] = ids
  const inside = ['wget', '-q', '-O', '-', 'http://localhost/']
  step(`the same from inside, by ExecSync in clock: ${inside.join(' ')}`)
  const exec = await cri.runtime.ExecSync({ container_id: clock, cmd: inside, timeout: '10' })
  if (exec.exit_code !== 0 || exec.stdout.toString() !== page) throw new Error(`ExecSync answered otherwise: exit code ${exec.exit_code}, ${exec.stdout.toString()}${exec.stderr.toString()}`)
  console.log(exec.stdout.toString().replaceAll(/^/gm, '    ').trimEnd())

  step(`the log of clock, ${logs}/clock.log:`)
  console.log((await readFile(join(logs, 'clock.log'), 'utf8')).trimEnd().split('\n').slice(-3).join('\n').replaceAll(/^/gm, '    '))
  step('the pod runs')
  if (interactive) await explore(served.socket, pod, clock)
}

/** The body of a page, asked for again until the server listens. */
async function answer(url: string): Promise<string> {
  const deadline = Date.now() + 20_000
  for (;;) {
    try {
      const response = await fetch(url, { signal: AbortSignal.any([signal, AbortSignal.timeout(5000)]) })
      if (response.ok) return await response.text()
      throw new Error(`${url} answered ${response.status}`)
    } catch (error) {
      signal.throwIfAborted()
      if (Date.now() > deadline) throw new Error(`nothing answers at ${url}: see whether a firewall drops traffic to the pods' bridge (iptables -S FORWARD, nft list ruleset)`, { cause: error })
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }
}

async function explore(socket: string, pod: string, clock: string): Promise<void> {
  const crictl = `crictl --runtime-endpoint unix://${socket}`
  console.log(`
Try more, in another terminal (crictl is part of github.com/kubernetes-sigs/cri-tools):

  alias crictl='${crictl}'
  crictl pods
  crictl ps
  crictl inspectp ${pod.slice(0, 13)}
  crictl logs --tail 3 ${clock.slice(0, 13)}
  crictl exec -s ${clock.slice(0, 13)} ps
  crictl pull docker.io/library/httpd
  crictl images

Ctrl-C ends the pod and removes everything.`)
  if (!signal.aborted) await once(signal, 'abort')
}
