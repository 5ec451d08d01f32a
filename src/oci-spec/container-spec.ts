import { failedPrecondition, invalidArgument } from '../errors/cri-error.ts'
import { NamespaceMode } from '../generated/cri.ts'
import { containerAnnotations, passThroughAnnotations } from './annotations.ts'
import { apparmorProfile } from './apparmor.ts'
import { containerCapabilities, privilegedCapabilities } from './capabilities.ts'
import { applyCdiEdits } from './cdi/apply.ts'
import { requestedCdiDevices } from './cdi/names.ts'
import { cgroupsPath } from './cgroups-path.ts'
import { defaultSpec } from './default-spec.ts'
import { linuxDevices } from './devices.ts'
import type { ContainerSpecInput } from './input.ts'
import { containerMounts } from './mounts.ts'
import { containerNamespaces } from './namespaces.ts'
import { oomScoreAdj } from './oom.ts'
import { environment, processArgs, processUser, workingDirectory } from './process.ts'
import { linuxResources } from './resources.ts'
import { seccompProfile, seccompRequest } from './seccomp.ts'
import { requireLabels } from './selinux.ts'
import type { OciLinux, OciProcess, OciSpec } from './types.ts'
import { requireMapped, requireSameUserNamespace, userNamespaceMappings } from './user-namespace.ts'

/**
 * The OCI runtime spec of a container (CreateContainer). Throws INVALID_ARGUMENT for a request that contradicts itself or its pod, and
 * FAILED_PRECONDITION for one that this node cannot fulfil; the message says what to change.
 */
export function containerSpec(input: ContainerSpecInput): OciSpec {
  requireSupported(input)
  const base = input.runtime.baseSpec === undefined ? defaultSpec() : structuredClone(input.runtime.baseSpec)
  const process = containerProcess(input, base)
  const isPrivileged = privileged(input)
  const { mounts, rootfsPropagation } = containerMounts({
    base: base.mounts ?? [],
    mounts: input.mounts,
    privileged: isPrivileged,
    cgroupNamespace: hasCgroupNamespace(input),
    bindSysfs: podNamespaces(input)?.network === NamespaceMode.NODE && userNamespace(input) !== undefined,
    hostFacts: input.hostFacts,
    runtime: input.runtime,
  })
  const spec: OciSpec = {
    ...base,
    process,
    root: { path: 'rootfs', readonly: securityContext(input)?.readonly_rootfs ?? false },
    mounts,
    annotations: {
      ...base.annotations,
      ...passThroughAnnotations(input.podConfig.annotations, input.runtime.podAnnotations),
      ...passThroughAnnotations(input.config.annotations, input.runtime.containerAnnotations),
      ...containerAnnotations(input.sandboxId, input.containerName, input.imageName, input.podConfig),
    },
    linux: {
      ...containerLinux(input, base, process.capabilities?.bounding ?? []),
      ...(rootfsPropagation === undefined ? {} : { rootfsPropagation }),
    },
  }
  return input.cdi === undefined ? spec : applyCdiEdits(spec, input.cdi)
}

const securityContext = (input: ContainerSpecInput) => input.config.linux?.security_context ?? null
const podNamespaces = (input: ContainerSpecInput) => input.podConfig.linux?.security_context?.namespace_options ?? null
const privileged = (input: ContainerSpecInput): boolean => securityContext(input)?.privileged === true
const userNamespace = (input: ContainerSpecInput) => userNamespaceMappings(securityContext(input)?.namespace_options?.userns_options)

/** A cgroup namespace hides the node's cgroups. As containerd and the kubelet agree, only with cgroup v2 and not for privileged containers. */
const hasCgroupNamespace = (input: ContainerSpecInput): boolean => input.hostFacts.cgroupMode === 'unified' && !privileged(input)

function requireSupported(input: ContainerSpecInput): void {
  const { config } = input
  if (config.windows !== null) throw invalidArgument('the container has a windows section: this is a Linux node')
  if (privileged(input) && input.podConfig.linux?.security_context?.privileged !== true) {
    throw invalidArgument('the container is privileged, but its pod is not: no privileged container is allowed in it')
  }
  const cdi = requestedCdiDevices(config)
  if (cdi.length > 0 && input.cdi === undefined) throw failedPrecondition(`CDI devices were asked for (${cdi.join(', ')}), but this node injects none: enable_cdi = false in the configuration`)
  requireSameUserNamespace(userNamespaceMappings(podNamespaces(input)?.userns_options), userNamespace(input))
  requireMapped(userNamespace(input), input.user)
  requireLabels(securityContext(input)?.selinux_options ?? null, input.selinux, input.hostFacts)
  if (input.sandboxPid <= 0) throw failedPrecondition(`the container's pod ${input.sandboxId} has no running process: its namespaces are gone`)
}

function containerProcess(input: ContainerSpecInput, base: OciSpec): OciProcess {
  const { config, imageConfig, user, hostFacts, settings } = input
  const context = securityContext(input)
  const resources = config.linux?.resources ?? null
  const baseProcess = base.process ?? { cwd: '/', user: { uid: 0, gid: 0 } }
  const { apparmorProfile: baseApparmor, ...rest } = baseProcess
  const apparmor = apparmorProfile({
    apparmor: context?.apparmor ?? null, apparmorProfile: context?.apparmor_profile ?? '', privileged: privileged(input), unset: 'runtime-default', hostFacts, settings,
  }) ?? (privileged(input) ? undefined : baseApparmor)
  const label = privileged(input) ? '' : input.selinux?.processLabel ?? ''
  return {
    ...rest,
    terminal: config.tty,
    args: processArgs(config, imageConfig),
    cwd: workingDirectory(config.working_dir, imageConfig.WorkingDir),
    env: environment({
      base: baseProcess.env ?? [],
      image: imageConfig.Env,
      request: config.envs,
      hostname: input.podConfig.hostname === '' ? hostFacts.hostname : input.podConfig.hostname,
      tty: config.tty,
      home: coversPasswd(input) ? undefined : user.home,
    }),
    user: processUser(user),
    capabilities: privileged(input) ? privilegedCapabilities(hostFacts)
      : containerCapabilities(context?.capabilities ?? null, baseProcess.capabilities?.bounding ?? [], hostFacts),
    noNewPrivileges: context?.no_new_privs ?? false,
    ...(resources === null ? {} : { oomScoreAdj: oomScoreAdj(Number(resources.oom_score_adj), hostFacts, settings) }),
    ...(apparmor === undefined ? {} : { apparmorProfile: apparmor }),
    ...(label === '' ? {} : { selinuxLabel: label }),
  }
}

/** Whether a mount brings another /etc/passwd: then the image's home directory says nothing, and the runtime looks it up at the start. */
function coversPasswd(input: ContainerSpecInput): boolean {
  return input.mounts.some(({ containerPath }) => ['/etc', '/etc/passwd'].includes(containerPath.replace(/\/+$/, '')))
}

function containerLinux(input: ContainerSpecInput, base: OciSpec, capabilities: readonly string[]): OciLinux {
  const { config, podConfig, hostFacts, runtime, settings } = input
  const context = securityContext(input)
  const baseLinux = base.linux ?? {}
  const { seccomp: baseSeccomp, cgroupsPath: _path, ...rest } = baseLinux
  const mappings = userNamespace(input)
  const seccomp = seccompProfile(seccompRequest(context, settings, hostFacts), input.seccompProfile, { arch: hostFacts.arch, kernel: hostFacts.kernel, capabilities }) ??
    (privileged(input) ? undefined : baseSeccomp)
  const { devices, rules, allAllowed } = linuxDevices({ devices: input.devices, securityContext: context, hostFacts, runtime, settings })
  const baseRules = baseLinux.resources?.devices ?? [{ allow: false, access: 'rwm' }]
  const resources = config.linux?.resources ?? null
  const mountLabel = input.selinux?.mountLabel ?? ''
  return {
    ...rest,
    ...(mappings === undefined ? {} : { uidMappings: mappings.uids, gidMappings: mappings.gids }),
    namespaces: containerNamespaces({
      base: baseLinux.namespaces ?? [],
      sandbox: podNamespaces(input),
      container: context?.namespace_options ?? null,
      sandboxPid: input.sandboxPid,
      targetPid: input.targetPid,
      netnsPath: input.netnsPath,
      userNamespace: mappings !== undefined,
      cgroupNamespace: hasCgroupNamespace(input),
    }),
    ...(devices.length === 0 ? {} : { devices: [...(baseLinux.devices ?? []), ...devices] }),
    resources: {
      ...baseLinux.resources,
      ...(resources === null || settings.disableCgroup ? {} : linuxResources(resources, hostFacts, settings, baseLinux.resources)),
      ...(input.blockIO === undefined || settings.disableCgroup ? {} : { blockIO: input.blockIO }),
      devices: allAllowed ? [{ allow: true, access: 'rwm' }] : [...baseRules, ...rules],
    },
    ...(settings.disableCgroup ? {}
      : { cgroupsPath: cgroupsPath({ cgroupParent: podConfig.linux?.cgroup_parent ?? '', systemdCgroup: runtime.systemdCgroup, id: input.containerId }) }),
    ...(input.rdtClass === undefined ? {} : { intelRdt: { closID: input.rdtClass } }),
    ...(seccomp === undefined ? {} : { seccomp }),
    ...kernelPaths(input, baseLinux),
    ...(mountLabel === '' ? {} : { mountLabel }),
  }
}

/** What is hidden of /proc and /sys: the request's lists (ProcMount Unmasked comes as empty ones), the defaults with disable_proc_mount, nothing when privileged. */
function kernelPaths(input: ContainerSpecInput, base: OciLinux): Pick<OciLinux, 'maskedPaths' | 'readonlyPaths'> {
  if (privileged(input)) return { maskedPaths: [], readonlyPaths: [] }
  if (input.settings.disableProcMount) return { maskedPaths: base.maskedPaths ?? [], readonlyPaths: base.readonlyPaths ?? [] }
  const context = securityContext(input)
  for (const path of [...(context?.masked_paths ?? []), ...(context?.readonly_paths ?? [])]) {
    if (!path.startsWith('/') || path.includes('\0')) throw invalidArgument(`masked or read-only path "${path}" is not an absolute path`)
  }
  return { maskedPaths: [...(context?.masked_paths ?? [])], readonlyPaths: [...(context?.readonly_paths ?? [])] }
}
