import { readFile } from 'node:fs/promises'
import { isAbsolute, join } from 'node:path'
import type { Settings } from '../../config/settings.ts'
import type { ContainerDeps, ContainerSpecRequest } from '../../container/deps.ts'
import { errnoOf, failedPrecondition, invalidArgument, messageOf } from '../../errors/cri-error.ts'
import type { Any } from '../../generated/containerd.ts'
import type { LinuxContainerResources } from '../../generated/cri.ts'
import type { Init } from '../../generated/int64.ts'
import { cgroupDriverMismatch } from '../../oci-spec/cgroups-path.ts'
import { containerSpec } from '../../oci-spec/container-spec.ts'
import type { RuntimeView, SpecSettings } from '../../oci-spec/input.ts'
import { type OciAny, ociSpecAny, parseOciSpec } from '../../oci-spec/json.ts'
import { oomScoreAdj } from '../../oci-spec/oom.ts'
import { resolveUser } from '../../oci-spec/resolve-user.ts'
import { linuxResources } from '../../oci-spec/resources.ts'
import { sandboxSpec } from '../../oci-spec/sandbox-spec.ts'
import { seccompRequest, type SeccompSource } from '../../oci-spec/seccomp.ts'
import type { SelinuxLabeler } from '../../oci-spec/selinux.ts'
import type { OciSpec } from '../../oci-spec/types.ts'
import { updatedSpec } from '../../oci-spec/update-resources.ts'
import { userRequest } from '../../oci-spec/user.ts'
import { userNamespaceMappings } from '../../oci-spec/user-namespace.ts'
import type { SandboxDeps } from '../../sandbox/deps.ts'
import { sandboxFiles, usesHostIpc } from '../../sandbox/files.ts'
import { displayName } from '../../state/image-names.ts'
import type { Layout } from '../../state/status-file.ts'
import { runtimeSettings, sandboxRuntime, usesSystemdCgroup } from './runtimes.ts'
import type { CdiSpecifications } from './cdi.ts'
import { podMounts } from './pod-mounts.ts'
import type { RuntimeFeatureProbe } from './runtime-features.ts'
import type { ResourceClasses } from './resource-classes.ts'
import type { SpecFacts } from './spec-facts.ts'
import type { UserNamespaces } from './user-namespaces.ts'

/** Where the kubelet has the profiles that pods name. */
const kubeletSeccompDir = '/var/lib/kubelet/seccomp'

export interface SpecWiringOptions {
  readonly settings: Settings
  readonly facts: SpecFacts
  readonly layout: Layout
  readonly imageUsers: ContainerDeps['imageUsers']
  readonly features: RuntimeFeatureProbe
  readonly userNamespaces: UserNamespaces
  readonly exists: (path: string) => Promise<boolean>
  /** Undefined with `enable_cdi = false`. */
  readonly cdi: CdiSpecifications | undefined
  readonly classes: ResourceClasses
  readonly selinux: Pick<SelinuxLabeler, 'relabel'>
}

/** Brings together what the pure spec functions need: settings, host facts, files that profiles are in. */
export class SpecWiring {
  readonly #options: SpecWiringOptions
  readonly #specSettings: SpecSettings
  readonly #baseSpecs = new Map<string, Promise<OciSpec>>()

  constructor(options: SpecWiringOptions) {
    this.#options = options
    this.#specSettings = options.settings
  }

  readonly sandbox: SandboxDeps['sandboxSpec'] = async (ctx, { id, config, netnsPath, usernsPath, image, runtimeHandler, selinux }): Promise<Init<Any>> => {
    const { settings, facts, layout, imageUsers, userNamespaces } = this.#options
    const context = config.linux?.security_context ?? null
    if (userNamespaceMappings(context?.namespace_options?.userns_options) !== undefined) await userNamespaces.require(runtimeHandler)
    const { options } = runtimeSettings(settings, runtimeHandler)
    const mismatch = options.kind === 'runc' && !settings.disableCgroup ? cgroupDriverMismatch(config.linux?.cgroup_parent ?? '', options.systemdCgroup) : undefined
    if (mismatch !== undefined) ctx.log.warn({ sandbox: id, runtimeHandler }, mismatch)
    const request = userRequest(context, image.config)
    const users = await imageUsers(ctx, image, sandboxRuntime(settings, runtimeHandler).snapshotter)
    return ociSpecAny(sandboxSpec({
      sandboxId: id, podConfig: config, imageConfig: image.config, imageName: displayName(image), hostFacts: await facts.current(),
      user: resolveUser(request, users.passwd, users.group, context?.supplemental_groups ?? [], context?.supplemental_groups_policy ?? 0),
      runtime: await this.#runtimeView(runtimeHandler), settings: this.#specSettings, seccompProfile: await this.#seccompText(context),
      netnsPath: netnsPath === '' ? undefined : netnsPath, usernsPath, shmPath: usesHostIpc(config) ? '/dev/shm' : layout.sandboxShm(id), resolvConfPath: sandboxFiles(layout, id).resolvConf,
      selinux,
    }))
  }

  readonly container: ContainerDeps['containerSpec'] = async (request: ContainerSpecRequest): Promise<OciAny> => {
    const { facts } = this.#options
    const { config, sandbox, image } = request
    const context = config.linux?.security_context ?? null
    return ociSpecAny(containerSpec({
      containerId: request.id, containerName: config.metadata?.name ?? '', sandboxId: sandbox.id, sandboxPid: sandbox.pid, podConfig: request.sandboxConfig, config,
      imageConfig: image.config, imageName: config.image?.user_specified_image ? config.image.user_specified_image : request.imageName, user: request.user,
      hostFacts: context?.privileged === true ? await facts.withDevices() : await facts.current(), runtime: await this.#runtimeView(sandbox.metadata.runtimeHandler),
      settings: this.#specSettings, seccompProfile: await this.#seccompText(context), netnsPath: sandbox.metadata.netnsPath === '' ? undefined : sandbox.metadata.netnsPath,
      mounts: [...await podMounts(this.#options, sandbox, { readonly: context?.readonly_rootfs === true, mountLabel: request.selinux?.mountLabel ?? '' }), ...request.mounts], devices: request.devices, targetPid: request.targetPid, cdi: await this.#options.cdi?.injectionFor(config), ...await this.#options.classes.of(config, request.sandboxConfig), selinux: request.selinux,
    }))
  }

  readonly updated: ContainerDeps['updatedSpec'] = (spec, update, handler) => {
    const { settings, facts } = this.#options
    if (settings.disableCgroup) throw failedPrecondition('resources are not managed on this node (disable_cgroup = true): there is nothing to update')
    return updatedSpec(spec, update, { hostFacts: facts.facts, settings: this.#specSettings, runtime: { containerAnnotations: handlerAnnotations(settings, handler) } })
  }

  /** Throws for resources that no container could be given here. */
  readonly checkResources = (resources: LinuxContainerResources): void => {
    const { facts } = this.#options.facts
    oomScoreAdj(Number(resources.oom_score_adj), facts, this.#specSettings)
    linuxResources(resources, facts, this.#specSettings)
  }

  async #runtimeView(handler: string): Promise<RuntimeView> {
    const runtime = runtimeSettings(this.#options.settings, handler)
    return {
      systemdCgroup: usesSystemdCgroup(runtime), privilegedWithoutHostDevices: runtime.privilegedWithoutHostDevices,
      privilegedWithoutHostDevicesAllDevicesAllowed: runtime.privilegedWithoutHostDevicesAllDevicesAllowed, podAnnotations: runtime.podAnnotations,
      containerAnnotations: runtime.containerAnnotations, cgroupWritable: runtime.cgroupWritable,
      features: await this.#options.features.of(handler),
      ...(runtime.baseRuntimeSpec === '' ? {} : { baseSpec: await this.#baseSpec(runtime.baseRuntimeSpec) }),
    }
  }

  async #baseSpec(path: string): Promise<OciSpec> {
    const known = this.#baseSpecs.get(path) ?? readFile(path).then(parseOciSpec)
    this.#baseSpecs.set(path, known)
    try {
      return await known
    } catch (error) {
      this.#baseSpecs.delete(path)
      throw failedPrecondition(`base_runtime_spec ${path} cannot be read: ${messageOf(error)}`, { cause: error })
    }
  }

  async #seccompText(source: SeccompSource | null): Promise<string | undefined> {
    const request = seccompRequest(source, this.#specSettings, this.#options.facts.facts)
    if (request?.type !== 'localhost') return undefined
    if (request.name.split('/').includes('..')) throw invalidArgument(`the seccomp profile ${JSON.stringify(request.name)} must not go through ".."`)
    const path = isAbsolute(request.name) ? request.name : join(kubeletSeccompDir, request.name)
    try {
      return await readFile(path, 'utf8')
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') throw invalidArgument(`the seccomp profile ${path} does not exist on this node`)
      throw failedPrecondition(`the seccomp profile ${path} cannot be read: ${messageOf(error)}`, { cause: error })
    }
  }
}

/** Empty for a handler that is not configured any more: its containers can still be given other limits. */
function handlerAnnotations(settings: Settings, handler: string): readonly string[] {
  return settings.runtimes[handler === '' ? settings.defaultRuntimeName : handler]?.containerAnnotations ?? []
}
