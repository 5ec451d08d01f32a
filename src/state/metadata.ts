import type { Any } from '../generated/containerd.ts'
import type { ContainerConfig, PodSandboxConfig } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import { fromGoJson, parseGoJson, toGoJson } from './go-json.ts'

/**
 * What containerd keeps for us, in the very keys and layout of its own CRI plugin (containerd internal/cri/store/{sandbox,container}:
 * a versioned JSON document in a container extension), so that a node can be switched between the two in place.
 */
export const labels = {
  kind: 'io.cri-containerd.kind',
  kindSandbox: 'sandbox',
  kindContainer: 'container',
  image: 'io.cri-containerd.image',
  imageManaged: 'managed',
  pinned: 'io.cri-containerd.pinned',
  pinnedValue: 'pinned',
} as const

export const sandboxExtension = 'io.cri-containerd.sandbox.metadata'
export const containerExtension = 'io.cri-containerd.container.metadata'
const sandboxTypeUrl = 'github.com/containerd/cri/pkg/store/sandbox/Metadata'
const containerTypeUrl = 'github.com/containerd/cri/pkg/store/container/Metadata'

export interface SandboxMetadata {
  readonly id: string
  readonly name: string
  readonly config: PodSandboxConfig
  /** Empty for a pod in the host's network namespace. */
  readonly netnsPath: string
  /** The pod's addresses, the first one first; empty until the CNI ADD is done and for host network. */
  readonly ips: readonly string[]
  readonly runtimeHandler: string
  /** go-cni's Result, for the plugin's verbose status; undefined until the CNI ADD is done. */
  readonly cniResult: unknown
  /** SELinux process label; empty when there is none. */
  readonly processLabel: string
}

export interface ContainerMetadata {
  readonly id: string
  readonly name: string
  readonly sandboxId: string
  readonly config: ContainerConfig
  /** The image's id. */
  readonly imageRef: string
  readonly logPath: string
  /** The image's STOPSIGNAL, empty for SIGTERM. */
  readonly stopSignal: string
  readonly processLabel: string
}

export function encodeSandboxMetadata(metadata: SandboxMetadata): Init<Any> {
  const [ip = '', ...additional] = metadata.ips
  return envelope(sandboxTypeUrl, {
    ID: metadata.id, Name: metadata.name, Config: toGoJson('runtime.v1.PodSandboxConfig', metadata.config), NetNSPath: metadata.netnsPath,
    IP: ip, AdditionalIPs: additional.length === 0 ? null : additional, RuntimeHandler: metadata.runtimeHandler, CNIResult: metadata.cniResult ?? null,
    ProcessLabel: metadata.processLabel,
  })
}

export function encodeContainerMetadata(metadata: ContainerMetadata): Init<Any> {
  return envelope(containerTypeUrl, {
    ID: metadata.id, Name: metadata.name, SandboxID: metadata.sandboxId, Config: toGoJson('runtime.v1.ContainerConfig', metadata.config),
    ImageRef: metadata.imageRef, LogPath: metadata.logPath, StopSignal: metadata.stopSignal, ProcessLabel: metadata.processLabel,
  })
}

/** Undefined when the extension is missing; a TypeError when it is there and cannot be read. */
export function decodeSandboxMetadata(extensions: Readonly<Record<string, Any>>): SandboxMetadata | undefined {
  const fields = open(extensions[sandboxExtension])
  if (fields === undefined) return undefined
  const additional = fields['AdditionalIPs']
  const ip = text(fields['IP'])
  return {
    id: text(fields['ID']), name: text(fields['Name']), config: fromGoJson('runtime.v1.PodSandboxConfig', fields['Config']),
    netnsPath: text(fields['NetNSPath']), ips: [...(ip === '' ? [] : [ip]), ...(Array.isArray(additional) ? additional.map(text) : [])],
    runtimeHandler: text(fields['RuntimeHandler']), cniResult: fields['CNIResult'] ?? undefined, processLabel: text(fields['ProcessLabel']),
  }
}

/** Undefined when the extension is missing; a TypeError when it is there and cannot be read. */
export function decodeContainerMetadata(extensions: Readonly<Record<string, Any>>): ContainerMetadata | undefined {
  const fields = open(extensions[containerExtension])
  if (fields === undefined) return undefined
  return {
    id: text(fields['ID']), name: text(fields['Name']), sandboxId: text(fields['SandboxID']),
    config: fromGoJson('runtime.v1.ContainerConfig', fields['Config']), imageRef: text(fields['ImageRef']),
    logPath: text(fields['LogPath']), stopSignal: text(fields['StopSignal']), processLabel: text(fields['ProcessLabel']),
  }
}

function envelope(typeUrl: string, metadata: object): Init<Any> {
  return { type_url: typeUrl, value: Buffer.from(JSON.stringify({ Version: 'v1', Metadata: metadata })) }
}

function open(any: Any | undefined): Readonly<Record<string, unknown>> | undefined {
  if (any === undefined) return undefined
  const document: unknown = parseGoJson(any.value.toString('utf8'))
  if (document === null || typeof document !== 'object' || !('Version' in document) || !('Metadata' in document)) throw new TypeError('not a versioned metadata document')
  if (document.Version !== 'v1') throw new TypeError(`metadata version ${String(document.Version)} is not known here`)
  if (document.Metadata === null || typeof document.Metadata !== 'object') throw new TypeError('metadata is empty')
  return document.Metadata as Record<string, unknown>
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : ''
}
