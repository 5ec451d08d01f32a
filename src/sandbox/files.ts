import { chmod, chown, mkdir, readFile, writeFile } from 'node:fs/promises'
import { hostname as nodeHostname } from 'node:os'
import { join } from 'node:path'
import { errnoOf, failedPrecondition, invalidArgument, messageOf } from '../errors/cri-error.ts'
import { type DNSConfig, NamespaceMode, type PodSandboxConfig } from '../generated/cri.ts'
import type { Layout } from '../state/status-file.ts'
import type { Owner } from './deps.ts'

/** The pod's files that its containers see as /etc/hostname, /etc/hosts and /etc/resolv.conf. */
export interface SandboxFiles {
  readonly hostname: string
  readonly hosts: string
  readonly resolvConf: string
}

export function sandboxFiles(layout: Layout, id: string): SandboxFiles {
  const dir = layout.sandboxDir(id)
  return { hostname: join(dir, 'hostname'), hosts: join(dir, 'hosts'), resolvConf: join(dir, 'resolv.conf') }
}

/** What /etc/resolv.conf of the pod says (resolv.conf(5)). INVALID_ARGUMENT for a value that would smuggle in a line of its own. */
export function resolvConf(dns: DNSConfig): string {
  for (const [field, values] of [['servers', dns.servers], ['searches', dns.searches], ['options', dns.options]] as const) {
    for (const value of values) {
      if (/[\s\0]/.test(value) || value === '') throw invalidArgument(`dns_config.${field}: ${JSON.stringify(value)} must be one word`)
    }
  }
  const lines: string[] = []
  if (dns.searches.length > 0) lines.push(`search ${dns.searches.join(' ')}`)
  for (const server of dns.servers) lines.push(`nameserver ${server}`)
  if (dns.options.length > 0) lines.push(`options ${dns.options.join(' ')}`)
  return lines.map((line) => `${line}\n`).join('')
}

/** The name that the pod's UTS namespace gets: the request's; for a pod on the host's network without one, the node's. */
export function podHostname(config: PodSandboxConfig): string {
  const hostname = config.hostname
  if (hostname !== '') {
    if (hostname.length > 64 || /[^A-Za-z0-9.-]/.test(hostname)) throw invalidArgument(`hostname ${JSON.stringify(hostname)}: at most 64 letters, digits, dots and hyphens`)
    return hostname
  }
  return usesHostNetwork(config) ? nodeHostname() : ''
}

/** Writes the pod's files. Without DNSConfig the node's resolv.conf is what the pod gets. They belong to `owner`, else to root. */
export async function writeSandboxFiles(layout: Layout, id: string, config: PodSandboxConfig, owner?: Owner): Promise<void> {
  const files = sandboxFiles(layout, id)
  await mkdir(layout.sandboxDir(id), { recursive: true, mode: 0o755 })
  const hostname = config.hostname === '' ? nodeHostname() : config.hostname
  const dns = config.dns_config
  await Promise.all([
    writeReadable(files.hostname, `${hostname}\n`, owner),
    ofNode('/etc/hosts').then((text) => writeReadable(files.hosts, text, owner)),
    (dns === null ? ofNode('/etc/resolv.conf') : Promise.resolve(resolvConf(dns))).then((text) => writeReadable(files.resolvConf, text, owner)),
  ])
}

/** A file of the node's, empty when it has none. */
async function ofNode(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return ''
    throw failedPrecondition(`${path} of the node, which the pod is to get, cannot be read: ${messageOf(error)}`, { cause: error })
  }
}

/** For every user of a container, whatever umask the service was started with. */
async function writeReadable(path: string, text: string, owner: Owner | undefined): Promise<void> {
  await writeFile(path, text)
  if (owner !== undefined) await chown(path, owner.uid, owner.gid)
  await chmod(path, 0o644)
}

export function usesHostNetwork(config: PodSandboxConfig): boolean {
  return config.linux?.security_context?.namespace_options?.network === NamespaceMode.NODE
}

export function usesHostIpc(config: PodSandboxConfig): boolean {
  return config.linux?.security_context?.namespace_options?.ipc === NamespaceMode.NODE
}
