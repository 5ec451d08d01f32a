import { isIP } from 'node:net'
import { canonicalRegistry } from './image-ref.ts'
import type { Protocol } from './registry-host.ts'

/** Where requests go, out of what a person wrote. */
export interface HostAddress {
  readonly protocol: Protocol
  /** Host name and port, in lower case, without credentials. */
  readonly host: string
  /** The path as written, without a slash at its end: empty when there is none. */
  readonly path: string
  readonly hasCredentials: boolean
}

const hostPattern = /^(?:[\p{L}\p{N}](?:[\p{L}\p{N}._-]*[\p{L}\p{N}])?\.?|\[[0-9a-f:.]+\])(?::\d{1,5})?$/u

/** Reads `https://host:port/path`, or the same without a scheme. A string says what is wrong. */
export function parseHostUrl(text: string): HostAddress | string {
  const written = /^([A-Za-z][A-Za-z0-9+.-]*):\/\//.exec(text)?.[1]?.toLowerCase()
  if (written !== undefined && written !== 'http' && written !== 'https') return `scheme "${written}" is not supported: use https:// or http://`
  const authority = /^(?:[^/]*:\/\/)?([^/?#]*)/.exec(text)?.[1] ?? ''
  const almost = /^(https?)(?:\/\/|:\/(?!\/))/i.exec(text)?.[1]?.toLowerCase()
  if (almost !== undefined) return `${almost}:// is misspelt`
  if (/^\[[0-9a-f:.]+%[^\]]*\]/i.test(authority)) return 'an IPv6 address with a zone (%eth0) is not supported: give the host an address that is not link-local'
  const port = /:(\d+)$/.exec(authority)?.[1]
  if (port !== undefined && isIP(authority) !== 6 && Number(port) > 65_535) return `${port.slice(0, 20)} is not a port`
  if (isIP(authority) === 6) return `an IPv6 address is written in brackets: ${written ?? 'https'}://[${authority}]`
  let url: URL
  try {
    url = new URL(written === undefined ? `https://${text}` : text)
  } catch {
    return `it is not a URL such as https://mirror.example`
  }
  if (url.hostname === '') return 'it has no host name'
  const path = url.pathname.replace(/\/{2,}/g, '/').replace(/\/$/, '')
  // Not url.host, which drops a port that is the scheme's default: images are named with the port as written.
  const host = authority.slice(authority.lastIndexOf('@') + 1).toLowerCase()
  // URL forgives what others would not: backslashes, line breaks, slashes without end.
  if (!hostPattern.test(host)) return 'it is not a URL such as https://mirror.example'
  return { protocol: written ?? defaultProtocol(host), host, path, hasCredentials: authority.includes('@') }
}

/**
 * A URL or host that somebody wrote into a configuration, fit to be repeated: without user, password, query and fragment. Rather too little than a part
 * of a password with @, / or ? in it.
 */
export function withoutSecrets(text: string): string {
  return text.replace(/^([A-Za-z][A-Za-z0-9+.-]*:\/\/|\/\/)?.*@/s, '$1').replace(/[?#].*$/s, '')
}

/** Whether a host (with or without a port) is this machine: localhost, 127.0.0.0/8 or ::1. */
export function isLoopback(host: string): boolean {
  const name = hostName(host)
  return name === 'localhost' || name === '::1' || (isIP(name) === 4 && name.startsWith('127.'))
}

/** The host name of `name:port`, without the brackets of an IPv6 address. */
export function hostName(host: string): string {
  const bracketed = /^\[([^\]]*)\]/.exec(host)?.[1]
  return (bracketed ?? host.replace(/:\d+$/, '')).toLowerCase()
}

/** The port of `name:port`, undefined when none is written. */
export function portOf(host: string): number | undefined {
  const port = /:(\d+)$/.exec(host)?.[1]
  return port === undefined || (host.includes('[') && !host.includes(']:')) ? undefined : Number(port)
}

/** Whether `host` is the registry that images named `registry/…` come from. Port 443 may be written in either name where it is what is meant. */
export function isOwnRegistry(registry: string, host: string, protocol: Protocol): boolean {
  const name = (text: string): string => canonicalRegistry(protocol === 'https' ? text.replace(/:443$/, '') : text)
  return name(registry.toLowerCase()) === name(host)
}

/** How a registry is spoken to when nothing says so: HTTPS, and for this machine whichever of HTTPS and HTTP answers. */
export function defaultProtocol(host: string): Protocol {
  if (!isLoopback(host)) return 'https'
  const port = portOf(host)
  if (port === 80) return 'http'
  return port === 443 ? 'https' : 'https-or-http'
}

/** The host that serves a registry's API: Docker Hub's is not called docker.io. */
export function apiHost(registry: string): string {
  return registry === 'docker.io' ? 'registry-1.docker.io' : registry.toLowerCase()
}
