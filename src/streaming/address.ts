import { isIPv6 } from 'node:net'

/** What the listener binds: an empty address is loopback. */
export function bindAddress(address: string): string {
  return address === '' ? '127.0.0.1' : address
}

/** Whether only this machine can reach it. */
export function isLoopback(address: string): boolean {
  const plain = bindAddress(address).toLowerCase()
  return plain === 'localhost' || plain === '::1' || /^(::ffff:)?127(\.\d{1,3}){3}$/.test(plain)
}

/** The address as it is written in a URL. The kubelet is on this node: where all addresses are bound it gets loopback. */
export function urlHost(address: string, port: number): string {
  const bound = bindAddress(address)
  const host = bound === '0.0.0.0' ? '127.0.0.1' : bound === '::' ? '::1' : bound
  return isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`
}
