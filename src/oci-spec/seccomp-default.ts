import { ALLOWED_BY_ARCH, ALLOWED_BY_CAPABILITY, ALLOWED_FROM_4_8, ALLOWED_PERSONALITIES, ALWAYS_ALLOWED, SECCOMP_ARCHITECTURES } from './seccomp-data.ts'
import type { OciSeccomp, OciSeccompArg, OciSyscallRule } from './types.ts'

const AF_ALG = 38
const AF_VSOCK = 40
const ENOSYS = 38
/** CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET */
const CLONE_NAMESPACES = 0x7e020000

export interface SeccompFacts {
  /** GOARCH */
  readonly arch: string
  /** The container's bounding set. */
  readonly capabilities: readonly string[]
  /** Kernel version: major, minor. */
  readonly kernel: readonly [number, number]
}

/** The RuntimeDefault profile: everything refused with EPERM but the list of seccomp-data.ts. */
export function defaultSeccompProfile({ arch, capabilities, kernel }: SeccompFacts): OciSeccomp {
  const rules = [
    allow([...ALWAYS_ALLOWED]),
    // Three ranges, since a runtime treats two conditions on one argument as "or": AF_ALG and AF_VSOCK match none of them.
    allow(['socket'], { index: 0, value: AF_ALG, op: 'SCMP_CMP_LT' }),
    allow(['socket'], { index: 0, value: AF_ALG + 1, op: 'SCMP_CMP_EQ' }),
    allow(['socket'], { index: 0, value: AF_VSOCK, op: 'SCMP_CMP_GT' }),
    ...ALLOWED_PERSONALITIES.map((value) => allow(['personality'], { index: 0, value, op: 'SCMP_CMP_EQ' })),
  ]
  if (kernelAtLeast(kernel, [4, 8])) rules.push(allow([...ALLOWED_FROM_4_8]))
  const byArch = ALLOWED_BY_ARCH[arch]
  if (byArch !== undefined) rules.push(allow([...byArch]))
  for (const capability of capabilities) {
    const names = ALLOWED_BY_CAPABILITY[capability]
    if (names !== undefined) rules.push(allow([...names]))
  }
  if (!capabilities.includes('CAP_SYS_ADMIN')) {
    // clone(2) without a new namespace. Its flags are the second argument on s390.
    rules.push(allow(['clone'], { index: arch === 's390x' ? 1 : 0, value: CLONE_NAMESPACES, valueTwo: 0, op: 'SCMP_CMP_MASKED_EQ' }))
    // clone3's flags are behind a pointer. ENOSYS makes a C library fall back to clone; EPERM would make it give up.
    rules.push({ names: ['clone3'], action: 'SCMP_ACT_ERRNO', errnoRet: ENOSYS })
  }
  return { defaultAction: 'SCMP_ACT_ERRNO', architectures: [...(SECCOMP_ARCHITECTURES[arch] ?? [])], syscalls: rules }
}

/** Whether a kernel is at least of a version. */
export function kernelAtLeast(kernel: readonly [number, number], wanted: readonly [number, number]): boolean {
  return kernel[0] > wanted[0] || (kernel[0] === wanted[0] && kernel[1] >= wanted[1])
}

const allow = (names: string[], ...args: OciSeccompArg[]): OciSyscallRule => ({ names, action: 'SCMP_ACT_ALLOW', args })
