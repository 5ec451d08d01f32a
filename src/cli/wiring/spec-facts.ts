import { readFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import { createConnection } from 'node:net'
import { messageOf } from '../../errors/cri-error.ts'
import { hostDevices } from '../../linux/host-devices.ts'
import type { Linux, HostFacts as LinuxFacts } from '../../linux/linux.ts'
import type { Logger } from '../../observability/logger.ts'
import type { HostFacts } from '../../oci-spec/input.ts'
import { DEFAULT_APPARMOR_PROFILE } from '../../oci-spec/apparmor.ts'

const modes = { v1: 'legacy', v2: 'unified', hybrid: 'hybrid' } as const
const capSysResource = 1n << 24n

export interface SpecFactsOptions {
  readonly linux: Linux
  readonly log: Logger
  /** Path of containerd's socket. */
  readonly containerdSocket: string
  readonly enableSelinux: boolean
}

/** What OCI specs are made by: the machine, and what containerd (whose shims run runc) may do on it. */
export class SpecFacts {
  readonly #options: SpecFactsOptions
  readonly #machine: LinuxFacts
  #facts: HostFacts
  #searchPath = process.env['PATH'] ?? ''
  #told = false
  #toldApparmor = false

  private constructor(options: SpecFactsOptions, machine: LinuxFacts, facts: HostFacts) {
    this.#options = options
    this.#machine = machine
    this.#facts = facts
  }

  static async probe(options: SpecFactsOptions): Promise<SpecFacts> {
    const machine = await options.linux.probeHost()
    const own = await processPowers('self')
    return new SpecFacts(options, machine, specFacts(machine, own, options.enableSelinux, await apparmorProfiles(machine.apparmorEnabled)))
  }

  get machine(): LinuxFacts {
    return this.#machine
  }

  /** For a spec now. */
  get facts(): HostFacts {
    return this.#facts
  }

  /** The PATH by which containerd's shims find runtimes; this process's own while containerd's is not known. */
  get searchPath(): string {
    return this.#searchPath
  }

  /** With the devices of /dev, for a privileged container. */
  async withDevices(): Promise<HostFacts> {
    const devices = await hostDevices()
    return {
      ...this.#facts,
      hostDevices: devices.map((device) => ({
        path: device.path, type: device.type === 'block-device' ? 'b' as const : 'c' as const, major: device.major, minor: device.minor, fileMode: device.mode,
        uid: device.uid, gid: device.gid, permissions: 'rwm',
      })),
    }
  }

  /** Asks what the containerd that answers now may do. Called whenever a connection to it was made anew. */
  async refresh(): Promise<void> {
    const { log, linux, containerdSocket, enableSelinux } = this.#options
    try {
      const pid = await peerPid(linux, containerdSocket)
      // 0: in a PID namespace that is not ours to see.
      const process = pid === 0 ? 'self' : String(pid)
      const powers = await processPowers(process)
      this.#searchPath = await searchPathOf(process)
      this.#facts = specFacts(this.#machine, powers, enableSelinux, await apparmorProfiles(this.#machine.apparmorEnabled))
    } catch (error) {
      log.warn({ err: error }, `cannot find out what containerd may do, going by this process instead: ${messageOf(error)}`)
    }
    if (!this.#toldApparmor && this.#machine.apparmorEnabled && !this.#facts.apparmorEnabled) {
      this.#toldApparmor = true
      log.warn({ profile: DEFAULT_APPARMOR_PROFILE }, `AppArmor is on and its profile ${DEFAULT_APPARMOR_PROFILE} is not loaded: containers run without AppArmor confinement, and pods that ask for a profile are refused; load it with apparmor_parser and restart cri-shim`)
    }
    if (!this.#told && (this.#facts.effectiveCapabilities & capSysResource) === 0n) {
      this.#told = true
      log.warn({ oomScoreAdj: this.#facts.ownOomScoreAdj }, 'containerd has no CAP_SYS_RESOURCE: no container can get a lower oom_score_adj than containerd has; it is clamped, as restrict_oom_score_adj = true would do')
    }
  }
}

interface ProcessPowers {
  readonly effectiveCapabilities: bigint
  readonly oomScoreAdj: number
}

async function processPowers(pid: string): Promise<ProcessPowers> {
  const [status, oom] = await Promise.all([readFile(`/proc/${pid}/status`, 'utf8'), readFile(`/proc/${pid}/oom_score_adj`, 'utf8')])
  return { effectiveCapabilities: BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'}`), oomScoreAdj: Number(oom.trim()) }
}

async function searchPathOf(pid: string): Promise<string> {
  const variables = (await readFile(`/proc/${pid}/environ`, 'utf8')).split('\0')
  return variables.find((variable) => variable.startsWith('PATH='))?.slice('PATH='.length) ?? ''
}

/** Who listens on a socket. */
async function peerPid(linux: Linux, path: string): Promise<number> {
  const socket = createConnection(path)
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve)
      socket.once('error', reject)
    })
    // Node has no SO_PEERCRED; the descriptor is behind the socket's handle.
    const fd = (socket as unknown as { readonly _handle?: { readonly fd?: number } })._handle?.fd
    if (fd === undefined || fd < 0) throw new TypeError('the connection has no file descriptor')
    return (await linux.peerCredentials(fd)).pid
  } finally {
    socket.destroy()
  }
}

async function apparmorProfiles(enabled: boolean): Promise<ReadonlySet<string>> {
  if (!enabled) return new Set()
  try {
    const text = await readFile('/sys/kernel/security/apparmor/profiles', 'utf8')
    return new Set(text.split('\n').filter((line) => line !== '').map((line) => line.replace(/ \([a-z]+\)$/, '')))
  } catch {
    // securityfs is not mounted: nobody can say which profiles there are.
    return new Set()
  }
}

function specFacts(machine: LinuxFacts, powers: ProcessPowers, enableSelinux: boolean, profiles: ReadonlySet<string>): HostFacts {
  return {
    hostname: hostname(),
    arch: machine.arch,
    kernel: [machine.kernelMajor, machine.kernelMinor],
    cgroupMode: modes[machine.cgroup.mode],
    swapControllerAvailable: machine.swapController,
    hugetlbControllerPresent: machine.hugetlbController,
    possibleCpus: machine.possibleCpus,
    possibleMemoryNodes: machine.possibleMemoryNodes,
    effectiveCapabilities: powers.effectiveCapabilities,
    capLastCap: machine.capabilities.last,
    ownOomScoreAdj: powers.oomScoreAdj,
    seccompEnabled: machine.seccompAvailable,
    // Without the default profile in the kernel no container could start under it.
    apparmorEnabled: machine.apparmorEnabled && profiles.has(DEFAULT_APPARMOR_PROFILE),
    apparmorProfiles: profiles,
    selinuxEnabled: enableSelinux && machine.selinuxEnabled,
    hostDevices: [],
  }
}
