import { type FSWatcher, watch } from 'node:fs'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { ContainerConfig, PodSandboxConfig } from '../src/generated/cri.ts'
import type { Init } from '../src/generated/int64.ts'
import { busyboxImage } from '../test/images/catalog.ts'
import type { Side } from './side.ts'

export const benchImage = busyboxImage

/** A pod as the kubelet asks for it: DNS, labels, annotations, a cgroup parent, logs. */
export interface PodPlan {
  readonly name: string
  readonly config: Init<PodSandboxConfig>
  readonly logDir: string
}

export interface ContainerPlan {
  readonly config: Init<ContainerConfig>
  readonly logFile: string
}

/** What the container prints once a SIGTERM ends it at once. */
const upLine = 'up'

/** Makes the directories of a pod and says what to ask for. */
export async function planPod(side: Side, name: string): Promise<PodPlan> {
  const uid = `${side.name}-${name}`
  const logDir = join(side.dir, 'logs', uid)
  await mkdir(logDir, { recursive: true })
  return {
    name,
    logDir,
    config: {
      metadata: { name, uid, namespace: 'bench', attempt: 0 },
      hostname: name,
      log_directory: logDir,
      dns_config: { servers: ['10.96.0.10'], searches: ['bench.svc.cluster.local', 'svc.cluster.local', 'cluster.local'], options: ['ndots:5'] },
      labels: { 'app': 'bench', 'io.kubernetes.pod.name': name, 'io.kubernetes.pod.namespace': 'bench', 'io.kubernetes.pod.uid': uid },
      annotations: { 'kubernetes.io/config.source': 'api', 'kubernetes.io/config.seen': '2026-01-01T00:00:00Z' },
      linux: { cgroup_parent: side.cgroupParent, security_context: { namespace_options: { pid: 1 } }, resources: { cpu_shares: '2' } },
    },
  }
}

/** A container as the kubelet asks for it: environment, /etc/hosts and termination log from the host, masked paths, resources. */
export async function planContainer(pod: PodPlan, name: string): Promise<ContainerPlan> {
  const logPath = `${name}/0.log`
  await mkdir(join(pod.logDir, name), { recursive: true })
  const [hosts, terminationLog] = [join(pod.logDir, `${name}.hosts`), join(pod.logDir, `${name}.termination-log`)]
  await writeFile(hosts, '127.0.0.1\tlocalhost\n')
  await writeFile(terminationLog, '')
  const services = ['KUBERNETES', 'DATABASE', 'QUEUE', 'CACHE'].flatMap((service, at) => [
    [`${service}_SERVICE_HOST`, `10.96.0.${at + 1}`], [`${service}_SERVICE_PORT`, '443'], [`${service}_PORT`, `tcp://10.96.0.${at + 1}:443`],
  ] as const)
  return {
    logFile: join(pod.logDir, logPath),
    config: {
      metadata: { name, attempt: 0 },
      image: { image: benchImage },
      command: ['/bin/sh', '-c', `trap 'exit 0' TERM; echo ${upLine}; sleep 1000000 & wait`],
      envs: services.map(([key, value]) => ({ key, value: Buffer.from(value) })),
      mounts: [{ container_path: '/etc/hosts', host_path: hosts }, { container_path: '/dev/termination-log', host_path: terminationLog }],
      labels: { 'io.kubernetes.container.name': name, 'io.kubernetes.pod.name': pod.name, 'io.kubernetes.pod.namespace': 'bench' },
      annotations: { 'io.kubernetes.container.hash': '5f3c2a1b', 'io.kubernetes.container.restartCount': '0', 'io.kubernetes.container.terminationMessagePath': '/dev/termination-log' },
      log_path: logPath,
      linux: {
        resources: { cpu_shares: '2', cpu_period: '100000', oom_score_adj: '1000' },
        security_context: {
          namespace_options: { pid: 1 },
          masked_paths: ['/proc/asound', '/proc/acpi', '/proc/kcore', '/proc/keys', '/proc/latency_stats', '/proc/timer_list', '/proc/timer_stats', '/proc/sched_debug', '/proc/scsi', '/sys/firmware'],
          readonly_paths: ['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger'],
        },
      },
    },
  }
}

/** How long a started container may take to print its first line, in milliseconds. */
const upTimeoutMs = 30_000

/** Waits until the container's log says that it is up. Rejects when that does not happen, or the signal aborts. */
export async function waitUntilUp({ logFile }: ContainerPlan, signal: AbortSignal): Promise<void> {
  let watcher: FSWatcher | undefined
  const timeout = AbortSignal.timeout(upTimeoutMs)
  const stop = AbortSignal.any([signal, timeout])
  try {
    await new Promise<void>((resolve, reject) => {
      const look = (): void => {
        readFile(logFile, 'utf8').then((log) => { if (log.endsWith(` stdout F ${upLine}\n`)) resolve() }, (error: NodeJS.ErrnoException) => { if (error.code !== 'ENOENT') reject(error) })
      }
      stop.addEventListener('abort', () => {
        reject(timeout.aborted ? new Error(`the container did not print "${upLine}" to ${logFile} within ${upTimeoutMs / 1000} s`) : new Error('interrupted', { cause: signal.reason }))
      })
      watcher = watch(join(logFile, '..'), look).on('error', reject)
      look()
    })
  } finally {
    watcher?.close()
  }
}
