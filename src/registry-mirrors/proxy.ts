import { BlockList, isIP } from 'node:net'
import { hostName, isLoopback, portOf } from './host-url.ts'

/**
 * The proxy for a URL out of HTTP_PROXY, HTTPS_PROXY and NO_PROXY (or their lower-case names) by the rules of Go's
 * http.ProxyFromEnvironment, which containerd follows; Node's own know neither address ranges nor that `example.com` covers
 * `www.example.com`. Undefined: directly.
 */
export function proxyFor(url: URL, env: Readonly<Record<string, string | undefined>>): string | undefined {
  const read = (name: string): string | undefined => {
    const value = env[name] ?? ''
    return value === '' ? env[name.toLowerCase()] : value
  }
  const proxy = read(url.protocol === 'https:' ? 'HTTPS_PROXY' : 'HTTP_PROXY')
  if (proxy === undefined || proxy === '' || isLoopback(url.host)) return undefined
  const port = url.port === '' ? (url.protocol === 'https:' ? 443 : 80) : Number(url.port)
  if (isExempt(hostName(url.host), port, read('NO_PROXY') ?? '')) return undefined
  const written = proxy.trim()
  return /^[a-z][a-z0-9+.-]*:\/\//i.test(written) ? written : `http://${written}`
}

/** Why a proxy cannot be used as it is written, undefined when it can. Repeats nothing of it. */
export function proxyProblem(proxy: string): string | undefined {
  const scheme = /^([a-z][a-z0-9+.-]*):/i.exec(proxy)?.[1]?.toLowerCase()
  if (scheme !== 'http' && scheme !== 'https') return `proxies of kind ${scheme} are not supported: HTTPS_PROXY must be an http:// address`
  // What Node makes of it, and no more: a quote or a space in it is a mistake of whoever wrote the unit.
  const isAddress = URL.canParse(proxy) && !/[\s"']/.test(proxy) && /^(?:[\p{L}\p{N}._-]+|\[[0-9a-f:.]+\])$/iu.test(new URL(proxy).hostname) && canDecode(new URL(proxy))
  return isAddress ? undefined : 'HTTP_PROXY or HTTPS_PROXY of the service is not the address of a proxy: it is written http://proxy.example:3128, and @ : / % in a password as %40 %3A %2F %25'
}

/** For people, without its credentials. */
export function proxyName(proxy: string): string {
  return URL.canParse(proxy) ? new URL(proxy).host : 'that is configured'
}

function canDecode({ username, password }: URL): boolean {
  try {
    decodeURIComponent(`${username}${password}`)
    return true
  } catch {
    return false
  }
}

function isExempt(host: string, port: number, noProxy: string): boolean {
  return noProxy.split(',').map((entry) => entry.trim().toLowerCase()).some((entry) => entry !== '' && matches(entry, host, port))
}

function matches(entry: string, host: string, port: number): boolean {
  if (entry === '*') return true
  if (entry.includes('/')) return inRange(entry, host)
  // A bare IPv6 address has colons that are no port.
  const bare = isIP(entry) === 6
  const entryPort = bare ? undefined : portOf(entry)
  if (entryPort !== undefined && entryPort !== port) return false
  const name = bare ? entry : hostName(entry)
  if (isIP(name) !== 0) return isIP(host) !== 0 && inRange(`${name}/${isIP(name) === 4 ? 32 : 128}`, host)
  if (name.startsWith('*.')) return host.endsWith(name.slice(1))
  if (name.startsWith('.')) return host.endsWith(name)
  return host === name || host.endsWith(`.${name}`)
}

function inRange(range: string, host: string): boolean {
  const [network = '', bits = ''] = range.split('/')
  const family = isIP(network)
  if (family === 0 || isIP(host) === 0 || !/^\d{1,3}$/.test(bits) || Number(bits) > (family === 4 ? 32 : 128)) return false
  const list = new BlockList()
  list.addSubnet(network, Number(bits), family === 4 ? 'ipv4' : 'ipv6')
  return list.check(host, isIP(host) === 4 ? 'ipv4' : 'ipv6')
}
