import { isIPv4 } from 'node:net'
import { internal } from '../errors/cri-error.ts'
import { isJsonObject, stringsOf } from './json.ts'
import type { CniResultDns, IpPreference, JsonObject, PodInterface, PodNetwork } from './types.ts'

/** One network's result and the interface name that it was asked to make. */
export interface NetworkResult {
  readonly network: string
  readonly ifName: string
  readonly result: JsonObject
}

interface ParsedIp {
  readonly ip: string
  readonly gateway: string
  readonly interfaceIndex: number | undefined
}

interface ParsedResult {
  readonly interfaces: readonly { readonly name: string; readonly mac: string; readonly sandbox: string; readonly pciId: string; readonly socketPath: string }[]
  readonly ips: readonly ParsedIp[]
  readonly routes: readonly JsonObject[]
  readonly dns: CniResultDns
}

interface GoCniConfig {
  IPConfigs: { readonly IP: string; readonly Gateway: string }[] | null
  Mac: string
  Sandbox: string
  PciID: string
  SocketPath: string
}

/** A result as it is passed on: with the version, which old plugins leave out. */
export function withVersion(result: JsonObject, cniVersion: string): JsonObject {
  return typeof result['cniVersion'] === 'string' && result['cniVersion'] !== '' ? result : { ...result, cniVersion }
}

/**
 * Everything that a pod's networks say, put together as containerd does it: addresses without an interface belong to the pod's first one, and that
 * one must have an address. INTERNAL when it has none or a result contradicts itself.
 */
export function podNetworkOf(results: readonly NetworkResult[], preference: IpPreference, firstIfName = 'eth0'): PodNetwork {
  const configs = new Map<string, GoCniConfig>([[firstIfName, emptyConfig()]])
  const dns: CniResultDns[] = []
  const routes: JsonObject[] = []
  for (const { network, result } of results) {
    const parsed = parseResult(network, result)
    for (const { name, mac, sandbox, pciId, socketPath } of parsed.interfaces) {
      configs.set(name, { IPConfigs: null, Mac: mac, Sandbox: sandbox, PciID: pciId, SocketPath: socketPath })
    }
    for (const { ip, gateway, interfaceIndex } of parsed.ips) {
      const name = interfaceIndex === undefined ? firstIfName : parsed.interfaces[interfaceIndex]?.name
      const config = name === undefined ? undefined : configs.get(name)
      if (config === undefined) {
        throw bad(network, `gives ${ip} to interface ${interfaceIndex}, but lists ${parsed.interfaces.length} interfaces`)
      }
      config.IPConfigs = [...(config.IPConfigs ?? []), { IP: ip, Gateway: gateway }]
    }
    dns.push(parsed.dns)
    routes.push(...parsed.routes)
  }
  const addresses = configs.get(firstIfName)?.IPConfigs?.map(({ IP }) => IP) ?? []
  const names = results.map(({ network }) => JSON.stringify(network)).join(', ')
  if (addresses.length === 0) {
    throw internal(`CNI network ${names} gave the pod no IP address on ${firstIfName}; check the "ipam" section of its configuration`, { reason: 'CNI_RESULT' })
  }
  return {
    ips: preferredFirst(addresses, preference),
    interfaces: [...configs].map(([name, config]): PodInterface => ({
      name,
      mac: config.Mac,
      sandbox: config.Sandbox,
      ips: (config.IPConfigs ?? []).map(({ IP, Gateway }) => ({ ip: IP, gateway: Gateway })),
    })),
    results,
    dns,
    asGoCniResult: { Interfaces: Object.fromEntries(configs), DNS: dns, Routes: routes.length === 0 ? null : routes },
  }
}

/** The first address of the preferred family moves to the front; all others keep their order. */
function preferredFirst(addresses: readonly string[], preference: IpPreference): string[] {
  if (preference === 'cni') return [...addresses]
  const first = addresses.findIndex((address) => isIPv4(address) === (preference === 'ipv4'))
  const preferred = addresses[first]
  return preferred === undefined ? [...addresses] : [preferred, ...addresses.filter((_, i) => i !== first)]
}

function emptyConfig(): GoCniConfig {
  return { IPConfigs: null, Mac: '', Sandbox: '', PciID: '', SocketPath: '' }
}

/** Reads every version of a result: `ips` (0.3.0 and newer) or `ip4` and `ip6` (older). */
function parseResult(network: string, result: JsonObject): ParsedResult {
  const interfaces = objectsOf(network, result, 'interfaces').map((entry) => ({
    name: text(entry['name']),
    mac: text(entry['mac']),
    sandbox: text(entry['sandbox']),
    pciId: text(entry['pciID']),
    socketPath: text(entry['socketPath']),
  }))
  const ips: ParsedIp[] = []
  const routes = objectsOf(network, result, 'routes')
  for (const entry of objectsOf(network, result, 'ips')) {
    const index = entry['interface']
    if (index !== undefined && index !== null && (typeof index !== 'number' || !Number.isInteger(index) || index < 0)) throw bad(network, `has the interface index ${JSON.stringify(index)}`)
    ips.push({ ip: addressOf(network, entry['address']), gateway: text(entry['gateway']), interfaceIndex: index ?? undefined })
  }
  for (const key of ['ip4', 'ip6']) {
    const entry = result[key]
    if (!isJsonObject(entry)) continue
    ips.push({ ip: addressOf(network, entry['ip']), gateway: text(entry['gateway']), interfaceIndex: undefined })
    routes.push(...objectsOf(network, entry, 'routes'))
  }
  return { interfaces, ips, routes, dns: dnsOf(result['dns']) }
}

function dnsOf(value: unknown): CniResultDns {
  if (!isJsonObject(value)) return {}
  const [nameservers, search, options] = [stringsOf(value['nameservers']), stringsOf(value['search']), stringsOf(value['options'])]
  const domain = text(value['domain'])
  return {
    ...(nameservers.length === 0 ? {} : { nameservers }),
    ...(domain === '' ? {} : { domain }),
    ...(search.length === 0 ? {} : { search }),
    ...(options.length === 0 ? {} : { options }),
  }
}

function objectsOf(network: string, from: JsonObject, key: string): JsonObject[] {
  const value = from[key] ?? []
  if (!Array.isArray(value) || !value.every(isJsonObject)) throw bad(network, `has "${key}" that is not a list of objects`)
  return [...value]
}

/** `10.1.2.3/24` → `10.1.2.3` */
function addressOf(network: string, value: unknown): string {
  const address = text(value).split('/')[0] ?? ''
  const normal = address.includes(':') ? normalIpv6(address) : isIPv4(address) ? address : undefined
  if (normal === undefined) throw bad(network, `has ${JSON.stringify(value)} where an address such as 10.1.2.3/24 belongs`)
  return normal
}

/** The shortest form, as Kubernetes compares it. */
function normalIpv6(address: string): string | undefined {
  try {
    return new URL(`http://[${address}]`).hostname.slice(1, -1)
  } catch {
    return undefined
  }
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : ''
}

function bad(network: string, what: string): Error {
  return internal(`the result of CNI network ${JSON.stringify(network)} ${what}; the plugin that printed it is at fault`, { reason: 'CNI_RESULT' })
}
