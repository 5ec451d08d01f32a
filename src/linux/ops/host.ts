import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { arch, cpus, release, totalmem } from 'node:os'
import { posix } from 'node:path'
import { naming } from '../errno.ts'
import type { CgroupMounts } from '../cgroups.ts'
import { cgroupMounts } from './cgroups.ts'
import { readMountInfo } from './mounts.ts'

/** What this machine is and allows, as it was when asked. */
export interface HostFacts {
  /** `6.1.0-18-amd64` */
  readonly kernelRelease: string
  readonly kernelMajor: number
  readonly kernelMinor: number
  /** As Go and OCI write it: amd64, arm64. */
  readonly arch: string
  readonly cpus: number
  readonly memoryTotalBytes: number
  readonly swapTotalBytes: number
  /** Where the cgroup hierarchies are, and every controller that is usable, v1 and v2. */
  readonly cgroup: CgroupMounts & { readonly controllers: readonly string[] }
  readonly capabilities: {
    /** Of this process, `CAP_SYS_ADMIN` and so on. */
    readonly effective: readonly string[]
    readonly bounding: readonly string[]
    /** The highest capability number that the kernel knows. */
    readonly last: number
  }
  /** Of this process: without CAP_SYS_RESOURCE no process can be given a lower one. */
  readonly oomScoreAdj: number
  readonly apparmorEnabled: boolean
  /** Whether apparmor_parser is installed, which loads profiles. */
  readonly apparmorParser: boolean
  readonly selinuxEnabled: boolean
  readonly seccompAvailable: boolean
  /** As CRI writes them: `2MB`, `1GB`. */
  readonly hugepageSizes: readonly string[]
  readonly hugetlbController: boolean
  /** What there can ever be, as the kernel lists it: `0-7`; undefined where it does not say. */
  readonly possibleCpus: string | undefined
  readonly possibleMemoryNodes: string | undefined
  readonly userNamespaces: boolean
  /** Whether a limit can be set on swap: that needs a kernel with swap accounting (for v1 and old kernels: swapaccount=1). */
  readonly swapController: boolean
}

const capabilityNames = (
  'CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST ' +
  'NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE ' +
  'SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND ' +
  'AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE'
).split(' ')

/** The names in a capability mask of /proc/PID/status (hexadecimal); one that has no name yet is `CAP_<number>`. */
export function capabilitiesOf(mask: string, last: number): string[] {
  const bits = BigInt(`0x${mask}`)
  const names: string[] = []
  for (let bit = 0; bit <= last; bit += 1) if (((bits >> BigInt(bit)) & 1n) === 1n) names.push(`CAP_${capabilityNames[bit] ?? bit}`)
  return names
}

/** `hugepages-2048kB` → `2MB`: the largest unit that divides it. */
export function hugepageSize(directory: string): string | undefined {
  const kilobytes = Number(/^hugepages-([0-9]+)kB$/.exec(directory)?.[1])
  if (!Number.isInteger(kilobytes)) return undefined
  if (kilobytes % 2 ** 20 === 0) return `${kilobytes / 2 ** 20}GB`
  return kilobytes % 2 ** 10 === 0 ? `${kilobytes / 2 ** 10}MB` : `${kilobytes}KB`
}

const goArchitectures: Readonly<Record<string, string>> = {
  x64: 'amd64',
  ia32: '386',
  arm: 'arm',
  arm64: 'arm64',
  ppc64: 'ppc64le',
  riscv64: 'riscv64',
  s390x: 's390x',
  loong64: 'loong64',
}

/** A small file of /proc or /sys; undefined when it is not there or not for us. */
function optional(path: string): string | undefined {
  try {
    return readFileSync(path, 'latin1').trim()
  } catch {
    return undefined
  }
}

/**
 * Whether cgroup v2 limits swap here. The root has no such file whatever the kernel can: there a cgroup below it tells.
 * `own` is the text of /proc/self/cgroup.
 */
export function swapLimitV2(mountPoint: string, own: string): boolean {
  const path = /^0::(.*)$/m.exec(own)?.[1] ?? '/'
  const has = (dir: string): boolean => existsSync(`${dir}/memory.swap.max`)
  if (path !== '/') return has(posix.join(mountPoint, path))
  try {
    return readdirSync(mountPoint, { withFileTypes: true }).some((entry) => entry.isDirectory() && has(posix.join(mountPoint, entry.name)))
  } catch {
    return false
  }
}

/** @see Linux.probeHost */
export function probeHost(): HostFacts {
  const mounts = readMountInfo()
  const cgroup = cgroupMounts(mounts)
  const unified = cgroup.v2 === undefined ? [] : (optional(`${cgroup.v2}/cgroup.controllers`) ?? '').split(' ')
  const controllers = [...new Set([...Object.keys(cgroup.v1), ...unified])].filter((name) => name !== '' && !name.startsWith('name=')).sort()
  const status = naming('read /proc/self/status', () => readFileSync('/proc/thread-self/status', 'latin1'))
  const field = (name: string): string | undefined => new RegExp(`^${name}:\\s*(\\S+)`, 'm').exec(status)?.[1]
  const last = Number(optional('/proc/sys/kernel/cap_last_cap') ?? capabilityNames.length - 1)
  const memory = optional('/proc/meminfo') ?? ''
  const kilobytes = (name: string): number | undefined => {
    const value = new RegExp(`^${name}:\\s*([0-9]+) kB`, 'm').exec(memory)?.[1]
    return value === undefined ? undefined : Number(value) * 1024
  }
  const [major, minor] = release().split('.')
  const huge = existsSync('/sys/kernel/mm/hugepages') ? readdirSync('/sys/kernel/mm/hugepages') : []
  const memoryV1 = cgroup.v1['memory']
  return {
    kernelRelease: release(),
    kernelMajor: Number.parseInt(major ?? '0', 10),
    kernelMinor: Number.parseInt(minor ?? '0', 10),
    arch: goArchitectures[arch()] ?? arch(),
    cpus: cpus().length,
    memoryTotalBytes: kilobytes('MemTotal') ?? totalmem(),
    swapTotalBytes: kilobytes('SwapTotal') ?? 0,
    cgroup: { ...cgroup, controllers },
    capabilities: { effective: capabilitiesOf(field('CapEff') ?? '0', last), bounding: capabilitiesOf(field('CapBnd') ?? '0', last), last },
    oomScoreAdj: Number(optional('/proc/self/oom_score_adj') ?? 0),
    apparmorEnabled: optional('/sys/module/apparmor/parameters/enabled')?.startsWith('Y') === true && existsSync('/sys/kernel/security/apparmor'),
    apparmorParser: ['/sbin/apparmor_parser', '/usr/sbin/apparmor_parser'].some((path) => statSync(path, { throwIfNoEntry: false })?.isFile() === true),
    selinuxEnabled: mounts.some(({ fstype }) => fstype === 'selinuxfs') && existsSync('/sys/fs/selinux/enforce'),
    seccompAvailable: field('Seccomp') !== undefined && existsSync('/proc/sys/kernel/seccomp/actions_avail'),
    hugepageSizes: huge.map(hugepageSize).filter((size) => size !== undefined).sort(),
    hugetlbController: controllers.includes('hugetlb'),
    possibleCpus: optional('/sys/devices/system/cpu/possible'),
    possibleMemoryNodes: optional('/sys/devices/system/node/possible'),
    userNamespaces: existsSync('/proc/self/ns/user') && Number(optional('/proc/sys/user/max_user_namespaces') ?? 0) > 0,
    swapController: memoryV1 === undefined ? cgroup.v2 !== undefined && swapLimitV2(cgroup.v2, optional('/proc/self/cgroup') ?? '') : existsSync(`${memoryV1}/memory.memsw.limit_in_bytes`),
  }
}
