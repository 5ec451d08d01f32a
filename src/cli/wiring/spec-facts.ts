import { readFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import { createConnection } from 'node:net'
import { messageOf } from '../../errors/cri-error.ts'
import { hostDevices } from '../../linux/host-devices.ts'
import type { Linux, HostFacts as LinuxFacts } from '../../linux/linux.ts'
import type { Logger } from '../../observability/logger.ts'
import type { HostFacts } from '../../oci-spec/input.ts'
import { profileOfAttribute } from '../../oci-spec/apparmor-profile.ts'
import { ApparmorProfiles } from './apparmor.ts'

const modes = { v1: 'legacy', v2: 'unified', hybrid: 'hybrid' } as const
const capSysResource = 1n << 24n

export interface SpecFactsOptions {
  readonly linux: Linux
  readonly log: Logger
  /** Path of containerd's socket. */
  readonly containerdSocket: string
  readonly enableSelinux: boolean
  readonly disableApparmor: boolean
  /** A directory that a reboot empties. */
  readonly stateDir: string
}

/** What OCI specs are made by: the machine, and what containerd (whose shims run runc) may do on it. */
export class SpecFacts {
  readonly #options: SpecFactsOptions
  readonly #machine: LinuxFacts
  #facts: HostFacts
  #searchPath = process.env['PATH'] ?? ''
  readonly #apparmor: ApparmorProfiles
  #managerProfile = 'unconfined'
  #told = false

  private constructor(options: SpecFactsOptions, machine: LinuxFacts, facts: HostFacts) {
    this.#options = options
    this.#machine = machine
    this.#facts = facts
    this.#apparmor = new ApparmorProfiles({
      log: options.log, stateDir: options.stateDir, managerProfile: () => Promise.resolve(this.#managerProfile),
      // Inside a container (`container` is what tells) the profiles of the node are not ours to load.
      enabled: machine.apparmorEnabled && !options.disableApparmor && (process.env['container'] ?? '') === '',
    })
  }

  static async probe(options: SpecFactsOptions): Promise<SpecFacts> {
    const machine = await options.linux.probeHost()
    const own = await processPowers('self')
    return new SpecFacts(options, machine, specFacts(machine, own, options.enableSelinux))
  }

  get machine(): LinuxFacts {
    return this.#machine
  }

  /** All but the AppArmor profiles and the devices. */
  get facts(): HostFacts {
    return this.#facts
  }

  /** With the AppArmor profiles that are loaded in this moment, for a spec that is made now. */
  async current(): Promise<HostFacts> {
    return { ...this.#facts, ...await this.#apparmor.facts() }
  }

  /** The PATH by which containerd's shims find runtimes; this process's own while containerd's is not known. */
  get searchPath(): string {
    return this.#searchPath
  }

  /** With the devices of /dev, for a privileged container. */
  async withDevices(): Promise<HostFacts> {
    const devices = await hostDevices()
    return {
      ...await this.current(),
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
      this.#managerProfile = profileOfAttribute(await readFile(`/proc/${process}/attr/current`, 'utf8').catch(() => ''))
      this.#facts = specFacts(this.#machine, powers, enableSelinux)
    } catch (error) {
      log.warn({ err: error }, `cannot find out what containerd may do, going by this process instead: ${messageOf(error)}`)
    }
    // Loads the default profile before the first container asks for it.
    await this.#apparmor.facts()
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

function specFacts(machine: LinuxFacts, powers: ProcessPowers, enableSelinux: boolean): HostFacts {
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
    apparmorEnabled: false,
    apparmorProfiles: new Set(),
    selinuxEnabled: enableSelinux && machine.selinuxEnabled,
    hostDevices: [],
  }
}
