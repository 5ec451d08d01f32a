import { isIP } from 'node:net'
import { invalidArgument } from '../errors/cri-error.ts'
import { type ContainerConfig, type ContainerMetadata, NamespaceMode, type PodSandboxConfig, type PodSandboxMetadata, Protocol } from '../generated/cri.ts'

/** containerd refuses longer labels with a message that names neither pod nor label. */
const maxLabelBytes = 4096

/** The pod's metadata, complete. INVALID_ARGUMENT names the field that is missing. */
export function sandboxMetadata(config: PodSandboxConfig | null, field: string): PodSandboxMetadata {
  if (config === null) throw invalidArgument(`${field} is missing`)
  const { metadata } = config
  if (metadata === null) throw invalidArgument(`${field}.metadata is missing`)
  for (const key of ['name', 'namespace', 'uid'] as const) checkName(metadata[key], `${field}.metadata.${key}`)
  return metadata
}

export function containerMetadata(config: ContainerConfig | null): ContainerMetadata {
  if (config === null) throw invalidArgument('config is missing')
  if (config.metadata === null) throw invalidArgument('config.metadata is missing')
  checkName(config.metadata.name, 'config.metadata.name')
  return config.metadata
}

/** Names are joined with underscores, and the joined ones must be as unique as the parts. */
function checkName(value: string, field: string): void {
  if (value === '') throw invalidArgument(`${field} is empty`)
  if (value.length > 253) throw invalidArgument(`${field} is longer than 253 characters`)
  if (/[\s/\0]/.test(value)) throw invalidArgument(`${field} ${JSON.stringify(value)} must not contain white space, slashes or NUL bytes`)
}

export function checkLabels(labels: Readonly<Record<string, string>>, field: string): void {
  for (const [key, value] of Object.entries(labels)) {
    if (Buffer.byteLength(key) + Buffer.byteLength(value) > maxLabelBytes) throw invalidArgument(`${field}: the label ${key.slice(0, 64)} with its value is longer than ${maxLabelBytes} bytes, which containerd cannot keep`)
    if (key.startsWith('io.cri-containerd') || key.startsWith('containerd.io/')) throw invalidArgument(`${field}: the label ${key} is reserved for the runtime`)
  }
}

/** What a pod asks of its namespaces that cannot be. */
export function checkNamespaces(config: PodSandboxConfig): void {
  const options = config.linux?.security_context?.namespace_options
  if (options === null || options === undefined) return
  for (const [field, mode] of [['network', options.network], ['pid', options.pid], ['ipc', options.ipc]] as const) {
    if (mode === NamespaceMode.TARGET) throw invalidArgument(`namespace_options.${field}: TARGET is for containers, a pod has none to target`)
    if (mode !== NamespaceMode.POD && mode !== NamespaceMode.NODE && mode !== NamespaceMode.CONTAINER) throw invalidArgument(`namespace_options.${field}: ${mode} is no namespace mode`)
  }
  if (options.network === NamespaceMode.CONTAINER) throw invalidArgument('namespace_options.network: a pod has one network namespace (POD) or none of its own (NODE)')
  if (options.network === NamespaceMode.NODE && config.port_mappings.some((mapping) => mapping.host_port > 0 && mapping.host_port !== mapping.container_port)) {
    throw invalidArgument('port_mappings: a pod on the host network cannot map a host port to another container port')
  }
}

const protocols: ReadonlySet<number> = new Set(Object.values(Protocol))

/**
 * What a pod asks of its ports that cannot be. Plugins find that out too late: portmap refuses to undo what it refused to do, and the pod could
 * never be removed.
 */
export function checkPortMappings(config: PodSandboxConfig): void {
  for (const [index, { protocol, container_port: containerPort, host_port: hostPort, host_ip: hostIp }] of config.port_mappings.entries()) {
    const field = `port_mappings[${index}]`
    if (!protocols.has(protocol)) throw invalidArgument(`${field}.protocol: ${protocol} is no protocol of CRI`)
    if (hostPort < 0 || hostPort > 65_535) throw invalidArgument(`${field}.host_port: ${hostPort} is no port; 1 to 65535, or 0 for none`)
    if (containerPort < (hostPort > 0 ? 1 : 0) || containerPort > 65_535) throw invalidArgument(`${field}.container_port: ${containerPort} is no port; 1 to 65535`)
    if (hostIp !== '' && isIP(hostIp) === 0) throw invalidArgument(`${field}.host_ip: ${JSON.stringify(hostIp)} is no IP address`)
  }
}
