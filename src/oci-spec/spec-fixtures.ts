import type { ContainerConfig, PodSandboxConfig } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import { criProtos, messageCodec } from '../generated/protos.ts'
import { imageConfigOf } from './image-config.ts'
import type { ContainerSpecInput, HostFacts, RuntimeView, SandboxSpecInput, SpecSettings } from './input.ts'

/** For tests: messages as they arrive over the wire, and inputs of an ordinary node that a test changes in one place. */

export const ALL_CAPABILITIES = (1n << 41n) - 1n

export const hostFacts: HostFacts = {
  hostname: 'node-1',
  arch: 'amd64',
  kernel: [6, 1],
  cgroupMode: 'unified',
  swapControllerAvailable: true,
  hugetlbControllerPresent: true,
  effectiveCapabilities: ALL_CAPABILITIES,
  capLastCap: 40,
  ownOomScoreAdj: -999,
  seccompEnabled: true,
  apparmorEnabled: true,
  apparmorProfiles: new Set(['cri-containerd.apparmor.d', 'custom']),
  selinuxEnabled: false,
  hostDevices: [
    { path: '/dev/kvm', type: 'c', major: 10, minor: 232, fileMode: 0o660, uid: 0, gid: 104, permissions: 'rwm' },
    { path: '/dev/fuse', type: 'c', major: 10, minor: 229, fileMode: 0o666, uid: 0, gid: 0, permissions: 'rwm' },
  ],
}

export const runtime: RuntimeView = {
  systemdCgroup: false,
  privilegedWithoutHostDevices: false,
  podAnnotations: [],
  containerAnnotations: [],
  cgroupWritable: false,
  features: { recursiveReadOnlyMounts: true, idmapMounts: true },
}

export const settings: SpecSettings = {
  disableCgroup: false,
  disableApparmor: false,
  disableProcMount: false,
  restrictOomScoreAdj: false,
  unsetSeccompProfile: '',
  tolerateMissingHugetlbController: false,
  disableHugetlbController: false,
  enableUnprivilegedPorts: false,
  enableUnprivilegedIcmp: false,
}

function decoded(name: string, message: object): object {
  const codec = messageCodec(criProtos(), `runtime.v1.${name}`)
  return codec.deserialize(codec.serialize(message))
}

export const containerConfig = (config: Init<ContainerConfig>): ContainerConfig => decoded('ContainerConfig', config) as ContainerConfig
export const podConfig = (config: Init<PodSandboxConfig>): PodSandboxConfig => decoded('PodSandboxConfig', config) as PodSandboxConfig

export interface Changes {
  readonly config?: Init<ContainerConfig>
  readonly pod?: Init<PodSandboxConfig>
  readonly facts?: Partial<HostFacts>
  readonly runtime?: Partial<RuntimeView>
  readonly settings?: Partial<SpecSettings>
}

const POD = { metadata: { name: 'web', uid: 'uid-1', namespace: 'shop', attempt: 0 }, log_directory: '/var/log/pods/web' }

export function containerInput({ config = {}, pod = {}, ...changes }: Changes = {}, overrides: Partial<ContainerSpecInput> = {}): ContainerSpecInput {
  return {
    containerId: 'c1',
    containerName: 'app',
    sandboxId: 's1',
    sandboxPid: 4242,
    podConfig: podConfig({ ...POD, hostname: 'web-0', ...pod }),
    config: containerConfig({ metadata: { name: 'app', attempt: 0 }, command: ['/bin/app'], ...config }),
    imageConfig: imageConfigOf({ Env: ['PATH=/usr/bin', 'LANG=C'] }),
    imageName: 'docker.io/library/app:1',
    netnsPath: '/run/netns/web',
    user: { uid: 0, gid: 0, additionalGids: [0], username: 'root', home: '/root' },
    hostFacts: { ...hostFacts, ...changes.facts },
    runtime: { ...runtime, ...changes.runtime },
    settings: { ...settings, ...changes.settings },
    mounts: [],
    devices: [],
    ...overrides,
  }
}

export function sandboxInput({ pod = {}, ...changes }: Omit<Changes, 'config'> = {}, overrides: Partial<SandboxSpecInput> = {}): SandboxSpecInput {
  return {
    sandboxId: 's1',
    podConfig: podConfig({ ...POD, hostname: 'web-0', ...pod }),
    imageConfig: imageConfigOf({ Entrypoint: ['/pause'], Env: ['PATH=/usr/bin'], WorkingDir: '/' }),
    imageName: 'registry.k8s.io/pause:3.10',
    netnsPath: '/run/netns/web',
    user: { uid: 65535, gid: 65535, additionalGids: [65535] },
    hostFacts: { ...hostFacts, ...changes.facts },
    runtime: { ...runtime, ...changes.runtime },
    settings: { ...settings, ...changes.settings },
    shmPath: '/run/cri-shim/s1/shm',
    resolvConfPath: '/var/lib/cri-shim/s1/resolv.conf',
    ...overrides,
  }
}

/** For assert.throws: a CriError of a code whose message has something in it. */
export function refusal(code: number, message: RegExp): (error: unknown) => boolean {
  return (error) => error instanceof Error && 'code' in error && error.code === code && message.test(error.message)
}
