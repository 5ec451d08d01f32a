import { invalidArgument } from '../errors/cri-error.ts'
import { NamespaceMode } from '../generated/cri.ts'
import { passThroughAnnotations, sandboxAnnotations } from './annotations.ts'
import { apparmorProfile } from './apparmor.ts'
import { cgroupsPath } from './cgroups-path.ts'
import { defaultSpec } from './default-spec.ts'
import type { SandboxSpecInput } from './input.ts'
import { SYSFS_BIND, writableKernelMount } from './mounts.ts'
import { requireSandboxModes, withNamespace, withoutNamespace } from './namespaces.ts'
import { oomScoreAdj } from './oom.ts'
import { environment, processArgs, processUser, workingDirectory } from './process.ts'
import { seccompProfile, seccompRequest } from './seccomp.ts'
import { requireLabels } from './selinux.ts'
import { podSysctls } from './sysctls.ts'
import type { OciLinux, OciMount, OciNamespace, OciProcess, OciSpec } from './types.ts'
import { requireMapped, type UserNamespaceMappings, userNamespaceMappings } from './user-namespace.ts'

/** Among the last that the kernel kills: with the pause process its pod's namespaces would go. */
const SANDBOX_OOM_SCORE_ADJ = -998
const SANDBOX_CPU_SHARES = 2
/** A user namespace demands these flags on a remount; the pause process does without what they take. */
const BIND_OPTIONS = ['rbind', 'ro', 'nosuid', 'nodev', 'noexec']

/**
 * The OCI runtime spec of a pod's pause container (RunPodSandbox). Its root is always read-only. Throws INVALID_ARGUMENT for a pod that
 * contradicts itself, FAILED_PRECONDITION for one that this node cannot fulfil.
 */
export function sandboxSpec(input: SandboxSpecInput): OciSpec {
  const { podConfig, runtime } = input
  const context = podConfig.linux?.security_context ?? null
  const namespaces = context?.namespace_options ?? null
  const hostNetwork = namespaces?.network === NamespaceMode.NODE
  requireSupported(input, hostNetwork)
  const base = defaultSpec()
  const mappings = userNamespaceMappings(namespaces?.userns_options)
  requireMapped(mappings, input.user)
  const process = sandboxProcess(input, base)
  return {
    ...base,
    process,
    root: { path: 'rootfs', readonly: true },
    ...(podConfig.hostname === '' ? {} : { hostname: podConfig.hostname }),
    mounts: sandboxMounts(input, base.mounts ?? [], hostNetwork && mappings !== undefined),
    annotations: {
      ...passThroughAnnotations(podConfig.annotations, runtime.podAnnotations),
      ...sandboxAnnotations(input.sandboxId, input.imageName, podConfig),
    },
    linux: sandboxLinux(input, base.linux ?? {}, process.capabilities?.bounding ?? [], mappings),
  }
}

function requireSupported({ podConfig, netnsPath, selinux, hostFacts }: SandboxSpecInput, hostNetwork: boolean): void {
  if (podConfig.windows !== null) throw invalidArgument('the pod has a windows section: this is a Linux node')
  requireSandboxModes(podConfig.linux?.security_context?.namespace_options ?? null)
  requireLabels(podConfig.linux?.security_context?.selinux_options ?? null, selinux, hostFacts)
  if (hostNetwork && podConfig.hostname !== '') throw invalidArgument(`the pod has the hostname "${podConfig.hostname}", but on the node's network it has the node's`)
  if (podConfig.hostname !== '' && !/^[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?$/.test(podConfig.hostname)) {
    throw invalidArgument(`hostname "${podConfig.hostname}" is not one: letters, digits, "-" and ".", at most 64 of them`)
  }
  if (!hostNetwork && netnsPath === undefined) throw invalidArgument('the pod has a network of its own, but no network namespace was made for it')
}

function sandboxProcess(input: SandboxSpecInput, base: OciSpec): OciProcess {
  const { imageConfig, podConfig, user, hostFacts, settings } = input
  const context = podConfig.linux?.security_context ?? null
  const apparmor = apparmorProfile({
    apparmor: context?.apparmor ?? null, apparmorProfile: '', privileged: context?.privileged ?? false, unset: 'unconfined', hostFacts, settings,
  })
  // The level of a privileged pod is kept for its containers; its own process is not confined.
  const label = context?.privileged === true ? '' : input.selinux?.processLabel ?? ''
  return {
    ...(base.process ?? { cwd: '/', user: { uid: 0, gid: 0 } }),
    args: processArgs({ command: [], args: [] }, imageConfig),
    cwd: workingDirectory('', imageConfig.WorkingDir),
    env: environment({ base: [], image: imageConfig.Env, request: [], hostname: undefined, tty: false, home: user.home }),
    user: processUser(user),
    noNewPrivileges: true,
    oomScoreAdj: oomScoreAdj(SANDBOX_OOM_SCORE_ADJ, hostFacts, settings),
    ...(apparmor === undefined ? {} : { apparmorProfile: apparmor }),
    ...(label === '' ? {} : { selinuxLabel: label }),
  }
}

function sandboxLinux(input: SandboxSpecInput, base: OciLinux, capabilities: readonly string[], mappings: UserNamespaceMappings | undefined): OciLinux {
  const { podConfig, hostFacts, runtime, settings } = input
  const linux = podConfig.linux
  const context = linux?.security_context ?? null
  const seccomp = seccompProfile(seccompRequest(context, settings, hostFacts), input.seccompProfile, { arch: hostFacts.arch, kernel: hostFacts.kernel, capabilities })
  const sysctl = podSysctls({
    sysctls: linux?.sysctls ?? {},
    namespaces: context?.namespace_options ?? null,
    userNamespace: mappings !== undefined,
    inUserNamespace: hostFacts.inUserNamespace ?? false,
    settings,
  })
  const mountLabel = input.selinux?.mountLabel ?? ''
  return {
    ...base,
    ...(mappings === undefined ? {} : { uidMappings: mappings.uids, gidMappings: mappings.gids }),
    namespaces: sandboxNamespaces(input, base.namespaces ?? [], mappings !== undefined),
    resources: { ...base.resources, cpu: { shares: SANDBOX_CPU_SHARES } },
    ...(settings.disableCgroup ? {} : { cgroupsPath: cgroupsPath({ cgroupParent: linux?.cgroup_parent ?? '', systemdCgroup: runtime.systemdCgroup, id: input.sandboxId }) }),
    ...(Object.keys(sysctl).length === 0 ? {} : { sysctl }),
    ...(seccomp === undefined ? {} : { seccomp }),
    ...(mountLabel === '' ? {} : { mountLabel }),
  }
}

function sandboxNamespaces(input: SandboxSpecInput, base: readonly OciNamespace[], userNamespace: boolean): OciNamespace[] {
  const options = input.podConfig.linux?.security_context?.namespace_options ?? null
  let result: OciNamespace[]
  if (options?.network === NamespaceMode.NODE) result = withoutNamespace(withoutNamespace(base, 'network'), 'uts')
  else result = withNamespace(base, { type: 'network', ...(input.netnsPath === undefined ? {} : { path: input.netnsPath }) })
  if (options?.pid === NamespaceMode.NODE) result = withoutNamespace(result, 'pid')
  if (options?.ipc === NamespaceMode.NODE) result = withoutNamespace(result, 'ipc')
  if (!userNamespace) return result
  return withNamespace(result, { type: 'user', ...(input.usernsPath === undefined ? {} : { path: input.usernsPath }) })
}

function sandboxMounts(input: SandboxSpecInput, base: readonly OciMount[], bindSysfs: boolean): OciMount[] {
  return [
    ...base.filter(({ destination }) => destination !== '/dev/shm').map((mount) => (bindSysfs && mount.destination === '/sys' ? SYSFS_BIND : mount))
      // A network namespace has one sysfs: whoever mounts it first decides for the pod's containers whether it can be written.
      .map((mount) => (input.podConfig.linux?.security_context?.privileged === true ? writableKernelMount(mount) : mount)),
    { destination: '/dev/shm', type: 'bind', source: input.shmPath, options: [...BIND_OPTIONS] },
    // VM-based runtimes take the pod's DNS from here.
    { destination: '/etc/resolv.conf', type: 'bind', source: input.resolvConfPath, options: [...BIND_OPTIONS] },
  ]
}
